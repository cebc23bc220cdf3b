"""Sentence encoders after fine-tuning: with a linear head, or to mark fields or an answer in the text.

Each is tracked in an MLflow run of its own.
"""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Literal, cast

from smallfirst.base.errors import NothingGained
from smallfirst.base.stats.intervals import paired_difference
from smallfirst.data.check import Finding, make_finding
from smallfirst.data.dataset import Dataset, sample_rows
from smallfirst.measuring.evaluate import score_row
from smallfirst.measuring.out_of_fold import FoldAnswers, folds_of
from smallfirst.models.catalog import find_weights
from smallfirst.models.manifest import read_manifest
from smallfirst.models.spans.passages import EXCERPT_WORDS, learn_reading
from smallfirst.models.spans.plan import AnswerPlan
from smallfirst.path.candidates.language_model import fine_tune as fine_tune_base
from smallfirst.path.candidates.linear import LinearCandidate, calibrate, choose_precision, finish_refit
from smallfirst.path.project.candidates import Candidate, fitted_candidates
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import FOLDS, RunFolder
from smallfirst.tasks.answer import Answer, split_context
from smallfirst.tasks.extract import Extract

if TYPE_CHECKING:
    from smallfirst.training.encoders import EncoderRecipeLike
    from smallfirst.training.recipe import Recipe
    from smallfirst.training.run import Run

MAX_ROWS = 1000
"""Training rows from which is judged whether values stand in the texts; every stage of a run asks."""
MIN_SHARE = 0.9
"""Least share of the answers that stand in their context."""

FROZEN_SHARE = 1 / 3
"""Of the layers, where few rows teach labels. On 600 tickets of 14 desks the other four of MiniLM's six are as often
right out of fold (0.783 and 0.782), in six tenths of the time, and the upper three are not (0.767)."""
FEWER_ROWS = 0.01
"""Accuracy that a fine-tune may lose in a fold since it learns there from two thirds of the rows, a linear model from
four fifths."""

_PLANS: dict[tuple[str, str], AnswerPlan] = {}
"""By the task and the fingerprint of its rows."""
EXACT = 0.95
"""Share of a field's values that come back as the rows write them, below which `check` says so."""


class TunedEncoder(Candidate):
    """A sentence encoder after fine-tuning."""

    size = 30
    measured_by_default = True
    encoder_setting: Literal["", "encoder", "larger_encoder", "multilingual_encoder"] = "encoder"
    training_setting = "encoder_training"
    n_folds = 3

    @property
    def folder(self) -> str:
        return f"{self.name}/model"

    @abstractmethod
    def recipe(self, project: Project) -> EncoderRecipeLike:
        """Return what it learns from."""

    def fit(self, project: Project, run_folder: RunFolder) -> float:
        """Fine-tune on the training rows and keep the epoch that the selection rows choose."""
        folder = run_folder.model_folder(self.name)
        name = f"{run_folder.path.name}-{self.name}"
        run = self.fine_tune(project, self.recipe(project), folder.parent, name, few=False)
        self.finish(project, folder)
        return run.best_score

    def out_of_fold(self, project: Project, run_folder: RunFolder) -> FoldAnswers:
        """Fine-tune once for each fold; a fold that was finished before an interruption is not trained again.

        Raise NothingGained once the folds so far show that it will not win.
        """
        from smallfirst.training.encoders import FoldRecipe, ReadFold, join_folds

        rows, place = project.rows.development, run_folder.path / FOLDS / self.name
        folds, read, precision = folds_of(rows, self.n_folds), [], None
        for number, fold in enumerate(folds, 1):
            done = place / f"{number}.json"
            if not done.is_file():
                shutil.rmtree(place / "training", ignore_errors=True)
                recipe = FoldRecipe(self.recipe(_with(project, fold.rest, fold.held)))
                label = f"{self.name}, fold {number} of {len(folds)}"
                self.fine_tune(project, recipe, place / "training", "", label=label, judged_by="on its fold")
                checked = choose_precision(project, place / "training" / "model", fold.held) if number == 1 else None
                recipe.found.model_copy(update={"int8": checked}).save(done)
            read.append(ReadFold.load(done))
            precision = precision or read[-1].int8
            shutil.rmtree(place / "training", ignore_errors=True)
            answers, curve = join_folds(folds[:number], read)
            answered = rows.subset("answered so far", tuple(rows.examples[i] for i in answers))
            found = FoldAnswers.fit(
                list(answers.values()),
                answered if number < len(folds) else rows,
                read[0].manifest,
                len(folds),
                curve=curve,
                int8=precision,
            )
            if number < len(folds):
                self._require_a_chance(project, run_folder, found, answered)
        return found

    def _require_a_chance(self, project: Project, run_folder: RunFolder, found: FoldAnswers, rows: Dataset) -> None:
        """Raise NothingGained if this will not go live.

        That is if a linear candidate, without an encoder or on the same one, is clearly better, or if a smaller
        encoder's fine-tune is clearly right as often, but for what the choice would give up for a lower cost.
        """
        routing = project.file.routing
        given_up = routing.accuracy_within if routing.usd_per_wrong_answer is None else 0.0
        place = {example.key: i for i, example in enumerate(project.rows.development.examples)}

        def scores(name: str, answers: FoldAnswers, at: Sequence[int]) -> list[float]:
            given = answers.completions(name)
            return [
                score_row(example, given[i], project.task, name).score
                for example, i in zip(rows.examples, at, strict=True)
            ]

        own = scores(self.name, found, range(len(rows)))
        for other in fitted_candidates(project, run_folder):
            if isinstance(other, LinearCandidate) and other.encoder_setting in ("", self.encoder_setting):
                lead = FEWER_ROWS
            elif isinstance(other, TunedEncoder) and other.size < self.size:
                lead = -given_up
            else:
                continue
            answers = run_folder.folds(other.name) if project.file.goes_live != self.name else None
            if answers is None or answers.dataset_fingerprint != project.rows.development.content_fingerprint:
                continue
            theirs = scores(other.name, answers, [place[example.key] for example in rows.examples])
            if paired_difference(theirs, own, confidence=0.8).low > lead:
                raise NothingGained(
                    f"it is right on {fmean(own):.3f} of the first {len(rows)} rows answered out of fold, "
                    f"{other.name} on {fmean(theirs):.3f}"
                )

    def refit(self, project: Project, run_folder: RunFolder, folds: FoldAnswers) -> None:
        """Fine-tune on training and selection rows up to the epoch that was best out of fold."""
        from smallfirst.training.encoders import RefitRecipe

        folder, in_time = run_folder.model_folder(self.name), project.on_epoch
        shutil.rmtree(folder.parent, ignore_errors=True)  # a run that was interrupted begins this anew
        project = _with(project, project.rows.development, project.rows.selection)
        project = project._replace(on_epoch=lambda epoch, score: epoch >= folds.best_epoch or in_time(epoch, score))
        name = f"{run_folder.path.name}-{self.name}"
        recipe = RefitRecipe(self.recipe(project), folds)
        self.fine_tune(project, recipe, folder.parent, name, judged_by="out of fold")
        self.finish_refit(project, folder, folds)

    def fine_tune(
        self, project: Project, recipe: Recipe, folder: Path, run_name: str, *, few: bool = True, **words: str
    ) -> Run:
        from smallfirst.training.encoders import suited_to

        base = self.encoder_name(project.file.small)
        frozen = FROZEN_SHARE if few and self.closed_answers_only else 0.0
        weights = find_weights(base, log=project.progress.log)
        config = suited_to(project.file.small.encoder_training, weights, frozen_share=frozen)
        return fine_tune_base(project, recipe, config, base=base, folder=folder, run_name=run_name, **words)

    def finish(self, project: Project, folder: Path) -> None:
        """Complete the model in `folder`, fitted on training rows."""

    def finish_refit(self, project: Project, folder: Path, folds: FoldAnswers) -> None:
        """Complete the model in `folder`, fitted on training and selection rows."""


def field_plan(project: Project) -> AnswerPlan:
    """Return how each field of the task's answers is found, learned from the training rows."""
    task, train = cast(Extract, project.task), project.rows.train
    key = (task.model_dump_json(), train.content_fingerprint)
    if key not in _PLANS:
        _PLANS[key] = learn_reading(task, sample_rows(train, MAX_ROWS).examples).plan
    return _PLANS[key]


def _with(project: Project, train: Dataset, selection: Dataset) -> Project:
    return project._replace(rows=project.rows.model_copy(update={"train": train, "selection": selection}))


class _Tuned(TunedEncoder):
    name = "tuned"
    title = "fine-tuned sentence embeddings"
    explanation = "as sentence embeddings + linear, with the small model trained further on your rows"
    closed_answers_only = True
    several_labels = True

    def recipe(self, project: Project) -> EncoderRecipeLike:
        from smallfirst.training.encoders import EncoderRecipe

        return EncoderRecipe(project.task, project.rows.train, project.rows.selection)

    def finish(self, project: Project, folder: Path) -> None:
        from smallfirst.models.linear.classifier import LinearClassifier

        choose_precision(project, folder)
        if getattr(project.task, "other", None) is not None:
            manifest = read_manifest(folder)
            calibrate(project, LinearClassifier.load(folder, manifest), manifest, folder)

    def finish_refit(self, project: Project, folder: Path, folds: FoldAnswers) -> None:
        from smallfirst.models.linear.classifier import LinearClassifier

        manifest = read_manifest(folder)
        finish_refit(LinearClassifier.load(folder, manifest), project.rows.train, manifest, folds, folder)


class _LargerTuned(_Tuned):
    name = "larger_tuned"
    title = "larger fine-tuned sentence embeddings"
    explanation = "as fine-tuned sentence embeddings, with a published model of five times the size"
    size = 32
    encoder_setting = "larger_encoder"


class _Tagger(TunedEncoder):
    name = "tagger"
    most_words = EXCERPT_WORDS
    title = "tagger"
    explanation = (
        "marks the words that each field holds; writes nothing, so it is many times faster than a language model"
    )

    def why_unsuitable(self, project: Project) -> str:
        """Return why the fields cannot be marked; found out from the training rows."""
        if not isinstance(project.task, Extract):
            return f"it marks fields of kind extract; this task is of kind {project.file.kind}"
        why = field_plan(project).why
        return f"{why}: that needs writing, which small and tagger_small do" if why else ""

    def findings(self, project: Project) -> Sequence[Finding]:
        """Return which fields have to be written, and which are written otherwise than they stand in the texts."""
        fields = field_plan(project).fields if isinstance(project.task, Extract) else ()
        written = "; ".join(dict.fromkeys(field.why for field in fields if field.how == "written"))
        rule = "an encoder gives every other field: `ladder: [tagger_small]`; without these fields it answers alone"
        what = f"a language model has to write what does not stand in the texts: {written}"
        found = [make_finding("note", what, rule)] * bool(written)
        for field in fields:
            if field.how == "span" and field.exact < EXACT:
                what = f"{100 * (1 - field.exact):.0f} % of the values of `{field.path}` differ from their texts in"
                rule = f"`normalise: {{{field.path}: words}}` compares letters and digits alone"
                found.append(make_finding("note", f"{what} punctuation, case or white space", rule))
        return found

    def recipe(self, project: Project) -> EncoderRecipeLike:
        from smallfirst.training.marking import TaggingRecipe

        return TaggingRecipe(cast(Extract, project.task), project.rows.train, project.rows.selection)


class _Reader(TunedEncoder):
    name = "reader"
    title = "answer marked in the context"
    explanation = "marks the words of the context that answer the question, or says that none do; it writes nothing"

    def why_unsuitable(self, project: Project) -> str:
        """Return why it cannot be used: another kind of task, or answers that do not stand in their contexts."""
        from smallfirst.models.spans.values import answer_places

        task = project.task
        if not isinstance(task, Answer) or task.choices:
            other = "has a closed set of answers" if project.task.closed else f"is of kind {project.file.kind}"
            return f"it marks answers to questions in their contexts; this task {other}"
        rows = sample_rows(project.rows.train, MAX_ROWS).examples
        answered = [e for e in rows if any(not task.abstains(gold) for gold in e.golds)]
        without = sum(not split_context(e.text)[0] for e in rows)
        if without > (1 - MIN_SHARE) * len(rows):
            return f"it marks answers in a context; {without} of {len(rows)} training rows have none"
        inside = sum(any(answer_places(gold, split_context(e.text)[0]) for gold in e.golds) for e in answered)
        if answered and inside >= MIN_SHARE * len(answered):
            return ""
        return (
            f"it marks answers in their contexts; {inside / max(1, len(answered)):.0%} of {len(answered)} training "
            f"answers stand there word for word, at least {MIN_SHARE:.0%} must"
        )

    def recipe(self, project: Project) -> EncoderRecipeLike:
        from smallfirst.training.marking import ReadingRecipe

        return ReadingRecipe(cast(Answer, project.task), project.rows.train, project.rows.selection)


TUNED, LARGER_TUNED, TAGGER, READER = _Tuned(), _LargerTuned(), _Tagger(), _Reader()
