"""The classification task: what a model is asked, and which answer is read from what it wrote."""

import json

import jsonschema
import llguidance
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.data.dataset import Message
from smallfirst.tasks.classify import Classify
from smallfirst.tasks.task import ScoredAnswer, Shot

LABELS = ("card_arrival", "card_lost", "card", "refund", "Straße", "art", "party")
TASK = Classify(name="desk", labels=LABELS, descriptions={"refund": "money back"})
SEVERAL = Classify(name="topics", labels=LABELS, multiple=True)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("refund", "refund"),
        ("card arrival", "card_arrival"),
        ("The label is: card_lost", "card_lost"),
        ('"refund" (money back)', "refund"),
        ("STRASSE", "Straße"),  # casefold knows that ß is ss
        ("it is a card", "card"),
        ("card, that is card_lost", "card_lost"),  # the longer label says it all
        ("refund or card_lost", None),
        ("art or party", None),  # letters inside another word are no mention
        ("cardigan", None),
        ("", None),
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


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1).filter(lambda t: t == t.strip() != ""), min_size=2, max_size=6, unique=True))
def test_every_label_is_read_as_itself(labels: list[str]) -> None:
    task = Classify(name="any", labels=tuple(labels))
    assert [task.parse(label) for label in labels] == labels


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


def test_every_problem_of_a_task_is_named_at_once() -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        Classify(name="x", labels=("a", "a"), descriptions={"b": "x"}, other="c", multiple=True)
    (problem,) = caught.value.errors()
    assert problem["msg"].removeprefix("Value error, ").split("; ") == [
        "labels repeat",
        'description of an unknown label "b"',
        'other is an unknown label "c"',
        "other cannot go with multiple: there an empty list says that no label fits",
    ]


def test_other_is_told_and_measured() -> None:
    task = Classify(name="x", labels=("low", "high", "none"), other="none")
    assert task.instructions(())[0].content.splitlines()[-1] == "Answer none if none of the others fits."
    rows = [ScoredAnswer(("low",), "high", 0.0), ScoredAnswer(("none",), "none", 1.0)]
    assert list(task.measures(rows)) == [
        "macro_f1",
        "weighted_f1",
        "in_scope_accuracy",
        "other_recall",
        "other_precision",
    ]
    assert Classify.model_validate_json(task.model_dump_json()) == task


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('["card", "refund"]', '["card", "refund"]'),
        ('["refund","card","refund"]', '["card", "refund"]'),  # label order, each once
        ('The labels are: ["Refund"].', '["refund"]'),
        ("[]", "[]"),
        ("The labels are []", "[]"),
        ("refund, card lost", '["card_lost", "refund"]'),
        ('["card", 3]', None),
        ("refund, other", None),
        ("[", None),
        ("", None),
        ("none", None),
        ("[" * 5000 + "]" * 5000, None),
    ],
)
def test_several_labels_are_a_list_in_label_order(text: str, answer: str | None) -> None:
    assert SEVERAL.parse(text) == answer


@given(st.lists(st.sampled_from(LABELS), unique=True).flatmap(lambda chosen: st.permutations(chosen)))
def test_any_set_of_labels_has_one_canonical_answer(chosen: list[str]) -> None:
    answer = SEVERAL.parse(json.dumps(chosen))
    assert answer is not None
    assert json.loads(answer) == [label for label in LABELS if label in chosen]
    assert SEVERAL.parse(answer) == answer == SEVERAL.target(answer) == SEVERAL.target(json.dumps(chosen))
    assert SEVERAL.score((json.dumps(chosen),), answer) == 1


def test_several_labels_are_scored_by_what_both_sets_share() -> None:
    gold = '["card", "refund"]'
    assert SEVERAL.score((gold,), gold) == 1
    assert SEVERAL.score((gold,), '["card"]') == pytest.approx(1 / 2)
    assert SEVERAL.score((gold,), '["card", "art", "party"]') == pytest.approx(1 / 4)
    assert SEVERAL.score((gold, '["art"]'), '["art"]') == 1
    assert (SEVERAL.score(("[]",), "[]"), SEVERAL.score(("[]",), None), SEVERAL.score((gold,), "[]")) == (1, 0, 0)


def test_several_labels_are_no_closed_set_but_follow_a_schema() -> None:
    assert (TASK.closed, TASK.answer_schema()) == (LABELS, None)
    assert SEVERAL.closed == ()
    schema = SEVERAL.answer_schema()
    assert schema == {"type": "array", "items": {"enum": list(LABELS)}, "maxItems": len(LABELS)}
    jsonschema.validate(["card", "refund"], schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(["other"], schema)
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
    assert llguidance.LLMatcher.validate_grammar_with_warnings(grammar) == (False, [])  # every keyword is kept
    lines = SEVERAL.instructions(())[0].content.splitlines()
    assert lines[1] == "Answer with a JSON list of all labels from this list that fit, and nothing else:"
    assert lines[-1] == "Answer [] if none fits."


def test_an_answer_has_room_for_every_label_within_limits() -> None:
    long = "x" * 100
    assert TASK.max_answer_tokens == 32
    assert Classify(name="x", labels=(long, "b")).max_answer_tokens == 102
    assert Classify(name="x", labels=(long, "b"), multiple=True).max_answer_tokens == len(f'["{long}", "b"]') + 2
    assert Classify(name="x", labels=tuple(f"{long}{i}" for i in range(50)), multiple=True).max_answer_tokens == 1024
