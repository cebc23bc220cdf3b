"""A task with registered, certified versions of the tiny model: each version answers every text differently."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from smallfirst import registry
from smallfirst.data.dataset import Dataset
from smallfirst.gate import GateLine, Verdict
from smallfirst.home import home
from smallfirst.models.manifest import Manifest, write_manifest
from smallfirst.routing.certificate import Certificate
from smallfirst.stats import Estimate
from smallfirst.taskfile import TaskFile, read_taskfile
from smallfirst.tasks.classify import Classify
from smallfirst.tracking import client
from smallfirst.workspace import Workspace

NAME = "main.desk.toy"
PASSED = Verdict(
    candidate="small",
    lines=(GateLine(bar="accuracy at least 0.1", measured="0.5 n=48", passed=True),),
    passed=True,
    evaluation_fingerprint="e1",
)


class Desk(NamedTuple):
    """A task.yaml, and what makes versions for it."""

    path: Path
    tiny: Path
    task: Classify

    @property
    def file(self) -> TaskFile:
        return read_taskfile(self.path)

    def folder(self, turn: int, **manifest: Any) -> Path:
        """A model folder whose label codes are turned by so many places: all its answers move on by so many labels."""
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(self.tiny)
        ids = [tokenizer.encode(f" {word}", add_special_tokens=False)[0] for word in "ABCD"]
        made = self.path.parent / f"model-{turn}-{len(list(self.path.parent.glob('model-*')))}"
        shutil.copytree(self.tiny, made)
        values = {"kind": "codes", "task": self.task, "base": "tiny", "codes": tuple(ids[turn:] + ids[:turn])}
        write_manifest(made, Manifest.model_validate({**values, **manifest}))
        return made

    def register(self, turn: int, *, certified: bool = True, **manifest: Any) -> int:
        """The number of a new version, with a run of its own; not live yet."""
        workspace = Workspace.new("toy")
        (workspace.folder / "run.json").write_text("{}", encoding="utf-8")
        version = self.enter(self.folder(turn, **manifest), run=workspace.folder.name).version
        if certified:
            self.certify(version)
        return version

    def enter(self, folder: Path, *, run: str) -> registry.ModelVersion:
        """A model folder in the registry, as made in a run."""
        return registry.register(folder, PASSED, name=NAME, run_id=None, tags={"run": run})

    def certify(self, version: int) -> None:
        """A certificate that keeps every answer of the version."""
        certificate = Certificate(
            issued=True,
            why="kept answers are wrong at most 5 % of the time",
            promised_error=0.05,
            confidence=0.95,
            threshold=0.0,
            n_labels=400,
            n_kept=400,
            errors_kept=2,
            error_bound=0.02,
            coverage=Estimate(value=1.0, low=0.99, high=1.0, n=400),
            below="keep",
            below_why="there is no large model",
            below_difference=None,
            temperature=1.0,
            curve=(),
            model_fingerprint=f"weights of {version}",
            dataset_fingerprint="d",
        )
        registry.attach(NAME, version, "certificate.json", certificate.model_dump_json().encode())


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its tables made, to be copied: making them takes seconds on a busy machine."""
    folder = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALLFIRST_HOME", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        client().search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def desk(
    tmp_path: Path, empty_store: Path, tiny_folder: Path, toy_task: Classify, toy_rows: Dataset, toy_selection: Dataset
) -> Desk:
    """The toy task without a large model; nothing is registered yet."""
    shutil.copy(empty_store, home())
    parts = {"train": toy_rows, "validation": toy_selection, "test": toy_selection}
    for part, rows in parts.items():
        lines = [json.dumps({"text": f"{e.text} {part}", "label": e.answer}) for e in rows.examples]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    settings = {
        "name": "toy",
        "labels": list(toy_task.labels),
        "data": {part: f"{part}.jsonl" for part in parts},
        "register_to": NAME,
        "routing": {"domain": "off"},
    }
    path = tmp_path / "task.yaml"
    path.write_text(json.dumps(settings), encoding="utf-8")
    return Desk(path, tiny_folder, toy_task)
