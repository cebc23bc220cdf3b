"""One JSON list, read piece by piece."""

from __future__ import annotations

import json
from typing import Any

import pytest

from smallfirst.data.sources import json_lists
from smallfirst.data.sources.json_lists import is_list


def list_rows(raw: bytes) -> list[object]:
    """Rows of the list, an item that is no object being named as such."""
    return list(json_lists.list_rows(raw, parse))


def parse(text: str) -> dict[str, Any] | str:
    value = json.loads(text)
    return value if isinstance(value, dict) else "no object"


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_items_are_the_same_whatever_pieces_are_read(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(json_lists, "_PIECE_BYTES", size)
    items = [{"text": f'é "{i}" ]}}', "n": i, "deep": {"a": [i]}} for i in range(5)]
    raw = b"\xef\xbb\xbf \n" + json.dumps(items, ensure_ascii=False, indent=1).encode() + b"\n"
    rows = list_rows(raw)
    assert [values for _, values in rows] == items
    assert [line for line, _ in rows] == [3, 12, 21, 30, 39]  # nine lines each


@pytest.mark.parametrize(
    ("raw", "rows"),
    [
        (b"[]", []),
        (b'[{"a": 1}, 5]', [(1, {"a": 1}), (1, "no object")]),
        (b'[{"a": 1},\n{"a": }]', [(1, {"a": 1}), (2, "broken JSON: Expecting value")]),
        (b'[{"a": 1}\n{"a": 2}]', [(1, {"a": 1}), (2, "broken JSON: Expecting ','")]),
        (b'[{"a": 1}', [(1, {"a": 1}), (1, "broken JSON: Expecting ','")]),
        (b'[{"a": 1}] x', [(1, {"a": 1}), (1, "broken JSON: something follows the list")]),
        (b'[{"a": "\xe9"}]', [(1, "after this line not UTF-8: byte 0xe9")]),
        (b"[{" + b'"a":{' * 200_000, [(1, "broken JSON: nested too deeply")]),
    ],
)
def test_what_is_wrong_with_a_list_is_named_by_line(raw: bytes, rows: list[object]) -> None:
    assert list_rows(raw) == rows


def test_a_list_of_objects_is_told_from_lines() -> None:
    assert [is_list(raw) for raw in (b' [\n{"a": 1}]', b"[]", b"[1]\n[2]", b'{"a": 1}')] == [True, True, False, False]
