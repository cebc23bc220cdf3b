"""No test asserts on measured time: it must pass on a machine whose cores are busy with other work.

Waiting for a state with a generous deadline is fine (`end = time.monotonic() + 60 … assert time.monotonic() < end`); a
difference of two readings of a clock in an assertion is not.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CLOCKS = {"monotonic", "perf_counter", "time", "monotonic_ns", "perf_counter_ns"}
"""Not `process_time`: other work on the machine does not add to the processor time of this process."""


def measured_asserts(source: str) -> list[int]:
    """Return the lines of assertions that compare a difference of clock readings."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            tainted = _names_of_durations(function)
            for node in ast.walk(function):
                if isinstance(node, ast.Assert) and _is_duration(node.test, tainted):
                    found.append(node.lineno)
    return sorted(set(found))


def _names_of_durations(function: ast.AST) -> set[str]:
    assigned = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
    return {
        target.id
        for node in assigned
        for target in node.targets
        if isinstance(target, ast.Name) and _is_duration(node.value, set())
    }


def _is_duration(node: ast.AST, tainted: set[str]) -> bool:
    return any(
        (isinstance(part, ast.BinOp) and isinstance(part.op, ast.Sub) and _reads_clock(part))
        or (isinstance(part, ast.Name) and part.id in tainted)
        for part in ast.walk(node)
    )


def _reads_clock(node: ast.AST) -> bool:
    return any(
        isinstance(part, ast.Call)
        and isinstance(part.func, ast.Attribute)
        and part.func.attr in CLOCKS
        and isinstance(part.func.value, ast.Name)
        and part.func.value.id == "time"
        for part in ast.walk(node)
    )


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        ("began = time.monotonic()\n    assert time.monotonic() - began < 5", [3]),
        ("began = time.perf_counter()\n    took = (time.perf_counter() - began) * 1000\n    assert took < 5", [4]),
        ("end = time.monotonic() + 60\n    assert time.monotonic() < end", []),
        ("assert made <= time.time()", []),
    ],
)
def test_a_measured_duration_in_an_assertion_is_found(body: str, lines: list[int]) -> None:
    assert measured_asserts(f"def test_it():\n    {body}\n") == lines


def test_no_test_asserts_on_measured_time() -> None:
    found = {
        str(path.relative_to(TESTS)): lines
        for path in sorted(TESTS.rglob("*.py"))
        if (lines := measured_asserts(path.read_text(encoding="utf-8")))
    }
    assert found == {}
