"""A blend of the run's other candidates for one label: their probabilities mixed, at their summed price."""

from __future__ import annotations

import asyncio
import os
import shutil

import numpy as np

from smallfirst.errors import NothingGained
from smallfirst.project.candidate_registry import all_candidates
from smallfirst.project.candidates import Candidate, get_candidate
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder


class Blend(Candidate):
    """A weighted geometric mean of the label probabilities of at most three candidates that are no language models."""

    name = "blend"
    title = "blend of candidates"
    role = "a blend of smaller models"
    explanation = "asks several of the other small models and mixes what they hold likely"
    headline = "A blend of small models is good enough."
    size = 35
    closed_answers_only = True
    combines = True

    def fit(self, project: Project, run_folder: RunFolder) -> None:
        """Choose members, weights and temperature on selection rows, and copy the members' folders.

        Raise NothingGained if no blend is better there than its best member.
        """
        from smallfirst.evaluation.calibration import fit_temperature
        from smallfirst.models.linear.blend import MEMBERS_FOLDER, choose_weights, label_scores, log_probabilities, mix
        from smallfirst.models.linear.classifier import gold_labels
        from smallfirst.models.manifest import MANIFEST, Manifest, read_manifest, write_manifest

        selection, task = project.rows.selection, project.task
        texts = [example.text for example in selection.examples]
        quick = [c.name for c in all_candidates() if c.closed_answers_only and not (c.is_language_model or c.combines)]
        folders = {name: run_folder.model_folder(name) for name in quick}
        folders = {name: folder for name, folder in folders.items() if (folder / MANIFEST).is_file()}
        if len(folders) < 2 or not texts:
            raise NothingGained("a blend needs two other candidates for labels, and selection rows")

        async def ask(name: str) -> np.ndarray:
            model = get_candidate(name).load(project, run_folder)
            try:
                return log_probabilities(await label_scores(model, texts))
            finally:
                await model.aclose()

        of_members = {name: asyncio.run(ask(name)) for name in folders}
        gold = gold_labels([example.answer for example in selection.examples], task)
        weights = choose_weights(of_members, gold)
        if len(weights) == 1:
            raise NothingGained(f"no blend is better on selection rows than {next(iter(weights))} alone")
        mixed = mix([of_members[name] for name in weights], list(weights.values()))
        target = run_folder.model_folder(self.name)
        shutil.rmtree(target, ignore_errors=True)
        for name in weights:
            shutil.copytree(folders[name], target / MEMBERS_FOLDER / name, copy_function=_link)
        manifest = Manifest(
            kind="blend",
            task=task,
            base="",
            member_weights=weights,
            temperature=fit_temperature(mixed, gold),
            weights_fingerprint="-".join(read_manifest(folders[name]).weights_fingerprint for name in weights),
        )
        write_manifest(target, manifest)
        words = ", ".join(f"{weight:.0%} {name}" for name, weight in weights.items())
        accuracy = float((mixed.argmax(axis=1) == gold).mean())
        project.progress.log(f"fitted {self.title}: {words}; {accuracy:.3f} on selection rows")


def _link(source: str, target: str) -> None:
    """Link a file that nobody changes any more; copy it where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


BLEND = Blend()
