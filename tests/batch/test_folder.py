"""The folder of a batch: a process that dies between any two steps loses no answer and doubles no row."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from smallfirst.batch.folder import ABOUT, BatchFolder, BatchIdentity
from smallfirst.batch.rows import RowSource
from smallfirst.batch.scorer import Budget
from smallfirst.data.row_formats import Columns
from smallfirst.errors import ConfigError

pq = pytest.importorskip("pyarrow.parquet")
ROWS = [{"id": i, "text": f"text {i % 7}"} for i in range(20)]
"""Seven different requests in parts of four rows."""


class Died(Exception):
    """The process ends here."""


class Batch:
    """A batch that dies before its n-th step."""

    def __init__(self, folder: Path) -> None:
        self.out, self.rows = folder / "out", folder / "rows.jsonl"
        self.rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "{\n")
        self.asked: list[int] = []

    def open(self, **changes: Any) -> BatchFolder:
        identity = {
            "rows": "rows.jsonl",
            "rows_fingerprint": self.source().fingerprint,
            "part_rows": 4,
            "model": "m/1",
            "model_fingerprint": "f",
            "keep": ("id",),
            **changes,
        }
        return BatchFolder(self.out, BatchIdentity.model_validate(identity))

    def source(self) -> RowSource:
        return RowSource(str(self.rows), columns=Columns(), keep=("id",))

    def run(self, dies_before: int | None = None) -> None:
        """Do the whole batch, as `score` does; die as `kill -9` kills: nothing is closed."""
        folder, steps = self.open(), 0

        def step(*_: object) -> None:
            nonlocal steps
            if steps == dies_before:
                raise Died
            steps += 1

        try:
            folder.cut(self.source(), step)
            for part in [*folder.pending.values()]:
                for number, request in folder.open_requests(part):
                    step()
                    self.asked.append(number)
                    text = json.loads(request)["messages"][0]["content"]
                    folder.keep([{"number": number, "answer": text.upper(), "error": None, "cost_usd": 1.0}])
                step()
                folder.finish(part)
            step()
            folder.close()
        except Died:
            kill(folder)
            raise

    def results(self) -> list[dict[str, Any]]:
        return [row for path in sorted(self.out.glob("part-*")) for row in pq.read_table(path).to_pylist()]


def set_aside(folder: BatchFolder, number: int, worst_usd: float) -> float | None:
    return asyncio.run(Budget(folder.database, None, 0.0).reserve(number, worst_usd))


def kill(folder: BatchFolder) -> None:
    """Let go of what the kernel takes from a process that dies."""
    folder._db.close()
    os.close(folder._lock)


def test_a_death_before_any_step_loses_and_doubles_nothing(tmp_path: Path) -> None:
    for dies_before in range(100):
        (tmp_path / str(dies_before)).mkdir()
        batch = Batch(tmp_path / str(dies_before))
        try:
            batch.run(dies_before)
            break
        except Died:
            batch.run()
        rows = batch.results()
        assert [row["row"] for row in rows] == list(range(1, 22))
        assert [row["id"] for row in rows] == [*range(20), None]
        assert [row["answer"] for row in rows[:20]] == [str(row["text"]).upper() for row in ROWS]
        assert rows[20]["error"] == "bad_row"
        assert "broken JSON" in rows[20]["message"]
        assert sorted(batch.asked) == list(range(1, 8))
        assert not (batch.out / "_work").exists()
    assert dies_before == 16  # six parts cut, seven requests, two parts finished, and the end


def test_parts_are_written_in_order_since_later_rows_repeat_earlier_ones(tmp_path: Path) -> None:
    batch = Batch(tmp_path)
    folder = batch.open()
    folder.cut(batch.source(), lambda _: None)
    assert list(folder.pending) == [0, 1]  # the first seven rows hold all requests
    first, second = folder.pending.values()
    done = {"answer": "a", "error": None, "cost_usd": 0.0}
    folder.keep([{"number": n, **done} for n in range(second.first, second.last + 1)])
    folder.finish(second)
    assert batch.results() == []
    folder.keep([{"number": n, **done} for n in range(first.first, first.last + 1)])
    folder.finish(first)
    assert len(batch.results()) == 21


def test_errors_are_forgotten_on_demand_and_their_cost_is_not(tmp_path: Path) -> None:
    batch = Batch(tmp_path)
    folder = batch.open()
    folder.cut(batch.source(), lambda _: None)
    parts = [*folder.pending.values()]
    assert set_aside(folder, 1, 9.0) == 9.0
    for number in range(1, 8):
        failed = number == 6
        error = {"error": "unavailable", "message": "down"} if failed else {"error": None, "answer": "a"}
        folder.keep([{"number": number, "cost_usd": 0.5, **error}])
    for part in parts:
        folder.finish(part)
    counts = folder.close()
    assert (counts.n_errors, counts.n_written, counts.lost_usd) == (4, 6, 0.0)  # three rows repeat the sixth request
    assert [row["message"] for row in batch.results() if row["error"] == "unavailable"] == ["down"] * 3

    again = batch.open()
    again.forget_errors()
    again.cut(batch.source(), lambda _: None)
    (part,) = again.pending.values()
    assert [number for number, _ in again.open_requests(part)] == [6]
    assert set_aside(again, 6, 2.0) == 2.0
    kill(again)
    last = batch.open()
    last.cut(batch.source(), lambda _: None)
    assert last.spent_usd == 6 * 0.5 + 0.5 + 2.0
    last.keep([{"number": 6, "cost_usd": 0.5, "error": None, "answer": "b"}])
    last.finish(part)
    assert last.close().n_errors == 1
    assert batch.results()[5]["answer"] == "b"


def test_two_batches_are_not_mixed_and_two_processes_do_not_share_one(tmp_path: Path) -> None:
    batch = Batch(tmp_path)
    folder = batch.open()
    with pytest.raises(ConfigError, match="another process works on it"):
        batch.open()
    folder.cut(batch.source(), lambda _: None)
    folder.close()
    with pytest.raises(ConfigError, match="model: m/1 there, m/2 now"):
        batch.open(model="m/2")
    folder.about.model_copy(update={"layout": 1}).save(batch.out / ABOUT)
    with pytest.raises(ConfigError, match="was begun by an earlier version"):
        batch.open()
    folder.about.save(batch.out / ABOUT)
    batch.run()
    assert batch.open().about.finished
    with pytest.raises(ConfigError, match="model_fingerprint: f there, g now"):
        batch.open(model_fingerprint="g")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        BatchFolder(tmp_path / "own", folder.identity)
