"""A promoted model in Python, in scikit-learn's manners: `load("tickets@champion").predict("where is my card")`."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from smallfirst.base.errors import ConfigError
from smallfirst.base.paths import ledger_place, state_of
from smallfirst.base.sync import run_sync
from smallfirst.ledger.ledger import Ledger
from smallfirst.measuring.verdict import Verdict
from smallfirst.models.loading import load_model
from smallfirst.models.manifest import MANIFEST, read_manifest
from smallfirst.models.protocol import Completion, Model, Request, label_probability_model
from smallfirst.path.project.task_file import TaskFile, read_task_file, registry_name
from smallfirst.registry import versions
from smallfirst.registry.versions import ModelVersion
from smallfirst.tasks.task import Task

if TYPE_CHECKING:
    from numpy import ndarray

_REFERENCE = re.compile(r"(?P<task>.*?)(?P<version>@[\w-]+|/\d+)?", re.DOTALL)
_AT_ONCE = 64
"""Requests that wait for the model at a time."""


class Predictor:
    """A model of a task: answers in the task's own form, with or without an event loop.

    Every method takes one text or several (a list, a pandas column), and answers in kind. `predict` has the label of
    `classify` (a list of labels with `multiple`), the JSON value of `extract`, else the text; None where the model
    wrote nothing that the task can read.

    `plan` says how its version passed the gate. After `small first` a task's `model` is its Router, as at `smallfirst
    serve`: it asks the large model for what it does not keep, and `complete` says who answered, and why. Empty if the
    model is of no registered version.
    """

    def __init__(
        self, model: Model, task: Task, *, name: str = "", plan: str = "", router: Model | None = None,
        ledger: Ledger | None = None,
    ) -> None:  # fmt: skip
        """`router` answers in the place of `model`, which still gives the probabilities; `ledger` is closed with it."""
        self.task, self.name, self.plan = task, name or model.name, plan
        self.model, self._small, self._ledger = router or model, model, ledger

    @property
    def classes_(self) -> list[str]:
        """The labels, in the order of `predict_proba`'s columns. Raise AttributeError if the answers are not labels."""
        if not self.task.closed:
            raise AttributeError(f"{self.name} has no classes_: its answers are no closed set of labels")
        return [*self.task.closed]

    def predict(self, texts: str | Iterable[str]) -> Any:
        """Return the answer to a text, or a list of answers to several."""
        answers = [_value(self.task.parse(found.text), self.task) for found in self.complete(texts)]
        return answers[0] if isinstance(texts, str) else answers

    def predict_proba(self, texts: str | Iterable[str]) -> ndarray[Any, Any]:
        """Return calibrated probabilities, a row for each text and a column for each of `classes_`; for one text a row.

        Raise ConfigError if the model writes its answers instead of scoring labels.
        """
        import numpy as np

        scoring = label_probability_model(self._small)
        if scoring is None:
            raise ConfigError(
                f"{self.name} writes its answers and has no probability for each label",
                hint="predict gives the answers; complete gives each with its confidence",
            )
        asked = [texts] if isinstance(texts, str) else [*texts]
        found = run_sync(scoring.probabilities(asked))
        probabilities = np.array([one.probabilities for one in found]).reshape(len(asked), len(self.classes_))
        return probabilities[0] if isinstance(texts, str) else probabilities

    def complete(self, texts: str | Iterable[str]) -> list[Completion]:
        """Return the whole answers, one for each text: with confidence, tokens, price and time."""
        places = asyncio.Semaphore(_AT_ONCE)

        async def ask(text: str) -> Completion:
            async with places:
                return await self.model.complete(Request.ask(text, max_tokens=self.task.max_answer_tokens))

        async def ask_all() -> list[Completion]:
            return await asyncio.gather(*map(ask, [texts] if isinstance(texts, str) else texts))

        return run_sync(ask_all())

    def score(self, texts: Iterable[str], answers: Sequence[Any]) -> float:
        """Return the share of texts whose answer is right by the task's own rule; for labels, the accuracy."""
        completions = self.complete(texts)
        if len(completions) != len(answers):
            raise ConfigError(f"{len(completions):,} texts and {len(answers):,} answers: there must be one each")
        n_right = 0
        for found, answer in zip(completions, answers, strict=True):
            gold = self.task.parse(_text(answer)) or _text(answer)
            n_right += self.task.score([gold], self.task.parse(found.text)) >= self.task.pass_score
        return n_right / max(1, len(completions))

    def close(self) -> None:
        """Free the model's threads and processes."""
        run_sync(self.model.aclose())
        if self._ledger is not None:
            self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        labels = f", {len(self.task.closed)} classes" if self.task.closed else ""
        with_router = "without" if self.model is self._small else "with"
        plan = f", small first: {with_router} its Router" if self.plan == "small first" else ""
        return f"Predictor({self.name!r}, {self.task.kind}{labels}{plan})"


def load(model: str | Path | TaskFile | ModelVersion) -> Predictor:
    """Return a promoted model, ready to predict.

    `model` is a task (task.yaml, its folder or a TaskFile), its name, a three-level model name, each with `@champion`
    (the default), another alias or `/3` for a version; or the folder of a model, or what `resolve` returned. Of a
    `small first` task it is the Router, which needs the task's rows and, to ask it, the large model. Raise
    RegistryError if there is no such version, or if its files are not the registered ones.
    """
    if isinstance(model, ModelVersion):
        return _predictor(model.folder, f"{model.name}/{model.version}", plan=_plan(model))
    if not isinstance(model, TaskFile) and (Path(model) / MANIFEST).is_file():
        return _predictor(Path(model), Path(model).name)
    file, reference = _find(model)
    with state_of(file.folder if file else Path()):
        version = versions.resolve(reference)
        name = file.name if file else version.name
        if file and _plan(version) == "small first":
            return _with_router(file, version)
        return _predictor(version.folder, f"{name}/{version.version}", file, plan=_plan(version))


def _find(model: str | Path | TaskFile) -> tuple[TaskFile | None, str]:
    """Return the task, if there is one here, and the reference into the registry of its state folder."""
    if isinstance(model, TaskFile):
        return model, model.register_to
    found = _REFERENCE.fullmatch(str(model).strip())
    assert found is not None  # everything is a task without a version
    task, version = found["task"], found["version"] or ""
    here = Path("task.yaml")
    if Path(task).is_dir() or Path(task).is_file():
        file = read_task_file(task)
    elif here.is_file() and (own := read_task_file(here)).name == task:
        file = own
    else:
        name = task if task.removeprefix("models:/").count(".") == 2 else registry_name(task)
        return None, f"{name}{version}"
    return file, f"{file.register_to}{version}"


def _predictor(folder: Path, name: str, file: TaskFile | None = None, *, plan: str = "") -> Predictor:
    price = file.prices.machine if file else None
    return Predictor(load_model(folder, name=name, price=price), read_manifest(folder).task, name=name, plan=plan)


def _with_router(file: TaskFile, version: ModelVersion) -> Predictor:
    from smallfirst.deployment.task_deployment import TaskDeployment

    ledger = Ledger(ledger_place(create=True))
    deployment = TaskDeployment(file, ledger)
    wanted = deployment.target_versions()._replace(champion=version.version)
    router, task = deployment.load(wanted).router, read_manifest(version.folder).task
    small, name = router.router.stages[-1].model, f"{file.name}/{version.version}"
    return Predictor(small, task, name=name, plan="small first", router=router, ledger=ledger)


def _plan(version: ModelVersion) -> str:
    """Return the plan that the version's verdict is about: `small alone` or `small first`; empty without a verdict."""
    verdict = version.tags.get("verdict")
    return Verdict.model_validate_json(verdict).plan if verdict else ""


def _value(answer: str | None, task: Task) -> Any:
    """Return an answer in canonical form as Python's own value: JSON is read."""
    is_json = task.answer_schema() is not None
    return json.loads(answer) if answer is not None and is_json else answer


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
