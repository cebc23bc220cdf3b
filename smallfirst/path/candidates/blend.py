"""A blend of the run's other candidates for one label: their probabilities mixed, at their summed price."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import special

from smallfirst.base.errors import NothingGained
from smallfirst.measuring.calibration import fit_temperature
from smallfirst.measuring.out_of_fold import IMPOSSIBLE, FoldAnswers, RawAnswer, folds_of
from smallfirst.models.linear import blend
from smallfirst.models.linear.blend import MEMBERS_FOLDER, label_scores, log_probabilities, mix
from smallfirst.models.linear.classifier import gold_labels
from smallfirst.models.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from smallfirst.path.project.candidate_registry import all_candidates
from smallfirst.path.project.candidates import Candidate, get_candidate
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder

FOLDS = 5
"""Parts of the rows, each mixed by weights that were chosen on the others."""


class Blend(Candidate):
    """A weighted geometric mean of the label probabilities of at most three candidates that are no language models."""

    name = "blend"
    title = "blend of candidates"
    explanation = "asks several of the other small models and mixes what they hold likely"
    size = 35
    measured_by_default = True
    closed_answers_only = True
    combines = True
    n_folds = FOLDS

    def fit(self, project: Project, run_folder: RunFolder) -> float:
        """Choose members, weights and temperature on selection rows, and copy the members' folders.

        Raise NothingGained if no blend is better there than its best member.
        """
        selection = project.rows.selection
        texts = [example.text for example in selection.examples]
        there = [name for name in _quick() if (run_folder.model_folder(name) / MANIFEST).is_file()]
        _refuse_too_few(there if texts else ())

        async def ask(name: str) -> np.ndarray:
            model = get_candidate(name).load(project, run_folder)
            try:
                return log_probabilities(await label_scores(model, texts))
            finally:
                await model.aclose()

        of_members = {name: asyncio.run(ask(name)) for name in there}
        gold = gold_labels([example.answer for example in selection.examples], project.task)
        weights = _weights(of_members, gold, "on selection rows")
        mixed = mix([of_members[name] for name in weights], list(weights.values()))
        temperature = fit_temperature(mixed, gold)
        self._write(project, run_folder, weights, temperature)
        accuracy = float((mixed.argmax(axis=1) == gold).mean())
        project.progress.log(f"fitted {self.title}: {_in_words(weights)}; {accuracy:.3f} on selection rows")
        return accuracy

    def out_of_fold(self, project: Project, run_folder: RunFolder) -> FoldAnswers:
        """Mix the members' out-of-fold answers, those of a fold by weights that were chosen on the other folds.

        Raise NothingGained if no blend is better than its best member.
        """
        rows, task = project.rows.development, project.task
        found = {name: folds for name in _quick() if (folds := run_folder.folds(name)) is not None}
        _refuse_too_few(tuple(found))
        raw = {name: folds.log_probabilities() for name, folds in found.items()}
        of_members = {
            name: special.log_softmax(raw[name] / folds.manifest.temperature, axis=1) for name, folds in found.items()
        }
        gold = gold_labels([example.answer for example in rows.examples], task)
        each = np.arange(len(gold))
        known = np.all([logs[each, gold] > IMPOSSIBLE for logs in raw.values()], axis=0)

        def chosen(at: np.ndarray) -> dict[str, float]:
            at = at[known[at]]
            return _weights({name: logs[at] for name, logs in of_members.items()}, gold[at], "out of fold")

        weights = chosen(each)
        mixed = np.empty_like(next(iter(of_members.values())))
        parts = folds_of(rows, FOLDS)
        for fold in parts:
            try:
                own = chosen(np.setdiff1d(each, fold.at))
            except NothingGained:
                own = weights
            at = np.array(fold.at)
            mixed[at] = mix([of_members[name][at] for name in own], list(own.values()))
        mixed[each[~known], gold[~known]] = 2 * IMPOSSIBLE  # no member of these folds could know the label
        answers = [RawAnswer(nats=tuple(nats)) for nats in mixed.round(5).tolist()]
        manifest = Manifest(kind="blend", task=task, base="", member_weights=weights)
        return FoldAnswers.fit(answers, rows, manifest, len(parts))

    def refit(self, project: Project, run_folder: RunFolder, folds: FoldAnswers) -> None:
        """Copy the members' folders, which were fitted on all rows."""
        weights = folds.manifest.member_weights
        self._write(project, run_folder, weights, folds.manifest.temperature)
        project.progress.log(f"fitted {self.title}: {_in_words(weights)}")

    def _write(self, project: Project, run_folder: RunFolder, weights: dict[str, float], temperature: float) -> None:
        target = run_folder.model_folder(self.name)
        prints = copy_members({name: run_folder.model_folder(name) for name in weights}, target)
        manifest = Manifest(
            kind="blend",
            task=project.task,
            base="",
            member_weights=weights,
            temperature=temperature,
            weights_fingerprint=prints,
        )
        write_manifest(target, manifest)


def _quick() -> list[str]:
    return [c.name for c in all_candidates() if c.closed_answers_only and not (c.is_language_model or c.combines)]


def _refuse_too_few(members: Sequence[str]) -> None:
    if len(members) < 2:
        raise NothingGained("a blend needs two other candidates for labels, and selection rows")


def _weights(of_members: Mapping[str, np.ndarray], gold: np.ndarray, where: str) -> dict[str, float]:
    weights = blend.choose_weights(of_members, gold)
    if len(weights) == 1:
        raise NothingGained(f"no blend is better {where} than {next(iter(weights))} alone")
    return weights


def _in_words(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{weight:.0%} {name}" for name, weight in weights.items())


def copy_members(folders: Mapping[str, Path], target: Path) -> str:
    """Put the members' folders, by name, in place of what is in `target`; return their fingerprints."""
    shutil.rmtree(target, ignore_errors=True)
    for name, folder in folders.items():
        shutil.copytree(folder, target / MEMBERS_FOLDER / name, copy_function=_link)
    return "-".join(read_manifest(folder).weights_fingerprint for folder in folders.values())


def _link(source: str, target: str) -> None:
    """Link a file that nobody changes any more; copy it where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


BLEND = Blend()
