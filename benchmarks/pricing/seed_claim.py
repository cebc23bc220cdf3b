"""Is a small model five to ten times cheaper than a hosted one? Two recorded bills, six list prices, three utilisations.

    python -m benchmarks.pricing.seed_claim FOLDER --run banking       # smallfirst run on the set (invoices: half an hour)
    python -m benchmarks.pricing.seed_claim FOLDER --serve banking     # smallfirst serve, and its processor time a request
    python -m benchmarks.pricing.seed_claim FOLDER                     # write benchmarks/results/seed_claim.md

Sets: `banking` and `invoices`, with the answers, tokens and bills of the hosted models in SMALLFIRST_DATA. The large path is
replayed from them. Training and weights are kept in FOLDER/SET/.smallfirst.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import statistics
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from benchmarks.datasets import RESULTS, data_folder, hosted_rows, read_lines
from benchmarks.processes import SMALLFIRST, processor_s, running
from smallfirst.base.paths import state_of
from smallfirst.base.progress import Progress
from smallfirst.base.stats.intervals import clopper_pearson, wilson
from smallfirst.models.pricing import PriceBook, TokenUsage, format_usd
from smallfirst.path import run as pipeline
from smallfirst.path.large_model import recorded_answers
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.project.task_file import read_task_file

RECORDED = {"banking": "hosted_banking77", "invoices": "hosted_invoices"}
TASKS = {
    "banking": """\
name: banking
about: You classify the messages of an online bank's customers by what they want.
kind: classify
data: {train: ../hosted_banking77/rows/train.jsonl, test: ../hosted_banking77/rows/test.jsonl}
ladder: [words, encoder]
large: {recorded: ../hosted_banking77/rows/recorded.jsonl}
gate: {accuracy_at_least: 0.90, not_worse_than_large_by: 0.01}
routing: {guarantee: {max_error: 0.05, confidence: 0.95}}
prices: {machine: {usd_per_hour: 0.10, utilisation: 0.3}}
""",
    "invoices": """\
name: invoices
kind: extract
about: Read an invoice, an e-mail or a plain text, and give its fields.
data: {train: ../hosted_invoices/rows/train.jsonl}
ladder: [tagger]
small: {encoder_training: {duration: 3ep, patience: 2, max_seq_tokens: 512}}
large: {recorded: ../hosted_invoices/rows/recorded.jsonl}
gate: {accuracy_at_least: 0.90, not_worse_than_large_by: 0.05}
routing: {guarantee: {max_error: 0.05, confidence: 0.95}}
prices: {machine: {usd_per_hour: 0.10, utilisation: 0.3}}
""",
}
"""Bars are set as a user would, before anything was measured. Invoices are split at random: known layouts."""
PORT, CLIENTS, ROUNDS, WARM_UP = 8137, 16, 5, 100


def run(folder: Path, name: str) -> None:
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    hosted_rows(RECORDED[name], folder / RECORDED[name])
    (place / "task.yaml").write_text(TASKS[name], encoding="utf-8")
    began = time.monotonic()
    summary, error = pipeline.try_run(read_task_file(place), progress=Progress(), despite_check=True)
    print(summary, error or "")
    (place / "run_minutes.json").write_text(json.dumps((time.monotonic() - began) / 60))


@contextmanager
def server(place: Path) -> Iterator[int]:
    """Serve the task; yield the process's id once it is ready."""
    command = [*SMALLFIRST, "serve", str(place), "--port", str(PORT), "--replay-large"]
    with running(command, log=place / "serve.log") as process:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/ready", timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        yield process.pid


def serve(folder: Path, name: str) -> None:
    """Ask the served task its test rows, in rounds, and keep processor seconds, routes and scores."""
    place = folder / name
    file = read_task_file(place)
    with state_of(file.folder):
        project = Project.read(file, Progress(quiet=True))
        test, task = project.rows.test.examples, project.task
        asyncio.run(recorded_answers(file, task, project.rows, progress=project.progress))
        run_folder = RunFolder.latest(name)
    asked = [(e, {"messages": [m.model_dump(include={"role", "content"}) for m in e.messages]}) for e in test]

    async def ask(model: str, rows: list[Any]) -> list[dict[str, Any]]:
        limit = asyncio.Semaphore(CLIENTS)
        async with aiohttp.ClientSession() as session:

            async def one(body: dict[str, Any]) -> dict[str, Any]:
                url = f"http://127.0.0.1:{PORT}/v1/chat/completions"
                async with limit, session.post(url, json={"model": model, **body}) as answer:
                    return await answer.json()

            return await asyncio.gather(*(one(body) for _, body in rows))

    found: dict[str, Any] = {"n_test": len(test), "run": str(run_folder.path.name)}
    with server(place) as pid:
        for model in (name, f"{name}-small"):
            asyncio.run(ask(model, asked[:WARM_UP]))
            busy, answers, size = [], [], len(asked) // ROUNDS
            for i in range(ROUNDS):
                before = processor_s(pid)
                answers += asyncio.run(ask(model, asked[i * size : (i + 1) * size]))
                busy.append((processor_s(pid) - before) / size)
            right = [
                task.score(e.golds, task.parse(a["choices"][0]["message"]["content"] or "")) >= task.pass_score
                for (e, _), a in zip(asked, answers, strict=False)
            ]
            routes = [a["smallfirst"]["route"] for a in answers]
            found[model] = {
                "n": len(answers), "right": sum(right), "busy_s": busy,
                "n_small": sum(route != "large" for route in routes),
                "certified": sum(a["smallfirst"]["certified"] for a in answers),
                "certified_wrong": sum(a["smallfirst"]["certified"] and not ok for a, ok in zip(answers, right, strict=True)),
            }  # fmt: skip
            print(model, found[model], flush=True)
    rows = project.rows
    found["rows"] = {part: len(getattr(rows, part)) for part in ("train", "selection", "calibration", "test")}
    (place / "served.json").write_text(json.dumps(found, indent=1))


def recorded(name: str) -> list[dict[str, Any]]:
    """Return the recorded answers of the rows that the page speaks of: Banking77's test rows, all training invoices."""
    part = "test" if name == "banking" else "train"
    return list(read_lines(data_folder(RECORDED[name]) / f"{part}.jsonl.gz"))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folder", type=Path)
    asked.add_argument("--run", choices=TASKS)
    asked.add_argument("--serve", choices=TASKS)
    given = asked.parse_args()
    folder = given.folder.absolute()
    if given.run:
        return run(folder, given.run)
    if given.serve:
        return serve(folder, given.serve)
    return write({name: (recorded(name), folder / name) for name in TASKS})


LIST = {
    "deepseek-v4-flash": "https://api.deepseek.com",
    "gpt-5-nano": "https://api.openai.com/v1",
    "mistral-small-latest": "https://api.mistral.ai",
    "gemini-3.5-flash-lite": "https://generativelanguage.googleapis.com",
    "claude-haiku-4-5": "https://api.anthropic.com",
    "gpt-5.4": "https://api.openai.com/v1",
}
"""Six list prices, from the cheapest, and who sells at them."""
USD_PER_HOUR, CORES, HOURS_A_MONTH = 0.10, 2, 730
UTILISATIONS, VOLUMES = (0.1, 0.3, 1.0), (10_000, 100_000, 1_000_000)
AUDITED = 0.02
"""Default share of kept answers that the large model answers as well."""
HEAD = """# Is the small model five to ten times cheaper?

`python -m benchmarks.pricing.seed_claim FOLDER` after `--run` and `--serve` of both sets, {today}, 2 shared cores (Zen 5), 24 GB, no GPU, Python 3.11,
seven other processes beside (load 3 to 6): processor time is an upper bound. The hosted side is what was recorded on 2026-09-26 (tokens and bill of
deepseek-v4.1-flash and deepseek-v4-flash-0731, no reasoning), and the same tokens at six list prices ({source}; the entry valid on the day of the run).

How it is computed, for 1,000 requests:

- **hosted**: each row's recorded tokens at the price. *With the cache*: the recorded share of cached tokens; *without*: all as fresh ones. Tokens are
  counted by DeepSeek's tokenizer: other models cut the same text into more or fewer, and a prompt is not equally good for all. **A cache that the
  seller would not give is a supposition**: OpenAI caches prompts from 1,024 tokens on, Anthropic from 1,024 to 4,096 by model, Google from 1,024 or more, and
  these prompts have {tokens}. DeepSeek's did come from the cache, as recorded.
- **small first**: what `smallfirst run` put live, served by `smallfirst serve` and asked over HTTP by 16 clients: processor seconds of the server (all
  threads, ledger and domain check included; median of five rounds), divided by the two cores that ${hour:.2f} an hour pays for, divided by the utilisation; plus
  the hosted price of what went to the large model, plus {audited:.0%} of the kept answers audited by it.
- **first month**: in addition the whole run (check, training, calibration, test, report) at the machine's price and the large model's answers to the
  calibration and test rows at its price. People's labels, which these sets came with, are not in it.
"""
SHARES = """## What five or ten times take

Only what stays small saves. With own answers for nothing and 2 % of them audited, hosted cost over small-first cost is at most:

| share small | {shares} |
|---|{rule}
| at most | {ratios} |
"""


class Plan(NamedTuple):
    """What is live: machine seconds a request, and the share of requests that the large model answers, audits included."""

    machine_s: float
    large_share: float

    def usd_per_1k(self, hosted: float, utilisation: float) -> float:
        return 1000 * self.own_usd(utilisation) + self.large_share * hosted

    def own_usd(self, utilisation: float) -> float:
        return self.machine_s * USD_PER_HOUR / 3600 / utilisation


@functools.cache
def _usd(model: str, prompt: int, cached: int, completion: int) -> float:
    tokens = TokenUsage(prompt_tokens=prompt, cached_tokens=cached, completion_tokens=completion)
    return PriceBook().charge(model, tokens, api_url=LIST[model]).usd or 0.0


def hosted_costs(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """Return USD for 1,000 requests by price and `with` or `without` the cache."""
    found = {("as billed", "with"): 1000 * statistics.fmean(row["cost_usd"] for row in rows)}
    for model in LIST:
        for cache in ("with", "without"):
            each = [
                _usd(model, row["prompt_tokens"], row["cached_tokens"] * (cache == "with"), row["completion_tokens"])
                for row in rows
            ]
            found[model, cache] = 1000 * statistics.fmean(each)
    return found


def plan_of(measured: Mapping[str, Any]) -> Plan:
    share = measured["n_small"] / measured["n"]
    return Plan(statistics.median(measured["busy_s"]) / CORES, 1 - share + AUDITED * share)


def times(value: float) -> str:
    return f"**{value:.1f}**" if 5 <= value <= 10 else f"{value:.0f}" if value > 10 else f"{value:.1f}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (columns, *rows)]
    return [lines[0], "|" + "---|" * len(columns), *lines[1:]]


class Set:
    """One set: its recorded bill and what was measured of its served task."""

    def __init__(self, name: str, rows: Sequence[Mapping[str, Any]], place: Path) -> None:
        self.name, self.rows, self.costs = name, rows, hosted_costs(rows)
        self.served: dict[str, Any] = json.loads((place / "served.json").read_text())
        self.minutes: float = json.loads((place / "run_minutes.json").read_text())
        self.first, self.alone = plan_of(self.served[name]), plan_of(self.served[f"{name}-small"])
        self.asked = self.served["rows"]["calibration"] + self.served["rows"]["test"]

    def once_usd(self, hosted: float) -> float:
        return self.minutes / 60 * USD_PER_HOUR + self.asked * hosted / 1000

    def mean_tokens(self) -> str:
        kinds = ("prompt_tokens", "cached_tokens", "completion_tokens")
        read, cached, written = (statistics.fmean(row[kind] for row in self.rows) for kind in kinds)
        return f"{read:.0f} tokens read, {cached:.0f} of them cached, {written:.0f} written"

    def ratios(self, plan: Plan) -> list[float]:
        return [cost / plan.usd_per_1k(cost, u) for cost in self.costs.values() for u in UTILISATIONS]

    def lines(self) -> list[str]:
        own, n = self.served[self.name], self.served[self.name]["n"]
        small = self.served[f"{self.name}-small"]
        wrong = clopper_pearson(own["certified_wrong"], own["certified"])
        rows = []
        for title, one, plan in (("small first", own, self.first), ("small alone", small, self.alone)):
            busy = [1000 * s for s in one["busy_s"]]
            usd = " / ".join(format_usd(1000 * plan.own_usd(u)) for u in UTILISATIONS)
            right, kept = wilson(one["right"], one["n"]), wilson(one["n_small"], one["n"])
            spread = f"{statistics.median(busy):.1f} ms ({min(busy):.1f} to {max(busy):.1f})"
            rows.append((title, f"{right}, n={one['n']:,}", str(kept), spread, usd))
        cost = f"own cost per 1,000 at {' / '.join(f'{u:.0%}' for u in UTILISATIONS)}"
        found = [f"\n## {self.name}: {self.mean_tokens()} (n={len(self.rows):,})", ""]
        found += table(("", "accuracy", "stays small", "processor time", cost), rows)
        found += [
            "",
            f"Certified answers wrong: {own['certified_wrong']} of {own['certified']:,}, {wrong} (promised: at most 0.05). The run took {self.minutes:.0f} min on the busy machine "
            f"({format_usd(self.minutes / 60 * USD_PER_HOUR)}); calibration and test have {self.asked:,} rows (n={n:,} asked).",
            "",
        ]
        return found + self._ratio_table() + self._volume_table()

    def _ratio_table(self) -> list[str]:
        ways = [f"{name}, {u:.0%}" for name in ("first", "alone") for u in UTILISATIONS]
        rows = []
        for (model, cache), cost in self.costs.items():
            cells = [times(cost / plan.usd_per_1k(cost, u)) for plan in (self.first, self.alone) for u in UTILISATIONS]
            rows.append((model, cache, format_usd(cost), *cells))
        said = "Hosted cost over small cost, later months (small *first* and *alone*, by utilisation; five to ten in bold):"
        return [said, "", *table(("price", "cache", "hosted per 1,000", *ways), rows), ""]

    def _volume_table(self) -> list[str]:
        rows = []
        for (model, cache), cost in self.costs.items():
            cells = [times(cost / (self.first.usd_per_1k(cost, 0.3) + 1000 * self.once_usd(cost) / n)) for n in VOLUMES]
            rows.append((model, cache, *cells, *(self._volume(cost, ratio) for ratio in (1, 5))))
        first = [f"first month, {n:,}" for n in VOLUMES]
        found = [
            "By requests a month, small first at 30 %: the first month, with training and evaluation; and a machine that this task has for itself, never",
            "switched off:",
            "",
        ]
        return [*found, *table(("price", "cache", *first, "own machine pays from", "five times from"), rows), ""]

    def _volume(self, cost: float, ratio: float) -> str:
        """Requests a month from which a dedicated machine makes hosted `ratio` times as dear; none beyond its capacity."""
        left = 1 - ratio * self.first.large_share
        n = ratio * USD_PER_HOUR * HOURS_A_MONTH / (cost / 1000 * left) if left > 0 else float("inf")
        return f"{n:,.0f}" if n <= HOURS_A_MONTH * 3600 / self.first.machine_s else "never"


def write(sets: Mapping[str, tuple[Sequence[Mapping[str, Any]], Path]]) -> None:
    found = [Set(name, rows, place) for name, (rows, place) in sets.items()]
    source = PriceBook().charge("gpt-5-nano", TokenUsage(prompt_tokens=1), api_url=LIST["gpt-5-nano"]).source
    tokens = " and ".join(f"{statistics.fmean(row['prompt_tokens'] for row in one.rows):.0f}" for one in found)
    counts = []
    for one in found:
        for title, plan in (("first", one.first), ("alone", one.alone)):
            ratios = one.ratios(plan)
            kinds = [
                sum(r > 10 for r in ratios),
                sum(5 <= r <= 10 for r in ratios),
                sum(1 < r < 5 for r in ratios),
                sum(r <= 1 for r in ratios),
            ]
            counts.append((f"{one.name}, small {title}", *(f"{k} of {len(ratios)}" for k in kinds)))
    given = {"source": source.partition(":")[0], "tokens": tokens, "hour": USD_PER_HOUR, "audited": AUDITED}
    lines = [HEAD.format(today=date.today().isoformat(), **given)]
    columns = ("of all prices, caches and utilisations below", "above 10 times", "5 to 10", "1 to 5", "dearer")
    lines += table(columns, counts)
    for one in found:
        lines += one.lines()
    shares = (0.5, 0.8, 0.9, 0.95, 0.98, 1.0)
    ratios = " | ".join(f"{1 / (1 - s + AUDITED * s):.1f}" for s in shares)
    lines.append(SHARES.format(shares=" | ".join(f"{s:.0%}" for s in shares), rule="---|" * len(shares), ratios=ratios))
    (RESULTS / "seed_claim.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
