"""The reader says which tasks it does not suit, with the share of answers that stand in their contexts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from smallfirst.models.protocol import Completion, Request
from smallfirst.pipeline.candidates.reader import READER
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.project.task_file import read_task_file

HERE = [{"context": "Breakfast is at 7.", "question": f"When is it? ({i})", "answer": "At 7"} for i in range(9)]
NOWHERE = {"context": "Breakfast is at 7.", "question": "Is it early?", "answer": "quite early"}
NONE = {"context": "Breakfast is at 7.", "question": "When is lunch?", "answer": "not there"}
BARE = {"question": "When is tea?", "answer": "at 4"}


def why(folder: Path, rows: list[dict[str, str]], more: str = "not_answerable: not there") -> str:
    for part in ("train", "validation", "test"):
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = "data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}"
    (folder / "task.yaml").write_text(f"name: rules\nkind: answer\n{data}\n{more}\n")
    return READER.why_unsuitable(Project.read(read_task_file(folder), Progress(quiet=True)))


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([*HERE, NOWHERE, *[NONE] * 5], ""),
        ([*HERE, NOWHERE, NOWHERE, NONE], "82% of 11 training answers stand there word for word, at least 90% must"),
        ([*HERE, BARE, BARE], "2 of 11 training rows have none"),
        ([NONE], "0% of 0 training answers"),
    ],
)
def test_it_suits_rows_whose_answers_stand_in_their_contexts(
    tmp_path: Path, rows: list[dict[str, str]], reason: str
) -> None:
    found = why(tmp_path, rows)
    assert reason in found
    assert bool(found) == bool(reason)


def test_other_kinds_of_task_are_refused(tmp_path: Path) -> None:
    closed = [{**row, "answer": "yes"} for row in HERE]
    assert "this task has a closed set of answers" in why(tmp_path, closed, 'choices: ["yes", "no"]')


def test_it_is_fitted_into_a_run_folder_and_answers_from_there(tmp_path: Path, tiny_encoder_folder: Path) -> None:
    why(tmp_path, HERE, f"small: {{encoder: '{tiny_encoder_folder}', encoder_training: {{duration: 1ep}}}}")
    project = Project.read(read_task_file(tmp_path), Progress(quiet=True))
    run_folder = RunFolder(tmp_path / "run")
    READER.fit(project, run_folder)

    async def answer() -> Completion:
        model = READER.load(project, run_folder)
        said = await model.complete(Request.ask(project.rows.test.examples[0].text))
        await model.aclose()
        return said

    said = asyncio.run(answer())
    assert said.text in HERE[0]["context"]
    assert said.confidence is not None
    assert 0 < said.confidence < 1
