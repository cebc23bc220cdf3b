"""Attack the proxy or the server in every way at once beside a client of good will: answers, delays, memory.

    python -m benchmarks.serving.hostile proxy|serve OUT.jsonl [--minutes 10] [--crowd 1000] [--page]

Real processes on loopback: `smallfirst proxy` with a task that is taken over for half of its requests, or `smallfirst
serve` of the same rows with a large model; an upstream, which lies where a request names a lie; and the attackers, from
127.0.0.2 (what they send: hostile.yaml). A client of good will asks four times a second, another `/health` ten times.
`--crowd N`: N connections with a request every ten seconds each, in place of the attacks.

OUT.jsonl gets a line a minute and one for the whole; `--page` prints the page's rows. `attacks` counts by kind and
status (0: none came).
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import psutil
import yaml

from benchmarks.processes import SMALLFIRST, running
from smallfirst.ledger.keys import KeyPolicy, KeyStore

GIVEN: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
WORDS, LIES = GIVEN["words"], GIVEN["lies"]
BOMB = gzip.compress(b'{"a":"' + b"x" * (64 << 20) + b'"}', 6)
CHAT, WHOLE, N_ROWS = "/v1/chat/completions", "whole", 800


class Seen(NamedTuple):
    """An answer to a client of good will."""

    at_s: float
    status: str
    right: bool
    ms: float


def long(text: str) -> bytes:
    """Return a text of hostile.yaml with as many letters as it says, and `^` as the end of a line."""
    return re.sub(r"\{(\d+)\}", lambda found: "a" * int(found[1]), text).replace("^", "\r\n").encode()


def case(draw: random.Random) -> tuple[str, str]:
    """Return a text and its label."""
    label = draw.choice(sorted(WORDS))
    words = [*draw.sample(GIVEN["fillers"], 5), *draw.choices(WORDS[label], k=2), f"{draw.randrange(10**6)}"]
    draw.shuffle(words)
    return " ".join(words), label


def asked(side: str, text: str, **more: Any) -> dict[str, Any]:
    """Return the body of a request for the task."""
    user = {"role": "user", "content": text if side == "serve" else f"Message: {text}"}
    system = [{"role": "system", "content": GIVEN["system"]}] if side == "proxy" else []
    return {"model": "big" if side == "proxy" else "desk", "messages": [*system, user], **more}


# The upstream


def response(text: str, status: str = "200 OK", line: str = "", **lie: Any) -> bytes:
    """Return the right answer to a text with its lies."""
    label = max(WORDS, key=lambda queue: sum(word in WORDS[queue] for word in text.split()))
    said = {"role": "assistant", "content": f"Queue: {label}" if "Message: " in text else label}
    usage = lie.get("usage", {"prompt_tokens": 40, "completion_tokens": 3})
    head = {"id": f"x{random.getrandbits(64):x}", "object": "chat.completion", "created": 1, "model": "big-1"}
    right = head | {"choices": [{"index": 0, "message": said, "finish_reason": "stop"}], "usage": usage}
    body = BOMB if lie.get("bomb") else long(lie["body"]) if "body" in lie else json.dumps(right).encode()
    lines = [f"HTTP/1.1 {status}", line or "content-type: application/json", f"content-length: {len(body)}"]
    if "endless" in lie:
        lines[2], body = "connection: close", b""
    return long("^".join([*lines, "", ""])) + body[: len(body) - lie.get("cut", 0)] + long(lie.get("more", ""))


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        lie: dict[str, Any] = {"stays": True}
        while lie.get("stays"):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            n = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)
            body = (await reader.readexactly(n)).decode("utf-8", "replace")
            lie = LIES.get(body.partition("attack: ")[2].partition('"')[0], {"stays": True})
            await asyncio.sleep(lie.get("wait_s", 0.02))
            text = body.rpartition('"content": "')[2].partition('"')[0]
            writer.write(lie["raw"].encode("latin-1") if "raw" in lie else response(text, **lie))
            piece = long(lie.get("endless", "")) * (1 if len(lie.get("endless", "")) > 1 else 60_000)
            for _ in range(3_000 if piece else 0):  # 180 MB
                writer.write(piece)
                await writer.drain()
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError):
        pass
    finally:
        writer.close()


# The attackers


def request(body: bytes, key: str, *lines: str, path: str = CHAT, method: str = "POST") -> bytes:
    host = ("host: 127.0.0.1", f"authorization: Bearer {key}", "content-type: application/json")
    head = (f"{method} {path} HTTP/1.1", *host, *lines, f"content-length: {len(body)}", "", "")
    return "\r\n".join(head).encode("latin-1", "replace") + body


def drawn(kind: str, side: str, keys: list[str], draw: random.Random) -> bytes:
    """Return what an attacker sends."""
    if kind == "bomb":
        return request(BOMB, keys[0], "content-encoding: gzip")
    if kind == "types":
        values = [*GIVEN["values"], "x" * 20_000, "\ud800"]
        text = json.dumps(asked(side, case(draw)[0]) | {draw.choice(GIVEN["fields"]): draw.choice(values)})
        before, after, _ = draw.choices(GIVEN["changes"], [weight for *_, weight in GIVEN["changes"]])[0]
        texts = [text.replace(before, after, 1), '{"a":' * 50_000, text[: draw.randrange(len(text))]]
        return request(draw.choices(texts, [90, 5, 5])[0].encode(), draw.choice(keys))
    if kind == "paths":
        path = draw.choice([*GIVEN["paths"], "/v1/" + "a/" * 2000, f"{CHAT}?x={'y' * 8000}"])
        key = draw.choice([f"sf-{'0' * 12}-{'x' * 43}", "", "\xff\xfe", keys[0] + "x", "x" * 9000, *keys])
        return request(draw.choice((b"", b"{}")), key, path=path, method=draw.choice(GIVEN["methods"]))
    if kind == "framing":
        junk = (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 5_000 + b"\r\n", b"\x16\x03\x01" * 100, b"A" * 400_000)
        return draw.choice((request(b"{}", keys[0], long(draw.choice(GIVEN["framing"])).decode()), *junk))
    lie = f"{draw.random()} attack: {draw.choice([*LIES, 'late'])}"
    text = lie if kind == "lies" or (kind == "leave" and draw.random() < 0.5) else case(draw)[0]
    return request(json.dumps(asked(side, text, stream=kind == "leave" and draw.random() < 0.5)).encode(), keys[0])


async def attack(kind: str, order: dict[str, Any], draw: random.Random, met: Counter[str], until: float) -> None:
    """Attack until then, and count what was met."""
    given = order["side"], order["keys"], draw
    while time.time() < until:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", order["port"], local_addr=("127.0.0.2", 0))
            got = b""
            while kind == "crowd" and time.time() < until and b"connection: close" not in got.lower():
                await asyncio.sleep(draw.uniform(5, 15))
                writer.write(drawn(kind, *given))
                got = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 120)
                await reader.readexactly(int(got.lower().partition(b"content-length:")[2].split()[0]))
                met[f"crowd {got[9:12].decode()}"] += 1
            if kind == "slow":
                writer.write(request(b"", order["keys"][0]).replace(b"length: 0", b"length: 900000"))
            while kind == "slow" and time.time() < until and not reader.at_eof():
                writer.write(b" " * 300)
                await writer.drain()
                await asyncio.sleep(0.5)
            if kind not in ("slow", "crowd"):
                data = drawn(kind, *given)
                writer.write(data[: draw.choice((50, 200, None, None))] if kind == "leave" else data)
                await writer.drain()
                if kind == "leave":
                    await asyncio.sleep(draw.choice((0, 0.05, 0.5)))
                else:
                    got = await asyncio.wait_for(reader.read(4096), 20)
            writer.close()
            met[f"{kind} {got[9:12].decode() if got.startswith(b'HTTP/') else 0}"] += 1
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            met[f"{kind} {type(error).__name__}"] += 1
            writer.close()
        await asyncio.sleep(GIVEN["pause_s"][kind])


# The trial


def prepare(side: str, folder: Path, address: str, **state: str) -> list[str]:
    """Learn the task of a small bank on words; return the keys: one for everything, one for another model."""
    draw, setup = random.Random(0), dict(GIVEN["setup"][side])
    (folder / side).mkdir()
    bill = {"source": "big-1", "cost_usd": 1e-4, "latency_ms": 400.0} if side == "proxy" else {}
    rows = [dict(zip(("text", "label"), case(draw), strict=True)) | bill for _ in range(N_ROWS)]
    (folder / side / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    steps, _ = setup.pop("steps"), setup.pop("serves")
    for name, content in setup.items():
        (folder / name).write_text(json.dumps(content).replace("ADDRESS", address), encoding="utf-8")
    for step in steps:
        subprocess.run([*SMALLFIRST, *step.split()], cwd=folder, env=os.environ | state, check=True)
    store = KeyStore(folder / "state" / "ledger.db")
    return [store.create(name, KeyPolicy(models=only))[1] for name, only in (("good", ()), ("narrow", ("other",)))]


async def probe(order: dict[str, Any], what: str, every_s: float, seen: list[Seen]) -> None:
    """Ask until the end of the trial, for the task or for /health; `seen` gets what came."""
    draw, url, good = random.Random(1), f"http://127.0.0.1:{order['port']}", what == "good"
    headers, began = {"authorization": f"Bearer {order['keys'][0]}"}, time.monotonic()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60), headers=headers) as session:
        while (at := time.monotonic() - began) < 60 * order["minutes"]:
            text, label = case(draw)
            status = said = ""
            try:
                sent = (
                    session.post(url + CHAT, json=asked(order["side"], text)) if good else session.get(url + "/health")
                )
                async with sent as answer:
                    status, said = str(answer.status), await answer.text()
                    said = json.loads(said)["choices"][0]["message"]["content"] if good and status == "200" else said
            except (aiohttp.ClientError, TimeoutError, KeyError, ValueError) as error:
                status = status or type(error).__name__
            ms = 1000 * (time.monotonic() - began - at)
            right = said.removeprefix("Queue: ") == label if good else status == "200"
            seen.append(Seen(at, status, right, ms))
            if not right:
                print(f"{at:.0f} s: {what} {status} {said[:200]}", flush=True)
            await asyncio.sleep(max(0.0, every_s - ms / 1000))


async def watch(order: dict[str, Any], pid: int, out: Path) -> dict[str, Any]:
    """Follow the trial from outside, a line a minute; return its figures."""
    seen: dict[str, list[Seen]] = {"good": [], "health": []}
    probes = [asyncio.create_task(probe(order, what, s, seen[what])) for what, s in (("good", 0.25), ("health", 0.1))]
    began, memory, minutes = time.monotonic(), list[tuple[float, float]](), 0
    while not all(one.done() for one in probes):
        memory.append((at := (time.monotonic() - began) / 60, psutil.Process(pid).memory_info().rss / 2**20))
        if int(at) > minutes:
            minutes = int(at)
            write(out, {"minute": minutes, "rss_mib": memory[-1][1], **figures(seen, 60 * minutes - 60)})
        await asyncio.sleep(2)
    late = [one for one in memory if one[0] >= memory[-1][0] / 3]
    slope = statistics.linear_regression(*zip(*late, strict=True)).slope
    return {"rss_mib": [memory[0][1], late[0][1], memory[-1][1]], "mib_a_minute": slope, **figures(seen, 0)}


def figures(seen: dict[str, list[Seen]], since_s: float) -> dict[str, Any]:
    found: dict[str, Any] = {"load": os.getloadavg()[0]}
    for what, every in seen.items():
        some = [one for one in every if one.at_s >= since_s]
        ms = sorted(one.ms for one in some)
        found[what] = {
            "right": sum(one.right for one in some),
            "n": len(some),
            "by": Counter(one.status for one in some),
        }
        found[what] |= {f"p{p}_ms": ms[len(ms) * p // 100] for p in (50, 99) if ms}
    return found


def write(out: Path, line: dict[str, Any]) -> None:
    print(text := json.dumps(line), flush=True)
    with out.open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def trial(given: argparse.Namespace, folder: Path) -> None:
    state = {"SMALLFIRST_HOME": str(folder / "state"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    again = [sys.executable, "-m", "benchmarks.serving.hostile"]
    with running([*again, "upstream", "-"]) as large:
        assert large.stdout is not None
        keys = prepare(given.side, folder, f"http://127.0.0.1:{int(large.stdout.readline())}/v1", **state)
        command = [*SMALLFIRST, *GIVEN["setup"][given.side]["serves"].split(), "--port", "0"]
        with running(command, folder=folder, log=given.out.with_suffix(".log"), **state) as server:
            assert server.stdout is not None
            line = next(line for line in server.stdout if "http://127.0.0.1:" in line)
            port = int(line.partition("http://127.0.0.1:")[2].partition("/")[0])
            order = {"side": given.side, "port": port, "keys": keys, "minutes": given.minutes}
            order["attackers"] = {"crowd": given.crowd} if given.crowd else GIVEN["attackers"]
            with running(["nice", *again, "attackers", json.dumps(order)]) as enemy:
                found = asyncio.run(watch(order, server.pid, given.out))
                assert enemy.stdout is not None
                found["attacks"] = json.loads(enemy.stdout.readline())
            time.sleep(10)
            found["rss_mib"].append(psutil.Process(server.pid).memory_info().rss / 2**20)
    what = {"minute": WHOLE, "side": given.side, "minutes": given.minutes, "crowd": given.crowd}
    write(given.out, {**what, "date": str(date.today()), **found})


def row(one: dict[str, Any]) -> str:
    """Return the page's row of a trial."""
    cells = [f"| {one['side']}, {one['minutes']:g} min, {one['crowd'] or 'all attacks'}"]
    for seen in (one["good"], one["health"]):
        cells += [f"{seen['right']:,} of {seen['n']:,}", f"{seen['p50_ms']:.0f}, {seen['p99_ms']:.0f}"]
    memory = ", ".join(f"{mib:.0f}" for mib in one["rss_mib"])
    return " | ".join([*cells, memory, f"{one['mib_a_minute']:+.2f}", f"{sum(one['attacks'].values()):,} |"])


async def play(order: str) -> None:
    """Be the upstream, or the attackers of a trial."""
    if order == "-":
        server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=1 << 20, backlog=2048)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()
    given, met = json.loads(order), Counter[str]()
    until = time.time() + 60 * given["minutes"]
    each = [(kind, f"{kind}{i}") for kind, n in given["attackers"].items() for i in range(n)]
    await asyncio.gather(*(attack(kind, given, random.Random(seed), met, until) for kind, seed in each))
    print(json.dumps(met))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=("proxy", "serve", "upstream", "attackers"))
    parser.add_argument("out", type=Path, help="for `attackers`, which the trial starts itself, their orders")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--crowd", type=int, default=0)
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    if given.side in ("upstream", "attackers"):
        asyncio.run(play(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as folder:
        trial(given, Path(folder))
    lines = map(json.loads, given.out.read_text(encoding="utf-8").splitlines() if given.page else ())
    print(*(row(one) for one in lines if one["minute"] == WHOLE), sep="\n")


if __name__ == "__main__":
    main()
