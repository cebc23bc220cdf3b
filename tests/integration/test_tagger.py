"""A tagger from rows to a served model: fitted, judged, compared with itself over HTTP, deployed."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path

from smallfirst.base.paths import home
from smallfirst.base.progress import Progress
from smallfirst.deployment import service
from smallfirst.ledger.ledger import Ledger
from smallfirst.models.protocol import Completion, Request
from smallfirst.path import run as pipeline
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.project.task_file import TaskFile, read_task_file

THINGS = ("card", "envelope", "parcel", "refund", "pin", "passcode", "currency", "exchange")


def write(folder: Path, encoder: Path) -> TaskFile:
    """A task of two fields whose values stand in the texts; 216 rows."""
    rows = []
    for thing, state, count in itertools.product(THINGS, ("gone", "slow", "late"), (None, *range(2, 10))):
        text = f"my {thing} is {state} {f'{count} times' if count else 'again'} please"
        rows.append({"text": text, "target": {"thing": thing} | ({"count": count} if count else {})})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    training = {"duration": "1ep", "learning_rate": 3e-3, "batch_tokens": 128, "max_seq_tokens": 64}
    file = {
        "name": "claims",
        "kind": "extract",
        "data": {"train": "train.jsonl"},
        "ladder": ["tagger"],
        "small": {"encoder": str(encoder), "encoder_training": training},
        "gate": {"accuracy_at_least": 0.0},
        "register_to": "main.tests.claims",
    }
    (folder / "task.yaml").write_text(json.dumps(file), encoding="utf-8")
    return read_task_file(folder / "task.yaml")


def test_a_tagger_goes_the_whole_path_and_serves_what_was_measured(tmp_path: Path, tiny_encoder_folder: Path) -> None:
    file = write(tmp_path, tiny_encoder_folder)
    outcome = pipeline.run(file, progress=Progress(quiet=True))
    assert list(outcome.paths) == ["tagger", "routed"]
    assert outcome.promoted is not None  # which asks it over HTTP before it goes live
    measured = RunFolder.latest("claims").evaluation("tagger", "test").rows  # type: ignore[union-attr]
    ledger = Ledger(home() / "ledger.db")
    model = service.deploy([file], ledger).models["claims"]

    async def ask() -> list[Completion]:
        return await asyncio.gather(*(model.complete(Request.ask(row.text)) for row in measured))

    answers = asyncio.run(ask())
    ledger.close()
    for answer, row in zip(answers, measured, strict=True):
        assert answer.answered_by == "claims-small@1"
        assert answer.text == row.answer  # valid, however little was learnt
        assert set(answer.field_confidence) == {"thing", "count"}
