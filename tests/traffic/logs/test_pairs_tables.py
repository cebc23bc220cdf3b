"""Tables of prompts and answers read as exchanges, in the order of their lines where they have no times."""

from __future__ import annotations

import json

import pytest
from fixtures.logs import ASKED, MESSAGES

from smallfirst.traffic.messages import read_answer, read_prompt

CELL = '"' + json.dumps(MESSAGES).replace('"', '""') + '"'


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("Prompt,System prompt,Response", '"My card is lost","File it.","lost_card"'),
        ("user,system,assistant", '"My card is lost","File it.","lost_card"'),
        ("request,answer", f"{CELL},lost_card"),
    ],
)
def test_csv(read_records, header, row):
    (one, other), problems = read_records(header, row, row.replace("lost_card", "other"), name="log.csv")
    assert problems == []
    assert read_prompt(one.route, one.request).turns == ASKED
    assert read_answer(one.route, one.response).text == "lost_card"
    assert not one.timed
    assert one.at < other.at


def test_columns_of_the_bill(read_records):
    text = "question,answer,model,cost,input_tokens,timestamp", "a,b,mine,0.5,7,2026-04-04T00:00:00"
    (one,), _ = read_records(*text, name="log.csv")
    assert (one.model, one.cost_usd, one.prompt_tokens, one.timed) == ("mine", 0.5, 7, True)


def test_a_row_without_an_answer_is_named(read_records):
    found, problems = read_records("question,answer", "a,", "b,c", name="log.csv")
    assert len(found) == 1
    assert [(problem.line, problem.rule) for problem in problems] == [(2, "no answer")]
