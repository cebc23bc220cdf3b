"""Candidates: the kinds of small model that a run fits, measures and may promote.

A candidate is one object: its name, its place in the order of sizes, its description, how it is fitted into a run
folder and how it is loaded from there. To add one, subclass Candidate in a module of its own and register an instance
under the entry-point group "smallfirst.candidates" (or with CANDIDATES.register in this process). The stages, the
report and the command line iterate over the registry and name no candidate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from smallfirst.base.errors import ConfigError, SmallfirstError
from smallfirst.data.check import Finding, find_at
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import longest_text
from smallfirst.models.local.tokenizer import load_tokenizer
from smallfirst.path.project.candidate_registry import CANDIDATES as CANDIDATES
from smallfirst.path.project.candidate_registry import CandidateDescription, all_candidates
from smallfirst.path.project.languages import task_languages, unread_languages
from smallfirst.path.project.project import Project, load_small
from smallfirst.path.project.run_folder import RunFolder

if TYPE_CHECKING:
    from smallfirst.measuring.out_of_fold import FoldAnswers
    from smallfirst.models.protocol import Model

MAX_FOLD_ROWS = 1000
"""Training and selection rows together from which selection rows alone choose, and nothing is fitted in folds."""
ENOUGH_SELECTION_ROWS, MAX_QUICK_ROWS = 200, 3000
"""A ladder of linear models alone, fitted in seconds, is fitted in folds with fewer selection rows than the first, on
at most as many training rows as the second."""


class Candidate(CandidateDescription, ABC):
    """A kind of small model that a run can fit."""

    n_folds = 0
    """Where rows are few, in how many folds they are answered by models that were fitted without them; 0: never."""
    most_words = 0
    """Words of a text that it reads; 0: as many as there are, or as its encoder has tokens."""

    @abstractmethod
    def fit(self, project: Project, run_folder: RunFolder) -> float | None:
        """Fit the model on `project.rows.train` and write it to `run_folder.model_folder(self.name)`.

        Choose hyperparameters on `project.rows.selection` alone, and return the score on them, in [0, 1], if there is
        one: larger candidates that can gain little on it are not begun. With `n_folds`, few rows are fitted by `refit`.
        """

    def load(self, project: Project, run_folder: RunFolder) -> Model:
        """Return the fitted model, ready to answer, priced by the machine's time."""
        return load_small(project.file, run_folder.model_folder(self.name), name=f"{project.file.name}-{self.name}")

    def why_unsuitable(self, project: Project) -> str:
        """Return why it cannot be used for this task and its training rows, in a clause; empty if it can."""
        labels = project.task.answer_labels if self.several_labels else project.task.closed
        if self.closed_answers_only and not labels:
            return f"it needs a closed set of answers; this task of kind {project.file.kind} has none"
        return ""

    def findings(self, project: Project) -> Sequence[Finding]:
        """Return what `check` says of the rows for this candidate, whether it can be used or not.

        Of the encoders here, training texts that are longer than what they read, if their weights are there.
        """
        encoder, examples = self.encoder_name(project.file.small), project.rows.train.examples
        if not (encoder and self.closed_answers_only) or self.why_unsuitable(project):
            return ()
        try:
            folder = find_weights(encoder, download=False)
            n = longest_text(folder)
            long = [example for example in examples if len(example.text) > n]
            tokens = load_tokenizer(folder) if long else None
        except (SmallfirstError, OSError):
            return ()
        where = [one.place for one in long if tokens and len(tokens.encode(one.text, add_special_tokens=True)) > n]
        rule = "it judges a longer text by its beginning: put first what decides, or cut the texts"
        return tuple(find_at("note", f"training texts of more than the {n} tokens that {encoder} reads", rule, where))

    def minutes_to_fit(self, project: Project) -> float | None:
        """Return how long `fit` takes, where neither `encoder_setting` nor `training_setting` lets it be estimated."""
        return None

    def out_of_fold(self, project: Project, run_folder: RunFolder) -> FoldAnswers:
        """Return the answers to `project.rows.development` of models that were fitted on other folds.

        Those of the candidates that it combines are in the run folder.
        """
        raise NotImplementedError(f"{self.name} is not fitted in folds")

    def refit(self, project: Project, run_folder: RunFolder, folds: FoldAnswers) -> None:
        """Fit on `project.rows.development`; what `fit` chooses on selection rows comes from the folds."""
        raise NotImplementedError(f"{self.name} is not fitted in folds")


def get_candidate(name: str) -> Candidate:
    """Return the registered candidate of this name. Raise ConfigError if there is none."""
    return cast(Candidate, CANDIDATES.get(name))


def project_candidates(project: Project) -> tuple[Candidate, ...]:
    """Return the candidates on the ladder, the smallest first. Raise ConfigError if it names one that cannot be used.

    Without a ladder these are the ones measured by default that fit the task; ConfigError if none does.
    """
    ladder, named = project.file.ladder, named_candidates(project)
    unsuitable = {c.name: why for c in named if (why := c.why_unsuitable(project))}
    if unsuitable and ladder is not None:
        raise ConfigError(
            f"ladder: {'; '.join(f'{name}: {why}' for name, why in unsuitable.items())}",
            hint=f"leave it out of ladder in {project.file.folder / 'task.yaml'}; small suits every kind",
        )
    if unsuitable and len(unsuitable) == len(named):
        names = {why: [n for n, own in unsuitable.items() if own == why] for why in unsuitable.values()}
        reasons = "; ".join(f"{', '.join(same)}: {why}" for why, same in names.items())
        hint = "leave out the fields or rows that none can answer, then smallfirst check task.yaml"
        raise ConfigError(f"no candidate suits these rows: {reasons}", hint=hint)
    return tuple(candidate for candidate in named if candidate.name not in unsuitable)


def named_candidates(project: Project) -> tuple[Candidate, ...]:
    """Return the candidates on the ladder, or those that are tried without one, whether they fit the task or not."""
    file, ladder, every = project.file, project.file.ladder, cast(tuple[Candidate, ...], all_candidates())
    if ladder is not None:
        return tuple(c for c in every if c.name in ladder)
    asked = [c for c in every if c.asked_for(file)]
    return tuple(c for c in asked if not c.for_other_languages or _reads_another(project, c))


def _reads_another(project: Project, candidate: Candidate) -> bool:
    """Return True if requests come in another language than English that rows hold or the candidate reads."""
    return bool({*task_languages(project)} - {"en", *unread_languages(project, candidate)})


def fits_in_folds(project: Project) -> bool:
    """Return True if so few rows may choose that candidates are chosen by out-of-fold answers."""
    n_train, n_selection = len(project.rows.train), len(project.rows.selection)
    if n_train + n_selection < MAX_FOLD_ROWS:
        return True
    if n_selection >= ENOUGH_SELECTION_ROWS or n_train > MAX_QUICK_ROWS:
        return False
    return all(one.n_folds and not one.training_setting for one in project_candidates(project))


def fitted_candidates(project: Project, run_folder: RunFolder) -> tuple[Candidate, ...]:
    """Return the candidates that a run has fitted, the smallest first."""
    if (found := run_folder.fitted()) is None:
        return project_candidates(project)
    return tuple(cast(Candidate, c) for c in all_candidates() if c.name in found.fitted)
