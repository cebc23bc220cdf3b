"""The ledger under load: rows a second, `kill -9` at ten moments, and how fast a million rows are read.

    python -m benchmarks.serving.ledger FOLDER [--before CHECKOUT] [--part NAME]...

SQLite and, where its programs are installed, PostgreSQL in a cluster in FOLDER that is durable (fsync on). CHECKOUT is an
older checkout of the project, whose ledger is measured in turn. Writes benchmarks/results/ledger.md.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.paths import RESULTS, ROOT
from smallfirst.billing.live import live_report
from smallfirst.dashboard.watch import watch
from smallfirst.deployment.review_queue import review_queue
from smallfirst.pricing.prices import PriceBook
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import AuditRow, LedgerRow
from smallfirst.serving.ledger.transfer import copy

WRITER = """
import asyncio, os, sys, time
from datetime import UTC, datetime
from pathlib import Path
from smallfirst.serving.ledger.ledger import Ledger, LedgerRow
place, n, crowd, tell = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "tell"
ledger = Ledger(place if "://" in place else Path(place))
bill = '[{"model":"m","usd":0.0001,"busy_s":0.01}]' * ("charges" in LedgerRow.model_fields)
more = {"charges": bill} if bill else {}
mark = time.time_ns()
rows = iter([LedgerRow(id=f"{mark}-{i}", at=datetime.now(UTC), served_name="t", status=200, latency_ms=10 + i % 50, task="t",
    stage="small" if i % 3 else "large", owner=f"o{i % 5}", answered_by="m", cost_usd=1e-4, prompt_tokens=400,
    completion_tokens=3, certified=True, request_sha256="f" * 64, **more) for i in range(n)])
async def write():
    for row in rows:
        await ledger.append_async(row)
        if tell:
            os.write(1, f"{row.id}\\n".encode())
async def main():
    await asyncio.gather(*(write() for _ in range(crowd)))
begin = time.perf_counter()
asyncio.run(main())
if not tell:
    print(n / (time.perf_counter() - begin))
ledger.close()
"""
CROWDS = {1: 600, 8: 2_000, 64: 6_000}
"""Rows that are written by so many at once."""
KILLS, SERVER_KILLS, ROUNDS, READS = 10, 3, 5, 5


class Cluster:
    """A PostgreSQL server in a folder, on a Unix socket."""

    def __init__(self, folder: Path) -> None:
        self._programs = max(Path("/usr/lib/postgresql").glob("*/bin"))
        self._user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        self._folder = folder
        folder.mkdir(parents=True)
        if self._user:
            shutil.chown(folder, "postgres")
        self._run("initdb", "-A", "trust", "-U", "ledger", "-E", "UTF8", "--locale=C")
        self.start()

    def _run(self, program: str, *more: str) -> None:
        command = [*self._user, str(self._programs / program), "-D", str(self._folder / "data"), *more]
        subprocess.run(command, check=True, capture_output=True, cwd=self._folder)

    def start(self) -> None:
        options = f"-c listen_addresses='' -k {self._folder}"
        for attempt in range(30):  # processes of a killed server hold its memory until they notice
            try:
                return self._run("pg_ctl", "-w", "-l", str(self._folder / "log"), "-o", options, "start")
            except subprocess.CalledProcessError:
                if attempt == 29:
                    raise
                time.sleep(1)

    def kill(self) -> None:
        """Kill the server and all its processes."""
        pid = int((self._folder / "data" / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (pid, *map(int, children)):
            os.kill(one, signal.SIGKILL)

    def stop(self) -> None:
        self._run("pg_ctl", "-w", "-m", "fast", "stop")

    def url(self) -> str:
        return f"postgresql://ledger@/postgres?host={self._folder}"


def write(
    place: str, n: int, crowd: int, *, checkout: Path = ROOT, told: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a process that writes rows; with `told`, ids that are promised go to this file."""
    command = [sys.executable, "-c", WRITER, place, str(n), str(crowd), "tell" if told else ""]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    return subprocess.Popen(command, stdout=told.open("ab") if told else subprocess.PIPE, env=environment, cwd=checkout)


def throughput(work: Path, places: dict[str, tuple[Callable[[int], str], Path]]) -> Iterator[str]:
    """Rows a second of each side, in turn; medians of the rounds."""
    for crowd, n in CROWDS.items():
        found: dict[str, list[float]] = {side: [] for side in places}
        for round in range(ROUNDS):
            for side, (place, checkout) in places.items():
                out, _ = write(place(crowd * 100 + round), n, crowd, checkout=checkout).communicate()
                found[side].append(float(out))
        first = next(iter(found))
        for side, rates in found.items():
            ratio = statistics.median(mine / its for mine, its in zip(rates, found[first], strict=True))
            yield f"| {crowd} | {side} | {statistics.median(rates):,.0f} | {min(rates):,.0f} to {max(rates):,.0f} | {ratio:.2f} |"


def kills(work: Path, name: str, place: str, dice: random.Random, cluster: Cluster | None = None) -> str:
    """Kill the writer, or the cluster under it, at random moments; count promised rows that are lost."""
    promised, n = work / f"{name}.told", SERVER_KILLS if cluster else KILLS
    promised.unlink(missing_ok=True)
    for _ in range(n):
        process, size = (
            write(place, 40_000, 32, told=promised),
            promised.stat().st_size if promised.exists() else 0,
        )
        while promised.stat().st_size == size:
            time.sleep(0.01)
        time.sleep(dice.uniform(0.05, 2))
        process.send_signal(signal.SIGSTOP if cluster else signal.SIGKILL)
        if cluster:
            cluster.kill()
        process.send_signal(signal.SIGKILL)
        process.wait()
        if cluster:
            cluster.start()
    with closing(Ledger(place if "://" in place else Path(place))) as ledger:
        kept, ids = {row.id for row in ledger.scan(LedgerRow)}, promised.read_text().split()
        counted = sum(one.n for one in ledger.sums(by=()))
    lost = len(set(ids) - kept)
    what = "server and writer" if cluster else "writer"
    return f"| {name} | {what} | {n} | {len(ids):,} | {lost} | {len(kept):,} | {counted:,} |"


def fill(ledger: Ledger, n: int, until: datetime) -> None:
    """A month: three tasks, small and large, five callers, an audit of every fiftieth answer."""
    dice = random.Random(1)
    for start in range(0, n, 2_000):
        rows: list[LedgerRow | AuditRow] = []
        for i in range(start, min(start + 2_000, n)):
            at = until - timedelta(days=30) * (1 - i / n)
            task, small = f"task{i % 3}", dice.random() < 0.7
            model = f"{task}-{'small' if small else 'large'}"
            audited = small and i % 50 == 0
            bill = f'[{{"model":"{model}","usd":0.0001,"busy_s":0.01}}]'
            rows.append(
                LedgerRow(
                    id=f"r{i}", at=at, served_name=task, status=200 if dice.random() < 0.98 else 499, task=task,
                    latency_ms=dice.lognormvariate(3 if small else 6, 0.5), owner=f"o{i % 5}", answered_by=model,
                    stage="small" if small else "large", certified=small, cost_usd=1e-4, prompt_tokens=400,
                    completion_tokens=3, charges=bill, audited=audited, request_sha256="f" * 64,
                )
            )  # fmt: skip
            if audited:
                rows.append(
                    AuditRow(id=f"r{i}", at=at, task=task, certificate="c", propensity=0.02, wrong=dice.random() < 0.02,
                             judged_by="large", cost_usd=1e-4)
                )  # fmt: skip
        ledger.append(*rows)


def reads(name: str, ledger: Ledger, now: datetime) -> Iterator[str]:
    """Medians of what the page, the report and the queue ask."""
    month = now - timedelta(days=30)
    asked: dict[str, Callable[[], object]] = {
        "sums of the month, by task and stage": lambda: ledger.sums(month, now),
        "sums of the month, by day, task and stage": lambda: ledger.sums(month, now, every="day"),
        "sums of the month, by day and all fields": lambda: ledger.sums(
            month, now, by=("task", "stage", "owner", "answered_by", "outcome"), every="day"
        ),
        "page, all tasks, 30 days": lambda: watch(ledger, {}, {"range": "30d"}, now=now),
        "page, one task, 30 days": lambda: watch(ledger, {}, {"task": "task0", "range": "30d"}, now=now),
        "page, one task, 24 hours": lambda: watch(ledger, {}, {"task": "task0", "range": "24h"}, now=now),
        "report --live 30d": lambda: live_report(ledger, "task0", PriceBook(), month, now),
        "queue of one task": lambda: review_queue(ledger, ["task0"]),
        "one answer by its id": lambda: ledger.get("r777"),
    }
    for what, ask in asked.items():
        seconds, worked = [], []
        for _ in range(READS):
            begin, used = time.perf_counter(), time.process_time()
            ask()
            seconds.append(time.perf_counter() - begin)
            worked.append(time.process_time() - used)
        used, taken = statistics.median(worked) * 1000, statistics.median(seconds) * 1000
        yield f"| {what} | {name} | {used:,.0f} | {taken:,.0f} | {max(seconds) * 1000:,.0f} |"


def rates_part(work: Path, before: Path | None) -> list[str]:
    """Rows a second."""
    sides: dict[str, tuple[Callable[[int], str], Path]] = {}
    if before:
        sides["before, SQLite"] = (lambda i: str(work / f"before{i}.db"), before.absolute())
    sides["now, SQLite"] = (lambda i: str(work / f"now{i}.db"), ROOT)
    cluster = Cluster(work / "pg-rates") if INSTALLED else None
    if cluster:
        url = cluster.url()
        sides["now, PostgreSQL"] = (lambda i: url, ROOT)
    head = ["| at once | ledger | rows/s | least to most | to the first |", "|---|---|---|---|---|"]
    found = [*head, *throughput(work, sides)]
    if cluster:
        cluster.stop()
    return found


def kills_part(work: Path, before: Path | None) -> list[str]:
    """Promised rows after `kill -9`."""
    dice = random.Random(19)
    found = [
        "| ledger | killed | moments | promised rows | of these lost | rows in the ledger | by its sums |",
        "|---|---|---|---|---|---|---|",
        kills(work, "SQLite", str(work / "killed.db"), dice),
    ]
    if INSTALLED:
        cluster = Cluster(work / "pg-kills")
        found.append(kills(work, "PostgreSQL", cluster.url(), dice))
        found.append(kills(work, "PostgreSQL, itself", cluster.url(), dice, cluster))
        cluster.stop()
    return found


def sqlite_part(work: Path, before: Path | None) -> list[str]:
    """A million rows in SQLite."""
    begin, now = time.perf_counter(), datetime.now(UTC)
    with closing(Ledger(work / "million.db")) as ledger:
        fill(ledger, ROWS, now)
        took, size = time.perf_counter() - begin, (work / "million.db").stat().st_size / 1e6
        note = f"{ROWS:,} requests of 30 days, written in {took:,.0f} s, {size:,.0f} MB. Medians of {READS} reads."
        return [
            note,
            "",
            "| asked | ledger | processor ms | wall ms | slowest |",
            "|---|---|---|---|---|",
            *reads("SQLite", ledger, now),
        ]


def postgresql_part(work: Path, before: Path | None) -> list[str]:
    """The same rows, copied to PostgreSQL."""
    if not INSTALLED:
        return []
    cluster, begin = Cluster(work / "pg-million"), time.perf_counter()
    with closing(Ledger(work / "million.db")) as ledger, closing(Ledger(cluster.url())) as other:
        copy(ledger, other)
        note = f"Copied to PostgreSQL with `smallfirst ledger copy` in {time.perf_counter() - begin:,.0f} s."
        now = ledger.rows(limit=1)[0].at
        found = [
            "| asked | ledger | processor ms | wall ms | slowest |",
            "|---|---|---|---|---|",
            *reads("PostgreSQL", other, now),
        ]
    cluster.stop()
    return [note, "", *found]


ROWS = 1_000_000
INSTALLED = bool(list(Path("/usr/lib/postgresql").glob("*/bin")))
PARTS: dict[str, tuple[str, str, Callable[[Path, Path | None], list[str]]]] = {
    "rates": (
        "## Rows a second",
        f"Each row alone in an `append_async`, so many at once, medians of {ROUNDS} rounds in turn; the ratio is the median of the rounds'."
        " `before` wrote no sums. PostgreSQL on a Unix socket, durable (fsync on); SQLite in WAL mode.",
        rates_part,
    ),
    "kills": (
        "## `kill -9` under load",
        "32 at once; a row is promised when its caller was told that it is written. Rows beyond the promised ones were written and not yet"
        " told; the third line goes on with the second's ledger.",
        kills_part,
    ),
    "sqlite": (
        "## A million rows",
        "Processor milliseconds are those of the asking process: about what it takes on a machine of its own; of PostgreSQL, without the"
        " server's part.",
        sqlite_part,
    ),
    "postgresql": ("", "", postgresql_part),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--part", choices=PARTS, action="append", help="Measure this part alone; the others stay.")
    given = parser.parse_args()
    work: Path = given.folder.absolute()
    work.mkdir(parents=True, exist_ok=True)
    for part in given.part or PARTS:
        load = f"Load average at the beginning: {os.getloadavg()[0]:.1f} on two cores."
        lines = PARTS[part][2](work, given.before)
        (work / f"{part}.md").write_text("\n".join([load, "", *lines, ""]), encoding="utf-8")
        page = [
            "# The ledger", "",
            f"`python -m benchmarks.serving.ledger FOLDER --before CHECKOUT`, {datetime.now(UTC):%Y-%m-%d},"
            " 2 shared cores (Zen 5), 24 GB, no GPU, Python 3.11. The load of each part is named.", "",
        ]  # fmt: skip
        for name, (title, text, _) in PARTS.items():
            if (work / f"{name}.md").exists():
                page += [
                    *([title, ""] if title else []),
                    *([text, ""] if text else []),
                    (work / f"{name}.md").read_text(encoding="utf-8"),
                ]
        (RESULTS / "ledger.md").write_text("\n".join(page), encoding="utf-8")
        print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
