"""Draw calibration rows 1,000 times and compare the rules for certificates with those before them.

    python -m benchmarks.routing.certificates_tables FOLDER         # right and confidence of MiniLM's linear model
    python -m benchmarks.routing.certificates_draws FOLDER [--draws 1000] [--only banking77,gsm8k]

A pool is the truth: calibration and selection rows are drawn from it with replacement, equally many, and a certificate is
broken if its limit does not hold over the whole pool. FOLDER/SET.jsonl has a line {confidence, correct} for each row; a
set without such a file is left out, GSM8K is computed from RouteLLM's answers under $SMALLFIRST_DATA. Replaces its
section of benchmarks/results/certificates.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
from scipy import special

from benchmarks.routing.certificates_page import DRAWS, RESULT, TRAPS
from benchmarks.routing.certificates_pools import gsm8k
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT, CascadeData
from smallfirst.routing.certificate.threshold_search import search_cascade, threshold_paths
from smallfirst.stats.intervals import betting_p_value, clopper_pearson
from smallfirst.stats.sample_size import min_rows_without_error

SIZES = (200, 400, 800)
LIMITS = {"gsm8k": (0.2, 0.25), "restaurant8k": (0.05, 0.1)}
LOSSES = (0.05, 0.1)

Rule = Callable[[CascadeData, CascadeData, Guarantee], float]
"""The last threshold, from calibration and selection rows."""


def before(rows: CascadeData, _: CascadeData, guarantee: Guarantee) -> float:
    """The former rules: one start at half of the rows for errors, betting for the loss of accuracy."""
    if guarantee.max_error is None:
        return betting(rows, guarantee)
    level, limit = 1 - guarantee.confidence, guarantee.max_error
    order = np.argsort(-rows.confidence[0], kind="stable")
    confidence, wrong = rows.confidence[0][order], np.cumsum(~rows.right[0][order])
    accepted = np.arange(max(min_rows_without_error(limit, level), (rows.n + 1) // 2), rows.n + 1)
    accepted = accepted[np.append(confidence[1:] != confidence[:-1], True)[accepted - 1]]
    failed = special.bdtr(wrong[accepted - 1], accepted, limit) > level
    passed = int(failed.argmax()) if failed.any() else len(accepted)
    return float(confidence[accepted[passed - 1] - 1]) if passed else NEVER_ACCEPT


def betting(rows: CascadeData, guarantee: Guarantee) -> float:
    (path,), found = threshold_paths(rows.confidence), NEVER_ACCEPT
    for (threshold,) in path:
        routed = np.where(rows.confidence[0] >= threshold, rows.right[0], rows.large_right)
        lost = rows.large_right.astype(float) - routed
        if betting_p_value(lost, guarantee.max_accuracy_loss or 0, low=-1, high=1) > 1 - guarantee.confidence:
            break
        found = threshold
    return found


def now(rows: CascadeData, _: CascadeData, guarantee: Guarantee) -> float:
    return search_cascade(rows, guarantee).thresholds[-1]


def with_selection(rows: CascadeData, selection: CascadeData, guarantee: Guarantee) -> float:
    return search_cascade(rows, guarantee, selection=selection).thresholds[-1]


RULES: dict[str, Rule] = {"before": before, "several starts": now, "start from selection rows": with_selection}


def measure(pool: CascadeData, guarantee: Guarantee, rule: Rule, n: int, draws: int) -> dict[str, float]:
    draw, issued, broken, kept = np.random.default_rng(n), 0, 0, 0.0
    for _ in range(draws):
        rows, selection = (pool.take(draw.integers(0, pool.n, n)) for _ in range(2))
        threshold = rule(rows, selection, guarantee)
        accepted = pool.confidence[0] >= threshold
        if threshold > 1:
            continue
        issued += 1
        kept += float(accepted.mean())
        small = ~pool.right[0][accepted]
        if guarantee.max_error is not None:
            broken += bool(small.mean() > guarantee.max_error + 1e-12)
        else:
            lost = (pool.large_right[accepted].astype(float) - pool.right[0][accepted]).sum() / pool.n
            broken += bool(lost > (guarantee.max_accuracy_loss or 0) + 1e-12)
    return {"issued": issued, "broken": broken, "kept": kept / draws, "draws": draws}


def table_pool(path: Path) -> CascadeData:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    n = len(lines)
    return CascadeData(
        confidence=np.array([[one["confidence"] or 0.0 for one in lines]], dtype=float),
        right=np.array([[one["correct"] for one in lines]], dtype=bool),
        cost_usd=np.zeros((2, n)),
        asked=np.zeros(n, dtype=bool),
        large_right=np.zeros(n, dtype=bool),
    )


def pools(folder: Path) -> dict[str, CascadeData]:
    found = {path.stem: table_pool(path) for path in sorted(folder.glob("*.jsonl"))}
    return found | {"gsm8k": gsm8k()}


def measure_pool(name: str, pool: CascadeData, draws: int) -> list[dict[str, object]]:
    limits = [Guarantee(max_error=limit) for limit in LIMITS.get(name, (0.02, 0.03, 0.05))]
    if name == "gsm8k":
        limits += [Guarantee(max_error=None, max_accuracy_loss=limit) for limit in LOSSES]
    found: list[dict[str, object]] = []
    for guarantee in limits:
        rules = RULES if guarantee.max_error is not None else {"before": before, "exact trinomial": now}
        for n in SIZES:
            for rule, choose in rules.items():
                cell = {"pool": name, "limit": guarantee.in_words, "n": n, "rule": rule}
                found.append(cell | measure(pool, guarantee, choose, n, draws))
                print(json.dumps(found[-1]), flush=True)
    return found


def section(found: list[dict[str, object]], about: list[str]) -> str:
    draws = found[0]["draws"]
    lines = [
        f"{DRAWS}\n",
        f"`python -m benchmarks.routing.certificates_draws FOLDER`, {date.today()}, 2 shared cores, Zen 5, 24 GB; {draws} "
        "draws a cell, as many selection rows as calibration rows. Before: one start at half of the rows, and betting. "
        "Several starts: at an eighth, a quarter and half of the rows, without selection rows. Kept: mean share over all "
        "draws, 0 where nothing is issued. Broken: of all draws, over the whole pool, exact 95 % interval; at most 0.05 is "
        "guaranteed. Banking77 and CLINC150 (with its out-of-scope rows): the `encoder` candidate; Restaurant-8k: a "
        "fine-tuned SmolLM2-135M, right in every field; GSM8K: Mixtral before GPT-4. Unseen rows: "
        f"{'; '.join(about)}.\n",
        "| pool | limit | n | rule | issued | kept | broken |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        broken = clopper_pearson(int(str(one["broken"])), int(str(one["draws"])))
        limit = str(one["limit"]).removesuffix(" (95 %)").removesuffix("; wrong answers are not limited (95 %)")
        share = int(str(one["issued"])) / int(str(one["draws"]))
        cells = (one["pool"], limit, one["n"], one["rule"], f"{share:.3f}", f"{one['kept']:.3f}", broken)
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folder", type=Path)
    asked.add_argument("--draws", type=int, default=1000)
    asked.add_argument("--only", default="")
    asked.add_argument("--page", action="store_true", help="write the page from what is in FOLDER")
    given = asked.parse_args()
    there = pools(given.folder)
    for name in there if not given.page else ():
        if not given.only or name in given.only.split(","):
            found = measure_pool(name, there[name], given.draws)
            (given.folder / f"{name}.draws.json").write_text(json.dumps(found))
    parts = [given.folder / f"{name}.draws.json" for name in there]
    rows = [one for path in parts if path.exists() for one in json.loads(path.read_text())]
    about = [f"{name}: {pool.n:,}, {pool.right[0].mean():.3f} right" for name, pool in there.items()]
    page, traps = RESULT.read_text(encoding="utf-8").split(TRAPS)
    RESULT.write_text("".join((page.partition(DRAWS)[0], section(rows, about), "\n", TRAPS, traps)), encoding="utf-8")


if __name__ == "__main__":
    main()
