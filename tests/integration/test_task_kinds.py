"""Every kind of task goes the whole path: rows in, a model that answers, figures of its kind, a report, a server."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fixtures.preflight import write_task

from smallfirst.base.errors import DataError, StageMissing
from smallfirst.base.paths import home
from smallfirst.base.progress import Progress, ProgressCallback
from smallfirst.deployment import service
from smallfirst.ledger.ledger import Ledger
from smallfirst.models.protocol import Completion, Request
from smallfirst.path import run as pipeline
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.project.task_file import TaskFile
from smallfirst.path.summary import RunSummary, format_summary
from smallfirst.registry import versions
from smallfirst.training.events import EventLog
from smallfirst.training.run import Run

pytestmark = pytest.mark.usefixtures("module_home")
ITEMS = ("card", "refund", "pin", "parcel", "envelope", "euro rate")
ASKED = "where is my card, number 3"


def rows(kind: str) -> list[dict[str, Any]]:
    """72 rows of one kind, no text twice."""
    frames = ("where is my {}, number {}", "the {} again, day {}", "help with a {} of {}")
    found: list[dict[str, Any]] = []
    for i in range(72):
        text, item = frames[i % 3].format(ITEMS[i % 6], i), ITEMS[i % 6]
        if kind == "extract":
            found.append({"text": text, "target": {"item": item, "n": i} if i % 4 else {"item": item}})
        elif kind == "answer":
            found.append({"question": text, "context": f"It is a {item}.", "answer": [item, f"a {item}"]})
        elif kind == "multiple":
            found.append({"text": text, "labels": [item] if i % 2 else [item, "late"]})
        elif kind == "classify":
            found.append({"text": text, "label": item})
        else:
            found.append({"prompt": text, "response": f"your {item}, please"})
    return found


def task_file(folder: Path, kind: str, base: Path, name: str = "", **settings: Any) -> TaskFile:
    values = {
        "name": name or f"{kind}-desk",
        "kind": "classify" if kind == "multiple" else kind,
        "small": {"base": str(base), "training": {"duration": "4ba", "learning_rate": 3e-3}},
        "register_to": f"main.tests.{name or kind}",
        "gate": {"accuracy_at_least": 0.0},
        **({"multiple": True} if kind == "multiple" else {}),
    }
    return write_task(folder, {"train": rows(kind)}, **(values | settings))


def served(file: TaskFile, *texts: str) -> list[Completion]:
    """What the task's model answers once it is deployed."""
    ledger = Ledger(home() / "ledger.db")
    models = service.deploy([file], ledger).models

    async def ask() -> list[Completion]:
        found = [await models[file.name].complete(Request.ask(text)) for text in texts]
        for model in models.values():
            await model.aclose()
        return found

    answers = asyncio.run(ask())
    ledger.close()
    return answers


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "classify": ("macro_f1", {"ladder": ["words", "small"], "routing": {"small": "small"}}),
    "multiple": ("micro_f1", {"ladder": ["small"]}),
    "extract": ("field_f1", {"ladder": ["small"], "max_answer_tokens": 24}),
    "answer": ("token_f1", {"ladder": ["small"], "max_answer_tokens": 12}),
    "chat": ("token_f1", {"max_answer_tokens": 12}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_goes_the_whole_path(kind: str, tmp_path: Path, tiny_folder: Path) -> None:
    measure, settings = KINDS[kind]
    file = task_file(tmp_path, kind, tiny_folder, **settings)
    outcome = pipeline.run(file, progress=Progress(quiet=True))
    assert list(outcome.paths) == [*settings.get("ladder", ["small"]), "routed"]  # linear candidates need labels
    assert measure in outcome.paths["small"].measures
    assert outcome.promoted is not None
    assert RunSummary.model_validate_json(outcome.model_dump_json()) == outcome
    assert f"promoted main.tests.{kind} version 1 @champion" in format_summary(outcome)
    [answer] = served(file, ASKED)  # by its gate alone: four rows certify nothing
    assert answer.answered_by == f"{file.name}-small@1"
    why = "answered without a promise: the model passed its gate alone, and no certificate was issued"
    assert (answer.route.certified, answer.route.why) == (False, why)
    if kind == "extract":  # valid, however little was learnt, unless its tokens ran out
        ended = answer.finish_reason == "stop"
        assert not ended or set(json.loads(answer.text)) <= {"item", "n"}
        assert ("item" in answer.field_confidence) == ended
        assert ended or answer.confidence == 0
    page = Path(outcome.report).read_text(encoding="utf-8")
    assert f"{file.name}: small model or large?" in page
    assert len(page) < 2_000_000


def test_a_tagger_serves_what_was_measured(tmp_path: Path, tiny_encoder_folder: Path) -> None:
    training = {"duration": "1ep", "learning_rate": 3e-3, "batch_tokens": 128, "max_seq_tokens": 64}
    small = {"encoder": str(tiny_encoder_folder), "encoder_training": training}
    file = task_file(tmp_path, "extract", tiny_encoder_folder, "claims", ladder=["tagger"], small=small)
    outcome = pipeline.run(file, progress=Progress(quiet=True))
    assert list(outcome.paths) == ["tagger", "routed"]
    assert outcome.promoted is not None  # which asks it over HTTP before it goes live
    measured = RunFolder.latest("claims").evaluation("tagger", "test").rows  # type: ignore[union-attr]
    for answer, row in zip(served(file, *(row.text for row in measured)), measured, strict=True):
        assert (answer.answered_by, answer.text) == ("claims-small@1", row.answer)
        assert set(answer.field_confidence) == {"item", "n"}
    assert versions.resolve("main.tests.claims@champion").version == 1


class Interrupting(Progress):
    """Presses Ctrl-C in the middle of the first bar."""

    @contextmanager
    def bar(self, label: str, total: float | None, unit: str = "rows") -> Iterator[ProgressCallback]:
        def press(done: float, of: float, words: str = "") -> None:
            if done > of / 2:
                raise KeyboardInterrupt

        yield press


def test_a_training_that_was_broken_off_is_gone_on_with(tmp_path: Path, tiny_folder: Path) -> None:
    file = task_file(tmp_path, "classify", tiny_folder, "broken", ladder=["small"])
    project = Project.read(file, Progress(quiet=True))
    with pytest.raises(StageMissing, match="broken has no interrupted run to resume"):
        pipeline.train_stage(project, resume=True)
    with pytest.raises(KeyboardInterrupt):
        pipeline.train_stage(project._replace(progress=Interrupting(quiet=True)))
    broken = RunFolder.unfinished("broken")
    run_folder = pipeline.train_stage(project, resume=True)
    assert run_folder.path == broken.path
    begun = [e for e in EventLog(broken.path / "events.jsonl").read() if e.kind == "CREATED"]
    assert [Run.load(broken.path / "run.json").run_id] == [e.values["run_id"] for e in begun]
    assert run_folder.is_fitted


def test_rows_that_check_refuses_are_told_before_anything_is_trained(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trained(Exception): ...

    def train(*_: object, **__: object) -> None:
        raise Trained

    monkeypatch.setattr(pipeline, "train_stage", train)
    data = {"train": "train.jsonl", "test": "train.jsonl"}
    leaking = task_file(tmp_path, "classify", tiny_folder, "leaking", data=data, ladder=["words"])
    with pytest.raises(DataError, match="60 of 72 test texts are also in train"):
        pipeline.run(leaking, progress=Progress())
    with pytest.raises(Trained):
        pipeline.run(leaking, progress=Progress(), despite_check=True)
    assert "check: NO" in capsys.readouterr().err
