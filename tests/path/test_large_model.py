"""The large path: the same solved rows and the same sample every time, and answers asked only once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from smallfirst.base.errors import BadAnswer, ConfigError
from smallfirst.base.progress import Progress
from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.models.protocol import Request
from smallfirst.models.recorded import OpenEndedReplay, ReplayModel, request_key
from smallfirst.path.large_model import (
    general_model,
    recorded_answers,
    recorded_open_answers,
)
from smallfirst.path.project.rows import Rows
from smallfirst.path.project.task_file import LargeConfig, TaskFile
from smallfirst.tasks.classify import Classify

TASK = Classify(name="desk", labels=("card", "fee"))
NOTHING = Dataset(name="none", examples=())
ANSWER = (
    '{{"key": "{key}", "text": "{text}", "answer": "card", "prompt_tokens": 3, "completion_tokens": 1, '
    '"latency_ms": 5.0, "cost_usd": 0.001}}\n'
)


def dataset(*pairs: tuple[str, str]) -> Dataset:
    examples = (
        Example(messages=(Message(role="user", content=text),), answer=answer, shape="label") for text, answer in pairs
    )
    return Dataset(name="rows", examples=tuple(examples))


def task_file(folder: Path, large: LargeConfig | None) -> TaskFile:
    return TaskFile.model_validate({"name": "desk", "data": {"train": "train.jsonl"}, "large": large, "folder": folder})


def recorded(folder: Path, name: str, text: str) -> None:
    header = '{"recorded": {"model": "big-1", "made_at": "2025-01-02", "smallfirst": "0.1.0", "n": 1}}\n'
    row = ANSWER.format(key=request_key(Request.ask(text)), text=text)
    (folder / name).write_text(header + row)


def rows_of(test: Dataset, open_ended: Dataset | None = None) -> Rows:
    return Rows(train=NOTHING, selection=NOTHING, calibration=NOTHING, test=test, open_ended=open_ended)


def test_recorded_answers_are_replayed_and_nobody_is_asked(tmp_path: Path) -> None:
    recorded(tmp_path, "large.jsonl", "where is it")
    job = task_file(tmp_path, LargeConfig(recorded=Path("large.jsonl")))
    rows = rows_of(dataset(("where is it", "card")))
    model = asyncio.run(recorded_answers(job, TASK, rows, progress=Progress(quiet=True)))
    answer = asyncio.run(model.complete(Request.ask("where is it")))
    assert (answer.text, answer.answered_by, answer.cost_usd) == ("card", "big-1", 0.001)
    assert model.note == "recorded 2025-01-02 from big-1 (n=1)"


def test_recorded_open_ended_answers_are_replayed_if_there_are_any(tmp_path: Path) -> None:
    recorded(tmp_path, "open.jsonl", "write a poem")
    large = LargeConfig(recorded=Path("large.jsonl"), recorded_open=Path("open.jsonl"))
    poem = dataset(("write a poem", ""))

    def found(config: LargeConfig, open_ended: Dataset | None) -> object:
        rows = rows_of(NOTHING, open_ended)
        return asyncio.run(recorded_open_answers(task_file(tmp_path, config), rows, progress=Progress(quiet=True)))

    assert found(large, poem) is not None
    assert found(large, None) is None
    assert found(LargeConfig(recorded=Path("large.jsonl")), poem) is None


def test_a_labelled_row_taken_for_an_open_one_gets_no_answer_at_the_recorded_price(tmp_path: Path) -> None:
    recorded(tmp_path, "large.jsonl", "where is it")
    recorded(tmp_path, "open.jsonl", "write a poem")
    both = OpenEndedReplay(ReplayModel.load(tmp_path / "open.jsonl"), ReplayModel.load(tmp_path / "large.jsonl"))
    poem, row = (asyncio.run(both.complete(Request.ask(text))) for text in ("write a poem", "where is it"))
    assert (poem.text, both.name) == ("card", "big-1")
    assert (row.text, row.cost_usd, row.latency_ms) == ("", 0.001, 5.0)
    with pytest.raises(BadAnswer, match="has no answer of big-1"):
        asyncio.run(both.complete(Request.ask("something else")))


def test_a_path_without_a_large_model_says_what_to_add(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        general_model(task_file(tmp_path, None))
    assert str(caught.value) == ("task.yaml names no large model\n  next: add a large: section, or leave out this step")
    with pytest.raises(ConfigError) as caught:
        general_model(task_file(tmp_path, LargeConfig(recorded=Path("large.jsonl"))))
    assert str(caught.value) == (
        "large: names only recorded answers, no model that could answer new requests\n"
        "  next: add endpoint:, gguf: or engine: under large: in task.yaml"
    )
