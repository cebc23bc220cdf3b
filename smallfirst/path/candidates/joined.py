"""A tagger and a language model together: one marks the fields that stand in the text, the other writes the rest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, cast

from smallfirst.data.dataset import Dataset
from smallfirst.measuring.calibration import calibrate_answers
from smallfirst.models.manifest import Manifest, write_manifest
from smallfirst.models.spans.joined import MEMBERS, JoinedModel
from smallfirst.path.candidates.blend import copy_members
from smallfirst.path.candidates.language_model import fine_tune, why_too_long
from smallfirst.path.candidates.tuned import TAGGER, field_plan
from smallfirst.path.project.candidates import Candidate
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.tasks.extract import Extract
from smallfirst.tasks.json.schema import SEPARATORS

if TYPE_CHECKING:
    from smallfirst.training.recipe import Recipe


class _TaggerAndSmall(Candidate):
    name = "tagger_small"
    title = "tagger + language model"
    explanation = "marks the fields that stand in the text and has a small language model write the others alone"
    size = 45
    is_language_model = True
    training_setting = "training"

    @property
    def folder(self) -> str:
        return f"{self.name}/model"

    def why_unsuitable(self, project: Project) -> str:
        """Return why there is nothing to share out between the two."""
        if not isinstance(project.task, Extract):
            return f"it reads fields of kind extract; this task is of kind {project.file.kind}"
        if why := why_too_long(project):
            return why
        marked, written = _shares(project)
        return "" if marked and written else "tagger does all" if marked else "no field stands in the texts"

    def fit(self, project: Project, run_folder: RunFolder) -> float:
        """Fine-tune both on their own fields, and calibrate the confidence of whole answers on selection rows."""
        from smallfirst.training.recipe import TaskRecipe

        small, target = project.file.small, run_folder.model_folder(self.name)
        marked, written = (_part(project, names) for names in _shares(project))
        run_name = f"{run_folder.path.name}-{self.name}"
        folders = [target.parent / name for name in MEMBERS]
        TAGGER.fine_tune(marked, TAGGER.recipe(marked), folders[0], f"{run_name}-{MEMBERS[0]}")
        recipe: Recipe = TaskRecipe(written.task, written.rows.train, written.rows.selection)
        run_name = f"{run_name}-{MEMBERS[1]}"
        fine_tune(written, recipe, small.training, base=small.base, folder=folders[1], run_name=run_name)
        return self._join(project, [folder / "model" for folder in folders], target)

    def _join(self, project: Project, folders: list[Path], target: Path) -> float:
        prints = copy_members(dict(zip(MEMBERS, folders, strict=True)), target)
        manifest = Manifest(kind="joined", task=project.task, base=project.file.small.base, weights_fingerprint=prints)
        write_manifest(target, manifest)
        rows = project.rows.selection.examples

        async def ask() -> list[tuple[str, list[float]]]:
            from smallfirst.models.loading import load_model

            model = cast(JoinedModel, load_model(target, price=project.file.prices.machine))
            try:
                return await model.answers([example.text for example in rows])
            finally:
                await model.aclose()

        score, manifest = calibrate_answers(manifest, rows, asyncio.run(ask()))
        write_manifest(target, manifest)
        project.progress.log(f"fitted {self.title}: {score:.3f} on selection rows")
        return score


def _shares(project: Project) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of the top-level fields that are marked, and of those that are written."""
    fields = field_plan(project).fields
    written = frozenset(field.way[0] for field in fields if field.how == "written")
    return frozenset(field.way[0] for field in fields) - written, written


def _part(project: Project, names: Collection[str]) -> Project:
    """Return the project of these fields alone."""
    task = cast(Extract, project.task)
    schema = {
        **task.json_schema,
        "properties": {name: node for name, node in task.json_schema["properties"].items() if name in names},
        "required": [name for name in task.json_schema.get("required", ()) if name in names],
    }
    own = {field.path for field in task.fields if field.way[0] in names}
    normalise = {path: how for path, how in task.normalise.items() if path in own}
    part = task.model_copy(update={"json_schema": schema, "normalise": normalise})

    def only(answer: str) -> str:
        fields = {name: value for name, value in json.loads(answer).items() if name in names}
        return json.dumps(fields, ensure_ascii=False, separators=SEPARATORS)

    def rows(data: Dataset) -> Dataset:
        changed = (
            example.model_copy(update={"answer": only(example.answer), "also": tuple(map(only, example.also))})
            for example in data.examples
        )
        return data.subset(data.name, tuple(changed))

    both = {"train": rows(project.rows.train), "selection": rows(project.rows.selection)}
    return project._replace(task=part, rows=project.rows.model_copy(update=both))


TAGGER_AND_SMALL = _TaggerAndSmall()
