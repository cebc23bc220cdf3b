"""The format that recorded answers have in common is found, and how their JSON is written."""

import json

import pytest

from smallfirst.traffic.discovery.answer_formats import FoundFormat, find_format, find_writing
from smallfirst.traffic.wire import ModelAnswer, ToolCall


def test_prices_keep_their_last_zero() -> None:
    writing = find_writing(['{"n": 3, "total": 644.90}', '{"n": 4, "total": 12.25}'])
    assert writing.decimals == {"total": 2}
    assert writing.write({"n": 5, "total": 7}) == '{"n": 5, "total": 7.00}'
    assert find_writing(['{"x": 0.5}', '{"x": 0.25}']).write({"x": 0.125}) == '{"x": 0.125}'
    assert find_writing(['{"x": 1e-3}']).decimals == {}


def test_keys_stand_in_the_order_of_the_answers() -> None:
    writing = find_writing(['{"b": 1, "a": 2}', '{"b": 1, "c": 0, "a": 2}', '{"b": 1, "a": 2}'])
    assert writing.write({"a": 2, "c": 0, "b": 1, "new": 4}) == '{"b": 1, "c": 0, "a": 2, "new": 4}'


def test_keys_of_objects_in_lists_have_an_order_of_their_own() -> None:
    writing = find_writing(['{"a": 1, "items": [{"z": 1, "a": 2}]}'])
    assert writing.write({"items": [{"a": 2, "z": 1}], "a": 1}) == '{"a": 1, "items": [{"z": 1, "a": 2}]}'


def format_of(answers: list[ModelAnswer]) -> FoundFormat:
    found = find_format(answers)
    assert found is not None
    return found


LABELS = ("card arrival", "card linking", "top up failed", "top up limits")


def in_frame(prefix: str, suffix: str, labels: tuple[str, ...] = LABELS) -> list[ModelAnswer]:
    return [ModelAnswer(f"{prefix}{label}{suffix}") for label in labels for _ in range(10)]


@pytest.mark.parametrize(("prefix", "suffix"), [
    ("", ""), ("Intent: ", ""), ("The intent is ", "."), ('{"intent": "', '"}'), ('{\n  "intent": "', '"\n}'),
    ('```json\n{"intent":"', '"}\n```'), ("**", "**"), ("", "\n"), ("<label>", "</label>"),
])  # fmt: skip
def test_a_label_is_found_in_its_frame(prefix: str, suffix: str) -> None:
    found = format_of(in_frame(prefix, suffix))
    assert (found.format.kind, found.format.prefix, found.format.suffix) == ("label", prefix, suffix)
    assert sorted(found.labels) == sorted(LABELS)
    assert found.check.is_exact
    assert found.check.n_exact == 40


@pytest.mark.parametrize(
    "labels", [("top up failed now", "top up limits now", "self-harm", "self-help"), ("self-harm", "self-help")]
)
def test_what_labels_have_in_common_is_no_frame(labels: tuple[str, ...]) -> None:
    found = format_of(in_frame("", "", labels))
    assert found.format.prefix == found.format.suffix == ""


def test_two_labels_that_begin_alike_need_no_frame_although_a_third_is_rare() -> None:
    answers = [ModelAnswer("not urgent")] * 100 + [ModelAnswer("not relevant")] * 100 + [ModelAnswer("urgent")] * 4
    found = format_of(answers)
    assert set(found.labels) == {"not urgent", "not relevant", "urgent"}


def test_an_answer_in_the_models_own_words_is_no_label_and_one_that_was_cut_off_does_not_count() -> None:
    own, cut = ModelAnswer("I can only classify messages into intents."), ModelAnswer("I", finish_reason="length")
    found = format_of([*in_frame("", ""), own, cut])
    assert len(found.labels) == 4
    assert found.check.n_read == found.check.n_answers == 41


def test_objects_are_json_in_their_writing() -> None:
    texts = [json.dumps({"who": f"name {i}", "n": i}, indent=2) for i in range(40)]
    found = format_of([ModelAnswer(f"```json\n{text}\n```") for text in texts])
    assert found.format.kind == "json"
    assert found.format.writing.indent == "  "
    assert found.check.is_exact
    assert found.labels == ()


def test_few_different_objects_of_two_fields_are_no_labels() -> None:
    texts = ['{"who": "me", "n": "1"}', '{"who": "me", "n": "2"}', '{"who": "you", "n": "1"}']
    found = format_of([ModelAnswer(text) for text in texts for _ in range(20)])
    assert found.format.kind == "json"


def test_a_call_of_one_function_is_a_format() -> None:
    answers = [ModelAnswer("", (ToolCall("route", f'{{"queue":"{label}"}}'),), "tool_calls") for label in LABELS * 10]
    found = format_of(answers)
    assert (found.format.tool, found.format.kind) == ("route", "label")
    assert found.check.is_exact
    assert set(found.labels) == set(LABELS)


def handed_over(arguments: str) -> list[ModelAnswer]:
    return [ModelAnswer("", (ToolCall(f"to_{i % 3}", arguments.format(i)),), "tool_calls") for i in range(15)]


def test_a_function_that_is_called_without_arguments_of_its_own_is_a_label() -> None:
    found = format_of([*handed_over("{{}}"), ModelAnswer("", (ToolCall("to_1", "{}"),) * 2, "tool_calls")])
    assert (sorted(found.labels), found.check.n_read, found.check.n_exact) == (["to_0", "to_1", "to_2"], 15, 15)
    assert found.format.render("to_1") == handed_over("{{}}")[1]


def test_calls_of_several_functions_have_no_common_format() -> None:
    assert find_format(handed_over('{{"why": {}}}')) is None
    assert find_format([]) is None
    assert find_format([ModelAnswer("x", (ToolCall("a", "{}"),))] * 10) is None


def test_the_answer_that_does_not_come_back_is_named() -> None:
    answers = [ModelAnswer(f'{{"total": {i}.20}}') for i in range(60)] + [ModelAnswer('{"total": 7.5}')]
    found = format_of(answers)
    assert not found.check.is_exact
    assert (found.check.n_exact, found.check.n_read) == (60, 61)
    assert (found.check.recorded, found.check.rendered) == ('{"total": 7.5}', '{"total": 7.50}')
