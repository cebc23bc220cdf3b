"""The event log: what was written stays readable, whatever happened afterwards."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from smallfirst.training.events import EventLog


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return EventLog(tmp_path / "runs" / "events.jsonl")


def test_events_come_back_in_order_as_written(log: EventLog) -> None:
    assert (log.read(), log.status(), log.path.exists()) == ((), "UNKNOWN", False)
    before = datetime.now(UTC).replace(microsecond=0)
    first = log.append("CREATED", "a fine-tune", rows=3, config={"seed": 0})
    after = datetime.now(UTC)
    second = log.append("EPOCH_FINISHED", "epoch 1", validation_accuracy=0.5)
    assert log.read() == (first, second)
    assert log.status() == "EPOCH_FINISHED"
    assert first.values == {"rows": 3, "config": {"seed": 0}}
    assert before <= datetime.fromisoformat(first.at) <= after


@pytest.mark.parametrize("cut", [1, 2, 10, 20, 60])
def test_a_line_cut_short_by_a_crash_is_left_out_and_the_next_is_not_lost(log: EventLog, cut: int) -> None:
    kept = log.append("CREATED", "x")
    log.append("TRAIN_STARTED", "10 größe steps")  # a cut may be inside a letter
    log.path.write_bytes(log.path.read_bytes()[: -cut - 1])
    assert (log.read(), log.status()) == ((kept,), "CREATED")
    message = "one\ntwo\u2028three\u0085four\x0bfive\r\nsix"
    after = log.append("STOPPED", message)
    assert log.read() == (kept, after)
    assert after.message == message


def test_lines_that_are_no_events_are_left_out(log: EventLog) -> None:
    event = log.append("CREATED", "x")
    with log.path.open("a") as file:
        file.write('\n{"kind": "DANCED"}\n[1]\n')
    assert log.read() == (event,)
