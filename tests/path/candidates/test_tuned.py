"""Tagger and reader say which tasks they do not suit, with what stands in the way."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fixtures.preflight import task_of

from smallfirst.models.protocol import Completion, Request
from smallfirst.path.candidates.tuned import READER, TAGGER
from smallfirst.path.check import check_stage
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder

HERE = [{"context": "Breakfast is at 7.", "question": f"When is it? ({i})", "answer": "At 7"} for i in range(9)]
NOWHERE = {"context": "Breakfast is at 7.", "question": "Is it early?", "answer": "quite early"}
NONE = {"context": "Breakfast is at 7.", "question": "When is lunch?", "answer": "not there"}
BARE = {"question": "When is tea?", "answer": "at 4"}


def project_of(folder: Path, rows: list[dict[str, Any]], kind: str = "extract", **more: Any) -> Project:
    return task_of(folder, {"train": rows, "validation": rows, "test": rows}, kind=kind, **more)


def order(n: int, **more: str) -> dict[str, Any]:
    return {"text": f"order {n} is late", "target": {"order": str(n), **more}}


def test_the_tagger_suits_rows_whose_values_stand_in_their_texts(tmp_path: Path) -> None:
    assert TAGGER.why_unsuitable(project_of(tmp_path, [order(n) for n in range(50)])) == ""
    rows = [order(n, summary=f"the customer waits for {n + 1}") for n in range(50)]
    assert TAGGER.why_unsuitable(project_of(tmp_path, rows)) == (
        "100 % of the values of `summary` do not occur in their texts: that needs writing, "
        "which small and tagger_small do"
    )


def test_check_names_the_fields_that_are_no_words_of_the_text(tmp_path: Path) -> None:
    def row(n: int) -> dict[str, Any]:
        street = f"{n} Elm Street{'.' if n % 5 == 0 else ''}, Bern"
        target = {"order": str(n), "address": street, "summary": f"the customer waits for {n + 1}"}
        return {"text": f"order {n} is late\nto {n} Elm Street,\nBern", "target": target}

    project = project_of(tmp_path, [row(n) for n in range(50)])
    told = [(found.level, found.what, found.rule) for found in TAGGER.findings(project)]
    assert told == [
        (
            "note",
            "a language model has to write what does not stand in the texts: 100 % of the values of `summary` do not "
            "occur in their texts",
            "an encoder gives every other field: `ladder: [tagger_small]`; without these fields it answers alone",
        ),
        (
            "note",
            "20 % of the values of `address` differ from their texts in punctuation, case or white space",
            "`normalise: {address: words}` compares letters and digits alone",
        ),
    ]
    assert told[0] in [(found.level, found.what, found.rule) for found in check_stage(project).rows.findings]


def test_check_names_the_texts_of_which_an_encoder_reads_the_beginning(
    tmp_path: Path, tiny_encoder_folder: Path
) -> None:
    rows = [{"text": f"card {n} " + "is late " * 400 * (n == 7), "label": "ab"[n % 2]} for n in range(40)]
    small = {"encoder": str(tiny_encoder_folder)}
    found = check_stage(project_of(tmp_path, rows, "classify", small=small)).rows.findings
    told = [(one.what, [Path(place).name for place in one.where]) for one in found if "that" in one.what]
    assert told == [
        (f"training texts of more than the 256 tokens that {tiny_encoder_folder} reads: 1", ["train.jsonl:8"])
    ]


def test_other_kinds_of_task_are_refused(tmp_path: Path) -> None:
    project = project_of(tmp_path, [{"text": f"number {n}", "label": "ab"[n % 2]} for n in range(40)], "classify")
    assert TAGGER.why_unsuitable(project) == "it marks fields of kind extract; this task is of kind classify"
    project = project_of(tmp_path, [{**row, "answer": "yes"} for row in HERE], "answer", choices=["yes", "no"])
    assert "this task has a closed set of answers" in READER.why_unsuitable(project)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([*HERE, NOWHERE, *[NONE] * 5], ""),
        ([*HERE, NOWHERE, NOWHERE, NONE], "82% of 11 training answers stand there word for word, at least 90% must"),
        ([*HERE, BARE, BARE], "2 of 11 training rows have none"),
        ([NONE], "0% of 0 training answers"),
    ],
)
def test_the_reader_suits_rows_whose_answers_stand_in_their_contexts(
    tmp_path: Path, rows: list[dict[str, str]], reason: str
) -> None:
    found = READER.why_unsuitable(project_of(tmp_path, rows, "answer", not_answerable="not there"))
    assert reason in found
    assert bool(found) == bool(reason)


def test_the_reader_is_fitted_into_a_run_folder_and_answers_from_there(
    tmp_path: Path, tiny_encoder_folder: Path
) -> None:
    small = {"encoder": str(tiny_encoder_folder), "encoder_training": {"duration": "1ep"}}
    project, run_folder = project_of(tmp_path, HERE, "answer", small=small), RunFolder(tmp_path / "run")
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
