"""Send hostile requests to a real server: it must refuse them in time, reveal nothing, and go on.

    python -m benchmarks.robustness.abuse FOLDER [--only GROUP]

A server process with a tiny Llama, a model that floods, and keys of several tenants is started with default
settings. Requests, written by hand or drawn with a fixed seed, are sent as bytes over sockets, group by group. Required
of each: no 5xx (503 with Retry-After aside), answered or closed by its deadline, a status that is right, errors in
OpenAI's form, and nothing about the machine, a key or another tenant in the response. After each group a good request
must be answered, and memory, threads and open files are read. At the end the log and the ledger are searched.

Writes benchmarks/results/abuse.md; exit code 1 if anything failed.
"""

from __future__ import annotations

import random
import re
import secrets
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import NamedTuple

from benchmarks.robustness.abuse_bodies import all_bodies
from benchmarks.robustness.abuse_http import all_http, leaving, slow
from benchmarks.robustness.abuse_judge import Found, judged
from benchmarks.robustness.abuse_page import write_page
from benchmarks.robustness.abuse_schemas import all_schemas
from benchmarks.robustness.abuse_wire import EXPIRED, KEY, NARROW, REVOKED, VICTIM, Answer, Attack, chat, exchange, http

SEED = 20261125
GOOD_S = 10.0
"""Longest time for a valid request between the groups."""
MOST_GROWTH_MIB = 300.0
"""Most growth of memory between the first answers and the end."""


class State(NamedTuple):
    """What the server process holds."""

    rss_mib: float
    n_threads: int
    n_files: int


class Server:
    """The process under attack."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "server.log"
        for old in ("keys.json", "ledger.db", "ledger.db-wal", "ledger.db-shm"):
            (folder / old).unlink(missing_ok=True)
        self.keys = make_keys(folder / "keys.json")
        self.canary = f"canary{secrets.token_hex(8)}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.robustness.abuse", "--serve", str(folder)],
            stdout=subprocess.PIPE,
            stderr=self.log.open("wb"),
            text=True,
        )
        assert self.process.stdout is not None
        said = next((line for line in self.process.stdout if "/v1" in line), "")
        if not said:
            raise SystemExit(f"the server did not start:\n{self.log.read_text()}")
        self.port = int(said.rsplit(":", 1)[1].split("/")[0])

    def state(self) -> State:
        """As Linux tells it."""
        said = Path(f"/proc/{self.process.pid}/status").read_text()
        of = {name: int(value) for name, value in re.findall(r"^(VmRSS|Threads):\s+(\d+)", said, re.M)}
        n_files = len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))
        return State(of["VmRSS"] / 1024, of["Threads"], n_files)

    def is_well(self, text: str = "where is my card", *, within_s: float = GOOD_S) -> str:
        """Return an empty string if a valid request of another tenant is answered, else what happened."""
        body = chat(messages=[{"role": "user", "content": f"{self.canary} {text}"}])
        attack = Attack("good", "good", (http(key=VICTIM, body=body),), frozenset({200}), deadline_s=within_s)
        try:
            answer = exchange(attack, self.port, self.keys)
        except OSError as error:
            return f"a good request found no server: {error}"
        return "" if answer.statuses == (200,) else f"a good request got {answer.statuses} after {answer.seconds:.1f} s"

    def stop(self) -> int:
        """Its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def carried_out(attacks: Iterable[Attack], server: Server, *, at_once: int) -> list[Found]:
    """Each attack and what came of it."""

    def one(attack: Attack) -> Found:
        try:
            return judged(attack, exchange(attack, server.port, server.keys), server.keys, server.canary)
        except OSError as error:
            return Found(attack, Answer((), b"", 0.0, True, False), (f"no connection: {error}",))

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(one, attacks))


def _in_log(server: Server) -> list[str]:
    """What must not be in the log."""
    text = server.log.read_text(errors="replace")
    wrong = [
        f"the log has {what}"
        for what, secret in {"a tenant's text": server.canary, "a forged line": "\nINJECTED"}.items()
        if secret in text
    ]
    wrong += [f"the log has the key {name}" for name, key in server.keys.items() if key[16:] in text]
    tracebacks = Counter(re.findall(r"^(\w+(?:\.\w+)*(?:Error|Exception|Gone)\b[^\n]{0,100})", text, re.M))
    wrong += [f"{n} tracebacks in the log: {what}" for what, n in tracebacks.items()]
    ledger = b"".join(path.read_bytes() for path in server.folder.glob("ledger.db*"))
    wrong += ["the ledger has a tenant's text"] if server.canary.encode() in ledger else []
    return wrong


def main(folder: Path, only: str | None) -> int:
    """Exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(SEED)
    groups: dict[str, list[Attack]] = defaultdict(list)
    for attack in (*all_bodies(), *all_schemas(draw), *all_http(draw), *leaving(), *slow()):
        groups[attack.group].append(attack)
    server = Server(folder)
    # The largest requests that are allowed come first, so that growth is what abuse adds to them.
    large = ("where is my card", "a" * 900_000, "\U0001f600" * 80_000, "\n" * 400_000)
    wrong = [said for text in large if (said := server.is_well(text, within_s=60))]
    states, rows = {"before": server.state()}, []
    found: list[Found] = []
    for group, attacks in groups.items():
        if only and group != only:
            continue
        began = time.monotonic()
        results = carried_out(attacks, server, at_once=len(attacks) if group == "slow" else 4)
        found += results
        well = server.is_well()
        wrong += [f"after {group}: {well}"] if well else []
        states[group] = server.state()
        rows.append((group, results, time.monotonic() - began, states[group]))
        n_wrong = sum(bool(one.wrong) for one in results)
        print(f"{group:<16} {len(attacks):>4}  wrong {n_wrong:>3}  {rows[-1][2]:6.1f} s  {states[group]}", flush=True)
    time.sleep(3)
    states["at rest"] = server.state()
    code = server.stop()
    wrong += [f"exit code {code} after SIGTERM"] if code else []
    wrong += _in_log(server)
    growth = states["at rest"].rss_mib - states["before"].rss_mib
    wrong += [f"memory grew by {growth:.0f} MiB"] if growth > MOST_GROWTH_MIB else []
    wrong += [f"{n} files still open"] if (n := states["at rest"].n_files - states["before"].n_files) > 8 else []
    for one in found:
        for what in one.wrong:
            print(f"WRONG {one.attack.group} / {one.attack.name!r}: {what}")
    print(*wrong, sep="\n")
    if not only:
        write_page(SEED, rows, found, wrong, states)
    return int(bool(wrong) or any(one.wrong for one in found))


def make_keys(path: Path) -> dict[str, str]:
    from smallfirst.serving.auth.keys import KeyPolicy, KeyStore

    keyring = KeyStore(path)
    terms = {
        KEY: KeyPolicy(),
        VICTIM: KeyPolicy(),
        REVOKED: KeyPolicy(),
        EXPIRED: KeyPolicy(expires_on=date(2020, 1, 1)),
        NARROW: KeyPolicy(models=("flood",), requests_per_minute=3),
    }
    keys = {name: keyring.create(name.strip("<>"), wanted)[1] for name, wanted in terms.items()}
    keyring.revoke("revoked")
    return keys


def _serve(folder: Path) -> None:
    """The server's own process."""
    import logging

    from benchmarks.robustness.abuse_models import Flood, tiny
    from smallfirst.serving.app import serve
    from smallfirst.serving.auth.keys import KeyStore
    from smallfirst.serving.ledger.ledger import Ledger
    from smallfirst.serving.settings import ServeSettings

    logging.basicConfig(level=logging.INFO)
    models = {"tiny": tiny(folder / "tiny"), "flood": Flood()}
    serve(
        models,
        ledger=Ledger(folder / "ledger.db"),
        settings=ServeSettings(port=0),
        key_store=KeyStore(folder / "keys.json"),
    )


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        _serve(Path(sys.argv[2]))
    else:
        sys.exit(main(Path(sys.argv[1]), sys.argv[3] if len(sys.argv) > 3 else None))
