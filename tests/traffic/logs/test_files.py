"""Records are found in lines, lists, documents and tables, packed or not, and every broken one is named."""

from __future__ import annotations

import gzip
import json

import pytest

from smallfirst.base.errors import ConfigError, Problem
from smallfirst.traffic.logs.files import LogRecord, file_records, log_files

ROWS = [{"a": 1}, {"a": 2}]


def read(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(file_records(path))


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}\n\n{"a": 2}\n',
        '\ufeff{"a": 1}\n{"a": 2}',
        json.dumps(ROWS),
        json.dumps(ROWS, indent=1),
        json.dumps({"data": ROWS, "meta": {}}, indent=1),
        json.dumps({"data": ROWS}),
        json.dumps({"hits": {"hits": [{"_source": row} for row in ROWS]}}),
    ],
)
def test_lines_lists_and_documents(tmp_path, text):
    assert [record.values for record in read(tmp_path / "log.json", text)] == ROWS


def test_packed_files_and_tables(tmp_path):
    assert len(read(tmp_path / "log.jsonl.gz", gzip.compress(b'{"a": 1}\n{"a": 2}'))) == 2
    assert read(tmp_path / "log.csv", "a,b\n1,2\n") == [LogRecord(str(tmp_path / "log.csv"), 2, {"a": "1", "b": "2"})]


@pytest.mark.parametrize("first", ['{"a": ', "[1, 2", "nonsense", '"text"', "3"])
def test_broken_lines_are_named_and_the_rest_is_read(tmp_path, first):
    found = read(tmp_path / "log.jsonl", f'{first}\n{{"a": 2}}\n\xff\n[]\n')
    assert [(type(one), one.line) for one in found] == [(Problem, 1), (LogRecord, 2), (Problem, 3), (Problem, 4)]


def test_a_file_that_cannot_be_unpacked_is_one_problem(tmp_path):
    (problem,) = read(tmp_path / "log.jsonl.gz", b"no gzip")
    assert "not readable" in problem.rule


def test_files_of_a_folder(tmp_path):
    for name in ("b.jsonl", "a/c.csv", ".hidden/d.jsonl", "e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [file.name for file in log_files(tmp_path)] == ["c.csv", "b.jsonl"]
    with pytest.raises(ConfigError, match="no such file"):
        log_files(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no log file in it"):
        log_files(tmp_path / ".hidden" / "..") if not (tmp_path / "e.png").unlink() and [
            (tmp_path / name).unlink() for name in ("b.jsonl", "a/c.csv")
        ] else None
