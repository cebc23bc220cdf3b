"""Delta tables written by the deltalake package, and some by hand for what it does not write."""

from __future__ import annotations

import base64
import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from smallfirst.data.sources.load import load_rows, load_valid
from smallfirst.errors import DataError, MissingExtra

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
deltalake = pytest.importorskip("deltalake")


def rows(*texts: str, label: str = "x") -> Any:
    return pa.table({"text": list(texts), "label": [label] * len(texts)})


def write(folder: Path, table: Any, **options: Any) -> Path:
    deltalake.write_deltalake(folder, table, **options)
    return folder


def read(address: Path | str) -> tuple[str, list[str]]:
    """Name and texts."""
    data = load_rows(address)
    return data.name, [e.text for e in data.examples]


def refused(address: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        load_rows(address)
    return str(caught.value)


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


def test_a_version_gives_the_same_rows_in_the_same_order_every_time(tmp_path: Path) -> None:
    folder = write(tmp_path / "tickets", rows("a", "b"))
    for text in "cdef":
        write(folder, rows(text), mode="append")
    first, again = load_rows(folder), load_rows(folder)
    assert first.examples == again.examples
    assert [e.text for e in first.examples] == ["a", "b", "c", "d", "e", "f"]  # oldest file first


def test_a_version_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    folder = write(tmp_path / "tickets", rows("a"))
    assert refused(f"{folder}@v7").startswith(f"{folder}: not readable as a Delta table at version 7: ")


def test_bad_rows_are_named_by_data_file_and_row(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", None], "label": ["x", "y"]})
    folder = write(tmp_path / "tickets", table)
    [part] = folder.glob("*.parquet")
    with pytest.raises(DataError) as caught:
        load_rows(folder)
    assert str(caught.value) == (
        "tickets@v0: 1 bad and 1 good rows\n"
        f'  {part}:2  "text" must be text, not null\n'
        "  next: fix these lines; map columns of other names by columns: {text: …, label: …}"
    )


def test_columns_that_make_no_shape_are_one_problem_of_the_table(tmp_path: Path) -> None:
    folder = write(tmp_path / "tickets", pa.table({"text": [1, 2], "label": ["a", "b"]}))
    assert [str(p) for p in load_valid(folder)[1]] == [f'{folder}:1  column "text" is int64: write it as text']


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


@pytest.mark.parametrize(("harm", "rule"), [(Path.unlink, "is missing"), (lambda p: p.write_bytes(b"PAR1"), "has 4 b")])
def test_a_data_file_that_is_not_the_one_of_the_log_is_an_error(tmp_path: Path, harm: Any, rule: str) -> None:
    folder = write(tmp_path / "tickets", rows("a"))
    [part] = folder.glob("*.parquet")
    harm(part)
    assert refused(folder).startswith(f"{part}: {rule}")


def test_a_log_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    folder = write(tmp_path / "tickets", rows("a"))
    (folder / "_delta_log" / f"{0:020}.json").write_text("{broken")
    assert refused(folder).startswith(f"{folder}: not readable as a Delta table: ")


def test_a_folder_without_a_log_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "tickets").mkdir()
    assert refused(f"{tmp_path}/tickets@v1") == f"{tmp_path}/tickets: no Delta table: it has no folder _delta_log"


def test_without_deltalake_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "tickets", rows("a"))
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(MissingExtra, match=r'pip install "smallfirst\[tables\]"'):
        load_rows(folder)


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


def test_columns_renamed_in_the_log_are_read_by_their_new_names(tmp_path: Path) -> None:
    message = {"type": "struct", "fields": [column("role", held="r1"), column("content", held="c10")]}
    turns = {"type": "array", "elementType": message, "containsNull": True}
    table = pa.Table.from_pylist([{"col-1": [{"r1": "user", "c10": "a"}, {"r1": "assistant", "c10": "b"}]}])
    mapped = {"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "9"}
    folder = by_hand(
        tmp_path / "t", table, [column("messages", turns, held="col-1")], features=["columnMapping"], **mapped
    )
    [example] = load_rows(folder).examples
    assert (example.text, example.answer) == ("a", "b")


def test_a_partition_of_renamed_columns_gives_its_value(tmp_path: Path) -> None:
    mapped = {"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "9"}
    fields = [column("text", held="c1"), column("label", held="c20")]
    add = {"partitionValues": {"c20": "x"}}
    table = pa.table({"c1": ["a", "b"]})
    folder = by_hand(tmp_path / "t", table, fields, add, features=["columnMapping"], partitions=["label"], **mapped)
    assert [(e.text, e.answer) for e in load_rows(folder).examples] == [("a", "x"), ("b", "x")]


def test_columns_mapped_by_number_are_refused(tmp_path: Path) -> None:
    fields = [column("text", held="c1"), column("label", held="c20")]
    mapped = {"delta.columnMapping.mode": "id", "delta.columnMapping.maxColumnId": "9"}
    folder = by_hand(tmp_path / "t", rows("a"), fields, features=["columnMapping"], **mapped)
    assert refused(folder) == f"{folder}: its columns are mapped by id; only mapping by name is read"


def test_a_table_with_an_unknown_feature_is_refused(tmp_path: Path) -> None:
    folder = by_hand(tmp_path / "t", rows("a"), TEXT_AND_LABEL, features=["fromTheFuture"])
    assert "fromTheFuture" in refused(folder)


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
