"""Logs of several formats are read in one pass, redacted and priced; what cannot be read is named, never fatal."""

import gzip
import json
import sqlite3

import pytest
from fixtures.logs import MESSAGES, RESPONSE

from smallfirst.base.errors import ConfigError
from smallfirst.data.sources.text_files import RawRow
from smallfirst.models.pricing import PriceBook, TokenPrice
from smallfirst.traffic.capture_store import CaptureStore, is_store
from smallfirst.traffic.logs.read import MOST_PROBLEMS, file_records, log_files, read_logs

PAIR = {"request": {"model": "mine", "messages": MESSAGES}, "response": RESPONSE | {"model": "mine-2026"}}


def test_a_folder_of_several_formats(tmp_path):
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(PAIR)}\nbroken\n{json.dumps({'level': 'info', 'port': 1})}\n")
    (tmp_path / "b.csv").write_text("question,answer\na,b\n")
    found, problems = read_logs([tmp_path])
    assert [one.source for one in found] == [f"{tmp_path}/a.jsonl:1", f"{tmp_path}/b.csv:2"]
    assert [(problem.line, problem.rule) for problem in problems] == [
        (2, "broken JSON: Expecting value: line 1 column 1 (char 0)"),
        (3, "no request and answer in it; it has 'level', 'port'"),
    ]


def test_logs_and_what_the_proxy_has_kept_are_read_together(tmp_path):
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(PAIR)}\n")
    (logged,), _ = read_logs([tmp_path])
    store = CaptureStore(tmp_path / "capture.db")
    store.append([logged.model_copy(update={"id": "kept"})])
    store.close()
    found, problems = read_logs([tmp_path / "a.jsonl", tmp_path / "capture.db"])
    assert [one.id for one in found] == [logged.id, "kept"]
    assert problems == []
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE exchanges (id TEXT)")
    assert not is_store(tmp_path / "other.db")


def test_each_file_is_recognized_anew(tmp_path):
    """A row of a table before it does not make a table of a request and its response."""
    (tmp_path / "a.csv").write_text("request,response\na,b\n")
    body = {**PAIR["request"], "temperature": 0}
    (tmp_path / "b.jsonl").write_text(json.dumps({"request": body, "response": RESPONSE}))
    found, problems = read_logs([tmp_path])
    assert [one.request.get("temperature") for one in found] == [None, 0]
    assert problems == []


def test_a_folder_of_parquet_parts(tmp_path):
    """As Spark writes them: parts, perhaps by partition, and files of its own."""
    pyarrow = pytest.importorskip("pyarrow")
    table = pytest.importorskip("pyarrow.parquet")
    rows = [json.dumps(PAIR["request"]) for _ in range(3)]
    for part in ("part-00000.snappy.parquet", "part-00001.snappy.parquet", "day=2026-11-01/part-00002.snappy.parquet"):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        ids = [f"{part} {i}" for i in range(3)]
        table.write_table(pyarrow.table({"id": ids, "request": rows, "response": [part] * 3}), tmp_path / part)
    for name in ("_SUCCESS", "_started_7", ".part-00000.snappy.parquet.crc"):
        (tmp_path / name).write_text("")
    found, problems = read_logs([tmp_path])
    expected = [f"part-0000{i}.snappy.parquet {n}" for i in (2, 0, 1) for n in (0, 1, 2)]
    assert [one.id.rpartition("/")[2] for one in found] == expected
    assert problems == []


def test_prices_come_from_the_log_then_from_the_settings(tmp_path):
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(PAIR)}\n{json.dumps({**PAIR, 'cost': 0.5})}\n")
    prices = PriceBook(tokens={"mine": TokenPrice(input_usd_per_mtok=1.0, output_usd_per_mtok=10.0)})
    found, _ = read_logs([tmp_path], prices=prices)
    assert [one.cost_usd for one in found] == [pytest.approx(60e-6), 0.5]


def test_texts_are_redacted(read_records):
    (one,), _ = read_records({"prompt": "write to ann@example.com", "answer": "sent to ann@example.com"})
    assert "ann" not in one.model_dump_json()


def test_ids_are_unique_and_overlapping_exports_count_once(read_records):
    other = {**PAIR, "response": "another"}
    found, _ = read_records(*({**pair, "id": "x"} for pair in (PAIR, PAIR, other)), PAIR, PAIR)
    assert [one.id.partition("/")[0] for one in found][:2] == ["x", "x#"]
    assert len({one.id for one in found}) == len(found) == 4


@pytest.mark.parametrize("wrong", [3, "x", [3], {"a": []}, None])
def test_a_record_of_another_form_costs_no_other(read_records, wrong):
    spoilt = [
        {"data": {"spans": [{"attributes": {"mlflow.spanType": '"LLM"', "mlflow.spanInputs": wrong}}]}},
        {"custom_id": "a", "body": wrong},
        {"custom_id": "a", "response": wrong},
        {"traceId": "t", "type": "GENERATION", "startTime": wrong, "input": wrong, "usage": wrong},
        {"call_type": "completion", "spend": wrong, "messages": wrong, "response": wrong},
        {"request": wrong, "response": wrong, "timestamp": wrong},
    ]
    found, problems = read_records(*spoilt, {**PAIR, "id": "\ud800"})
    assert found[-1].id == "?"
    assert len(found) + len(problems) > 4


def test_many_problems_are_counted_not_kept(read_records):
    _, problems = read_records(*["broken"] * (MOST_PROBLEMS + 7))
    assert len(problems) == MOST_PROBLEMS + 1
    assert problems[-1].rule.endswith("and 7 more that are not named")


def test_a_source_that_does_not_exist_is_an_error_at_once(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_logs([tmp_path / "nothing"])


# Records of files

ROWS = [{"a": 1}, {"a": 2}]


def read(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(file_records(path))


@pytest.mark.parametrize("text", [
    '{"a": 1}\n\n{"a": 2}\n', '\ufeff{"a": 1}\n{"a": 2}', json.dumps(ROWS), json.dumps(ROWS, indent=1),
    json.dumps({"data": ROWS, "meta": {}}, indent=1), json.dumps({"data": ROWS}),
    json.dumps({"hits": {"hits": [{"_source": row} for row in ROWS]}}),
])  # fmt: skip
def test_lines_lists_and_documents(tmp_path, text):
    assert [record.values for record in read(tmp_path / "log.json", text)] == ROWS


def test_packed_files_and_tables(tmp_path):
    assert len(read(tmp_path / "log.jsonl.gz", gzip.compress(b'{"a": 1}\n{"a": 2}'))) == 2
    assert read(tmp_path / "log.csv", "a,b\n1,2\n") == [RawRow(str(tmp_path / "log.csv"), 2, {"a": "1", "b": "2"})]


@pytest.mark.parametrize("first", ['{"a": ', "[1, 2", "nonsense", '"text"', "3"])
def test_broken_lines_are_named_and_the_rest_is_read(tmp_path, first):
    found = read(tmp_path / "log.jsonl", f'{first}\n{{"a": 2}}\n\xff\n[]\n')
    assert [type(one.values) for one in found] == [str, dict, str, str]
    assert [one.line for one in found] == [1, 2, 3, 4]


def test_a_file_that_cannot_be_unpacked_is_one_problem(tmp_path, monkeypatch):
    (record,) = read(tmp_path / "log.jsonl.gz", b"no gzip")
    assert "not readable" in record.values
    monkeypatch.setattr("smallfirst.traffic.logs.read.MAX_DOCUMENT_BYTES", 100)
    (record,) = read(tmp_path / "log.json.gz", gzip.compress(json.dumps(ROWS * 100, indent=1).encode()))
    assert "more than 100 bytes in one JSON document" in record.values


def test_files_of_a_folder(tmp_path):
    for name in ("b.jsonl", "a/c.csv", ".hidden/d.jsonl", "e.png", "empty/f.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "out.jsonl").symlink_to(__file__)
    found = log_files(tmp_path)
    assert [file.path.name for file in found if not file.rule] == ["c.csv", "b.jsonl"]
    assert [one.rule[:11] for one in read_logs([tmp_path])[1]] == ["a link that"]
    with pytest.raises(ConfigError, match="no log file in it"):
        log_files(tmp_path / "empty")
