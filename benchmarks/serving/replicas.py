"""Three servers over one PostgreSQL under load: one is killed, one frozen, the database restarted; what is lost?

    python -m benchmarks.serving.replicas FOLDER     # SMALLFIRST_DATA has hosted_banking77; PostgreSQL's programs are needed

FOLDER gets a task (Banking77, words + linear, a certificate, the large model's answers recorded) once, which takes four
minutes. Clients ask `smallfirst serve` three times over and judge what was drawn for audits, by the rows' labels;
afterwards the ledger is compared with what clients were told. Writes benchmarks/results/replicas.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import psycopg

from benchmarks.paths import RESULTS
from benchmarks.routing.verdict_sets import hosted_rows
from benchmarks.serving.takeover import smallfirst
from smallfirst.deployment.task_deployment import CERTIFICATE
from smallfirst.paths import state_of
from smallfirst.pipeline.confidence_heads import HEADS
from smallfirst.pipeline.router_setup import REFERENCE
from smallfirst.project.run_folder import RunFolder
from smallfirst.registry import versions
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.stats.sequential import weighted_interval

RESULT = RESULTS / "replicas.md"
MODEL = "main.benchmarks.desk"
TASK = {
    "name": "desk",
    "about": "You classify the messages of an online bank's customers by what they want.",
    "data": {"train": "rows/train.jsonl", "test": "rows/test.jsonl"},
    "ladder": ["words"],
    "large": {"recorded": "rows/recorded.jsonl"},
    "gate": {"accuracy_at_least": 0.7},
    "routing": {
        "guarantee": {"max_error": 0.1, "confidence": 0.95},
        "judge": "person",
        "domain": "off",
        "monitor": {"audit_share": 0.2, "audit_share_on_drift": 0.2},
    },
    "register_to": MODEL,
    "prices": {"machine": {"usd_per_hour": 0.10, "utilisation": 0.3}},
}
LIMIT = 240
"""Requests a minute of the limited key."""
PATIENCE_S, AVOIDED_S = 2.0, 3.0
"""Seconds that a client waits for an answer, and for which it then asks the other servers."""


def programs() -> Path:
    """Return the folder of the newest PostgreSQL."""
    found = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=None) or shutil.which("initdb")
    if found is None:
        sys.exit("needs PostgreSQL's initdb: apt-get install postgresql")
    return Path(found).parent


@contextmanager
def postgresql() -> Iterator[tuple[str, Any]]:
    """Yield the URL of a server of our own, with its usual settings, and what runs `pg_ctl`."""
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        folder = Path(name)
        if user:
            shutil.chown(folder, "postgres")

        def run(*command: object) -> None:
            subprocess.run([*user, *map(str, command)], check=True, cwd=folder, stdout=subprocess.DEVNULL)

        def control(*command: str) -> None:
            options = f"-c listen_addresses='' -k {folder}"
            run(programs() / "pg_ctl", "-w", "-D", folder / "data", "-l", folder / "log", "-o", options, *command)

        run(programs() / "initdb", "-A", "trust", "-U", "ledger", "-E", "UTF8", "--locale=C", "-D", folder / "data")
        control("start")
        try:
            yield f"postgresql://ledger@/postgres?host={folder}", control
        finally:
            control("-m", "immediate", "stop")


class Server:
    """A `smallfirst serve`."""

    def __init__(self, task: Path, url: str) -> None:
        line = [sys.executable, "-c", "from smallfirst.cli.main import main; main(prog_name='smallfirst')", "serve"]
        line += [".", "--replay-large", "--port", "0", "--follow-s", "1"]
        environment = {**os.environ, "SMALLFIRST_LEDGER": url, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            line, cwd=task, env=environment, stdout=subprocess.PIPE, stderr=self.log, text=True
        )

    def wait(self) -> Server:
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        if " at http" not in first:
            self.log.seek(0)
            sys.exit(f"no server: {first}{self.log.read()[-2000:]}")
        self.url = first.rpartition(" at ")[2].strip()
        return self

    def signal(self, which: signal.Signals) -> None:
        self.process.send_signal(which)


class Clients:
    """What clients ask of all servers, and what they are told."""

    def __init__(self, servers: list[Server], keys: dict[str, str], rows: list[dict[str, Any]]) -> None:
        self.servers, self.keys, self.rows = servers, keys, rows
        self.answered: dict[str, list[tuple[float, str]]] = {name: [] for name in keys}
        """By key, when an answer came and its id."""
        self.seen: Counter[str] = Counter()
        self.judged, self.lie, self._until = 0, False, float("inf")
        self._avoided: dict[Server, float] = {}
        self._http = httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=200))
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, n: int, pace_s: float) -> None:
        """Let `n` clients with a key ask, each so often."""
        self._tasks += [asyncio.create_task(self._client(name, random.Random(f"{name}{i}"), pace_s)) for i in range(n)]

    async def stop(self) -> None:
        self._until = 0
        await asyncio.gather(*self._tasks)
        self._tasks, self._until = [], float("inf")

    async def _client(self, name: str, draw: random.Random, pace_s: float) -> None:
        while time.monotonic() < self._until:
            await asyncio.sleep(pace_s * draw.random() * 2)
            server, row = self._choose(draw), draw.choice(self.rows)
            head = {"authorization": f"Bearer {self.keys[name]}"}
            body = {"model": "desk", "messages": [{"role": "user", "content": row["text"]}]}
            try:
                url = f"{server.url}/chat/completions"
                got = await self._http.post(url, json=body, headers=head, timeout=PATIENCE_S)
            except httpx.HTTPError as error:
                self.seen["no answer in time" if isinstance(error, httpx.TimeoutException) else "no connection"] += 1
                self._avoided[server] = time.monotonic() + AVOIDED_S
                continue
            self.seen["answered" if got.status_code == 200 else got.json()["error"]["code"]] += 1
            if got.status_code == 200:
                answer = got.json()
                self.answered[name].append((time.monotonic(), answer["id"]))
                if name == "app" and draw.random() < 0.5:
                    right = row["label"] == answer["choices"][0]["message"]["content"] and not self.lie
                    await self._judge(draw, answer["id"], right)

    def _choose(self, draw: random.Random) -> Server:
        now = time.monotonic()
        return draw.choice([one for one in self.servers if self._avoided.get(one, 0) < now] or self.servers)

    async def _judge(self, draw: random.Random, id: str, right: bool) -> None:
        """Give the verdict at a server that need not be the one that answered, and try again while it is refused."""
        head = {"authorization": f"Bearer {self.keys['judge']}"}
        for _ in range(20):
            server = self._choose(draw)
            try:
                body = {"id": id, "verdict": "right" if right else "wrong"}
                got = await self._http.post(f"{server.url}/feedback", json=body, headers=head)
                if got.status_code < 500:
                    self.judged += bool(got.json().get("audit"))
                    return
            except httpx.HTTPError:
                self._avoided[server] = time.monotonic() + AVOIDED_S
            await asyncio.sleep(0.5)

    async def states(self) -> list[dict[str, Any]]:
        head = {"authorization": f"Bearer {self.keys['judge']}"}
        found = [await self._http.get(f"{server.url}/routers", headers=head) for server in self.servers]
        return [one.json()["data"][0] for one in found]

    async def until_all(self, holds: Any) -> list[float]:
        """Return, for each server, the seconds until something holds there."""
        began = time.monotonic()

        async def one(server: Server) -> float:
            while not await holds(server):
                await asyncio.sleep(0.05)
            return time.monotonic() - began

        return list(await asyncio.gather(*map(one, self.servers)))


async def measure(task: Path, url: str, control: Any) -> dict[str, Any]:
    """Run all of it, and return the figures."""
    os.environ["SMALLFIRST_LEDGER"] = url
    limits = {"app": [], "limited": ["--requests-per-minute", str(LIMIT)]}
    keys = {name: key(task, name, *more) for name, more in {**limits, "judge": ["--admin"], "leaver": []}.items()}
    servers = [Server(task, url) for _ in range(3)]
    for server in servers:
        server.wait()
    rows = [json.loads(line) for line in (task / "rows" / "test.jsonl").read_text().splitlines()]
    clients, found = Clients(servers, keys, rows), dict[str, Any]()

    async def phase(name: str, seconds: float) -> None:
        before = clients.seen.copy()
        await asyncio.sleep(seconds)
        found[name] = dict(clients.seen - before)

    clients.start("app", 8, 0.1)
    clients.start("limited", 6, 0.1)
    began = time.monotonic()
    await phase("all up", 15)
    servers[0].signal(signal.SIGKILL)
    await phase("one killed", 6)
    servers[0].process.wait()
    servers[0] = await asyncio.to_thread(lambda: Server(task, url).wait())
    servers[1].signal(signal.SIGSTOP)
    await phase("one frozen", 6)
    servers[1].signal(signal.SIGCONT)
    await phase("all up again", 4)
    await asyncio.to_thread(control, "-m", "fast", "restart")
    await phase("database restarted", 6)
    await asyncio.to_thread(control, "-m", "immediate", "stop")
    await phase("database away", 5)
    await asyncio.to_thread(control, "start")
    back = time.monotonic()
    n = sum(map(len, clients.answered.values()))
    while sum(map(len, clients.answered.values())) == n:
        await asyncio.sleep(0.02)
    found["answers again after s"] = time.monotonic() - back
    await phase("database back", 6)
    await clients.stop()
    found["seconds"] = time.monotonic() - began
    found["limited"] = len(clients.answered["limited"])
    await asyncio.sleep(2)  # no server has read the ledger since the last verdict
    found["states"] = await clients.states()
    found["recomputed"] = recomputed(url)
    fresh = Server(task, url).wait()
    found["fresh"] = (await Clients([fresh], keys, rows).states())[0]
    fresh.signal(signal.SIGTERM)

    smallfirst(task, "keys", "revoke", "leaver")
    head = {"authorization": f"Bearer {keys['leaver']}"}

    async def refused(server: Server) -> bool:
        return (await clients._http.get(f"{server.url}/models", headers=head)).status_code == 401

    found["revoked"] = await clients.until_all(refused)

    with state_of(task):
        champion = versions.resolve(f"{MODEL}@champion")
        versions.promote(MODEL, 3 - champion.version)

    async def moved(server: Server) -> bool:
        body = {"model": "desk-small", "messages": [{"role": "user", "content": "card"}]}
        admin = {"authorization": f"Bearer {keys['judge']}"}
        got = await clients._http.post(f"{server.url}/chat/completions", json=body, headers=admin)
        return got.status_code == 200 and f"@{3 - champion.version}" in got.text

    found["alias"] = await clients.until_all(moved)

    clients.lie = True
    clients.start("app", 8, 0.05)

    async def fell(server: Server) -> bool:
        return (await Clients([server], keys, rows).states())[0]["state"] == "fallback"

    while not any([one["state"] == "fallback" for one in await clients.states()]):
        await asyncio.sleep(0.02)
    found["alarm"] = await clients.until_all(fell)
    await clients.stop()
    found["seen"], found["answered"] = dict(clients.seen), {k: len(v) for k, v in clients.answered.items()}
    found |= audit(url, clients)
    for server in servers:
        server.signal(signal.SIGTERM)
    found["exits"] = [server.process.wait(60) for server in servers]
    return found


def recomputed(url: str) -> dict[str, Any]:
    """Return the live error, computed from the verdicts in the ledger by nothing but the formula of the interval."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT id, weight, wrong FROM audits ORDER BY seq").fetchall()
    last = {id: (round(weight, 9), wrong) for id, weight, wrong in rows}
    return weighted_interval(Counter(last.values()), max_weight=2.0).model_dump()


def audit(url: str, clients: Clients) -> dict[str, Any]:
    """Compare the ledger with what clients were told."""
    ids = [id for answers in clients.answered.values() for _, id in answers]
    ledger = Ledger(url)
    with psycopg.connect(url) as connection:
        rows = Counter(id for (id,) in connection.execute("SELECT id FROM answers WHERE status = 200"))
        audits = connection.execute(
            "SELECT id, weight, wrong, certificate, judged_by FROM audits ORDER BY seq"
        ).fetchall()
        states = connection.execute("SELECT before, after, cause, certificate FROM states ORDER BY seq").fetchall()
    answered = ledger.sums(by=("kind", "outcome"), latencies=False, outcome="answered")
    sums = sum(one.n for one in answered if one.kind in ("", "answer"))
    ledger.close()
    return {
        "lost": len(set(ids) - rows.keys()),
        "doubled": sum(n > 1 for n in rows.values()) + len(ids) - len(set(ids)),
        "rows": len(rows),
        "sums": sums,
        "audits": len(audits),
        "audits twice": len(audits) - len({one[0] for one in audits}),
        "changes": states,
    }


def key(task: Path, name: str, *options: str) -> str:
    made = smallfirst(task, "keys", "create", name, *options)
    if made.returncode:
        sys.exit(made.stderr)
    return made.stdout.strip()


def prepare(folder: Path) -> Path:
    """Return the folder of the task, with two versions of its model."""
    task = folder / "task"
    if not (task / "task.yaml").exists():
        hosted_rows("hosted_banking77", task)
        (task / "task.yaml").write_text(json.dumps(TASK))
    with state_of(task):
        if not (task / ".smallfirst" / "mlflow.db").exists() and smallfirst(task, "run", ".").returncode:
            sys.exit("smallfirst run failed")
    return task


def second_version(task: Path) -> None:
    """Register the champion's files once more, with all that belongs to it, so that an alias can move."""
    with state_of(task):
        if len(versions.list_versions(MODEL)) > 1:
            return
        first = versions.resolve(f"{MODEL}@champion")
        verdict = RunFolder.latest("desk", first.tags["run"]).verdicts().of(first.tags.get("candidate", "words"))
        again = versions.register(first.folder, verdict, name=MODEL, run_id=None, tags=first.tags)
        for name in (CERTIFICATE, REFERENCE, HEADS):
            if (raw := versions.read_attachment(MODEL, first.version, name)) is not None:
                versions.attach(MODEL, again.version, name, raw)


HEAD = """# Several servers over one database

`python -m benchmarks.serving.replicas FOLDER`, {date}, 2 shared cores (Zen 5), 24 GB, no GPU, Python 3.11; other work on the machine: load {load:.0f}.

Three `smallfirst serve` over one PostgreSQL (its usual settings), a task of Banking77 (words + linear, at most 10 % of kept answers wrong,
a person judges 20 %), {clients} clients that ask any server and judge half of the answers at any other. One server was killed (kill -9) and
started again, one frozen for 6 s (SIGSTOP, SIGCONT), PostgreSQL restarted, then stopped for 5 s (`-m immediate`). A client waits
{patience:.0f} s for an answer and then asks the others. One run of {seconds:.0f} s.

| | |
|---|---|
"""


def page(found: dict[str, Any]) -> str:
    errors = [one["live_error"] for one in [*found["states"], found["fresh"], {"live_error": found["recomputed"]}]]
    shown = ["{value:.4f} [{low:.4f}, {high:.4f}] n={n}".format(**one) for one in errors]
    most = LIMIT + LIMIT / 60 * found["seconds"]
    after = {
        name: f"{statistics.median(found[name]):.1f} s, {max(found[name]):.1f} s"
        for name in ("revoked", "alias", "alarm")
    }
    changes = [change for change in found["changes"] if change[2] == "guarantee"]
    lines = [
        ("answers that clients were given", f"{sum(found['answered'].values()):,}"),
        ("of these not in the ledger", f"**{found['lost']}**"),
        ("rows or ids twice", f"**{found['doubled']}**"),
        (
            "answers in the ledger, in its sums (more than were given: their clients had gone)",
            f"{found['rows']:,}, {found['sums']:,}",
        ),
        (f"limit of {LIMIT} a minute over all servers: passed of the most", f"{found['limited']:,} of {most:,.0f}"),
        ("verdicts of audits, of these two on one answer", f"{found['audits']}, **{found['audits twice']}**"),
        ("live error at the three servers", "; ".join(shown[:3])),
        ("at a fourth that was started afterwards; recomputed from the ledger's verdicts", "; ".join(shown[3:])),
        ("all bounds equal", "**yes**" if len({json.dumps(one, sort_keys=True) for one in errors}) == 1 else "**no**"),
        ("a revoked key is refused (median, last server)", after["revoked"]),
        ("a moved alias answers (median, last server)", after["alias"]),
        ("an alarm is in force, after the first server (median, last server)", after["alarm"]),
        ("times that the alarm was written", f"**{len(changes)}**"),
        ("first answer after the database came back", f"{found['answers again after s']:.1f} s"),
        ("exit codes after SIGTERM", ", ".join(map(str, found["exits"]))),
    ]
    rows = [f"| {name} | {value} |" for name, value in lines]
    told = [f"| {name} | {', '.join(f'{n:,} {what}' for what, n in found[name].items())} |" for name in PHASES]
    head = HEAD.format(
        date=date.today(), clients=14, patience=PATIENCE_S, seconds=found["seconds"], load=os.getloadavg()[0]
    )
    return (
        head
        + "\n".join(rows)
        + "\n\nWhat clients were told:\n\n| while | answers and refusals |\n|---|---|\n"
        + "\n".join(told)
        + "\n"
    )


PHASES = ("all up", "one killed", "one frozen", "all up again", "database restarted", "database away", "database back")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    task = prepare(folder)
    second_version(task)
    with postgresql() as (url, control):
        found = asyncio.run(measure(task, url, control))
    (folder / "replicas.json").write_text(json.dumps(found, indent=1, default=str))
    RESULT.write_text(page(found), encoding="utf-8")
    print(page(found))


if __name__ == "__main__":
    main()
