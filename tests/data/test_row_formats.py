from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.data.dataset import Example
from smallfirst.data.row_formats import (
    Columns,
    Folding,
    RowLayout,
    detect_layout,
    is_empty_row,
    parse_plain_row,
    parse_row,
    to_row,
)


def rules(row: dict[str, Any], *, columns: Columns | None = None, answered: bool = False) -> list[str]:
    found = detect_layout(row, columns or Columns(), answered=answered)
    if isinstance(found, str):
        return [found]
    return parse_row(row, found, path="rows.jsonl", line=1, labels=None)[1]


TURNS = '"messages": system first or not at all, then user and assistant in turn; the last one is the answer'


def talk(*roles: str) -> dict[str, object]:
    return {"messages": [{"role": role, "content": f"by {role}"} for role in roles]}


@pytest.mark.parametrize(("keys", "shape"), [
    ({"text", "label", "id"}, "label"), ({"text", "label", "prompt"}, "label"),
    ({"prompt", "response", "text"}, "prompt"), ({"prompt", "completion"}, "prompt"),
    ({"messages", "id"}, "chat"), ({"text", "level"}, "text"),
])  # fmt: skip
def test_a_shape_is_told_by_its_keys_and_other_keys_do_not_matter(keys: set[str], shape: str) -> None:
    found = detect_layout(keys, Columns())
    assert isinstance(found, RowLayout)
    assert found.shape == shape


def test_columns_that_were_named_decide_between_two_shapes() -> None:
    columns = Columns(text="prompt", label="completion")
    found = detect_layout(["prompt", "completion"], columns)
    assert found == RowLayout("label", {"text": "prompt", "label": "completion"}, ("prompt", "completion"))
    found = detect_layout(["text", "label"], Columns(prompt="text", response="label"))
    assert found == RowLayout("prompt", {"prompt": "text", "response": "label"}, ("text", "label"))


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({"text": " \n", "label": "x"}, '"text" is empty'),
        ({"text": None, "label": "x"}, '"text" must be text, not null'),
        ({"text": "a", "label": True}, '"label" must be text, not true or false'),
        ({"text": "a\0", "label": "x"}, '"text" has a NUL character at position 2'),
        ({"text": "\ud800", "label": "x"}, '"text" has half a surrogate pair at position 1'),
        ({"prompt": "a"}, 'no column "response"; the row has "prompt"'),
        ({"text": "a", "lable": "x"}, 'no column "label"; the row has "text", "lable" — did you mean "lable"?'),
        (
            {"text": "a", "Label": "x", "LABEL": "y"},
            'no column "label"; the row has "text", "Label", "LABEL" — did you mean "Label"?',
        ),
        (
            {"text": "a", "label": "x", "prompt": "a", "response": "x"},
            "fits two shapes at once: text + label and prompt + response",
        ),
        (
            {"a": 1},
            "fits no shape (text + label, text + labels, text + target, question + answer, prompt + response, "
            'messages, messages + tools, text alone): the row has "a"',
        ),
        ({"text": "a", "target": "people: 11"}, '"target" is text that is not JSON'),
        ({"text": "a", "target": "[1]"}, '"target" must be a JSON object, not a list'),
        ({"text": "a", "labels": "late"}, '"labels" must be a list of labels, not text'),
        ({"question": "a", "answer": []}, '"answer" is an empty list'),
        ({"question": "a", "answer": ["b", 1]}, '"answer"[1] must be text, not a number'),
        ({"messages": "hi"}, '"messages" must be a list of messages, not text'),
        *(
            (talk(*roles), TURNS)
            for roles in ([], ["assistant"], ["user"] * 2 + ["assistant"], ["user", "assistant", "user"])
        ),
        (talk("developer", "user", "assistant"), 'messages[0] has role "developer": use system, user or assistant'),
        (
            {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "x"}]},
            "messages[0] content is empty",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]},
            "messages[1] must be an object with role and content alone, not role",
        ),
    ],
)
def test_a_row_that_breaks_a_rule_is_told_which(row: dict[str, Any], rule: str) -> None:
    assert rules(row) == [rule]


def test_text_alone_is_refused_where_a_label_is_asked_for() -> None:
    row = {"text": "a", "category": "x"}
    rule = 'no column "label"; the row has "text", "category"'
    assert rules(row, answered=True) == [rule]
    rule = 'no column "kind"; the row has "text", "category"'
    assert rules(row, columns=Columns(label="kind")) == [rule]


def read_good_row(row: dict[str, Any], **names: str) -> Example:
    found = detect_layout(row, Columns(**names))
    assert isinstance(found, RowLayout), found
    example, broken = parse_row(row, found, path="rows.jsonl", line=1, labels=None)
    assert broken == []
    assert example is not None
    return example


def test_a_target_is_kept_as_json_on_one_line_whether_written_as_object_or_as_text() -> None:
    as_object = read_good_row({"text": "11 of us", "target": {"people": "11", "names": ["é"]}})
    as_text = read_good_row({"text": "11 of us", "target": '{"people":"11",\n"names":["é"]}'})
    assert as_object.answer == as_text.answer == '{"people": "11", "names": ["é"]}'
    assert as_object.shape == "target"
    assert to_row(as_object) == {"text": "11 of us", "target": {"people": "11", "names": ["é"]}}


def test_a_context_stands_before_what_is_asked_and_may_be_missing() -> None:
    assert read_good_row({"question": "how many?", "context": "They were 11. ", "answer": "11"}).text == (
        "They were 11.\n\nhow many?"
    )
    assert read_good_row({"question": "how many?", "context": "", "answer": "11"}).text == "how many?"
    listed = read_good_row({"text": "13", "target": {}, "asked": ["time", "date"]}, context="asked")
    assert listed.text == "time, date\n\n13"
    assert read_good_row({"text": "13", "target": {}}, context="asked").text == "13"


def test_labels_are_a_list_and_each_must_be_known() -> None:
    row = {"text": "late and broken", "labels": ["late", "broken"]}
    assert read_good_row(row).answer == '["late", "broken"]'
    assert to_row(read_good_row(row)) == row
    found = detect_layout(row, Columns())
    assert isinstance(found, RowLayout)
    _, broken = parse_row(row, found, path="rows.jsonl", line=1, labels=["late", "brokn"])
    assert broken == ['label "broken" is not one of the 2 labels — did you mean "brokn"?']


def test_a_row_may_carry_its_group_and_the_model_that_answered_it() -> None:
    row = {"text": "a", "label": "b", "customer": 7, "teacher": "big-1", "labelled_on": "2026-11-26"}
    found = detect_layout(row, Columns(group="customer"))
    assert isinstance(found, RowLayout)
    example, broken = parse_row(row, found, path="p", line=1, labels=None)
    assert broken == []
    assert (example.group, example.source) == ("7", "big-1")
    assert rules(row | {"customer": " "}, columns=Columns(group="customer")) == ['"customer" must be text or a number']
    assert rules({"text": "a", "label": "b"}, columns=Columns(group="customer")) == [
        'no column "customer", which columns.group names'
    ]
    alone = detect_layout({"text", "label", "teacher"}, Columns())  # a column of the user's own
    assert isinstance(alone, RowLayout)
    assert set(alone.keys) == {"text", "label"}


@pytest.mark.parametrize("key", ["Label", " label ", "\ufeffLABEL"])
def test_a_key_in_other_case_or_with_outer_spaces_is_the_one_that_is_meant(key: str) -> None:
    layout = RowLayout("label", {"text": "text", "label": key}, ("text", key))
    assert detect_layout(["text", key], Columns()) == layout


def test_columns_named_as_tags_are_kept_beside_the_row() -> None:
    columns = Columns(tags=("channel", "customer"))
    row = {"text": "a", "label": "b", "channel": " web  chat ", "customer": 7}
    found = detect_layout(row, columns)
    assert isinstance(found, RowLayout)
    assert found.shape == "label"
    example, problems = parse_row(row, found, path="x", line=1, labels=None)
    assert problems == []
    assert example.tags == {"channel": "web chat", "customer": "7"}
    assert rules(row | {"channel": None}, columns=columns) == ['"channel" must be text or a number']
    assert rules({"text": "a", "label": "b", "channel": "x"}, columns=columns) == [
        'no column "customer", which columns.tags names'
    ]


LABEL = RowLayout("label", {"text": "body", "label": "team"}, ("body", "team"))


@pytest.mark.parametrize(
    ("label", "read"), [(0, "0"), (2.0, "2"), (2.5, "2.5"), (True, "true"), (" a ", "a"), (None, None), ([1], ["1"])]
)
def test_a_label_is_read_as_the_text_that_it_is(label: Any, read: Any) -> None:
    folding = Folding()
    assert folding.fold({"body": "a", "team": label, "id": 7}, LABEL, "r.jsonl", 3) == {
        "body": "a",
        "team": read,
        "id": 7,
    }
    assert [note.where for note in folding.notes] == ([] if label is None else [("r.jsonl:3",)])


def test_a_row_is_empty_if_the_columns_that_make_it_are() -> None:
    assert is_empty_row({})
    assert is_empty_row({"body": " ", "team": None, "id": 7}, LABEL)
    assert is_empty_row({"body": float("nan"), "team": []}, LABEL)
    assert not is_empty_row({"body": "", "team": 0}, LABEL)
    assert not is_empty_row({"other": "a"})


@given(st.text(max_size=6), st.sampled_from(["a", " b", "", "\0", "ü", "\ud800", None, 3, "c"]))
def test_the_short_way_of_a_plain_row_leads_where_the_long_one_does(text: str, label: object) -> None:
    row, path, labels = {"text": text, "label": label}, "rows.jsonl", ("a", "b", "ü")
    layout, folding = detect_layout(row, Columns()), Folding()
    assert not isinstance(layout, str)
    short = parse_plain_row(row, layout, path=path, line=7, labels=labels)
    folded = folding.fold(row, layout, path, 7)
    example, rules = parse_row(folded, layout, path=path, line=7, labels=labels)
    assert short is None or (short, [], ()) == (example, rules, folding.notes)
    assert (short is None) == bool(rules or folding.notes)
