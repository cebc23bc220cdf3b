"""Attack one server in every way at once for an hour, while one client of good will goes on working.

    python -m benchmarks.robustness.hostile_hour TASK_YAML FOLDER --model FOLDER [--minutes 60] [--gguf FILE]

The server deploys a finished task with its audited Router, beside a fine-tuned language model (--model), a tiny Llama, a flooding model, an endpoint whose
upstream misbehaves in 20 ways and is killed every minute, OpenAI's file uploads, and with --gguf a llama.cpp child that
is killed every two minutes. Each attack is a process of its own at a low priority, since clients have machines of their
own. The good client asks the Router or the fine-tuned model a test row every half second. Required: no lost answer and no 5xx for it; lag of
the event loop p99 under 50 ms; flat memory; and a ledger whose rows agree with what clients were told.

Writes benchmarks/results/hostile_hour.md; exit code 1 if a requirement is not met.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.paths import RESULTS
from benchmarks.robustness.abuse_wire import KEY, VICTIM, Answer, Attack, bodies, chat, exchange, http

RESULT = RESULTS / "hostile_hour.md"
UPSTREAM_PORT = 8452
MOST_LAG_S = 0.05
LAG_STEP_S = 0.005


class Target(NamedTuple):
    """The server under attack, as every attacking process needs it."""

    port: int
    keys: Mapping[str, str]
    task: str
    texts: tuple[str, ...]
    pid: int

    def ask(self, sent: bytes, *, deadline_s: float = 60, reads: bool = True) -> Answer:
        attack = Attack("hour", "hour", (sent,), deadline_s=deadline_s, reads=reads)
        return exchange(attack, self.port, dict(self.keys))


def good(target: Target, until: float) -> dict[str, Any]:
    """Ask a row every half second; a 429 or 503 that names a time is asked again."""
    told: list[tuple[str, float]] = []
    statuses: Counter[int] = Counter()
    draw, lost, asked = random.Random(1), 0, 0
    while time.time() < until:
        began, asked = time.perf_counter(), asked + 1
        messages, model = [{"role": "user", "content": draw.choice(target.texts)}], draw.choice((target.task, "small"))
        status = 0
        for _ in range(10):
            try:
                answer = target.ask(http(key=VICTIM, body=chat(model=model, messages=messages)))
            except OSError:
                answer = Answer((), b"", 0.0, True, False)
            status = answer.statuses[0] if answer.statuses else 0
            statuses[status] += 1
            if status == 200:
                id = json.loads(bodies(answer.content)[0][1])["id"]
                told.append((id, time.perf_counter() - began))
                break
            time.sleep(1)
        lost += status != 200
        time.sleep(max(0.0, 0.5 - (time.perf_counter() - began)))
    return {"asked": asked, "lost": lost, "statuses": dict(statuses), "told": told}


def abuse(target: Target, until: float) -> dict[str, Any]:
    """Every group of `benchmarks.robustness.abuse`, four requests at a time, over and over."""
    from concurrent.futures import ThreadPoolExecutor

    from benchmarks.robustness.abuse_bodies import all_bodies
    from benchmarks.robustness.abuse_http import all_http, leaving, slow
    from benchmarks.robustness.abuse_judge import judged
    from benchmarks.robustness.abuse_schemas import all_schemas

    draw, statuses, wrong = random.Random(2), Counter[int](), Counter[str]()
    attacks = [*all_bodies(), *all_schemas(draw), *all_http(draw), *leaving(), *slow()]

    def one(attack: Attack) -> None:
        if time.time() > until:
            return
        try:
            answer = exchange(attack, target.port, dict(target.keys))
        except OSError as error:
            wrong[f"no connection: {error}"] += 1
            return
        statuses.update(answer.statuses or (0,))
        # Four at a time for an hour are more than the attacker's share: to be told so is right.
        found = judged(attack, answer, target.keys, "no such text")
        wrong.update(f"{attack.group}: {what}" for what in found.wrong if "answered [429]" not in what)

    with ThreadPoolExecutor(4) as pool:
        while time.time() < until:
            draw.shuffle(attacks)
            list(pool.map(one, attacks))
    return {"statuses": dict(statuses), "wrong": dict(wrong)}


def schemas(target: Target, until: float) -> dict[str, Any]:
    """Patterns and recursions that cost much to check."""
    deep: Any = {"type": "string"}
    for _ in range(12):
        deep = {"anyOf": [{"type": "array", "items": deep}, {"type": "array", "items": deep}]}
    forms = [
        {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}, "required": ["a"]}
        for pattern in (r"^(?:a?){26}(?:aa){100}$", r"^(a+)+$", r"^(a|a)*b$", r"^(?:.*a){20}$", r"(x+x+)+y")
    ]
    tree = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"$ref": "#/$defs/t"}}]}
    forms += [deep, {"$ref": "#/$defs/t", "$defs": {"t": {"anyOf": [*tree["anyOf"]] * 8}}}]
    return _repeat(target, until, lambda draw: chat(
        model=draw.choice(("small", "tiny", "upstream")),
        messages=[{"role": "user", "content": "a" * draw.randint(1, 4000)}], max_tokens=64,
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": draw.choice(forms)}},
    ))  # fmt: skip


def upstreams(target: Target, until: float) -> dict[str, Any]:
    """Let the upstream misbehave, in whole answers and streams."""
    from benchmarks.robustness.hostile_upstream import ATTACKS

    return _repeat(target, until, lambda draw: chat(
        model="upstream", stream=draw.random() < 0.5, logprobs=draw.random() < 0.3,
        messages=[{"role": "user", "content": f"attack: {draw.choice((*ATTACKS, 'none', 'none'))}"}],
    ), invalid=True)  # fmt: skip


def crowd(target: Target, until: float) -> dict[str, Any]:
    """Many draws of many prompts, floods and the largest prompts."""
    bodies_of: tuple[Callable[[random.Random], bytes], ...] = (
        lambda draw: json.dumps({"model": "upstream", "prompt": ["x"] * 64, "n": 8, "max_tokens": 9}).encode(),
        lambda draw: json.dumps({"model": "tiny", "prompt": "a " * draw.randint(1, 9000), "n": 4}).encode(),
    )
    draw, statuses = random.Random(5), Counter[int]()
    while time.time() < until:
        body = draw.choice(bodies_of)(draw)
        statuses.update(_asked(target, http("/v1/completions", body=body)))
        statuses.update(_asked(target, http(body=chat(model=target.task, messages=[
            {"role": "user", "content": draw.choice(("\U0001f600" * 60_000, "\n" * 300_000, "a b " * 200_000))}
        ]))))  # fmt: skip
        time.sleep(1)
    return {"statuses": dict(statuses)}


def slow_senders(target: Target, until: float) -> dict[str, Any]:
    """330 connections that send a body at 600 bytes a second, again as soon as they are cut off."""

    async def drip() -> int:
        opened = 0
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {target.keys[KEY]}\r\n"
        head += "Content-Type: application/json\r\nContent-Length: 900000\r\n\r\n"

        async def one() -> None:
            nonlocal opened
            while time.time() < until:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
                    opened += 1
                    writer.write(head.encode())
                    while time.time() < until and not reader.at_eof() and not writer.is_closing():
                        writer.write(b" " * 300)
                        await writer.drain()
                        await asyncio.sleep(0.5)
                    writer.close()
                except OSError:
                    pass
                await asyncio.sleep(1)

        await asyncio.gather(*(one() for _ in range(330)))
        return opened

    return {"connections": asyncio.run(drip())}


def leavers(target: Target, until: float) -> dict[str, Any]:
    """Streams whose client leaves before the end, twelve at a time."""

    async def leave() -> int:
        left = 0

        async def one(n: int) -> None:
            nonlocal left
            body = chat(model=("tiny", "upstream", target.task)[n % 3], stream=True, max_tokens=400)
            sent = http(body=body).replace(KEY.encode(), target.keys[KEY].encode())
            while time.time() < until:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
                    writer.write(sent)
                    await asyncio.wait_for(reader.read(2000), 5)
                    writer.close()
                    left += 1
                except (OSError, TimeoutError):
                    pass
                await asyncio.sleep(0.5)

        await asyncio.gather(*(one(n) for n in range(12)))
        return left

    return {"left": asyncio.run(leave())}


def uploads(target: Target, until: float) -> dict[str, Any]:
    """Eight MiB of newlines, bad lines, or the shortest rows."""
    row = b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n'
    draw, statuses = random.Random(8), Counter[int]()
    while time.time() < until:
        content = draw.choice((b"\n", b"{\n", row)) * (8 << 20)
        body = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--b\r\n'
        body += b'content-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' + content[: 8 << 20]
        body += b"\r\n--b--\r\n"
        lines = ("Content-Type: multipart/form-data; boundary=b", f"Content-Length: {len(body)}")
        statuses.update(_asked(target, http("/v1/files", *lines, method="POST") + body))
        time.sleep(20)
    return {"statuses": dict(statuses)}


def feedback(target: Target, until: float) -> dict[str, Any]:
    """Call every answer wrong: its own ones and other keys'."""
    draw, statuses = random.Random(9), Counter[int]()
    while time.time() < until:
        messages = [{"role": "user", "content": draw.choice(target.texts)}]
        try:
            answer = target.ask(http(body=chat(model=target.task, messages=messages)))
            found = bodies(answer.content)
            id = json.loads(found[0][1]).get("id", "chatcmpl-none") if found else "chatcmpl-none"
        except (OSError, ValueError):
            continue
        body = json.dumps({"id": id, "verdict": "wrong"}).encode()
        statuses.update(_asked(target, http("/v1/feedback", body=body)))
        time.sleep(0.5)
    return {"statuses": dict(statuses)}


def kills(target: Target, until: float) -> dict[str, Any]:
    """The upstream's process, killed every minute; llama.cpp's, every two."""
    upstream, n = _upstream(), 0
    while time.time() < until:
        time.sleep(min(58, max(0.0, until - time.time())))
        upstream.kill()
        listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(target.pid)], capture_output=True, text=True)
        if n % 2:
            for pid in listing.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(2)
        upstream, n = _upstream(), n + 1
    upstream.kill()
    return {"kills": n}


def engine(target: Target, until: float) -> dict[str, Any]:
    """Ask llama.cpp, which is killed from time to time."""
    return _repeat(target, until, lambda draw: chat(model="engine", max_tokens=4), pause_s=2)


ATTACKERS: dict[str, Callable[[Target, float], dict[str, Any]]] = {
    each.__name__: each
    for each in (good, abuse, schemas, upstreams, crowd, slow_senders, leavers, uploads, feedback, kills, engine)
}


def _upstream() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "benchmarks.robustness.hostile_upstream", str(UPSTREAM_PORT)])


def _asked(target: Target, sent: bytes) -> tuple[int, ...]:
    try:
        return target.ask(sent).statuses or (0,)
    except OSError:
        return (0,)


def _repeat(
    target: Target, until: float, body: Callable[[random.Random], bytes], *, pause_s: float = 0.2, invalid: bool = False
) -> dict[str, Any]:
    """Send such bodies one after the other; `invalid` also counts answers that are no JSON or hold NaN."""
    draw, statuses, wrong = random.Random(3), Counter[int](), Counter[str]()
    while time.time() < until:
        try:
            answer = target.ask(http(body=body(draw)))
        except OSError:
            statuses[0] += 1
            continue
        statuses.update(answer.statuses or (0,))
        if invalid:
            for status, content in bodies(answer.content):
                wrong.update(_invalid(status, content))
        time.sleep(pause_s)
    return {"statuses": dict(statuses), "wrong": dict(wrong)}


def _invalid(status: int, content: bytes) -> Iterator[str]:
    def refuse(name: str) -> float:
        raise ValueError(name)

    for line in content.split(b"data: ")[1:] if b"data: " in content else [content]:
        text = line.split(b"\n\n")[0].split(b"\r\n")[0] if b"data: " in content else line
        if text.strip() in (b"", b"[DONE]"):
            continue
        try:
            usage = json.loads(text, parse_constant=refuse).get("usage") or {}
            if any(value < 0 for value in usage.values() if isinstance(value, int | float)):
                yield f"{status}: negative usage"
        except ValueError:
            yield f"{status}: no JSON"


class LagProbe:
    """ASGI middleware that measures, from the first request on, how late the event loop wakes a sleeper."""

    path: Path
    running: asyncio.Task[None] | None = None

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if LagProbe.running is None:
            LagProbe.running = asyncio.create_task(self._measure())
        await self._app(scope, receive, send)

    async def _measure(self) -> None:
        counts: Counter[int] = Counter()
        written = time.monotonic()
        while True:
            began = time.monotonic()
            await asyncio.sleep(LAG_STEP_S)
            counts[int((time.monotonic() - began - LAG_STEP_S) * 1000)] += 1
            if time.monotonic() - written > 10:
                written = time.monotonic()
                self.path.write_text(json.dumps(counts))


def serve_all(task_yaml: Path, folder: Path, model: Path, gguf: Path | None) -> None:
    """The server's own process."""
    import logging

    from starlette.middleware import Middleware

    from benchmarks.robustness.abuse_models import Flood, tiny
    from smallfirst.deployment.service import deploy
    from smallfirst.interfaces.openai_finetuning.plugin import fine_tuning
    from smallfirst.models.loading import load_model
    from smallfirst.models.protocol import Model
    from smallfirst.models.remote.model import EndpointConfig, EndpointModel
    from smallfirst.models.servers.llama_cpp import LlamaCppConfig, LlamaCppModel
    from smallfirst.pricing.prices import PriceBook
    from smallfirst.project.task_file import read_task_file
    from smallfirst.serving.app import serve
    from smallfirst.serving.auth.keys import KeyStore
    from smallfirst.serving.ledger.ledger import Ledger
    from smallfirst.serving.plugins import Plugin
    from smallfirst.serving.settings import ServeSettings

    logging.basicConfig(level=logging.INFO)
    ledger, prices = Ledger(folder / "ledger.db"), PriceBook()
    deployed = deploy([read_task_file(task_yaml)], ledger, live=False)
    config = EndpointConfig(
        base_url=f"http://127.0.0.1:{UPSTREAM_PORT}/v1", model="x", timeout_s=10, priced_by="machine"
    )
    extra: dict[str, Model] = {
        "tiny": tiny(folder / "tiny"), "flood": Flood(), "upstream": EndpointModel(config, prices)
    }  # fmt: skip
    extra["small"] = load_model(model, name="small")
    if gguf:
        extra["engine"] = LlamaCppModel(LlamaCppConfig(path=gguf, slots=2, context_tokens=2048, threads=1), prices)
    LagProbe.path = folder / "lag.json"
    probe = Plugin()
    probe.middleware = (Middleware(LagProbe),)
    serve(
        {**dict(deployed.models), **extra}, ledger=ledger, settings=ServeSettings(port=0),
        plugins=[deployed, fine_tuning(), probe], key_store=KeyStore(folder / "keys.json"),
    )  # fmt: skip


def start(task_yaml: Path, folder: Path, model: Path, gguf: Path | None) -> tuple[subprocess.Popen[str], Target]:
    """The server's process, once it answers, and how to reach it."""
    from benchmarks.robustness.abuse import make_keys
    from smallfirst.project.project import Project
    from smallfirst.project.task_file import read_task_file

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.*"):
        old.unlink()
    keys = make_keys(folder / "keys.json")
    project = Project.read(read_task_file(task_yaml))
    command = [
        sys.executable,
        "-m",
        "benchmarks.robustness.hostile_hour",
        str(task_yaml),
        str(folder),
        "--role",
        "serve",
    ]
    command += ["--model", str(model), *(["--gguf", str(gguf)] if gguf else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=(folder / "server.log").open("wb"), text=True)
    assert process.stdout is not None
    said = next((line for line in process.stdout if "/v1" in line), "")
    if not said:
        raise SystemExit(f"the server did not start:\n{(folder / 'server.log').read_text()[-3000:]}")
    port = int(said.rsplit(":", 1)[1].split("/")[0])
    texts = tuple(example.text for example in project.rows.test.examples)
    return process, Target(port, keys, project.file.name, texts, process.pid)


def attack(target: Target, folder: Path, minutes: float, names: list[str]) -> list[tuple[float, float, int]]:
    """Run the attackers to the end; return minutes, resident MiB and open files of the server, every 15 seconds."""
    (folder / "target.json").write_text(json.dumps(target._replace(keys=dict(target.keys))._asdict()))
    until = time.time() + 60 * minutes
    base = [sys.executable, "-m", "benchmarks.robustness.hostile_hour", ".", str(folder), "--until", str(until)]
    running = [
        subprocess.Popen([*([] if name == "good" else ["nice", "-n", "10"]), *base, "--role", name]) for name in names
    ]
    weights, began = [], time.time()
    while time.time() < until and Path(f"/proc/{target.pid}").exists():
        status = Path(f"/proc/{target.pid}/status").read_text()
        rss = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024
        weights.append(((time.time() - began) / 60, rss, len(list(Path(f"/proc/{target.pid}/fd").iterdir()))))
        time.sleep(15)
    for process in running:
        process.wait(timeout=180)
    return weights


def lag(folder: Path) -> dict[str, float]:
    """Quantiles of the event loop's lag in milliseconds."""
    counts = {int(ms): n for ms, n in json.loads((folder / "lag.json").read_text()).items()}
    total, seen, found = sum(counts.values()), 0, {}
    for ms in sorted(counts):
        seen += counts[ms]
        for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)):
            if name not in found and seen >= share * total:
                found[name] = float(ms)
    return {"n": float(total), **found}


def ledger_errors(folder: Path, told: list[tuple[str, float]]) -> tuple[list[str], dict[str, int]]:
    """What in the ledger contradicts what clients were told, and its rows by status."""
    with sqlite3.connect(folder / "ledger.db") as db:
        rows = {str(status): n for status, n in db.execute("SELECT status, count(*) FROM answers GROUP BY status")}
        known = {id for (id,) in db.execute("SELECT id FROM answers WHERE status = 200")}
        wrong = {
            "answers of the good client without a row": sum(id not in known for id, _ in told),
            "answers without a price": db.execute(
                "SELECT count(*) FROM answers WHERE status = 200 AND cost_usd IS NULL"
            ).fetchone()[0],
            "negative or endless prices": db.execute(
                "SELECT count(*) FROM answers WHERE cost_usd < 0 OR cost_usd > 1"
            ).fetchone()[0],
            "negative tokens": db.execute(
                "SELECT count(*) FROM answers WHERE prompt_tokens < 0 OR completion_tokens < 0"
            ).fetchone()[0],
            "answers audited twice": db.execute(
                "SELECT count(*) FROM (SELECT id FROM audits GROUP BY id HAVING count(*) > 1)"
            ).fetchone()[0],
            "falls back": db.execute("SELECT count(*) FROM states WHERE after = 'fallback'").fetchone()[0],
        }
    return [f"{n} {what}" for what, n in wrong.items() if n], rows


def report(folder: Path, minutes: float, weights: list[tuple[float, float, int]], names: list[str]) -> bool:
    """Write the page; return whether every requirement is met."""
    results = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    client, late = results["good"], lag(folder)
    seconds = sorted(s for _, s in client["told"])
    wrong, rows = ledger_errors(folder, client["told"])
    later = [w for w in weights if w[0] > minutes / 3]
    slope = statistics.linear_regression([w[0] for w in later], [w[1] for w in later]).slope
    n_5xx = sum(n for status, n in client["statuses"].items() if int(status) >= 500)
    lines = [
        "# A hostile hour", "",
        f"`python -m benchmarks.robustness.hostile_hour TASK_YAML FOLDER --minutes {minutes:.0f}`, {date.today()}, "
        f"{platform.machine()}, {os.cpu_count()} cores shared with the attackers, Python {platform.python_version()}. "
        "The task is the demo's with its fine-tuned SmolLM2-135M and recorded large model.", "",
        "| | |", "|---|---|",
        f"| good client | {client['asked']} requests, lost {client['lost']}, 5xx {n_5xx}, statuses {client['statuses']} |",
        f"| its time, retries included | p50 {seconds[len(seconds) // 2]:.2f} s, p99 {seconds[int(len(seconds) * 0.99)]:.2f} s |",
        f"| lag of the event loop | p50 {late['p50']:.0f} ms, p99 {late['p99']:.0f} ms, p99.9 {late['p99.9']:.0f} ms, "
        f"longest {late['max']:.0f} ms, n {late['n']:,.0f} |",
        f"| memory after a third of the time | {later[0][1]:.0f} → {later[-1][1]:.0f} MiB, {slope:+.2f} MiB a minute; "
        f"most {max(w[1] for w in weights):.0f} |",
        f"| open files | {min(w[2] for w in later)} to {max(w[2] for w in later)} |",
        f"| ledger, rows by status | {rows} |",
        f"| ledger, contradictions | {'; '.join(wrong) or 'none'} |", "",
        "What each attacker was told (0: closed without an answer):", "",
    ]  # fmt: skip
    lines += [f"- {name}: {results[name]}" for name in names if name != "good"]
    RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return not (client["lost"] or n_5xx or wrong or late["p99"] >= MOST_LAG_S * 1000)


def main() -> int:
    """Exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task_yaml", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--role")
    parser.add_argument("--until", type=float)
    options = parser.parse_args()
    if options.role == "serve":
        serve_all(options.task_yaml, options.folder, options.model, options.gguf)
        return 0
    if options.role:
        read = json.loads((options.folder / "target.json").read_text())
        found = ATTACKERS[options.role](Target(**{**read, "texts": tuple(read["texts"])}), options.until)
        (options.folder / f"{options.role}.json").write_text(json.dumps(found))
        return 0
    process, target = start(options.task_yaml, options.folder, options.model, options.gguf)
    names = [name for name in ATTACKERS if (options.gguf or name != "engine") and name in (options.only or ATTACKERS)]
    try:
        weights = attack(target, options.folder, options.minutes, names)
    finally:
        process.terminate()
        code = process.wait(timeout=120)
    print(f"exit code of the server: {code}")
    return int(not report(options.folder, options.minutes, weights, names) or code != 0)


if __name__ == "__main__":
    socket.setdefaulttimeout(60)
    sys.exit(main())
