"""Paths, values and characters of fields; counts, scores and figures by field, worked out by hand."""

import json
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from smallfirst.base.stats.intervals import wilson
from smallfirst.tasks.json.fields import (
    comparison_key,
    counts_by_field,
    field_metrics,
    field_score,
    flatten,
    map_values,
    omission_spans,
    value_spans,
    wrong_fields,
)
from smallfirst.tasks.json.schema import list_fields
from smallfirst.tasks.task import PartCounts, ScoredAnswer


def shown(canonical: str) -> dict[str, list[str]]:
    return {path: [canonical[start:end] for start, end in found] for path, found in value_spans(canonical).items()}


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        ({}, {}),
        ({"a": None, "b": True, "c": -1.5e-7}, {"a": ["null"], "b": ["true"], "c": ["-1.5e-07"]}),
        ({"slots": {"artist": ["x, y", "z"]}, "n": 1}, {"slots.artist": ["x, y", "z"], "n": ["1"]}),
        ({"items": [{"price": 2, "tags": ["a"]}, {"price": 3}]}, {"items[].price": ["2", "3"], "items[].tags": ["a"]}),
        ({"m": [[1, 2], [], [3]]}, {"m[]": ["1", "2", "3"]}),
        ({"m": [[{"x": 1}]]}, {"m[][].x": ["1"]}),
        ({"a": [], "b": {}, "c": "d"}, {"c": ["d"]}),
        ({"q": 'a "b" \\ {c}: [d]\n'}, {"q": ['a \\"b\\" \\\\ {c}: [d]\\n']}),
        ({"a.b": {"c d": 1}, "": 2, 'e"': 3}, {'"a.b".c d': ["1"], '""': ["2"], '"e\\""': ["3"]}),
        ({"ключ": "é😀"}, {"ключ": ["é😀"]}),
    ],
)
def test_spans_follow_the_paths(answer: Any, texts: dict[str, list[str]]) -> None:
    assert shown(json.dumps(answer, ensure_ascii=False)) == texts


def test_flat_leaves_out_what_says_nothing() -> None:
    answer = {"a": None, "b": [], "c": {"d": {}}, "e": "", "f": False, "g": [{"h": 0}, {"h": None}, {"h": 1}]}
    assert flatten(answer) == {"e": [""], "f": [False], "g[].h": [0, 1]}


def test_values_are_numbered_in_their_order_and_null_stays() -> None:
    answer = {"a": None, "tags": ["x", None, "y"], "items": [{"n": None}, {"n": 1}, {"n": 2, "s": "z"}], "b": {"c": 0}}
    paths = {"a": None, "tags": ["tags[0]", None, "tags[1]"], "b": {"c": "b.c"}}
    paths["items"] = [{"n": None}, {"n": "items[0].n"}, {"n": "items[1].n", "s": "items[0].s"}]
    assert map_values(answer, lambda path, value: path) == paths


def test_the_schema_names_the_same_paths() -> None:
    item = {"type": "object", "properties": {"price": {"type": "number"}, "x.y": {"type": "string"}}}
    rows = {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}
    schema = {"type": "object", "properties": {"items": {"type": "array", "items": item}, "rows": rows}}
    answer = {"items": [{"price": 1.5, "x.y": "z"}], "rows": [[1], [2]]}
    assert [field.path for field in list_fields(schema)] == list(flatten(answer))


@pytest.mark.parametrize(
    ("first", "second", "are_equal"),
    [
        ({"a": ["x", "y"]}, {"a": ["y", "x"]}, True),
        ({"a": [{"n": 1, "p": 2}, {"n": 3, "p": 4}]}, {"a": [{"n": 3, "p": 4}, {"p": 2, "n": 1}]}, True),
        ({"a": [{"n": 1, "p": 2}, {"n": 3, "p": 4}]}, {"a": [{"n": 1, "p": 4}, {"n": 3, "p": 2}]}, False),
        ({"a": None, "b": [], "c": {"d": None}, "e": [None]}, {}, True),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": "1"}, {"a": 1}, False),
        ({"a": ["x"]}, {"a": "x"}, False),
        ({"when": "May 3rd, 2024"}, {"when": "2024-05-03"}, True),
        ({"in": [{"when": "5/3/24"}]}, {"in": [{"when": "3 May 2024"}]}, True),
        ({"day": "May 3rd, 2024"}, {"day": "2024-05-03"}, False),
    ],
)
def test_answers_that_say_the_same_are_comparable_as_equal(first: Any, second: Any, are_equal: bool) -> None:
    ways: Any = {"when": "date", "in[].when": "date"}
    assert (comparison_key(first, ways) == comparison_key(second, ways)) is are_equal


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@hypothesis.given(st.dictionaries(st.text(max_size=3), VALUES, max_size=4))
@hypothesis.settings(deadline=None, max_examples=60)
def test_spans_cut_out_every_value_there_is(answer: dict[str, Any]) -> None:
    canonical = json.dumps(answer, ensure_ascii=False)
    cut = {}
    for path, found in value_spans(canonical).items():
        quoted = [(s - 1, e + 1) if canonical[s - 1] == '"' else (s, e) for s, e in found]
        values = [json.loads(canonical[s:e]) for s, e in quoted]
        if said := [value for value in values if value is not None]:
            cut[path] = said
    assert cut == flatten(answer)


def test_a_field_left_out_points_to_what_stands_in_its_place() -> None:
    names = ("people", "time", "date", "note")
    text = '{"time": "at {7}, sharp", "date": {"day": [1, 2]}}'
    found = {name: text[start:end] for name, (start, end) in omission_spans(text, names).items()}
    assert found == {"people": '"time"', "note": "}"}
    assert omission_spans(text, names)["note"] == (len(text) - 1, len(text))
    assert omission_spans("{}", ("a", "b")) == {"a": (1, 2), "b": (1, 2)}
    assert omission_spans('{"time": "cut o', names)["people"] == (1, 7)
    assert "note" not in omission_spans('{"time": "cut o', names)


def row(gold: Any, said: Any, *others: Any) -> ScoredAnswer:
    golds = tuple(json.dumps(one) for one in (gold, *others))
    answer = None if said is None else json.dumps(said)
    return ScoredAnswer(golds, answer, field_score(golds, answer, {}))


ROWS = (
    row({"who": "Ada", "n": "2"}, {"who": "Ada", "n": "2"}),  # 2 there, 2 said, 2 right
    row({"who": "Ada", "n": "2"}, {"who": "Eva", "day": "May"}),  # 2, 2, 0, 1 missing, 1 invented
    row({"tags": ["a", "b", "b"]}, {"tags": ["b", "b", "c", "d"]}),  # 3, 4, 2, 0 missing, 1 invented
    row({"who": "Ada"}, None),  # 1, 0, 0, 1 missing
    row({}, {}),
    row({"day": None, "tags": []}, {"day": "May"}),  # 0, 1, 0, 1 invented
)


def test_figures_count_values_over_all_rows() -> None:
    found = field_metrics(ROWS, {})
    assert list(found) == ["field_f1", "field_precision", "field_recall", "missing", "invented", "valid"]
    values = {name: estimate.value for name, estimate in found.items()}
    assert values == pytest.approx(
        {
            "field_f1": 2 * 4 / (8 + 9),
            "field_precision": 4 / 9,
            "field_recall": 4 / 8,
            "missing": 2 / 8,
            "invented": 3 / 9,
            "valid": 5 / 6,
        }
    )
    assert found["valid"] == wilson(5, 6)
    assert all(0 <= e.low <= e.value <= e.high <= 1 and e.n == 6 for e in found.values())


def test_parts_count_each_field_in_the_order_of_the_schema() -> None:
    assert counts_by_field(["n", "who", "never"], ROWS, {}) == (
        PartCounts(name="n", n_gold=2, n_said=1, n_right=1, n_missing=1),
        PartCounts(name="who", n_gold=3, n_said=2, n_right=1, n_missing=1),
        PartCounts(name="never", n_gold=0, n_said=0, n_right=0),
        PartCounts(name="day", n_gold=0, n_said=2, n_right=0, n_invented=2),
        PartCounts(name="tags", n_gold=3, n_said=4, n_right=2, n_invented=1),
    )


@pytest.mark.parametrize(("gold", "said", "score"), [
    ({"a": 1, "b": "x"}, {"b": "x", "a": 1.0}, 1.0), ({"a": ["x", "y"]}, {"a": ["y", "x"]}, 1.0), ({}, {}, 1.0),
    ({}, {"a": "x"}, 0.0), ({"a": "x", "b": "y"}, {"a": "x"}, 2 / 3),
    ({"a": "x", "b": "y"}, {"a": "x", "b": "z"}, 1 / 2), ({"a": True}, {"a": 1}, 0.0), ({"a": "x"}, None, 0.0),
])  # fmt: skip
def test_a_row_scores_one_if_every_field_is_right(gold: Any, said: Any, score: float) -> None:
    assert row(gold, said).score == pytest.approx(score)


def test_values_at_the_wrong_object_are_not_right() -> None:
    gold = {"items": [{"n": "tea", "p": 2}, {"n": "cake", "p": 4}]}
    mixed = {"items": [{"n": "tea", "p": 4}, {"n": "cake", "p": 2}]}
    assert row(gold, mixed).score == 3 / 4
    assert row(gold, {"items": gold["items"][::-1]}).score == 1.0


def test_the_nearest_gold_answer_counts() -> None:
    answered = row({"a": "x", "b": "y"}, {"a": "z"}, {"a": "q", "b": "r"}, {"a": "z"})
    assert answered.score == 1.0
    assert counts_by_field(["a", "b"], [answered], {})[1] == PartCounts(name="b", n_gold=0, n_said=0, n_right=0)


def test_values_are_compared_as_the_task_says() -> None:
    golds, answer = ('{"day": "2024-05-03", "to": "Graz"}',), '{"day": "May 3rd, 2024", "to": "graz"}'
    assert field_score(golds, answer, {}) == 0.0
    assert field_score(golds, answer, {"day": "date"}) == 0.5
    assert field_score(golds, answer, {"day": "date", "to": "case"}) == 1.0
    answered = ScoredAnswer(golds, answer, 0.5)
    assert field_metrics([answered], {"day": "date"})["field_recall"].value == 0.5
    assert [part.n_right for part in counts_by_field(["day", "to"], [answered], {"day": "date"})] == [1, 0]


def test_wrong_fields_are_named_at_the_top_level_against_the_nearest_gold() -> None:
    names = ("date", "items", "note")
    gold = '{"date": "1 May", "items": [{"n": 1}, {"n": 2}], "note": null}'
    assert wrong_fields(names, [gold], gold, {}) == ()
    assert wrong_fields(names, [gold], '{"date": "1 may", "items": [{"n": 2}, {"n": 1}]}', {}) == ("date",)
    assert wrong_fields(names, [gold], '{"date": "1 may", "items": []}', {"date": "case"}) == ("items",)
    assert wrong_fields(names, ['{"date": "x"}', '{"date": "y", "note": "z"}'], '{"date": "y"}', {}) == ("date",)
    assert wrong_fields(names, [gold], None, {}) == names
