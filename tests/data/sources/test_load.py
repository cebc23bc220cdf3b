"""One address, one source: what is read for which, and that the same rows are the same from everywhere."""

import csv
import gzip
import json
import os
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from fixtures.rows import refused

from smallfirst.base.errors import ConfigError, DataError
from smallfirst.data.sources.load import MAX_PROBLEMS, load_noted, load_rows, load_valid

ROWS = [{"text": f"row {i}, with a comma", "label": "even" if i % 2 == 0 else "odd"} for i in range(40)]


@pytest.fixture(autouse=True)
def _no_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SMALLFIRST_TABLES", "SMALLFIRST_VOLUMES"):
        monkeypatch.delenv(name, raising=False)


def jsonl(rows: list[dict[str, Any]] = ROWS) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(rows: list[dict[str, Any]] = ROWS) -> Any:
    return pytest.importorskip("pyarrow").Table.from_pylist(rows)


def delta(folder: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    pytest.importorskip("deltalake").write_deltalake(folder, table(rows))
    return folder


def test_the_same_rows_have_the_same_fingerprint_from_everywhere(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "rows.jsonl").write_bytes(jsonl())
    (tmp_path / "rows.ndjson.gz").write_bytes(gzip.compress(jsonl()))
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(ROWS)
    (tmp_path / "rows.CSV.GZ").write_bytes(gzip.compress((tmp_path / "rows.csv").read_bytes()))
    pq.write_table(table(), tmp_path / "rows.parquet", row_group_size=7)
    (tmp_path / "parts").mkdir()
    pq.write_table(table(ROWS[:25]), tmp_path / "parts" / "0.parquet")
    pq.write_table(table(ROWS[25:]), tmp_path / "parts" / "1.parquet")
    delta(tmp_path / "tickets")
    names = ["rows.jsonl", "rows.ndjson.gz", "rows.csv", "rows.CSV.GZ", "rows.parquet", "parts", "tickets"]
    read = {name: load_rows(tmp_path / name) for name in names}
    assert {data.content_fingerprint for data in read.values()} == {
        load_rows(tmp_path / "rows.jsonl").content_fingerprint
    }
    assert [data.name for data in read.values()] == [*names[:-1], "tickets@v0"]
    for data in read.values():
        assert [(e.text, e.answer) for e in data.examples] == [(row["text"], row["label"]) for row in ROWS]


def test_rows_of_this_process_are_the_rows_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(jsonl())
    pandas = pytest.importorskip("pandas")
    for rows in (ROWS, iter(ROWS), pandas.DataFrame(ROWS), table()):  # `datasets` yields dicts as a list does
        found = load_rows(rows)
        assert found.content_fingerprint == load_rows(tmp_path / "rows.jsonl").content_fingerprint
        assert found.examples[2].place == f"{type(rows).__name__}:3"
    numbered = pandas.DataFrame([{"text": "a", "label": 1}, {"text": "b", "label": float("nan")}, {"text": "c"}])
    with pytest.raises(DataError, match=r'DataFrame:2 +"label" must be text, not null'):
        load_rows(numbered)
    with pytest.raises(DataError, match=r"list:2 +a row must be a dict, not str"):
        load_rows([ROWS[0], "text"])
    for wrong in (3, {"text": ["a"]}, None):
        with pytest.raises(DataError, match="rows cannot be read from a"):
            load_rows(wrong)


class HubRows(list[dict[str, Any]]):
    """What matters of a Dataset of `datasets` whose labels are numbers of names."""

    features: ClassVar = {"text": object(), "label": SimpleNamespace(names=["even", "odd"], int2str=None)}


def test_labels_that_are_numbers_of_names_are_read_by_their_names() -> None:
    numbered = HubRows({**row, "label": ["even", "odd"].index(row["label"])} for row in ROWS)
    assert load_rows(numbered).content_fingerprint == load_rows(ROWS).content_fingerprint
    with pytest.raises(DataError, match=r'HubRows:1 +"label" must be text, not null'):
        load_rows(HubRows([{"text": "a", "label": -1}]))


def test_paths_are_relative_to_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl() + b"[1]\n")
    told = f"{path}: 1 bad and 40 good rows\n  {path}:41  not a JSON object: each line must be {{…}}\n"
    assert refused(path).startswith(told)
    assert refused("rows.jsonl", folder=tmp_path).startswith(told)
    data, problems = load_valid(path)
    assert (len(data), [p.line for p in problems]) == (40, [41])


@pytest.mark.parametrize("target", ['{"n": NaN}', '{"n": 1e999}', r'"{\"n\": -Infinity}"', r'{"n": "\ud800"}'])
def test_what_json_has_not_is_refused_in_a_target(tmp_path: Path, target: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "a", "target": {target}}}\n')
    rule = "has half a surrogate pair" if "ud800" in target else "is no JSON object: Out of range float values"
    assert f'{path}:1  "target" {rule}' in refused(path)


def test_a_packed_file_that_claims_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallfirst.data.sources.text_files.MAX_SOURCE_BYTES", 20_000_000)
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(30):
            file.write(b" " * 1_000_000)
    assert path.stat().st_size < 100_000
    assert refused(path).startswith(f"{path}: more than 20,000,000 bytes; no more are read of one source\n")


def test_what_is_no_file_or_endless_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smallfirst.data.sources.text_files.MAX_SOURCE_BYTES", 20_000_000)
    paths = [tmp_path / f"{name}.jsonl" for name in ("pipe", "device", "circle", "sparse")]
    os.mkfifo(paths[0])
    paths[1].symlink_to("/dev/zero")
    paths[2].symlink_to(paths[2])
    with paths[3].open("wb") as file:
        file.truncate(2_000_000_000_000)
    said = [refused(path).removeprefix(f"{path}: ").splitlines()[0] for path in paths]
    assert said[:2] == ["neither a file nor a folder"] * 2
    assert said[2].startswith("Too many levels of symbolic links")
    assert said[3] == "more than 20,000,000 bytes; no more are read of one source"


@pytest.mark.parametrize("content", [gzip.compress(jsonl())[:-9], b"no gzip", gzip.compress(jsonl()) + b"more"])
def test_a_broken_packed_file_is_told_as_such(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(content)
    assert refused(path).startswith(f"{path}: broken gzip: ")


def test_empty_rows_are_left_out_and_outer_spaces_are_no_part_of_a_label(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,text,label\n1, lost it,card  \n2,,\n,,\n,,\n3,late,fee\n")
    read = load_noted(tmp_path / "rows.csv")
    assert [(e.text, e.answer, e.line) for e in read.data.examples] == [("lost it", "card", 2), ("late", "fee", 6)]
    assert [(note.what, note.where) for note in read.notes] == [
        ('spaces around "text": 1 row', (f"{tmp_path}/rows.csv:2",)),
        ('spaces around "label": 1 row', (f"{tmp_path}/rows.csv:2",)),
        ("empty rows: 3 rows", tuple(f"{tmp_path}/rows.csv:{line}" for line in (3, 4, 5))),
    ]


@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet"])
def test_a_missing_file_is_told_with_the_files_of_like_name(tmp_path: Path, name: str) -> None:
    near = f"trian{Path(name).suffix}"
    (tmp_path / near).write_text("")
    assert refused(tmp_path / name) == f"{tmp_path}/{name}: no such file\n  next: did you mean {tmp_path}/{near}?"
    assert refused(tmp_path / "one.txt") == f"{tmp_path}/one.txt: no such file\n  next: {tmp_path} holds {near}"


@pytest.mark.parametrize("address", ["s3://bucket/rows.parquet", "https://example.org/rows.jsonl"])
def test_addresses_elsewhere_are_refused_and_not_asked(address: str) -> None:
    assert refused(address).startswith(f"{address}: not read from there\n")


def test_a_table_is_found_by_its_name_of_three_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delta(tmp_path / "lake" / "warehouse" / "tickets" / "train")
    monkeypatch.setenv("SMALLFIRST_TABLES", str(tmp_path / "lake"))
    data = load_rows("warehouse.tickets.train")
    assert (data.name, len(data)) == ("warehouse.tickets.train@v0", 40)
    assert load_rows("warehouse.tickets.train@v0").examples == data.examples
    assert refused("warehouse.tickets.trian") == (
        f'warehouse.tickets.trian: no such table below {tmp_path}/lake — did you mean "warehouse.tickets.train"?\n'
        f"  next: ls {tmp_path}/lake/*/*"
    )


def test_a_table_name_without_a_root_says_how_to_name_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused("warehouse.tickets.train", folder=tmp_path) == (
        f"warehouse.tickets.train: neither a file ({tmp_path}/warehouse.tickets.train) nor, without "
        "SMALLFIRST_TABLES, a table that can be found\n"
        "  next: set SMALLFIRST_TABLES to the folder that holds catalog/schema/table, or give the table's folder"
    )
    monkeypatch.setenv("SMALLFIRST_TABLES", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"SMALLFIRST_TABLES: .*none: no such folder"):
        load_rows("warehouse.tickets.train")


def test_what_stands_on_this_machine_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delta(tmp_path / "lake" / "a" / "b" / "c")
    monkeypatch.setenv("SMALLFIRST_TABLES", str(tmp_path / "lake"))
    (tmp_path / "a.b.c").mkdir()
    (tmp_path / "a.b.c" / "one.txt").write_text("text")
    assert load_rows("a.b.c", folder=tmp_path).name == "a.b.c"
    assert load_rows("a.b.c", folder=tmp_path / "lake").name == "a.b.c@v0"


SHORTEST = b'{"prompt":"a","response":"b"}\n'
SIZE, MAX_ROWS = 400_000, 1_000
LINES = {"bad.jsonl": b"x\n", "list.json": SHORTEST.replace(b"\n", b",\n")}


@pytest.mark.parametrize("name", LINES)
def test_memory_is_bounded_by_a_multiple_of_the_file(tmp_path: Path, name: str) -> None:
    piece = LINES[name]
    head = b"[" if name == "list.json" else b""
    (tmp_path / name).write_bytes(head + piece * (SIZE // len(piece)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            load_rows(tmp_path / name, max_rows=MAX_ROWS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * SIZE + MAX_ROWS * 4_000, f"{peak / SIZE:.0f} times the file"
    assert len(caught.value.problems) <= MAX_PROBLEMS


def test_rows_are_counted_as_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n" + "card,a\n" * 5000)
    seen = list[tuple[float, float]]()
    load_noted(tmp_path / "rows.csv", progress=lambda done, of, words="": seen.append((done, of)))
    assert seen == [(2048, 5001), (4096, 5001)]


def test_every_bad_row_is_counted_though_not_every_problem_is_kept(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"x\n" * (MAX_PROBLEMS + 7) + SHORTEST)
    with pytest.raises(DataError, match=f"{MAX_PROBLEMS + 7:,} bad and 1 good rows") as caught:
        load_rows(tmp_path / "rows.jsonl")
    assert len(caught.value.problems) == MAX_PROBLEMS
