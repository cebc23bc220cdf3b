"""Parquet against hand-counted rows, and against what the same rows give as JSON lines."""

import base64
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from fixtures.rows import refused

from smallfirst.base.errors import Problem
from smallfirst.data.dataset import Dataset
from smallfirst.data.row_formats import Columns
from smallfirst.data.sources.load import load_raw, load_rows, load_valid

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])


def parquet(path: Path, table: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def problems(path: Path, **options: Any) -> list[tuple[str, int, str]]:
    return [(Path(p.path).name, p.line, p.rule) for p in load_valid(path, **options)[1]]


def as_json_lines(folder: Path, rows: list[dict[str, Any]]) -> Dataset:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_rows(path)


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_every_kind_of_text_column_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    text = pa.dictionary(pa.int32(), pa.string()) if kind == "dictionary" else getattr(pa, kind)()
    table = pa.table({"text": pa.array(["lost it", "é ☃"]).cast(text), "label": ["card", "cash"], "n": [1, 2]})
    data = load_rows(parquet(tmp_path / "rows.parquet", table))
    assert data.name == "rows.parquet"
    assert [(e.text, e.answer, e.line) for e in data.examples] == [("lost it", "card", 1), ("é ☃", "cash", 2)]


ROWS: dict[str, list[dict[str, Any]]] = {
    "labels": [{"text": "a", "labels": ["x", "y"]}, {"text": "b", "labels": []}],
    "target": [
        {"text": "a", "target": {"n": 3, "of": {"share": 0.1, "ok": True}, "names": ["p", None], "none": None}},
        {"text": "b", "target": {"n": -(2**53) - 1, "of": {"share": 1e300, "ok": False}, "names": [], "none": None}},
    ],
    "target as text": [{"text": "a", "target": '{"n": 3, "of": [1, "x"]}'}],
    "question": [{"question": "who?", "answer": ["me", "I"], "context": None}],
    "prompt": [{"prompt": "2+2?", "completion": "4"}],
    "messages": [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
    "text": [{"text": "Once upon"}],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_each_shape_is_the_same_as_from_json_lines(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    data = load_rows(parquet(tmp_path / "rows.parquet", pa.Table.from_pylist(rows)))
    wanted = as_json_lines(tmp_path, rows)
    assert data.content_fingerprint == wanted.content_fingerprint
    assert [e.golds for e in data.examples] == [e.golds for e in wanted.examples]


@pytest.mark.parametrize(
    ("column", "values", "kind"),
    [
        ("label", pa.array([3.5], pa.float32()), "float"),
        ("label", pa.array([b"card"]), "binary"),
        ("labels", pa.array([[b"a"]]), "list<element: binary>"),
        ("target", pa.array([{"a": 0.1}], pa.struct([("a", pa.float32())])), "struct<a: float>"),
        ("target", pa.array([{"day": 1}], pa.struct([("day", pa.date32())])), "struct<day: date32[day]>"),
    ],
)
def test_a_column_of_a_type_that_json_lacks_is_one_problem_and_never_converted(
    tmp_path: Path, column: str, values: Any, kind: str
) -> None:
    path = parquet(tmp_path / "rows.parquet", pa.table({"text": ["a"], column: values}))
    [(name, line, rule)] = problems(path)
    assert (name, line) == ("rows.parquet", 1)
    assert rule.startswith(f'column "{column}" is {kind}: write it as text, ')


def test_columns_of_other_names_are_mapped_even_with_a_point_in_them(tmp_path: Path) -> None:
    table = pa.table({"body.text": ["a"], "team": ["x"], "body": pa.array([{"text": "wrong"}])})
    data = load_rows(parquet(tmp_path / "r.parquet", table), columns=Columns(text="body.text", label="team"))
    assert [(e.text, e.answer) for e in data.examples] == [("a", "x")]


def test_bytes_that_are_not_utf_8_are_named_by_row(tmp_path: Path) -> None:
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 2, 4, 6)))
    texts_ = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"okc\xe9fe")])
    path = parquet(tmp_path / "rows.parquet", pa.table({"text": texts_, "label": ["x", "x", "x"]}))
    data, found = load_valid(path)
    assert [(e.text, e.line) for e in data.examples] == [("ok", 1), ("fe", 3)]
    assert found == (Problem(str(path), 2, "text that is not UTF-8: byte 0xe9 at its offset 1"),)


def repeated(text: str, n: int) -> Any:
    """One text n times, which a Parquet file holds once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int32()), pa.array([text]))


def test_a_row_over_the_limit_is_refused_and_the_others_read(tmp_path: Path) -> None:
    texts_ = ["a", "b" * 999_999, "c" * 1_000_000, "d"]
    path = parquet(tmp_path / "rows.parquet", pa.table({"text": texts_, "label": ["x"] * 4}))
    data, found = load_valid(path)
    assert [e.line for e in data.examples] == [1, 2, 4]
    assert [(p.line, p.rule) for p in found] == [(3, "row of 1,000,001 bytes; at most 1,000,000 are read")]
    large = pa.table({"text": ["a" * 3_000_000], "label": ["x"]})
    assert "row of 3,000,0" in refused(parquet(tmp_path / "large.parquet", large, use_dictionary=False))
    numbers = pa.array([[0] * 600_000, [7]], pa.list_(pa.int64()))
    path = parquet(tmp_path / "numbers.parquet", pa.table({"text": ["a", "b"], "labels": numbers}))
    tracemalloc.start()
    rows = [row.values for row in load_raw(path)[0]]
    assert tracemalloc.get_traced_memory()[1] < 2_000_000  # no object is made of what is refused
    tracemalloc.stop()
    assert rows[1] == {"labels": [7], "text": "b"}
    assert str(rows[0]).endswith(" bytes; at most 1,000,000 are read")


@pytest.mark.parametrize(
    ("limit", "most", "what"), [("MAX_SOURCE_BYTES", 5_000, "5,000 bytes"), ("MAX_SOURCE_ROWS", 99, "99 rows")]
)
def test_a_source_over_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, most: int, what: str
) -> None:
    monkeypatch.setattr(f"smallfirst.data.sources.text_files.{limit}", most)
    path = parquet(tmp_path / "rows.parquet", pa.table({"text": repeated("b" * 60, 100), "label": ["x"] * 100}))
    assert refused(path).startswith(f"{path}: more than {what}; no more are read of one source\n")


def test_a_claimed_size_is_believed_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "rows.parquet", pa.table({"text": ["b" * 60_000], "label": ["x"]}))
    raw = bytearray(path.read_bytes())
    raw[4:2_000] = b"\xff" * 1_996  # broken pages: reading any of them would tell so
    path.write_bytes(raw)
    assert "not readable as Parquet" in refused(path)
    monkeypatch.setattr("smallfirst.data.sources.text_files.MAX_SOURCE_BYTES", 50_000)
    assert "more than 50,000 bytes" in refused(path)


@pytest.mark.parametrize("cut", [slice(0), slice(-1), slice(40), slice(4, None)])
def test_a_broken_file_is_told_as_such(tmp_path: Path, cut: slice) -> None:
    path = parquet(tmp_path / "rows.parquet", pa.table({"text": ["a"], "label": ["x"]}))
    path.write_bytes(path.read_bytes()[cut])
    assert refused(path).startswith(f"{path}: not readable as Parquet: ")


def test_what_is_no_part_of_a_folder_of_parquet_is_named(tmp_path: Path) -> None:
    good = pa.table({"text": ["a", "b"], "label": ["x", "y"]})
    folder = tmp_path / "rows"
    for name in ("a.parquet", "team=x/b.parquet"):
        parquet(folder / name, good)
    outside = parquet(tmp_path / "secret.parquet", good)
    (folder / "c.parquet").symlink_to(outside)
    (folder / "d.csv").write_text("text,label\n")
    parquet(folder / "e.parquet", pa.table({"prompt": ["p"], "response": ["r"]}))
    data, _ = load_valid(folder)
    assert {Path(e.path).name for e in data.examples} == {"a.parquet"}
    assert problems(folder) == [
        ("c.parquet", 1, "a link that leads out of the folder; put the file itself here"),
        ("d.csv", 1, "not a .parquet file: a folder of Parquet holds nothing else; move it out"),
        ("e.parquet", 1, "a row of prompt + response, while this source has rows of text + label"),
        ("b.parquet", 1, 'the value of "team=x" is not in the file: write the rows without partitions, or as Delta'),
    ]


deltalake = pytest.importorskip("deltalake")


def rows(*texts: str, label: str = "x") -> Any:
    return pa.table({"text": list(texts), "label": [label] * len(texts)})


def write(folder: Path, table: Any, **options: Any) -> Path:
    deltalake.write_deltalake(folder, table, **options)
    return folder


def read(address: Path | str) -> tuple[str, list[str]]:
    data = load_rows(address)
    return data.name, [e.text for e in data.examples]


def test_a_table_is_read_at_the_version_that_its_name_then_tells(tmp_path: Path) -> None:
    folder = write(tmp_path / "tickets", rows("a", "b", "c"))
    write(folder, rows("d"), mode="append")
    deltalake.DeltaTable(folder).delete("text = 'b'")
    write(folder, rows("z"), mode="overwrite")
    assert read(folder) == ("tickets@v3", ["z"])
    assert read(f"{folder}@v0") == ("tickets@v0", ["a", "b", "c"])
    name, texts = read(f"{folder}@v2")
    assert (name, sorted(texts)) == ("tickets@v2", ["a", "c", "d"])
    assert sorted(read(f"{folder}@v1")[1]) == ["a", "b", "c", "d"]
    assert refused(f"{folder}@v7").startswith(f"{folder}: not readable as a Delta table at version 7: ")


def test_partitions_give_their_column_back(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b", "c", "d"], "label": ["x y", "é/%", "x y", None]})
    folder = write(tmp_path / "tickets", table, partition_by=["label"])
    data, problems = load_valid(folder)
    assert {(e.text, e.answer) for e in data.examples} == {("a", "x y"), ("c", "x y"), ("b", "é/%")}
    assert [p.rule for p in problems] == ['"label" must be text, not null']


def test_a_column_added_later_is_null_in_older_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "tickets", pa.table({"question": ["a"], "answer": ["x"]}))
    newer = pa.table({"question": ["b"], "answer": ["y"], "context": ["c"]})
    write(folder, newer, mode="append", schema_mode="merge")
    assert read(folder)[1] == ["a", "c\n\nb"]


def by_hand(folder: Path, table: Any, fields: list[Any], add: dict[str, Any] | None = None, **meta: Any) -> Path:
    """A table of one file with a log of one line each: protocol, columns, file."""
    (folder / "_delta_log").mkdir(parents=True)
    pq.write_table(table, folder / "part.parquet")
    features = meta.pop("features", [])
    stats = json.dumps({"numRecords": table.num_rows})
    size = (folder / "part.parquet").stat().st_size
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": features, "writerFeatures": features}
    metadata = {
        "id": "0",
        "format": {"provider": "parquet", "options": {}},
        "schemaString": json.dumps({"type": "struct", "fields": fields}),
        "partitionColumns": meta.pop("partitions", []),
        "configuration": meta,
        "createdTime": 1,
    }
    file = {"path": "part.parquet", "partitionValues": {}, "size": size, "modificationTime": 1, "dataChange": True}
    log = [{"protocol": protocol}, {"metaData": metadata}, {"add": {**file, "stats": stats, **(add or {})}}]
    text = "".join(json.dumps(action) + "\n" for action in log)
    (folder / "_delta_log" / f"{0:020}.json").write_text(text)
    return folder


def column(name: str, kind: Any = "string", held: str | None = None) -> dict[str, Any]:
    about = {"delta.columnMapping.id": len(held), "delta.columnMapping.physicalName": held} if held else {}
    return {"name": name, "type": kind, "nullable": True, "metadata": about}


TEXT_AND_LABEL = [column("text"), column("label")]


def deletion_vector(*deleted: int) -> dict[str, Any]:
    """An inline deletion vector, by the Delta protocol: a roaring bitmap of the row numbers from 0, in Z85."""
    numbers = b"".join(struct.pack("<H", n) for n in deleted)
    bitmap = struct.pack("<IIHHI", 12346, 1, 0, len(deleted) - 1, 16) + numbers
    data = struct.pack("<iQI", 1681511377, 1, 0) + bitmap
    python = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
    z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    text = base64.b85encode(data + b"\0" * (-len(data) % 4)).decode().translate(str.maketrans(python, z85))
    return {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": len(data), "cardinality": len(deleted)}


def test_rows_deleted_by_a_vector_are_never_read(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", None, "c", "d", "e"], "label": ["x"] * 5})
    vector = {"deletionVector": deletion_vector(1, 3)}
    folder = by_hand(tmp_path / "t", table, TEXT_AND_LABEL, vector, features=["deletionVectors"])
    data, problems = load_valid(folder)
    assert [(e.text, e.line) for e in data.examples] == [("a", 1), ("c", 3), ("e", 5)]
    assert problems == ()  # nor is a deleted row a bad one


def test_columns_that_the_log_renames_are_refused(tmp_path: Path) -> None:
    fields = [column("text", held="c1"), column("label", held="c20")]
    mapped = {"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "9"}
    folder = by_hand(tmp_path / "t", rows("a"), fields, features=["columnMapping"], **mapped)
    assert refused(folder).startswith(f"{folder}: its columns are mapped by name, so its files have other names")


@pytest.mark.parametrize("path", ["../secret.parquet", "/etc/passwd", "file:///etc/passwd", "%2E%2E/secret.parquet"])
def test_a_log_cannot_name_files_outside_of_its_table(tmp_path: Path, path: str) -> None:
    pq.write_table(rows("secret"), tmp_path / "secret.parquet")
    add = {"path": path, "size": (tmp_path / "secret.parquet").stat().st_size}
    folder = by_hand(tmp_path / "t", rows("a"), TEXT_AND_LABEL, add)
    assert "is plain names, without .. and empty parts" in refused(folder)


def test_a_data_file_that_is_a_link_out_of_its_table_is_refused(tmp_path: Path) -> None:
    folder = by_hand(tmp_path / "t", rows("a"), TEXT_AND_LABEL)
    (folder / "part.parquet").rename(tmp_path / "part.parquet")
    (folder / "part.parquet").symlink_to(tmp_path / "part.parquet")
    assert "a link that leads out of" in refused(folder)
