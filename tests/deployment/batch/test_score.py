"""Scoring in bulk: what stands beside each row, what goes on, what is refused, and what a cap holds."""

import contextlib
import json
import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from fixtures.deployment import NAME, Desk
from fixtures.endpoints import Large, large_server
from fixtures.ray_cluster import RayCluster

from smallfirst.base.errors import ConfigError, ModelError
from smallfirst.base.paths import home
from smallfirst.base.progress import Progress
from smallfirst.data.dataset import Dataset
from smallfirst.deployment.batch import score as score_module
from smallfirst.deployment.batch.score import ScoreOptions, score
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import StateRow
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.manifest import Manifest
from smallfirst.models.recorded import RecordingHeader
from smallfirst.registry import versions
from smallfirst.tasks.classify import Classify

pq = pytest.importorskip("pyarrow.parquet")
QUIET = Progress(quiet=True)
LABELS = ("card_arrival", "exchange_rate", "lost_pin", "refund_request")
PRICE = {"gpt-4o-mini": {"input_usd_per_mtok": 1e6, "output_usd_per_mtok": 1e6}}
"""A dollar a token: an answer of the server below costs 7."""


def results(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob("part-*")) for row in pq.read_table(path).to_pylist()]


def write_rows(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"id": f"r{i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    return str(path)


def n_answered(out: Path) -> int:
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(out / "_work" / "batch.db")) as db:
        return int(db.execute("SELECT count(answer) FROM requests").fetchone()[0])
    return 0


@pytest.fixture
def desk_task(tmp_path: Path, toy_rows: Dataset, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task of the toy rows; what its large model is a test says itself."""
    monkeypatch.setenv("TOY_KEY", "k")
    lines = "".join(json.dumps({"text": e.text, "label": e.answer}) + "\n" for e in toy_rows.examples)
    (tmp_path / "train.jsonl").write_text(lines)
    (tmp_path / "task.yaml").write_text("name: toy\ndata: {train: train.jsonl}\n")
    return tmp_path


@pytest.fixture
def words(tmp_path: Path, toy_rows: Dataset, toy_task: Classify) -> str:
    folder = tmp_path / "words"
    folder.mkdir()
    LinearClassifier.fit("words", toy_rows, toy_task).save(folder, Manifest(kind="words", task=toy_task, base=""))
    return str(folder)


def name_large(task: Path, large: Large, *, key: str = "TOY_KEY") -> None:
    endpoint = {"base_url": large.url, "model": "gpt-4o-mini", "api_key_env": key, "max_retries": 0}
    settings = {"name": "toy", "data": {"train": "train.jsonl"}, "large": {"endpoint": endpoint}}
    (task / "task.yaml").write_text(json.dumps({**settings, "prices": {"tokens": PRICE}}))


def test_each_row_has_its_answer_and_the_same_command_changes_nothing(
    desk_task: Path, words: str, toy_rows: Dataset, tmp_path: Path
) -> None:
    texts = [example.text for example in toy_rows.examples]
    rows = write_rows(tmp_path / "rows.jsonl", [*texts, texts[0]])
    options = ScoreOptions(model=words, keep=("id",), part_rows=10)
    found = score(desk_task, rows, tmp_path / "out", options=options, progress=QUIET)
    counts = found.counts
    assert (counts.n_rows, counts.n_requests, counts.n_errors) == (len(texts) + 1, len(texts), 0)
    table = results(tmp_path / "out")
    assert [row["id"] for row in table] == [f"r{i}" for i in range(len(texts) + 1)]
    assert [row["answer"] for row in table] == [*(e.answer for e in toy_rows.examples), toy_rows.examples[0].answer]
    assert {row["answered_by"] for row in table} == {"words"}
    assert all(0.25 < row["confidence"] <= 1 and not row["certified"] and row["error"] is None for row in table)
    assert score(desk_task, rows, tmp_path / "out", options=options, progress=QUIET).counts == counts
    with pytest.raises(ConfigError, match="column 'answer' cannot be kept"):
        score(desk_task, rows, tmp_path / "new", options=ScoreOptions(model=words, keep=("answer",)), progress=QUIET)


def test_a_row_that_fails_has_its_error_and_is_asked_again_on_demand(desk_task: Path, tmp_path: Path) -> None:
    said = {"now": "what?"}
    with large_server(lambda body: said["now"] if "pin" in str(body["messages"][-1]) else LABELS[0]) as large:
        name_large(desk_task, large)
        rows = write_rows(tmp_path / "rows.jsonl", ["my pin", "my card", "no pin", "my pin"])
        options = ScoreOptions(model="large", yes=True)
        found = score(desk_task, rows, tmp_path / "out", options=options, progress=QUIET)
        assert (found.counts.n_errors, found.counts.cost_usd, len(large.asked)) == (3, 3 * 7.0, 3)
        first = results(tmp_path / "out")
        assert [row["error"] for row in first] == ["unreadable", None, "unreadable", "unreadable"]
        assert first[0]["message"] == "no answer of the task: 'what?'"
        assert len(large.asked) == 3
        said["now"] = LABELS[2]
        again = options.model_copy(update={"retry_errors": True})
        found = score(desk_task, rows, tmp_path / "out", options=again, progress=QUIET)
        assert [row["answer"] for row in results(tmp_path / "out")] == [LABELS[2], LABELS[0], LABELS[2], LABELS[2]]
        assert (found.counts.n_errors, found.counts.cost_usd, found.counts.lost_usd) == (0, 3 * 7.0, 2 * 7.0)
        assert len(large.asked) == 5


def test_a_cap_is_never_passed_and_nothing_is_paid_twice(desk_task: Path, tmp_path: Path) -> None:
    with large_server(LABELS[0]) as large:
        name_large(desk_task, large)
        rows = write_rows(tmp_path / "rows.jsonl", [f"card {i}" for i in range(12)])
        with pytest.raises(ConfigError, match="may ask a model that costs money"):
            score(desk_task, rows, tmp_path / "out", options=ScoreOptions(model="large"), progress=QUIET)
        options = ScoreOptions(model="large", yes=True, workers=2)
        with pytest.raises(ConfigError, match="which one process does"):
            score(desk_task, rows, tmp_path / "out", options=options, progress=QUIET)
        low = ScoreOptions(model="large", cap_usd=1)
        told = score(desk_task, rows, tmp_path / "out", options=low, progress=QUIET).stopped
        assert large.asked == []
        worst_usd = float(told.partition("may cost $")[2].partition(";")[0])
        capped = ScoreOptions(model="large", cap_usd=worst_usd + 21)
        found = score(desk_task, rows, tmp_path / "out", options=capped, progress=QUIET)
        assert "stopped at the cap" in found.in_words[-1]
        assert (len(large.asked), found.counts.cost_usd) == (4, 28.0)  # after 28 the next might pass the cap
        assert results(tmp_path / "out") == []  # a part is written when all its rows have an answer
        found = score(
            desk_task, rows, tmp_path / "out", options=ScoreOptions(model="large", cap_usd=90000), progress=QUIET
        )
        assert (found.stopped, found.counts.n_rows, len(large.asked)) == ("", 12, 12)
        asked = Counter(str(body["messages"][-1]) for body in large.asked)
        assert set(asked.values()) == {1}


def test_a_model_that_is_down_ends_the_batch_and_keeps_what_was_answered(
    desk_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_module, "MAX_FAILED_IN_A_ROW", 3)
    monkeypatch.setattr(score_module, "PAUSES_S", (0.0,))
    with large_server(LABELS[0]) as large:
        name_large(desk_task, large)
    rows = write_rows(tmp_path / "rows.jsonl", [f"card {i}" for i in range(12)])
    with pytest.raises(ModelError, match=r"3 requests in a row brought no answer"):
        score(desk_task, rows, tmp_path / "out", options=ScoreOptions(model="large", yes=True), progress=QUIET)
    with large_server(LABELS[0], port=int(large.url.split(":")[2].removesuffix("/v1"))):
        options = ScoreOptions(model="large", yes=True, retry_errors=True)
        found = score(desk_task, rows, tmp_path / "out", options=options, progress=QUIET)
    assert (found.counts.n_rows, found.counts.n_errors) == (12, 0)
    assert [row["error"] for row in results(tmp_path / "out")] == [None] * 12


def test_the_router_answers_as_it_is_served_and_nothing_of_it_is_audited(desk: Desk) -> None:
    version = desk.register(0)
    versions.promote(NAME, version)
    texts = [json.loads(line)["text"] for line in (desk.path.parent / "test.jsonl").read_text().splitlines()]
    rows = write_rows(desk.path.parent / "rows.jsonl", texts[:6])
    found = score(desk.path, rows, desk.path.parent / "out", progress=QUIET)
    assert found.model == f"router of version {version}"
    table = results(desk.path.parent / "out")
    about = json.loads((desk.path.parent / "out" / "_batch.json").read_text())["identity"]
    assert {(row["stage"], row["certified"], row["certificate"]) for row in table} == {
        ("small", True, about["certificate"])
    }
    alone = score(desk.path, rows, desk.path.parent / "alone", options=ScoreOptions(model="small"), progress=QUIET)
    assert alone.model == f"{NAME}/{version}"
    assert [row["answer"] for row in results(desk.path.parent / "alone")] == [row["answer"] for row in table]
    assert {row["certified"] for row in results(desk.path.parent / "alone")} == {False}

    named = [score_module.ScorerSource.find(desk.path, name) for name in ("small", "@champion", "1", f"{NAME}/1")]
    assert named == [named[0]] * 4
    assert named[0].decides != score_module.ScorerSource.find(desk.path, "").decides

    versions.promote(NAME, desk.register(1))
    with pytest.raises(ConfigError, match="holds answers of another batch"):
        score(desk.path, rows, desk.path.parent / "out", progress=QUIET)
    (entry,) = Ledger(home() / "ledger.db").entries(StateRow, task="toy")  # going live, as `serve` writes it
    assert entry.before == ""


def test_a_router_before_recorded_answers_of_the_large_model_answers_a_batch(desk: Desk) -> None:
    recorded = desk.path.parent / "recorded.jsonl"
    header = RecordingHeader(model="gpt-4o-mini", made_at="2026-12-01", smallfirst="0.2", n=0)
    recorded.write_text(json.dumps({"recorded": header.model_dump(mode="json")}) + "\n", encoding="utf-8")
    settings = json.loads(desk.path.read_text(encoding="utf-8")) | {"large": {"recorded": recorded.name}}
    desk.path.write_text(json.dumps(settings), encoding="utf-8")
    versions.promote(NAME, desk.register(0))
    rows = write_rows(desk.path.parent / "rows.jsonl", ["where is my card", "I lost my pin"])
    assert score(desk.path, rows, desk.path.parent / "out", progress=QUIET).counts.n_errors == 0


def test_workers_on_ray_lose_and_double_nothing_when_one_is_killed(
    ray_cluster: RayCluster, desk_task: Path, words: str, toy_rows: Dataset, tmp_path: Path
) -> None:
    texts = [f"{example.text} {i}" for i in range(10) for example in toy_rows.examples]
    rows = write_rows(tmp_path / "rows.jsonl", [*texts, *texts[:50]])
    killed: list[int] = []

    def is_worker(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):  # it may end meanwhile
            return "MapWorker" in " ".join(process.cmdline())
        return False

    def kill_one() -> None:
        while not killed:
            workers = [process for process in psutil.Process().children(recursive=True) if is_worker(process)]
            if workers and n_answered(tmp_path / "out"):
                killed.append(workers[0].pid)
                workers[0].kill()
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    options = ScoreOptions(model=words, keep=("id",), part_rows=12, workers=1)
    found = score(desk_task, rows, tmp_path / "out", options=options, progress=QUIET)
    killer.join(60)
    assert killed
    assert (found.counts.n_rows, found.counts.n_requests) == (len(texts) + 50, len(texts))
    here = score(desk_task, rows, tmp_path / "here", options=ScoreOptions(model=words, keep=("id",)), progress=QUIET)
    assert here.counts.n_errors == found.counts.n_errors == 0
    answers = [[(row["row"], row["id"], row["answer"]) for row in results(tmp_path / one)] for one in ("out", "here")]
    assert answers[0] == answers[1]
