"""The folder of a batch: a process that dies between any two steps loses no answer and doubles no row."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from smallfirst.batch.folder import BatchCounts, BatchFolder, BatchIdentity
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

    def open(self, *, retry_errors: bool = False, **changes: Any) -> BatchFolder:
        identity = {
            "rows": "rows.jsonl",
            "rows_fingerprint": self.source().fingerprint,
            "part_rows": 4,
            "model": "m/1",
            "model_fingerprint": "f",
            "keep": ("id",),
            **changes,
        }
        return BatchFolder(self.out, BatchIdentity.model_validate(identity), retry_errors=retry_errors)

    def source(self) -> RowSource:
        return RowSource(str(self.rows), columns=Columns(), keep=("id",))

    def run(self, dies_before: int | None = None) -> None:
        """Do the whole batch, as `score` does; die as `kill -9` kills: nothing is closed."""
        folder, steps = self.open(), 0
        if folder.is_done:
            return

        def step(*_: object) -> None:
            nonlocal steps
            if steps == dies_before:
                raise Died
            steps += 1

        try:
            folder.read(self.source(), step)
            for requests in folder.open_requests():
                for number, request in requests:
                    step()
                    self.asked.append(number)
                    text = json.loads(request)["messages"][0]["content"]
                    folder.keep([{"number": number, "answer": text.upper(), "error": None, "cost_usd": 1.0}])
            step()
            folder.write(self.source())
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
        assert batch.open().about.counts == BatchCounts(n_rows=21, n_requests=7, n_answered=7, n_errors=1, cost_usd=7.0)
    assert not (batch.out / "_work").exists()
    assert dies_before == 15  # six parts read, seven requests, the writing, and the end


def test_a_row_that_was_not_asked_says_so_until_it_is(tmp_path: Path) -> None:
    batch = Batch(tmp_path)
    folder = batch.open()
    folder.read(batch.source(), lambda _: None)
    assert [[number for number, _ in some] for some in folder.open_requests()] == [[1, 2, 3, 4], [5, 6, 7]]
    folder.keep([{"number": n, "answer": "a", "error": None, "cost_usd": 0.0} for n in range(1, 7)])
    folder.write(batch.source())
    counts = folder.close()
    assert (counts.n_rows, counts.n_requests, counts.n_answered, counts.n_errors) == (21, 7, 6, 3)
    assert [row["row"] for row in batch.results() if row["error"] == "not_asked"] == [7, 14]
    batch.run()
    assert batch.asked == [7]
    assert {row["error"] for row in batch.results()} == {None, "bad_row"}


def test_errors_are_forgotten_on_demand_and_their_cost_is_not(tmp_path: Path) -> None:
    batch = Batch(tmp_path)
    folder = batch.open()
    folder.read(batch.source(), lambda _: None)
    assert set_aside(folder, 1, 9.0) == 9.0
    for number in range(1, 8):
        failed = number == 6
        error = {"error": "unavailable", "message": "down"} if failed else {"error": None, "answer": "a"}
        folder.keep([{"number": number, "cost_usd": 0.5, **error}])
    folder.write(batch.source())
    counts = folder.close()
    assert (counts.n_errors, counts.lost_usd) == (4, 0.0)  # three rows repeat the sixth request
    assert [row["message"] for row in batch.results() if row["error"] == "unavailable"] == ["down"] * 3
    assert batch.open().is_done

    again = batch.open(retry_errors=True)
    (((number, _),),) = again.open_requests()
    assert number == 6
    assert set_aside(again, 6, 2.0) == 2.0
    kill(again)
    last = batch.open()
    assert last.spent_usd == 6 * 0.5 + 0.5 + 2.0
    last.keep([{"number": 6, "cost_usd": 0.5, "error": None, "answer": "b"}])
    last.write(batch.source())
    assert last.close().n_errors == 1
    assert batch.results()[5]["answer"] == "b"
    assert not (batch.out / "_work").exists()


def test_two_batches_are_not_mixed_and_two_processes_do_not_share_one(tmp_path: Path) -> None:
    batch = Batch(tmp_path)
    folder = batch.open()
    with pytest.raises(ConfigError, match="another process works on it"):
        batch.open()
    folder.close()
    with pytest.raises(ConfigError, match="model: m/1 there, m/2 now"):
        batch.open(model="m/2")
    batch.run()
    assert batch.open().is_done
    with pytest.raises(ConfigError, match="model_fingerprint: f there, g now"):
        batch.open(model_fingerprint="g")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        BatchFolder(tmp_path / "own", folder.identity)
