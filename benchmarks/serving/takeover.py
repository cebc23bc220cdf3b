"""The whole way on live traffic: from an empty store to a task that is taken over, and what is then saved.

    python -m benchmarks.serving.takeover FOLDER [--corrections 500 --max-error 0.2 --first 4000 --test-rows]

An application asks a proxy by OpenAI's SDK; behind it an upstream answers Banking77's messages from a recording
(takeover_upstream.py). After every STEP requests the task is discovered and learnt from what was captured, until its
certificate is issued; then it is taken over, and 3,000 further requests, or the test rows, follow. FOLDER/way-SEED.json holds the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.processes import SMALLFIRST, running
from benchmarks.serving.takeover_upstream import ASKED, MODEL, Row, instructions, recorded, stream
from smallfirst.base.stats.intervals import clopper_pearson, paired_difference
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, LedgerRow

STEP = 1_000
AFTER = 3_000
AT_ONCE = 16
"""Requests under way."""
LADDER = ["words", "encoder"]
MACHINE = {"usd_per_hour": 0.10, "utilisation": 0.3}
PRICES = {MODEL: {"input_usd_per_mtok": 0.14, "cached_usd_per_mtok": 0.0042, "output_usd_per_mtok": 0.42}}


class Answered(NamedTuple):
    """One request of the application."""

    row: Row
    text: str
    ms: float
    small: bool


def smallfirst(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    line = [*SMALLFIRST, *arguments]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)


async def ask(address: str, rows: list[Row]) -> list[Answered]:
    """Ask all rows by the SDK, AT_ONCE at a time, in their order."""
    from openai import AsyncOpenAI

    client, system, slots = AsyncOpenAI(api_key="sk-test", base_url=address), instructions(), asyncio.Semaphore(AT_ONCE)

    async def one(row: Row) -> Answered:
        async with slots:
            began = time.perf_counter()
            messages: Any = [{"role": "system", "content": system}, {"role": "user", "content": row["text"]}]
            raw = await client.chat.completions.with_raw_response.create(
                model=ASKED, messages=messages, temperature=0, max_tokens=20
            )
            ms = (time.perf_counter() - began) * 1000
            text = raw.parse().choices[0].message.content or ""
            return Answered(row, text, ms, "x-smallfirst-model" in raw.headers)

    try:
        return await asyncio.gather(*map(one, rows))
    finally:
        await client.close()


def draft(folder: Path, max_error: float) -> Path:
    """Return the folder of the one task that `smallfirst discover` finds in what was captured."""
    shutil.rmtree(folder / "discovered", ignore_errors=True)
    ran = smallfirst(folder, "discover")
    found = sorted((folder / "discovered").glob("*/source.json"))
    if len(found) != 1:
        raise SystemExit(f"{len(found)} tasks discovered\n{ran.stdout}\n{ran.stderr}")
    file = found[0].with_name("task.yaml")
    values = yaml.safe_load(file.read_text())
    values["ladder"] = LADDER  # a fine-tuned encoder would take a quarter of an hour here each time
    del values["routing"]["small"]
    values["routing"]["guarantee"] = {"max_error": max_error}
    values["prices"] = {"machine": MACHINE}
    file.write_text(yaml.safe_dump(values))
    return found[0].parent


def correct(task: Path, rows: list[Row], n: int) -> None:
    """Write people's answers to `n` of the drafted rows, drawn by chance."""
    gold = {row["text"]: row["label"].replace("_", " ") for row in rows}
    lines = [json.loads(line) for path in sorted(task.glob("*.jsonl")) for line in path.read_text().splitlines()]
    known = [line for line in lines if line.get("text") in gold]
    chosen = random.Random(7).sample(known, n)
    content = [json.dumps({"text": line["text"], "label": gold[line["text"]]}) for line in chosen]
    (task / "corrections.jsonl").write_text("\n".join(content) + "\n")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Yield the address of the proxy, in front of the upstream, once both listen."""
    upstream = [sys.executable, "-m", "benchmarks.serving.takeover_upstream"]
    with running(upstream, folder=folder) as answers:
        upstreams = {"default": {"base_url": f"http://127.0.0.1:{first_line(answers)}/v1"}}
        settings = {"upstreams": upstreams, "capture": {"share": 1.0}, "prices": {"tokens": PRICES}}
        (folder / "gateway.yaml").write_text(json.dumps(settings))
        with running([*SMALLFIRST, "proxy", "--port", "0"], folder=folder) as proxy:
            yield next(word for word in first_line(proxy).split() if word.startswith("http"))


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def learn(folder: Path, rows: list[Row], *, corrections: int, first: int, max_error: float) -> dict[str, Any]:
    """Send requests until the task is learnt; return what that took."""
    found: dict[str, Any] = {"corrections": corrections, "max_error": max_error, "attempts": []}
    with served(folder) as address:
        asked, before = 0, list[Answered]()
        while not found.get("learnt"):
            step = STEP if asked else first
            before += asyncio.run(ask(address, rows[asked : asked + step]))
            asked += step
            time.sleep(4)  # the capture's worker stores what it has
            began = time.monotonic()
            task = draft(folder, max_error)
            if corrections:
                correct(task, rows, corrections)
            ran = smallfirst(folder, "learn", str(task), "--json")
            minutes = (time.monotonic() - began) / 60
            found["attempts"].append({"requests": asked, "minutes": minutes, "exit": ran.returncode})
            print(asked, f"{minutes:.1f} min", ran.returncode, ran.stderr[-700:], flush=True)
            found["learnt"] = json.loads(ran.stdout) if ran.returncode == 0 else None
            if asked > 8 * STEP:
                raise SystemExit("never learnt")
    print(smallfirst(folder, "take-over", task.name, "--share", "1").stdout, flush=True)
    return found | {"requests_until_take_over": asked, "p50_before_ms": statistics.median(one.ms for one in before)}


def after(folder: Path, rows: list[Row], found: dict[str, Any]) -> dict[str, Any]:
    """Send `rows` to the task that was taken over; return the figures."""
    with served(folder) as address:  # the proxy takes no request before the models are loaded
        answered = asyncio.run(ask(address, rows))
    return found | figures(answered, sum(one["minutes"] for one in found["attempts"])) | own_costs(folder, len(rows))


def own_costs(folder: Path, n_requests: int) -> dict[str, float]:
    """Return from the ledger what drafts and audits of the last requests, so many, cost in USD."""
    with closing(Ledger(folder / ".smallfirst" / "ledger.db")) as ledger:
        rows = ledger.entries(LedgerRow)[-n_requests:]
        drafts = [row.cost_usd or 0.0 for row in rows if row.certified]
        ids = {row.id for row in rows}
        audits = sum(audit.cost_usd for audit in ledger.entries(AuditRow) if audit.id in ids) / len(rows)
    return {"usd_drafts": statistics.mean(drafts) * n_requests, "usd_audits": audits * n_requests}


def figures(after: list[Answered], minutes: float) -> dict[str, Any]:
    small = [one for one in after if one.small]
    differ = sum(one.text != one.row["answer"] for one in small)
    wrong = sum(one.text != one.row["label"].replace("_", " ") for one in small)
    right = [one.text == one.row["label"].replace("_", " ") for one in after]
    taught = [one.row["answer"] == one.row["label"].replace("_", " ") for one in after]
    paired = paired_difference(right, taught)

    def share(k: int, n: int) -> list[float]:
        known = clopper_pearson(k, n)
        return [k, n, known.value, known.low, known.high]

    return {
        "share_small": share(len(small), len(after)),
        "differ_from_large": share(differ, len(small)),
        "wrong_by_gold": share(wrong, len(small)),
        "accuracy": share(sum(right), len(after)),
        "accuracy_large": share(sum(taught), len(after)),
        "accuracy_difference": [paired.value, paired.low, paired.high],
        "p50_after_ms": statistics.median(one.ms for one in after),
        "p50_small_ms": statistics.median(one.ms for one in small) if small else None,
        "usd_of_large_per_1k": 1000 * statistics.mean(one.row["cost_usd"] for one in after),
        "usd_not_paid": sum(one.row["cost_usd"] for one in small),
        "minutes_of_learning": minutes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--corrections", type=int, default=0)
    parser.add_argument("--first", type=int, default=STEP, help="Requests before the first attempt to learn.")
    parser.add_argument("--test-rows", action="store_true", help="Send the official test rows after the take-over.")
    parser.add_argument("--max-error", type=float, default=0.05)
    arguments = parser.parse_args()
    name = "way-1" + (f"-{arguments.corrections}" if arguments.corrections else "")
    place, rows = (arguments.folder / name).resolve(), stream(1)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    wanted = {"corrections": arguments.corrections, "first": arguments.first, "max_error": arguments.max_error}
    found = {"seed": 1, **learn(place, rows, **wanted)}
    asked = found["requests_until_take_over"]
    then = rows[asked : asked + AFTER] if not arguments.test_rows else rows[-len(recorded("test")) :]
    text = json.dumps(after(place, then, found), indent=1)
    place.with_suffix(".json").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
