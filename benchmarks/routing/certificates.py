"""Test whether certificates hold: 1,000 resamplings of recorded answers, judged on rows they have not seen.

    python -m benchmarks.routing.certificates FOLDER [--only NAME,NAME] [--resamplings 1000] [--large FILE]

Needs a finished run of Banking77 (`benchmarks/accuracy/run.py banking77`), the recorded answers of RouteLLM's GSM8K under
$SMALLFIRST_DATA, and `pip install "mapie>=1.3"` to compare with. Each part is stored in FOLDER and written to
benchmarks/results/certificates.md; --large adds a recording of Banking77's large model for the guarantee relative to it.

Two judges. «truth»: calibration rows are drawn with replacement, so the pool is the population and the true rate is
known; a guarantee must be broken in at most 5 % of the draws. «fresh»: the pool is cut in two without replacement; the
other rows show the true rate only up to their own scatter, so some guarantees that hold narrowly look broken.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

from benchmarks.routing.certificates_page import write
from benchmarks.routing.certificates_pools import banking, banking_with_large, gsm8k
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT, CascadeData, CascadeOutcome, measure_risk
from smallfirst.routing.certificate.threshold_search import search_cascade

Method = Callable[[CascadeData, Guarantee], tuple[float, ...]]
"""Thresholds from calibration rows."""


def ours(rows: CascadeData, guarantee: Guarantee) -> tuple[float, ...]:
    return search_cascade(rows, guarantee).thresholds


def plain(rows: CascadeData, guarantee: Guarantee) -> tuple[float, ...]:
    """Return the lowest threshold whose accepted calibration answers are wrong at most as often as guaranteed."""
    order = np.argsort(-rows.confidence[0], kind="stable")
    wrong = np.cumsum(~rows.right[0][order])
    n_accepted = np.flatnonzero(wrong <= (guarantee.max_error or 0) * np.arange(1, rows.n + 1))
    return (float(rows.confidence[0][order][n_accepted[-1]]) if n_accepted.size else NEVER_ACCEPT,)


def mapie(grid: str, fwer: str) -> Method:
    """Fit MAPIE's controller of precision; "accepted" is its positive class, "right" its label."""
    from mapie.risk_control import BinaryClassificationController, precision

    def choose(rows: CascadeData, guarantee: Guarantee) -> tuple[float, ...]:
        said = rows.confidence[0]
        falling = np.unique(np.quantile(said, np.linspace(0.5, 0, 100)))[::-1]
        controller = BinaryClassificationController(
            lambda x: np.column_stack([1 - x, x]),
            precision,
            target_level=1 - (guarantee.max_error or 0),
            confidence_level=guarantee.confidence,
            list_predict_params=falling if grid == "quantiles" else np.linspace(0.99, 0, 100),
            fwer_method=fwer,  # type: ignore[arg-type]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            controller.calibrate(said, rows.right[0].astype(int))
        best = controller.best_predict_param
        return (NEVER_ACCEPT if best is None else float(best),)  # type: ignore[arg-type]

    return choose


def broken(rows: CascadeData, thresholds: tuple[float, ...], guarantee: Guarantee) -> bool:
    """Return True if these rows, taken as the truth, break a limit."""
    outcome = rows.outcome(thresholds)
    return any(
        measure_risk(name, outcome, limit, 0.05).value > limit + 1e-12 for name, limit in guarantee.limits.items()
    )


def measure(
    pool: CascadeData, guarantee: Guarantee, method: Method, *, n: int, repeats: int, null: bool = False
) -> dict[str, Any]:
    """Return counts over resamplings of `n` calibration rows; `null` shuffles the confidences of every draw.

    MAPIE is judged by the truth alone, because it takes most of the time.
    """
    draw, began = np.random.default_rng(0), time.process_time()
    counts: dict[str, Any] = {"repeats": repeats, "n": n, "issued": 0, "true": 0, "fresh_issued": 0, "fresh": 0}
    kept, first, scatter = [], [], []
    for _ in range(repeats):
        population = shuffled(pool, draw) if null else pool
        choice = method(population.take(draw.integers(0, pool.n, n)), guarantee)
        if min(choice) <= 1:
            counts["issued"] += 1
            counts["true"] += broken(population, choice, guarantee)
            outcome = population.outcome(choice)
            kept.append(outcome.n_accepted / pool.n)
            scatter.append(looks_broken(outcome, guarantee, outcome.n_accepted * (pool.n - n) // pool.n))
            first.append(float((outcome.stage == 0).mean()))
        if method not in (ours, plain) or n >= pool.n:
            counts["fresh"] = None
            continue
        cut = draw.permutation(pool.n)
        choice = method(population.take(cut[:n]), guarantee)
        if min(choice) <= 1:
            counts["fresh_issued"] += 1
            counts["fresh"] += broken(population.take(cut[n:]), choice, guarantee)
    shares = {"kept": float(np.mean(kept)) if kept else None, "first": float(np.mean(first)) if first else None}
    shares["scatter"] = sum(scatter) / repeats if guarantee.limits.keys() == {"error"} else None
    return {"guarantee": guarantee.in_words, **counts, **shares, "ms": 1000 * (time.process_time() - began) / repeats}


def looks_broken(outcome: CascadeOutcome, guarantee: Guarantee, n: int) -> float:
    """Return the probability that n fresh accepted rows show more errors than guaranteed, given the true rate."""
    true = measure_risk("error", outcome, 0.0, 0.05).value
    return float(binom.sf(np.floor((guarantee.max_error or 1) * n + 1e-9), n, true))


def shuffled(pool: CascadeData, draw: np.random.Generator) -> CascadeData:
    values = {name: getattr(pool, name) for name in CascadeData.__dataclass_fields__}
    return CascadeData(**{**values, "confidence": pool.confidence[:, draw.permutation(pool.n)]})


WRONG = {limit: Guarantee(max_error=limit) for limit in (0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.25)}


def regret(limit: float) -> Guarantee:
    return Guarantee(max_error=None, max_accuracy_loss=limit)


def banking_part(repeats: int) -> Iterator[dict[str, Any]]:
    pool = banking()
    methods = {
        "smallfirst": ours,
        "plain threshold": plain,
        "MAPIE, its defaults": mapie("default", "bonferroni_holm"),
        "MAPIE, our sequence": mapie("quantiles", "fixed_sequence"),
    }
    for limit in (0.01, 0.02, 0.03, 0.05):
        for name, method in methods.items():
            yield {"method": name, **measure(pool, WRONG[limit], method, n=800, repeats=repeats)}


def gsm8k_part(repeats: int) -> Iterator[dict[str, Any]]:
    pool = gsm8k()
    methods = {
        "smallfirst": ours,
        "plain threshold": plain,
        "MAPIE, our sequence": mapie("quantiles", "fixed_sequence"),
    }
    for limit in (0.1, 0.15, 0.2, 0.25):
        for name, method in methods.items():
            yield {"method": name, **measure(pool, WRONG[limit], method, n=400, repeats=repeats)}
    for limit in (0.02, 0.05, 0.1):
        yield {"method": "smallfirst", **measure(pool, regret(limit), ours, n=400, repeats=repeats)}


def null_part(repeats: int) -> Iterator[dict[str, Any]]:
    for name, pool, guarantees, n in (
        ("Banking77", banking(), [WRONG[limit] for limit in (0.01, 0.03, 0.05)], 800),
        ("GSM8K", gsm8k(), [WRONG[0.2], WRONG[0.25], regret(0.05)], 400),
    ):
        for guarantee in guarantees:
            yield {"method": f"smallfirst, {name}", **measure(pool, guarantee, ours, n=n, repeats=repeats, null=True)}


def several_part(repeats: int) -> Iterator[dict[str, Any]]:
    pool = gsm8k()
    both = Guarantee(max_error=0.25, max_accuracy_loss=0.15)
    yield {"method": "smallfirst, GSM8K", **measure(pool, both, ours, n=400, repeats=repeats)}
    cascade = banking(("words", "small"))
    for limit in (0.02, 0.03, 0.05):
        found = measure(cascade, WRONG[limit], ours, n=800, repeats=repeats)
        yield {"method": "smallfirst, Banking77, words before small", **found}


def large_part(repeats: int, recording: Path) -> Iterator[dict[str, Any]]:
    pool = banking_with_large(recording)
    right, theirs = pool.right[0].mean(), pool.large_right.mean()
    for limit in (0.01, 0.02, 0.05):
        found = measure(pool, regret(limit), ours, n=pool.n, repeats=repeats)
        yield {"method": f"smallfirst (small {right:.3f}, large {theirs:.3f}, n={pool.n})", **found}


PARTS: dict[str, tuple[str, Callable[..., Iterator[dict[str, Any]]]]] = {
    "banking77": ("Banking77: the fine-tuned small model, 800 calibration rows", banking_part),
    "gsm8k": ("GSM8K (RouteLLM's recorded answers), 400 calibration rows", gsm8k_part),
    "null": ("Null case: shuffled confidences, which carry no information", null_part),
    "several": ("Several limits, several stages", several_part),
    "large": ("Banking77: not worse than the large model", large_part),
}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folder", type=Path)
    asked.add_argument("--only", default=",".join(PARTS))
    asked.add_argument("--resamplings", type=int, default=1000)
    asked.add_argument("--large", type=Path)
    given = asked.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for name in given.only.split(","):
        if name == "large" and given.large is None:
            continue
        began, more = time.monotonic(), (given.large,) if name == "large" else ()
        found = []
        for one in PARTS[name][1](given.resamplings, *more):
            found.append(one)
            print(json.dumps(one), flush=True)
        (given.folder / f"{name}.json").write_text(json.dumps(found, indent=1))
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    write(given.folder, {name: title for name, (title, _) in PARTS.items()})


if __name__ == "__main__":
    main()
