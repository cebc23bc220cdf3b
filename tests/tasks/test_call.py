"""The kind `call`: when two calls are one, what is counted, and which settings are refused."""

import pytest
from fixtures.assistants import TOOLS, assistant_rows

from smallfirst.base.errors import ConfigError
from smallfirst.base.records import parse_record
from smallfirst.data.conversations import NO_CALL, write_call
from smallfirst.data.sources.load import load_rows
from smallfirst.tasks.call import Call
from smallfirst.tasks.task import ScoredAnswer

TASK = Call(name="tea", tools=TOOLS)


def test_a_call_is_right_if_its_function_and_every_argument_are() -> None:
    gold = [write_call("OrderTea", {"tea": "Misty Valley", "day": "2026-03-03", "boxes": 2})]
    same = write_call("OrderTea", {"boxes": 2, "day": "2026-03-03", "tea": "misty  valley"})
    assert TASK.score(gold, TASK.parse(same)) == 1
    for other in (
        write_call("OrderTea", {"tea": "Misty Valley", "day": "2026-03-03"}),
        write_call("OrderTea", {"tea": "Misty Valley", "day": "2026-03-03", "boxes": "2"}),
        write_call("FindTea", {"tea": "Misty Valley", "day": "2026-03-03", "boxes": 2}),
        NO_CALL,
    ):
        assert TASK.score(gold, TASK.parse(other)) == 0
    assert TASK.score([NO_CALL], NO_CALL) == 1
    exact = Call(name="tea", tools=TOOLS, normalise={"OrderTea.tea": "exact"})
    assert exact.score(gold, exact.parse(same)) == 0


def test_text_is_no_call_and_a_call_of_another_function_is_no_answer() -> None:
    assert TASK.parse("How many boxes?") == NO_CALL
    assert TASK.parse('{"kind": "Green"}') == NO_CALL
    assert TASK.parse('{"name": "Pay", "arguments": {}}') is None


def test_measures_count_calls_made_calls_due_and_functions() -> None:
    find, order = write_call("FindTea", {"city": "Graz"}), write_call("OrderTea", {"boxes": 1})
    pairs = [
        (find, find),
        (order, write_call("OrderTea", {"boxes": 2})),
        (NO_CALL, order),
        (order, NO_CALL),
        (NO_CALL,) * 2,
    ]
    rows = [ScoredAnswer((gold,), said, TASK.score([gold], said)) for gold, said in pairs]
    found = TASK.measures(rows)
    assert (found["call_precision"].value, found["call_precision"].n) == (1 / 3, 3)
    assert (found["call_recall"].value, found["call_recall"].n) == (1 / 3, 3)
    assert found["function_accuracy"].value == 3 / 5
    parts = {part.name: (part.n_gold, part.n_said, part.n_right) for part in TASK.parts(rows)}
    assert parts == {"FindTea": (1, 1, 1), "OrderTea": (2, 2, 0), NO_CALL: (2, 2, 1)}


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"functions": {"Order": "never"}}, 'no function "Order"'),
        ({"normalise": {"OrderTea.box": "number"}}, 'no argument "OrderTea.box"'),
        ({"tools": []}, "tools must be a list of functions"),
    ],
)
def test_settings_that_name_nothing_are_refused(settings: dict[str, object], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        parse_record(Call, {"name": "tea", "tools": TOOLS, **settings}, where="task")


def test_functions_are_those_of_the_rows_and_other_ones_are_named() -> None:
    rows = load_rows(assistant_rows(2))
    settings = Call.complete_settings({}, rows, ())
    assert Call(name="tea", **settings).names == ("FindTea", "OrderTea")
    other = load_rows([row | {"tools": TOOLS[:1]} for row in assistant_rows(1)]).examples[0]
    assert TASK.row_rule(other) == "other functions than the task's: OrderTea is missing"
