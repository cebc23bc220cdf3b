"""Rows in bulk: every format gives the same requests, and a bad row costs no other."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from smallfirst.base.errors import DataError
from smallfirst.data.row_formats import Columns
from smallfirst.deployment.batch.rows import BatchRow, RowSource

TEXTS = ["where is my card", "a fee; of 3,50", "línea\nnueva"]


def read(path: Path | str, columns: Columns | None = None, **options: Any) -> list[BatchRow]:
    return [*RowSource(str(path), columns=columns or Columns(), **options)]


def asked(rows: list[BatchRow]) -> list[str]:
    return [json.loads(row.request)["messages"][-1]["content"] for row in rows if row.request]


def write_all(folder: Path) -> list[Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS))
    (folder / "rows.jsonl").write_text(lines)
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    quoted = "".join(f'{i};"{text}"\r\n' for i, text in enumerate(TEXTS))
    (folder / "rows.csv").write_bytes(b"\xef\xbb\xbf" + f"id;text\r\n{quoted}".encode())
    table = pa.table({"id": [0, 1, 2], "text": TEXTS})
    pq.write_table(table, folder / "rows.parquet")
    parts = folder / "parts"
    parts.mkdir()
    pq.write_table(table.slice(0, 1), parts / "a.parquet")
    (parts / "b.jsonl").write_text(lines.partition("\n")[2])
    (parts / "_SUCCESS").write_text("")
    (folder / "list.json").write_text(json.dumps([{"id": i, "text": text} for i, text in enumerate(TEXTS)]))
    return [*folder.glob("*.*"), parts]


def test_every_format_gives_the_same_requests(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for path in write_all(tmp_path):
        rows = read(path, keep=("id",))
        assert asked(rows) == TEXTS, path
        assert [row.number for row in rows] == [1, 2, 3]
        assert [int(row.kept[0]) for row in rows] == [0, 1, 2]
    assert asked(read(f"file://{tmp_path}/rows.csv")) == TEXTS
    deltalake = pytest.importorskip("deltalake")
    table, odd = pa.table({"text": TEXTS}), tmp_path / "100% of #1 ä.d"
    odd.mkdir()
    for rows in (table, table.slice(1)):
        deltalake.write_deltalake(str(odd / "delta"), rows, mode="overwrite")
    assert asked(read(odd / "delta")) == TEXTS[1:]
    pq.write_table(table, odd / "rows.parquet")
    assert asked(read(odd / "rows.parquet")) == TEXTS


def test_a_bad_row_has_its_rule_and_the_others_are_read(tmp_path: Path) -> None:
    lines = [b'{"text": "a"}', b"{", b'"b"', b'{"text": " "}', b'{"label": "x"}', b'{"text": "\xff"}', b'{"text": "z"}']
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    rows = read(tmp_path / "rows.jsonl")
    assert asked(rows) == ["a", "z"]
    rules = [row.rule.removeprefix(f"{tmp_path}/rows.jsonl:") for row in rows]
    assert rules[0] == rules[-1] == ""
    assert rules[1].startswith("2 broken JSON")
    assert rules[2].startswith("3 not a JSON object")
    assert rules[3] == '"text" is empty'
    assert rules[4] == "no column 'text' or 'question' or 'prompt'; the row has ['label']"
    assert rules[5].startswith("6 not UTF-8: byte 0xff at offset ")
    many = b"a" * 20_000_000
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' + many + b'\n{"text": "z"}'))
    del many
    tracemalloc.start()
    packed = read(tmp_path / "rows.jsonl.gz")
    assert tracemalloc.get_traced_memory()[1] < 10_000_000  # a line without end is never held
    tracemalloc.stop()
    assert asked(packed) == ["a", "z"]
    assert packed[1].rule.endswith(":2 row of 20,000,000 bytes; at most 1,000,000 are read")
    (tmp_path / "rows.csv").write_text("id,text\n1,a\n2\n3,c,d\n4,e\n")
    table = read(tmp_path / "rows.csv")
    assert asked(table) == ["a", "e"]
    assert table[1].rule == f"{tmp_path}/rows.csv:3 1 fields where the header has 2"


def test_a_request_is_what_is_asked_without_the_answer(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
    more = [*turns, {"role": "user", "content": "my card"}]
    rows = [
        {"question": "who?", "context": ["Ada", "Bob"], "answer": "Ada"},
        {"messages": turns},
        {"messages": more},
        {"messages": "hi"},
        {"text": "a", "channel": " mail  one", "prompt": "b"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(tmp_path / "rows.jsonl", columns=Columns(tags=("channel",)))
    requests = [json.loads(row.request) if row.request else row.rule for row in found]
    assert requests == [
        {"messages": [{"role": "user", "content": "Ada, Bob\n\nwho?"}]},
        {"messages": turns[:1]},
        {"messages": more},
        "messages[0] must be an object with role and content alone, not text",
        {"messages": [{"role": "user", "content": "a"}], "tags": {"channel": "mail one"}},
    ]
    assert asked(read(tmp_path / "rows.jsonl", text="prompt"))[-1] == "b"


def test_another_file_is_another_source_and_none_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n')
    first = RowSource(str(path), columns=Columns()).fingerprint
    assert RowSource(str(path), columns=Columns()).fingerprint == first
    path.write_text('{"text": "ab"}\n')
    assert RowSource(str(path), columns=Columns()).fingerprint != first
    path.write_text('{"text": "a", "id": 1}\n')
    (tmp_path / "out").symlink_to("/")
    with pytest.raises(DataError, match="out: a link to a folder; put the folder itself here"):
        read(tmp_path)
    with pytest.raises(DataError, match="no column 'idd' to keep — did you mean \"id\""):
        read(path, keep=("idd",))
    with pytest.raises(DataError, match=r"no such file[\s\S]*did you mean .*rows\.jsonl"):
        read(tmp_path / "row.jsonl")
