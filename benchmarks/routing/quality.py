"""Measure routing with RouteLLM's metrics on its recorded answers to GSM8K and MT-Bench, beside its published figures.

    SMALLFIRST_DATA=FOLDER python -m benchmarks.routing.quality [--litellm PYTHON] [--seeds 2]

A router orders requests by how much the strong model is needed; the weak one answers the rest. The metrics are in
quality_tables.py. Ours are fitted by 10-fold cross-validation over questions, nothing chosen on a held-out fold; each
fold is ranked by itself, so that a fold's general level does not matter. LiteLLM's offline classifiers (`--litellm`: the
interpreter of an environment of its own with `pip install litellm`) order the same prompts with default settings, untrained.

Writes benchmarks/results/routing_quality.md. Takes some minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.paths import RESULTS
from benchmarks.routing.quality_tables import (
    PRICE_RATIO,
    Table,
    figures,
    gsm8k,
    mtbench,
    published,
)
from smallfirst.routing.gain import GainModel
from smallfirst.stats.intervals import Estimate

RESULT = RESULTS / "routing_quality.md"
FOLDS = 10
LOOKED_AT = 653
"""Rows of GSM8K on which variants of the model were compared."""
RANKINGS = ("difficulty", "difference", "gain")


class Line(NamedTuple):
    """One router on one benchmark."""

    who: str
    trained_on: str
    need: np.ndarray
    """How much the strong model is needed (seeds, rows); only the order matters."""
    ms: float = float("nan")
    """One decision."""
    """True if the decision used the weak model's answer, which then costs money."""
    point: np.ndarray | None = None
    """Rows sent to the strong model by the router's own settings."""


Measured = tuple[Line, list[Estimate]]
"""A router, with its APGR and its calls for 50, 80 and 95 %."""


def cross_fitted(table: Table, seeds: int) -> np.ndarray:
    """Return the need (RANKINGS, seeds, rows): a row's rank in its fold, fitted on the other folds."""
    from scipy.stats import rankdata
    from sklearn.model_selection import KFold

    def part(column: Sequence[Any], rows: np.ndarray) -> Any:
        return [column[i] for i in rows]

    need = np.zeros((len(RANKINGS), seeds, len(table.texts)))
    for seed in range(seeds):
        for train, test in KFold(FOLDS, shuffle=True, random_state=seed).split(table.texts):
            texts, outcomes = part(table.texts, train), {who: part(all_, train) for who, all_ in table.outcomes.items()}
            fitted = GainModel.fit(texts, outcomes)
            asked = part(table.texts, test)
            chances = fitted.probabilities(asked)
            difference = chances["large"] - chances["small"]
            scores = (-chances["small"], difference, fitted.score(asked))
            need[:, seed, test] = rankdata(scores, axis=1) / (len(test) + 1)
    return need


def decision_ms(table: Table) -> float:
    """Return the median processor time of one decision in milliseconds, one at a time."""
    fitted = GainModel.fit(table.texts, table.outcomes)
    times = []
    for text in table.texts[:100]:
        began = time.process_time()
        fitted.score([text])
        times.append(time.process_time() - began)
    return 1000 * float(np.median(times))


def ours(table: Table, seeds: int) -> list[Line]:
    own = f"{len(table.texts) * (FOLDS - 1) // FOLDS:,} rows of the other folds"
    ms, needs = decision_ms(table), cross_fitted(table, seeds)
    return [Line(f"ours, before: {by}, words", own, need, ms) for by, need in zip(RANKINGS, needs, strict=True)]


def litellm(table: Table, python: str | None) -> tuple[str, list[Line]]:
    """Return version and table rows of LiteLLM's two offline classifiers."""
    if not python:
        print("LiteLLM is left out: pip install litellm into an environment of its own, then --litellm ITS/bin/python")
        return "", []
    with tempfile.TemporaryDirectory() as scratch:
        prompts = Path(scratch) / "prompts.jsonl"
        prompts.write_text("".join(json.dumps(text) + "\n" for text in table.texts), encoding="utf-8")
        command = [python, "-W", "ignore", "-m", "benchmarks.peers.route_litellm", str(prompts)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"LiteLLM failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    trained = {"heuristic": "nothing: rules", "heuristic_v2": "UltraFeedback"}
    lines = []
    for name, what in trained.items():
        scores, strong, ms = (found[name][key] for key in ("scores", "strong", "ms"))
        lines.append(Line(f"LiteLLM {name}", what, np.array([scores]), ms, point=np.array(strong)))
    return found["version"], lines


def rows_of(measured: Sequence[Measured]) -> str:
    """Our lines, as Markdown."""
    found = []
    for line, (mean, *calls) in measured:
        shares = " | ".join(f"{100 * c.value:.1f} [{100 * c.low:.1f}, {100 * c.high:.1f}]" for c in calls)
        ms = "" if np.isnan(line.ms) else f"{line.ms:.1f}"
        found.append(f"| {line.who} | {line.trained_on} | {mean} | {shares} | {ms} |\n")
    return "".join(found)


def own_points(name: str, table: Table, measured: Sequence[Measured]) -> str:
    """Return a sentence on each of LiteLLM's classifiers under its own settings."""
    found = []
    for line, _ in measured:
        if line.point is not None:
            sent, recovered = line.point.mean(), table.gain[line.point].sum() / table.gain.sum()
            found.append(f"- {name}, {line.who}: {100 * sent:.1f} % of calls, {100 * recovered:.1f} % of the gap\n")
    return "".join(found)


def costs(measured: Sequence[Measured]) -> str:
    """Return, as Markdown, the cost at 80 % of the gap relative to the strong model alone."""
    found = []
    for line, (_, _, calls, _) in measured:
        share = calls.value
        cells = [100 * value for value in (share, share + PRICE_RATIO * (1 - share), share + 0.1 * (1 - share))]
        found.append(f"| {line.who} | {' | '.join(f'{cell:.1f}' for cell in cells)} |\n")
    return "".join(found)


PAGE = """# Routing by RouteLLM's metrics

`python -m benchmarks.routing.quality{options}`, {today}, one of 2 shared cores, Zen 5, 24 GB, other work beside.
Recorded answers of Mixtral-8x7B (weak) and GPT-4-1106 (strong) from RouteLLM's repository, without the rows that RouteLLM
leaves out: GSM8K {gsm8k} questions, MT-Bench {mtbench} questions of two turns, of which the first decides for both.

APGR: mean share of the gap between the two models that is recovered, over all shares of calls to the strong one. Calls for
x %: the least share of calls, in %, that recovers x % of the gap. Ours: 10-fold cross-validation over questions, mean of
{seeds} seeds, each fold ranked by itself; penalties are chosen inside the training folds. Difficulty: ranked by how likely
the weak model is wrong, as before; difference: by how much likelier the strong one is right; gain: the mean of that and a
regression of the gain itself, as served now. Intervals: 95 %, from resampling the rows judged. ms: processor time of one
decision.

Difference, regression and their mean were compared on the first {looked_at} rows of GSM8K by cross-validation among them
alone, which did not tell them apart (APGR 0.607, 0.600, 0.603). The mean was taken with the figures of all rows in view, as
the steadier of the three, so its lead over the difference, above all on MT-Bench, is no clean result. On the other rows of
GSM8K, APGR is
{unseen}.

## GSM8K

{head}{gsm8k_rows}{gsm8k_published}
## MT-Bench

{head}{mtbench_rows}{mtbench_published}
The published lines (tables 3 and 1 of arXiv:2406.18665, no intervals given) were trained on other questions and had never
seen GSM8K and MT-Bench; ours learn from the benchmark's own questions ({mtbench_rows_learnt} rows of MT-Bench), as a company
would from its own traffic. So the two answer different questions: what a general router does on a new task, and what a few
hundred rows of that task are worth.

## What the weak answers cost

Cost where 80 % of GSM8K's gap is recovered, in % of the cost of the strong model alone, for three prices of a weak answer over a strong one: none counted,
RouteLLM's {ratio:.4f} ($0.24 and $24.7 a million tokens), and 0.1.

| router | 0 | {ratio:.4f} | 0.1 |
|---|---|---|---|
{costs}
## LiteLLM

{litellm}"""
HEAD = """| router | learnt from | APGR | calls for 50 % | for 80 % | for 95 % | ms |
|---|---|---|---|---|---|---|
"""


def write(tables: Sequence[Table], found: Sequence[Sequence[Measured]], version: str, seeds: int) -> None:
    """The result as a page."""
    math, talk = found
    old = RESULT.read_text(encoding="utf-8")
    kept = (
        {} if version else {part: kept_lines(old, part) for part in ("GSM8K", "MT-Bench", "What the weak answers cost")}
    )
    points = "".join(own_points(t.name, t, m) for t, m in zip(tables, found, strict=True))
    theirs = (
        f"Version {version}, its offline classifiers in their own environment. With their own settings:\n\n{points}"
    )
    RESULT.write_text(
        PAGE.format(
            options=" --litellm PYTHON" if version else "",
            today=date.today(),
            gsm8k=f"{len(tables[0].texts):,}",
            mtbench=len(tables[1].texts),
            seeds=seeds,
            looked_at=LOOKED_AT,
            unseen=unseen(tables[0], math),
            head=HEAD,
            gsm8k_rows=rows_of(math) + kept.get("GSM8K", ""),
            gsm8k_published=published("GSM8K"),
            mtbench_rows=rows_of(talk) + kept.get("MT-Bench", ""),
            mtbench_published=published("MT-Bench"),
            mtbench_rows_learnt=len(tables[1].texts) * (FOLDS - 1) // FOLDS,
            ratio=PRICE_RATIO,
            costs=costs(math) + kept.get("What the weak answers cost", ""),
            litellm=theirs if version else old.split("## LiteLLM\n\n")[1],
        ),
        encoding="utf-8",
    )


def kept_lines(page: str, section: str) -> str:
    """Return LiteLLM's lines of a section of an earlier page; it learns nothing from the rows, so they stay as they are."""
    lines = page.split(f"## {section}\n")[1].split("\n## ")[0].splitlines(keepends=True)
    return "".join(line for line in lines if line.startswith("| LiteLLM"))


def unseen(table: Table, measured: Sequence[Measured]) -> str:
    """Return the APGR of our routers on the rows that were not looked at before."""
    said = [
        f"{figures(line.need[:, LOOKED_AT:], table.gain[LOOKED_AT:])[0]} ({line.who.removeprefix('ours, ')})"
        for line, _ in measured
        if "gain" in line.who
    ]
    return ",\n".join(said)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--litellm", help="interpreter of an environment that has litellm")
    parser.add_argument("--seeds", type=int, default=2)
    wanted = parser.parse_args()
    folder = Path(os.environ["SMALLFIRST_DATA"])
    tables, found, version = [gsm8k(folder), mtbench(folder)], [], ""
    for table in tables:
        version, theirs = litellm(table, wanted.litellm)
        bounds = [
            Line("random", "nothing", np.zeros((1, len(table.texts)))),
            Line("oracle", "both answers' scores", table.gain[None]),
        ]
        lines = [*bounds, *theirs, *ours(table, wanted.seeds)]
        found.append([(line, figures(line.need, table.gain)) for line in lines])
        print(rows_of(found[-1]), flush=True)
    write(tables, found, version, wanted.seeds)


if __name__ == "__main__":
    main()
