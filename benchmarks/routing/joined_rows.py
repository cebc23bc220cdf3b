"""Test whether certificates from calibration and test rows hold, and how much more they keep than calibration rows alone.

    python -m benchmarks.routing.joined_rows FOLDER [--draws 1000] [--rule now] --out FILE.json
    python -m benchmarks.routing.joined_rows FOLDER --page NOW.json BEFORE.json   # write benchmarks/results/joined_rows.md

On recorded tables (`recorded_tables`, kept in FOLDER) a draw is a first run: rows that choose, calibration rows and test
rows are drawn from the pool, which is the truth. Three finalists are fixed by the rows that choose; the gate reads the
test rows and lets the first live that passes; its certificate takes its part of a look at calibration and test rows
together. **Broken** is the share of all draws in which a promise is issued and false over the pool. Traps, in which a
careless rule would fail, are draws of their own. `--rule before` is one look of half of the level at the calibration
rows alone, with the start that few selection rows choose: run it with the version of 2026-11-30, commit 69e9c75b.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from benchmarks.paths import RESULTS
from benchmarks.routing.recorded_tables import NAMES, Table, load
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.threshold_search import choose_starts, search_threshold
from smallfirst.stats.intervals import clopper_pearson, wilson

SIZES = (48, 97, 200, 400, 800)
"""Calibration rows: those of a file of 300, 600, 1,200, 2,500 and 5,000 rows."""
TEST, SELECTION, TRAIN = 1.24, 0.25, 3.7
"""Rows of the other parts for each calibration row, as a run splits one file."""
MAX_CHOOSING = 1000
LEVEL, LARGE, SMALL = 0.05, 0.8, 0.2
PARTS = (0.6, 0.2, 0.2)
"""Parts of the look: of the first finalist, and of each other one."""


class Made(NamedTuple):
    """One certificate and the pool it is about."""

    threshold: float
    issued: bool


def certify(
    confidence: np.ndarray, right: np.ndarray, limit: float, level: float, chosen_on: tuple[np.ndarray, np.ndarray]
) -> Made:
    starts = choose_starts(*chosen_on, len(confidence), limit, level)
    guarantee = Guarantee(max_error=limit, confidence=1 - level)
    found = search_threshold(confidence.tolist(), right.tolist(), guarantee, starts)
    return Made(found.threshold, found.n_accepted > 0)


def judge(made: Made, confidence: np.ndarray, right: np.ndarray, limit: float) -> tuple[float, bool]:
    """Return the share of the pool that is kept, and whether the promise is false over it."""
    kept = confidence >= made.threshold
    if not made.issued or not kept.any():
        return 0.0, False
    return float(kept.mean()), bool((~right[kept]).mean() > limit)


def oracle(confidence: np.ndarray, right: np.ndarray, limit: float) -> float:
    order = np.argsort(-confidence, kind="stable")
    wrong, n = np.cumsum(~right[order]), np.arange(1, len(order) + 1)
    return float(n[wrong <= limit * n].max(initial=0)) / len(order)


def first_run(table: Table, n: int, limit: float, draw: np.random.Generator, rule: str) -> tuple[float, bool]:
    """One first run; the gate's bar lies five points below the best finalist, so that more than one may pass."""
    calibration, test = (draw.integers(table.n, size=round(n * part)) for part in (1, TEST))
    n_choosing = SELECTION * n if rule == "before" else min(MAX_CHOOSING, (SELECTION + TRAIN) * n)
    choosing = draw.integers(table.n, size=max(6, round(n_choosing)))
    order = np.argsort(-table.right[:, choosing].mean(axis=1), kind="stable")
    bar = table.right.mean(axis=1).max() - 0.05
    for place, one in enumerate(order.tolist()):
        right, confidence = table.right[one], table.confidence[one]
        z = special.ndtri(1 - LEVEL / 2 * PARTS[place])
        if _lower(right[test].mean(), len(test), z) < bar:
            continue
        rows = calibration if rule == "before" else np.concatenate([calibration, test])
        level = LEVEL / 2 if rule == "before" else LEVEL * LARGE * PARTS[place]
        made = certify(confidence[rows], right[rows], limit, level, (confidence[choosing], right[choosing]))
        return judge(made, confidence, right, limit)
    return 0.0, False


def _lower(share: float, n: int, z: float) -> float:
    found = wilson(round(share * n), n, confidence=float(2 * special.ndtr(z) - 1))
    return found.low


Trap = Callable[[Table, int, np.random.Generator], bool]


def nothing_to_find(table: Table, one: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Return a pool in which confidence says nothing and every promise is false, by as little as it can be."""
    right = table.right[one]
    return draw.permutation(table.confidence[one]), right, float((~right).mean()) - 1e-9


def several_finalists(table: Table, n: int, draw: np.random.Generator, *, divide: bool = True) -> bool:
    """Nothing can be promised; of three finalists the one lives that the test rows flatter most."""
    pools = [nothing_to_find(table, one, draw) for one in range(3)]
    calibration, test = (draw.integers(table.n, size=round(n * part)) for part in (1, TEST))
    choosing = draw.integers(table.n, size=min(MAX_CHOOSING, 4 * n))
    order = sorted(range(3), key=lambda one: float((~pools[one][1][test]).mean()) - pools[one][2])
    confidence, right, limit = pools[order[0]]
    rows = np.concatenate([calibration, test])
    level = LEVEL * LARGE * (PARTS[order[0]] if divide else 1.0)
    made = certify(confidence[rows], right[rows], limit, level, (confidence[choosing], right[choosing]))
    return judge(made, confidence, right, limit)[1]


def undivided(table: Table, n: int, draw: np.random.Generator) -> bool:
    return several_finalists(table, n, draw, divide=False)


def repeats(table: Table, n: int, draw: np.random.Generator) -> bool:
    """Texts come as often as Zipf's law says; one row a text counts, over calibration and test rows together."""
    confidence, right, limit = nothing_to_find(table, 2, draw)
    weights = 1 / np.arange(1, table.n + 1)
    ranked = draw.permutation(table.n)
    rows = np.unique(ranked[draw.choice(table.n, round(n * (1 + TEST)), p=weights / weights.sum())])
    made = certify(confidence[rows], right[rows], limit, LEVEL * LARGE * PARTS[0], (confidence[:500], right[:500]))
    return judge(made, confidence, right, limit)[1]


def groups(table: Table, n: int, draw: np.random.Generator, *, once: bool = True) -> bool:
    """Each case is there five times, right or wrong together; one row a group counts."""
    confidence, right, limit = nothing_to_find(table, 2, draw)
    cases = draw.integers(table.n, size=max(1, round(n * (1 + TEST)) // 5))
    rows = cases if once else np.repeat(cases, 5)
    made = certify(confidence[rows], right[rows], limit, LEVEL * LARGE * PARTS[0], (confidence[:500], right[:500]))
    return judge(made, confidence, right, limit)[1]


def groups_counted_by_row(table: Table, n: int, draw: np.random.Generator) -> bool:
    return groups(table, n, draw, once=False)


def shopping(table: Table, n: int, draw: np.random.Generator, *, scheduled: bool = True) -> bool:
    """Ten certificates on random halves of the same rows; any that is issued is taken."""
    confidence, right, limit = nothing_to_find(table, 2, draw)
    rows, broken = draw.integers(table.n, size=round(n * (1 + TEST))), False
    for look in range(10):
        share = LARGE if look == 0 else SMALL / (look * (look + 1))
        part = draw.choice(rows, len(rows) // 2, replace=False)
        level = LEVEL * (share if scheduled else LARGE)
        made = certify(confidence[part], right[part], limit, level, (confidence[:500], right[:500]))
        broken |= judge(made, confidence, right, limit)[1]
    return broken


def shopping_uncounted(table: Table, n: int, draw: np.random.Generator) -> bool:
    return shopping(table, n, draw, scheduled=False)


def policies(table: Table, n: int, draw: np.random.Generator) -> bool:
    """A rule sends long texts elsewhere; rows of both parts pass it, and the promise is about those that do."""
    lengths = np.char.str_len(table.texts)
    passes = np.flatnonzero(lengths <= np.median(lengths))
    right = table.right[2][passes]
    confidence, limit = draw.permutation(table.confidence[2][passes]), float((~right).mean()) - 1e-9
    rows = draw.integers(len(passes), size=round(n * (1 + TEST) / 2))
    made = certify(confidence[rows], right[rows], limit, LEVEL * LARGE * PARTS[0], (confidence[:500], right[:500]))
    return judge(made, confidence, right, limit)[1]


def reused_test_rows(table: Table, n: int, draw: np.random.Generator, *, joined: bool = False) -> bool:
    """A report has shown the test rows; of sixty later models the one they flatter most is certified."""
    right, limit = table.right[2], float((~table.right[2]).mean()) - 1e-9
    calibration, test = (draw.integers(table.n, size=round(n * part)) for part in (1, TEST))
    confidence = max(
        (draw.permutation(table.confidence[2]) for _ in range(60)), key=lambda c: _flattery(c, right, test)
    )
    rows = np.concatenate([calibration, test]) if joined else calibration
    level = LEVEL * (LARGE * PARTS[0] if joined else SMALL / 2)
    made = certify(confidence[rows], right[rows], limit, level, (confidence[:500], right[:500]))
    return judge(made, confidence, right, limit)[1]


def _flattery(confidence: np.ndarray, right: np.ndarray, rows: np.ndarray) -> float:
    """Return how much more often the surer half of the rows is right."""
    surer = confidence[rows] >= np.median(confidence[rows])
    return float(right[rows][surer].mean() - right[rows][~surer].mean())


def joined_again(table: Table, n: int, draw: np.random.Generator) -> bool:
    return reused_test_rows(table, n, draw, joined=True)


def calibration_rows_learned(table: Table, n: int, draw: np.random.Generator) -> bool:
    """A refit saw the calibration rows and answers them right; `certify` refuses this, so nothing is issued there."""
    confidence, right, limit = nothing_to_find(table, 2, draw)
    rows = draw.integers(table.n, size=round(n * (1 + TEST)))
    learned = right[rows] | (np.arange(len(rows)) < n)
    made = certify(confidence[rows], learned, limit, LEVEL * LARGE * PARTS[0], (confidence[:500], right[:500]))
    return judge(made, confidence, right, limit)[1]


PAGE = """# Certificates from calibration and test rows together

`python -m benchmarks.routing.joined_rows FOLDER --out now.json`, the same with `--rule before` and the version of commit
69e9c75b, 2026-11-30, 2 Intel cores with AMX, 24 GB, no GPU, Python 3.11. {n} draws a cell, seeded.

A draw is a first run on one file: {doc_size} calibration rows, 1.24 times as many test rows, and rows that choose (a
quarter as many before; training and selection rows out of fold, at most 1,000, now). Three candidates of
`recorded_tables` are fixed by the rows that choose; the bar of the gate lies five points below the best of them, the
first that passes goes live. **Kept**: mean share of the pool under the promise, 0 where nothing is promised. **Broken**:
share of all draws in which a promise is issued and false over the pool, with its exact 95 % interval; at most 0.05 may
be. Before: one look at half of the level, calibration rows alone. Now: a look at four fifths of it, divided among
the three (.6, .2, .2), calibration and test rows together."""

TRAPS: dict[str, Trap] = {
    "several finalists, the level divided": several_finalists,
    "  without dividing it": undivided,
    "repeated texts, one row a text": repeats,
    "groups of five, one row a group": groups,
    "  every row counted": groups_counted_by_row,
    "ten looks, counted": shopping,
    "  not counted": shopping_uncounted,
    "a policy in front": policies,
    "test rows of an earlier report, left out": reused_test_rows,
    "  joined again": joined_again,
    "a refit that saw calibration rows, not refused": calibration_rows_learned,
}
"""Indented: what the rule is there against, which breaks more often."""


def page(now: dict[str, Any], before: dict[str, Any]) -> str:
    """Return the page of both rules: what is kept and broken in first runs, and the traps."""
    n = now["draws"]
    then = {(one["table"], one["limit"], one["n"]): one for one in before["runs"]}
    lines = [*PAGE.format(n=n, doc_size=", ".join(map(str, SIZES))).splitlines(), ""]
    lines += [
        "| table, limit | calibration rows | kept before | kept now | best possible | broken before | broken now |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for one in now["runs"]:
        old = then[one["table"], one["limit"], one["n"]]
        broken = (f"{clopper_pearson(each['broken'], n)}" for each in (old, one))
        kept = f"{old['kept']:.3f} | {one['kept']:.3f} | {one['oracle']:.3f}"
        lines.append(f"| {one['table']}, {one['limit']:.0%} | {one['n']} | {kept} | {' | '.join(broken)} |")
    lines += ["", "## Traps", "", "200 calibration and 248 test rows. Indented: what the rule is there against.", ""]
    lines += [f"| trap | {' | '.join(NAMES)} |", "|---|" + "---|" * len(NAMES)]
    for trap in dict.fromkeys(one["trap"] for one in now["traps"]):
        found = {one["table"]: one["broken"] for one in now["traps"] if one["trap"] == trap}
        cells = " | ".join(str(clopper_pearson(found[name], n)) for name in NAMES)
        lines.append(f"| {trap.replace('  ', '&emsp;')} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--rule", choices=("now", "before"), default="now")
    parser.add_argument("--limits", type=float, nargs="+", default=[0.05, 0.10])
    parser.add_argument("--out", type=Path, default=Path("joined_rows.json"))
    parser.add_argument("--page", type=Path, nargs=2, metavar=("NOW", "BEFORE"))
    asked = parser.parse_args()
    if asked.page:
        now, before = (json.loads(path.read_text()) for path in asked.page)
        (RESULTS / "joined_rows.md").write_text(page(now, before), encoding="utf-8")
        return
    found: dict[str, Any] = {"rule": asked.rule, "draws": asked.draws, "runs": [], "traps": []}
    for name in NAMES:
        table, began = load(asked.folder, name), time.monotonic()
        for limit in asked.limits:
            best = max(oracle(c, r, limit) for c, r in zip(table.confidence, table.right, strict=True))
            for n in SIZES:
                draw = np.random.default_rng(7)
                made = [first_run(table, n, limit, draw, asked.rule) for _ in range(asked.draws)]
                kept, broken = float(np.mean([one for one, _ in made])), sum(one for _, one in made)
                found["runs"].append(
                    {"table": name, "limit": limit, "n": n, "kept": kept, "broken": broken, "oracle": best}
                )
        if asked.rule == "now":
            for trap, run in TRAPS.items():
                draw = np.random.default_rng(8)
                broken = sum(run(table, 200, draw) for _ in range(asked.draws))
                found["traps"].append({"table": name, "trap": trap, "broken": broken})
        asked.out.write_text(json.dumps(found, indent=1))
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    for one in found["runs"]:
        print(one["table"], one["limit"], one["n"], round(one["kept"], 3), clopper_pearson(one["broken"], asked.draws))
    for one in found["traps"]:
        print(one["table"], one["trap"], clopper_pearson(one["broken"], asked.draws))


if __name__ == "__main__":
    main()
