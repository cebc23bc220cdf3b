"""Labels needed until a certificate covers half of the traffic: random rows against rows that a plan chooses.

    python -m benchmarks.routing.certificates_tables FOLDER
    python -m benchmarks.routing.label_plan FOLDER [--draws 1000]

The tables hold right and confidence of MiniLM + linear, fitted on the training rows of Banking77 and CLINC150, for every
validation and test row. In each draw some validation rows are the labelled ones that a plan chooses its cuts on; all other
rows are the traffic and the truth. Labels are drawn from it with replacement. Writes benchmarks/results/label_plan.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import special

from benchmarks.paths import RESULTS
from smallfirst.routing.certificate.threshold_search import fixed_sequence_test
from smallfirst.routing.cut_choice import CutChooser, CutOption
from smallfirst.stats.intervals import clopper_pearson
from smallfirst.stats.low_rate import low_rate_evidence
from smallfirst.stats.sequential import spent_level

LIMIT, LEVEL = 0.05, 0.05
SHARE = 0.5
MOST = 1000
SIZES = (100, 200, 400)
LOOKS = (60, 80, 100, 125, 150, 200, 250, 300, 400, 500, 600, 800, 1000)
"""Numbers of labels at which a certificate is tried."""
DOUBLING = (100, 200, 400, 800)
"""The same where each try takes its part of the level."""
PILOTS = (50, 200)
"""Labelled rows that a plan is made from."""
SETS = {"banking77": "Banking77", "clinc150": "CLINC150"}


class Traffic(NamedTuple):
    """Requests from the most confident down."""

    confidence: np.ndarray
    right: np.ndarray

    def error_above(self, n: int) -> float:
        return float((~self.right[:n]).mean()) if n else 0.0


class Outcome(NamedTuple):
    """What one way of labelling came to in one draw."""

    labels: dict[str, int]
    """By way: labels until half of the traffic is covered; MOST + 1 if as many do not do."""
    broken: dict[str, bool]
    """By way: the kept part of the traffic is wrong more often than promised when it stops, or at any label (ever)."""
    kept: dict[tuple[str, int], float]
    """By way and number of labels: the share of traffic that is certified."""


def draw(table: Traffic, n_validation: int, n_pilot: int, seed: int) -> Outcome:
    random = np.random.default_rng(seed)
    pilot = random.permutation(n_validation)[:n_pilot]
    rest = np.setdiff1d(np.arange(len(table.right)), pilot)
    order = rest[np.argsort(-table.confidence[rest], kind="stable")]
    traffic = Traffic(table.confidence[order], table.right[order])
    rank = np.searchsorted(-traffic.confidence, -table.confidence[pilot], side="right") / len(order)
    chooser = CutChooser(rank, table.right[pilot], limit=LIMIT, level=LEVEL, seed=seed)
    labels, broken, kept = {}, {}, {}
    for way, looks in (("random, looks not counted", LOOKS), ("random, looks counted", DOUBLING)):
        labels[way], broken[way], found = at_random(traffic, random, looks)
        kept |= {(way, n): found[n] for n in SIZES}
    half = chooser.for_share(SHARE, n_traffic=len(order))
    labels["planned, one cut"], broken["planned, one cut"] = one_cut(traffic, half, random)
    steps = list(planned(traffic, half, random))
    first = next((i for i, (n, _) in enumerate(steps) if n >= int(SHARE * len(order))), None)
    labels["planned, stopping at any row"] = MOST + 1 if first is None else first + 1
    broken["planned, stopping at any row"] = first is not None and steps[first][1] > LIMIT
    broken["planned for half, ever"] = any(error > LIMIT for _, error in steps)
    for size in SIZES:
        steps = list(planned(traffic, chooser.best(size, n_traffic=len(order)), random))
        kept["planned, stopping at any row", size] = steps[size - 1][0] / len(order)
        broken[f"planned for {size}, ever"] = any(error > LIMIT for _, error in steps)
    return Outcome(labels, broken, kept)


def at_random(
    traffic: Traffic, random: np.random.Generator, looks: tuple[int, ...]
) -> tuple[int, bool, dict[int, float]]:
    """Label random rows and search a threshold at each look; those of DOUBLING are counted, as a run does."""
    rows = random.integers(len(traffic.right), size=MOST)
    needed, broken, kept = MOST + 1, False, {}
    for look, n in enumerate(looks, start=1):
        level = spent_level(LEVEL, look) if looks is DOUBLING else LEVEL
        said, right = traffic.confidence[rows[:n]], traffic.right[rows[:n]]
        first = max(math.ceil(math.log(level) / math.log1p(-LIMIT)), (n + 1) // 2)
        found = fixed_sequence_test(said, right, LIMIT, level=level, first=first)
        n_kept = int((traffic.confidence >= found.threshold).sum())
        kept[n] = n_kept / len(traffic.right)
        if kept[n] >= SHARE and needed > MOST:
            needed, broken = n, traffic.error_above(n_kept) > LIMIT
    return needed, broken, kept


def one_cut(traffic: Traffic, option: CutOption, random: np.random.Generator) -> tuple[int, bool]:
    """Label rows above the loosest cut; test it by the exact binomial at each look, which is not counted."""
    n_above = round(option.shares[-1] * len(traffic.right))
    wrong = (~traffic.right[random.integers(n_above, size=MOST)]).cumsum()
    for n in LOOKS:
        if special.bdtr(wrong[n - 1], n, LIMIT) <= LEVEL:
            return n, traffic.error_above(n_above) > LIMIT
    return MOST + 1, False


def planned(traffic: Traffic, option: CutOption, random: np.random.Generator) -> Iterator[tuple[int, float]]:
    """Yield, after each label, the requests above the loosest cut that is shown and their true error."""
    sizes = [round(share * len(traffic.right)) for share in option.shares]
    rows = random.integers(sizes[-1], size=MOST)
    wrong = ~traffic.right[rows]
    best = np.zeros(MOST, dtype=int)
    passed = np.ones(MOST, dtype=bool)
    for size in sizes:
        inside = rows < size
        evidence = low_rate_evidence((wrong & inside).cumsum(), inside.cumsum(), LIMIT)
        passed &= np.maximum.accumulate(evidence) * LEVEL >= 1
        best = np.where(passed, size, best)
    errors = {size: traffic.error_above(size) for size in (0, *sizes)}
    for size in best.tolist():
        yield size, errors[size]


def read(folder: Path, name: str) -> tuple[Traffic, int]:
    """Return the table of a set and how many of its rows, the first, are validation rows."""
    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    validation = Path(os.environ["SMALLFIRST_DATA"]) / name / "validation.jsonl"
    n = sum(1 for line in validation.read_text(encoding="utf-8").splitlines() if line.strip())
    return Traffic(np.array([r["confidence"] for r in rows]), np.array([r["correct"] for r in rows], dtype=bool)), n


def section(title: str, table: Traffic, n_pilot: int, outcomes: list[Outcome]) -> Iterator[str]:
    n = len(outcomes)
    yield f"### {title}, cuts from {n_pilot} labelled rows\n\n{len(table.right):,} rows, {table.right.mean():.3f} right.\n"
    yield "| way | labels until half is covered: 10 % / median / 90 % | reached by 1,000 | broken then |"
    yield "|---|---|---|---|"
    for way in outcomes[0].labels:
        needed = np.array([one.labels[way] for one in outcomes])
        low, middle, high = (int(q) for q in np.quantile(needed, [0.1, 0.5, 0.9], method="higher"))
        ends = [f"{value}" if value <= MOST else f"> {MOST}" for value in (low, middle, high)]
        yield f"| {way} | {' / '.join(ends)} | {(needed <= MOST).mean():.3f} | {rate(outcomes, way)} |"
    yield (
        "\n| way | "
        + " | ".join(f"mean share kept with {size} labels" for size in SIZES)
        + " |\n|---|"
        + "---|" * len(SIZES)
    )
    for way in dict.fromkeys(way for way, _ in outcomes[0].kept):
        yield f"| {way} | " + " | ".join(mean([one.kept[way, size] for one in outcomes]) for size in SIZES) + " |"
    ever = [way for way in outcomes[0].broken if way.endswith("ever")]
    yield f"\nBroken at any of {MOST:,} labels, {n} draws: " + "; ".join(
        f"{way[:-6]} {rate(outcomes, way)}" for way in ever
    )


def rate(outcomes: list[Outcome], way: str) -> str:
    found = clopper_pearson(sum(one.broken[way] for one in outcomes), len(outcomes))
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def shown(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def mean(values: list[float]) -> str:
    error = 1.96 * np.std(values) / len(values) ** 0.5
    return f"{np.mean(values):.3f} ± {error:.3f}"


HEAD = """# Labels needed for a certificate: random rows against planned ones

Promise: at most 5 % of kept answers wrong, at 95 %. `{command}`, 2 shared cores (Zen 5), 24 GB, 2026-11-27; {draws} draws a
table. The candidate is MiniLM + linear, fitted on the training rows; cuts are chosen on validation rows, and all other
validation and test rows are the traffic, from which labels are drawn with replacement. Broken: the kept part of the
traffic is wrong more often than 5 %; exact 95 % intervals.

- random, looks not counted: rows at random from all traffic, the threshold search that begins at half the rows, tried at
  {looks} labels at the whole level each time, which is too often to be valid and flatters this way;
- random, looks counted: tried at {doubling} labels, with 1 / (k (k + 1)) of the level at the k-th try, as a run counts;
- planned, one cut: rows above the loosest cut only, the exact binomial test of this cut at the same numbers, not counted;
- planned, stopping at any row: `smallfirst label-plan`: rows above the loosest cut, cuts from strict to loose, tested
  after every label with evidence that is valid at every row.
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, default=1000)
    given = parser.parse_args()
    command = f"python -m benchmarks.routing.label_plan FOLDER --draws {given.draws}"
    page = [HEAD.format(command=command, draws=given.draws, looks=shown(LOOKS), doubling=shown(DOUBLING))]
    for name, title in SETS.items():
        table, n_validation = read(given.folder, name)
        for n_pilot in PILOTS:
            outcomes = [draw(table, n_validation, n_pilot, seed) for seed in range(given.draws)]
            page += section(title, table, n_pilot, outcomes)
            page.append("")
            (RESULTS / "label_plan.md").write_text("\n".join(page), encoding="utf-8")
            print(page[-1], name, n_pilot, flush=True)


if __name__ == "__main__":
    main()
