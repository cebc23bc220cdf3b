"""The event log: what was written stays readable, whatever happened afterwards."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from smallfirst.training.events import Event, EventLog


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return EventLog(tmp_path / "runs" / "events.jsonl")


def test_without_a_file_there_are_no_events_and_the_status_is_unknown(log: EventLog) -> None:
    assert (log.read(), log.status()) == ((), "UNKNOWN")
    assert not log.path.exists()


def test_events_come_back_in_order_as_written(log: EventLog) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    first = log.append("CREATED", "a fine-tune", rows=3, config={"seed": 0})
    after = datetime.now(UTC)
    second = log.append("EPOCH_FINISHED", "epoch 1", validation_accuracy=0.5)
    assert log.read() == (first, second)
    assert log.status() == "EPOCH_FINISHED"
    assert first.values == {"rows": 3, "config": {"seed": 0}}
    assert before <= datetime.fromisoformat(first.at) <= after


@pytest.mark.parametrize("cut", [1, 2, 10, 60])
def test_a_line_cut_short_by_a_crash_is_left_out(log: EventLog, cut: int) -> None:
    kept = log.append("CREATED", "x")
    log.append("TRAIN_STARTED", "10 steps")
    log.path.write_bytes(log.path.read_bytes()[: -cut - 1])
    assert log.read() == (kept,)
    assert log.status() == "CREATED"


def test_an_event_after_a_line_cut_short_is_not_lost(log: EventLog) -> None:
    kept = log.append("CREATED", "x")
    log.append("TRAIN_STARTED", "10 steps")
    log.path.write_bytes(log.path.read_bytes()[:-20])
    after = log.append("STOPPED", "interrupted")
    assert log.read() == (kept, after)
    assert log.path.read_bytes().endswith(b"\n")


def test_a_cut_inside_a_letter_of_several_bytes_is_survived(log: EventLog) -> None:
    kept = log.append("CREATED", "x")
    log.append("FAILED", "Größe")
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[: whole.rindex("ß".encode()) + 1])
    assert log.read() == (kept,)


def test_line_breaks_of_any_alphabet_inside_a_message_are_kept(log: EventLog) -> None:
    message = "one\ntwo\u2028three\u0085four\x0bfive\r\nsix"
    log.append("FAILED", message)
    assert [event.message for event in log.read()] == [message]


def test_lines_that_are_no_events_are_left_out(log: EventLog) -> None:
    event = log.append("CREATED", "x")
    with log.path.open("a") as file:
        file.write('\n{"kind": "DANCED", "at": "", "message": ""}\n[1]\n')
    assert log.read() == (event,)
    assert isinstance(event, Event)
