"""The classification task: what a model is asked, and which answer is read from what it wrote."""

from __future__ import annotations

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.data.dataset import Message
from smallfirst.tasks.classify import Classify
from smallfirst.tasks.task import Shot, Task

LABELS = ("card_arrival", "card_lost", "card", "refund", "Straße", "art", "party")
TASK = Classify(name="desk", labels=LABELS, descriptions={"refund": "money back"})


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("refund", "refund"),
        ("  Refund.\n", "refund"),
        ("card arrival", "card_arrival"),
        ("Card-Arrival!", "card_arrival"),
        ("The label is: card_lost", "card_lost"),
        ('"refund" (money back)', "refund"),
        ("STRASSE", "Straße"),  # casefold knows that ß is ss
        ("it is a card", "card"),
        ("card, that is card_lost", "card_lost"),  # the longer label says it all
        ("refund or card_lost", None),
        ("art or party", None),  # letters inside another word are no mention
        ("cardigan", None),
        ("refunds", None),
        ("", None),
        ("?!", None),
        ("I do not know", None),
    ],
)
def test_the_one_label_that_was_said_is_found(text: str, answer: str | None) -> None:
    assert TASK.parse(text) == answer


def test_labels_that_differ_in_punctuation_only_are_told_apart() -> None:
    task = Classify(name="code", labels=("C", "C++", "C#", "Rust"))
    assert [task.parse(label) for label in task.labels] == list(task.labels)
    assert task.parse("c") is None
    assert task.parse("It is C++.") is None
    assert task.parse("it is rust.") == "Rust"


def test_labels_of_punctuation_alone_are_read_exactly_or_not_at_all() -> None:
    task = Classify(name="sign", labels=("+", "-"))
    assert (task.parse("+"), task.parse(" -\n"), task.parse("good"), task.parse("")) == ("+", "-", None, None)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1).filter(lambda t: t == t.strip() != ""), min_size=2, max_size=6, unique=True))
def test_every_label_is_read_as_itself(labels: list[str]) -> None:
    task = Classify(name="any", labels=tuple(labels))
    assert [task.parse(label) for label in labels] == labels


def test_no_answer_is_a_wrong_answer() -> None:
    assert TASK.score("refund", "refund")
    assert not TASK.score("refund", "card")
    assert not TASK.score("refund", None)


def test_a_general_model_is_told_every_label_and_shown_solved_rows_as_turns() -> None:
    shots = (Shot("where is it", "card_arrival"), Shot("gone!", "card_lost"))
    system, *turns = TASK.instructions(shots)
    assert system == Message(
        role="system",
        content="Classify the user's message.\n"
        "Answer with exactly one label from this list and nothing else:\n"
        "- card_arrival\n- card_lost\n- card\n- refund: money back\n- Straße\n- art\n- party",
    )
    assert [(turn.role, turn.content) for turn in turns] == [
        ("user", "where is it"),
        ("assistant", "card_arrival"),
        ("user", "gone!"),
        ("assistant", "card_lost"),
    ]


def test_what_is_classified_is_said_first_where_it_is_known() -> None:
    task = TASK.model_copy(update={"about": "File a claim."})
    assert task.instructions(())[0].content.startswith("File a claim.\nAnswer with exactly one label")


def test_a_fine_tuned_model_reads_the_text_and_a_cue_and_no_instructions() -> None:
    assert TASK.prompt("  where is it\n") == "where is it =>"


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"labels": ("a",)}, "a classification needs at least two labels"),
        ({"labels": ("a", "b", "a")}, "labels repeat"),
        (
            {"labels": ("refund", "card"), "descriptions": {"refnd": "x"}},
            'description of an unknown label "refnd" — did you mean "refund"?',
        ),
    ],
)
def test_labels_that_are_no_closed_set_are_refused(values: dict[str, object], rule: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=rule.replace("?", r"\?")):
        Classify(name="x", **values)  # type: ignore[arg-type]


def test_it_is_a_task() -> None:
    task: Task = TASK
    assert task.name == "desk"
