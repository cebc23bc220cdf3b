"""Recorded answers: exact, dated, and refused where nothing was recorded."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from smallfirst.errors import BadAnswer, DataError
from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.models.recorded.replay import ReplayModel, request_key
from smallfirst.pricing.charge import stated
from smallfirst.pricing.tokens import tokens_of

HEADER = {
    "model": "big-70b",
    "made_at": "2026-11-25",
    "smallfirst": "0.1.0",
    "command": "smallfirst record",
    "settings": {"temperature": 0},
    "prompt": [{"role": "system", "content": "Classify."}],
    "machine": "2 cores",
    "n": 1,
}
LOST = Request.ask("I lost my card")
ROW = {
    "key": request_key(LOST),
    "text": "I lost my card",
    "answer": "card_lost",
    "prompt_tokens": 90,
    "completion_tokens": 3,
    "latency_ms": 812.5,
    "cost_usd": 0.0002,
}


def written(path: Path, *lines: Any) -> Path:
    text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(text) + "\n")
    return path


def loaded(tmp_path: Path, **header: Any) -> ReplayModel:
    path = written(tmp_path / "big.jsonl", {"recorded": HEADER | header}, ROW)
    return ReplayModel.load(path)


def test_what_the_provider_had_cached_is_on_record(tmp_path: Path) -> None:
    path = written(tmp_path / "big.jsonl", {"recorded": HEADER}, ROW | {"cached_tokens": 80})
    (line,) = asyncio.run(ReplayModel.load(path).complete(LOST)).charges
    assert (line.tokens.prompt_tokens, line.tokens.cached_tokens) == (90, 80)


def test_recorded_answer_comes_back_as_it_was(tmp_path: Path) -> None:
    model = loaded(tmp_path)
    assert isinstance(model, Model)
    assert asyncio.run(model.complete(LOST)) == Completion(
        text="card_lost",
        answered_by="big-70b",
        latency_ms=812.5,
        cost_usd=0.0002,
        charges=(stated("big-70b", 0.0002, source=f"recorded {HEADER['made_at']}", tokens=tokens_of(90, 3)),),
        prompt_tokens=90,
        completion_tokens=3,
    )


def test_answer_is_found_by_messages_and_not_by_sampling_settings(tmp_path: Path) -> None:
    model = loaded(tmp_path)
    request = Request.ask("I lost my card", max_tokens=7)
    assert asyncio.run(model.complete(request)).text == "card_lost"


def test_what_was_not_recorded_has_no_answer(tmp_path: Path) -> None:
    with pytest.raises(BadAnswer) as caught:
        asyncio.run(loaded(tmp_path).complete(Request.ask("Hello")))
    assert str(caught.value) == (
        f'{tmp_path}/big.jsonl has no answer of big-70b to "Hello"\n'
        "  next: record it: smallfirst record (sends only what is missing)"
    )


def test_note_says_when_by_whom_and_how_many(tmp_path: Path) -> None:
    assert loaded(tmp_path).note == "recorded 2026-11-25 from big-70b (n=1)"


def test_note_of_a_killed_recording_says_that_it_is_unfinished(tmp_path: Path) -> None:
    note = "recorded 2026-11-25 from big-70b (n=1 of 450, unfinished)"
    assert loaded(tmp_path, n=450).note == note


def test_every_wrong_line_is_named(tmp_path: Path) -> None:
    row = {**ROW}
    del row["cost_usd"]
    path = written(tmp_path / "big.jsonl", {"recorded": HEADER}, row, ROW, '{"key": ')
    with pytest.raises(DataError) as caught:
        ReplayModel.load(path)
    assert str(caught.value) == (
        f"{path} is not a complete recording\n"
        f"  {path}:2  cost_usd: Field required\n"
        f"  {path}:4  not JSON: EOF while parsing a value, column 8\n"
        "  next: run smallfirst record again: it drops a partial last row and continues"
    )


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (ROW, 'the first line must be {"recorded": {…}}'),
        ({"recorded": HEADER | {"tempo": 1}}, "tempo: Extra inputs are not permitted"),
        ("", "the file is empty"),
    ],
)
def test_file_without_a_header_is_refused(tmp_path: Path, line: Any, rule: str) -> None:
    with pytest.raises(DataError) as caught:
        ReplayModel.load(written(tmp_path / "big.jsonl", line))
    assert [(problem.line, problem.rule) for problem in caught.value.problems] == [(1, rule)]


def test_missing_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such recording\n  next: make it: smallfirst record"):
        ReplayModel.load(tmp_path / "none.jsonl")


def test_stream_gives_the_answer_in_one_piece(tmp_path: Path) -> None:
    async def pieces() -> list[str]:
        return [chunk.text async for chunk in loaded(tmp_path).stream(LOST)]

    assert asyncio.run(pieces()) == ["card_lost", ""]
