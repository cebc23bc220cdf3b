"""What GEPA is told about answers, and that an error ends the search."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from gepa.core.adapter import EvaluationBatch

from smallfirst.data.dataset import Example, Message
from smallfirst.improvement.prompt_search.gepa_adapter import Answered, InstructionsAdapter, search_instructions
from smallfirst.tasks.classify import Classify
from smallfirst.tasks.extract import Extract

TASK = Classify(name="desk", about="Sort.", labels=("card", "fee"))
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "day": {"type": "string"}}}


def row(text: str, answer: str) -> Example:
    return Example(messages=(Message(role="user", content=text),), answer=answer, shape="label")


def lessons(task: Classify | Extract, *rows: Answered) -> list[str]:
    batch = EvaluationBatch(outputs=list(rows), scores=[r.score for r in rows], trajectories=list(rows))
    adapter = InstructionsAdapter(lambda text, examples: list(rows), task)
    return [lesson["Feedback"] for lesson in adapter.make_reflective_dataset({}, batch, [])["instructions"]]


def test_feedback_says_what_was_wrong() -> None:
    rows = [("card", 1.0), ("fee", 0.0), ("dunno", 0.0)]
    assert lessons(TASK, *(Answered(row("a", "card"), said, score) for said, score in rows)) == [
        "Right.",
        "Wrong. Right would be: card",
        "No answer in the format asked for. Right would be: card",
    ]


def test_feedback_on_json_names_the_wrong_fields() -> None:
    gold = '{"city": "Rome", "day": "Monday"}'
    task = Extract(name="trips", json_schema=SCHEMA)
    found = lessons(task, Answered(row("a", gold), '{"city": "Rome", "day": "Friday"}', 0.5))
    assert found == [f"Wrong. Wrong fields: day. Right would be: {gold}"]


def test_the_proposer_sees_the_frame_with_a_place_for_its_text() -> None:
    requests = []

    def propose(request: str) -> str:
        requests.append(request)
        raise RuntimeError("enough")

    def evaluate(told: str, rows: Sequence[Example]) -> list[Answered]:
        return [Answered(example, "fee", float(example.answer == "fee")) for example in rows]

    rows = [row(f"message {n}", "card") for n in range(4)]
    with pytest.raises(RuntimeError, match="enough"):
        search_instructions(
            "Sort.",
            TASK,
            feedback=rows,
            scored=rows,
            evaluate=evaluate,
            propose=propose,
            max_answers=100,
            is_done=lambda: False,
            log=lambda line: None,
        )
    assert "[INSTRUCTIONS]\nAnswer with exactly one label from this list" in requests[0]
    assert "Wrong. Right would be: card" in requests[0]
