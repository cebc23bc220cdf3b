"""The folder of a batch: a process that dies between any two steps loses no answer and doubles no row."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from smallfirst.base.errors import ConfigError
from smallfirst.data.row_formats import Columns
from smallfirst.deployment.batch.folder import BatchCounts, BatchFolder, BatchIdentity
from smallfirst.deployment.batch.rows import RowSource

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
        self.asked: list[str] = []

    def open(self, *, retry_errors: bool = False, **changes: Any) -> BatchFolder:
        identity = {
            "rows": "rows.jsonl", "rows_fingerprint": self.source().fingerprint, "part_rows": 4, "model": "m/1",
            "model_fingerprint": "f", "keep": ("id",), **changes,
        }  # fmt: skip
        return BatchFolder(self.out, BatchIdentity.model_validate(identity), retry_errors=retry_errors)

    def source(self) -> RowSource:
        return RowSource(str(self.rows), columns=Columns(), keep=("id",))

    def run(self, dies_before: int | None = None) -> None:
        """Do the whole batch, as `score` does; die as `kill -9` kills: nothing is closed."""
        folder, steps = self.open(), 0
        if folder.is_done:
            return

        def step() -> None:
            nonlocal steps
            if steps == dies_before:
                raise Died
            steps += 1

        try:
            for number, rows in folder.parts(self.source()):
                for key, request in folder.open_requests(rows).items():
                    step()
                    self.asked.append(key)
                    text = json.loads(request)["messages"][0]["content"]
                    folder.keep([{"hash": key, "answer": text.upper(), "error": None, "cost_usd": 1.0}])
                step()
                folder.write(number, rows)
            step()
            folder.close(finished=True)
        except Died:
            kill(folder)
            raise

    def results(self) -> list[dict[str, Any]]:
        return [row for path in sorted(self.out.glob("part-*")) for row in pq.read_table(path).to_pylist()]


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
        assert [row["id"] for row in rows] == [*map(str, range(20)), None]
        assert [row["answer"] for row in rows[:20]] == [str(row["text"]).upper() for row in ROWS]
        assert rows[20]["error"] == "bad_row"
        assert "broken JSON" in rows[20]["message"]
        assert len(batch.asked) == len({*batch.asked}) == 7
        assert batch.open().about.counts == BatchCounts(n_rows=21, n_requests=7, n_errors=1, cost_usd=7.0)
    assert not (batch.out / "_work").exists()
    assert dies_before == 14  # seven requests, six parts, and the end


def test_errors_are_forgotten_on_demand_and_their_cost_is_not(tmp_path: Path) -> None:
    batch = Batch(tmp_path)
    folder = batch.open()
    for number, rows in folder.parts(batch.source()):
        for key, request in folder.open_requests(rows).items():
            folder.set_aside(key, 9.0)
            error = (
                {"error": "unavailable", "message": "down"} if "text 5" in request else {"error": None, "answer": "a"}
            )
            folder.keep([{"hash": key, "cost_usd": 0.5, **error}])
        folder.write(number, rows)
    counts = folder.close(finished=True)
    assert (counts.n_errors, counts.lost_usd) == (4, 0.0)  # three rows repeat the sixth request
    assert [row["message"] for row in batch.results() if row["error"] == "unavailable"] == ["down"] * 3
    assert batch.open().is_done

    again = batch.open(retry_errors=True)
    number, rows = next(again.parts(batch.source()))
    ((key, _),) = again.open_requests(rows).items()
    assert number == 1
    again.set_aside(key, 2.0)
    kill(again)  # what was under way counts at its worst case
    last = batch.open()
    assert last.counts.cost_usd + last.counts.lost_usd == 6 * 0.5 + 0.5 + 2.0
    last.keep([{"hash": key, "cost_usd": 0.5, "error": None, "answer": "b"}])
    for number, rows in last.parts(batch.source()):
        last.write(number, rows)
    assert last.close(finished=True).n_errors == 1
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
