"""The frontier: how many requests can stay small at each promise, by our certificate and by its peers, on the same rows.

    python -m benchmarks.routing.frontier FOLDER [--peers ENVIRONMENTS] [--pools NAME,…] [--draws 200]

FOLDER is that of `benchmarks.routing.verdicts`, whose runs of hosted_banking77 and clinc150 give the answers;
GSM8K is read from SMALLFIRST_DATA, and restaurant8k from FOLDER/restaurant8k.jsonl where `field_tables` wrote one. ENVIRONMENTS
is a folder with a virtual environment for each peer (venv-tracer-llm, venv-safedecide, venv-jevstiller); without one a
peer is left out. Each pool is stored in FOLDER/frontier/NAME.json, and benchmarks/results/frontier.md is written from
all of them.

Calibration rows are drawn with replacement, so that the pool is the truth: a promise is broken if the kept answers of the
whole pool are wrong more often than promised. A method that keeps nothing has a share of 0, so shares are compared over
all draws. Ours takes a fifth of the rows for choosing (selection), as a task does; peers get all of them to calibrate.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.paths import ROOT
from benchmarks.routing import frontier_page
from benchmarks.routing.certificates_pools import gsm8k
from smallfirst.project.run_folder import RunFolder
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT, CascadeData
from smallfirst.routing.certificate.threshold_search import search_cascade

ALPHA = (0.01, 0.02, 0.03, 0.05, 0.075, 0.10, 0.15, 0.20)
SIZES = (500, 1000)
"""Labelled rows of a draw: 400 or 800 calibration rows of ours and the selection rows beside them."""
SELECTION = 0.2
"""Share of the labelled rows that our side chooses with, the default of `routing.selection_share`."""
PEERS = ("tracer-llm", "safedecide", "jevstiller")


class Pool(NamedTuple):
    """Recorded answers: the truth that calibration rows are drawn from."""

    title: str
    confidence: np.ndarray
    answer: np.ndarray
    """Numbers of the answers, and of the right ones; 0 and 1 where answers have no labels."""
    gold: np.ndarray
    n_labels: int

    @property
    def right(self) -> np.ndarray:
        return self.answer == self.gold


def of_run(folder: Path, name: str, candidate: str, title: str) -> Pool | None:
    """Return the calibration and test rows of the latest run of a set, with a candidate's answers."""
    os.environ["SMALLFIRST_HOME"] = str((folder / name / "state").absolute())
    run = RunFolder.latest(name)
    parts = [run.evaluation(candidate, split) for split in ("calibration", "test")]
    rows = [row for part in parts if part for row in part.rows]
    numbers: dict[str, int] = {}
    answer, gold = (
        np.array([numbers.setdefault(text, len(numbers)) for text in texts])
        for texts in ([row.answer or "" for row in rows], [row.gold for row in rows])
    )
    return Pool(title, np.array([row.confidence or 0.0 for row in rows]), answer, gold, len(numbers))


def of_gsm8k(folder: Path) -> Pool:
    pool = gsm8k()
    right = pool.right[0].astype(int)
    return Pool("GSM8K, Mixtral's answers, a logistic regression on words", pool.confidence[0], right, right * 0 + 1, 2)


def of_table(folder: Path) -> Pool | None:
    """Return the answers of a fine-tuned model to Restaurant-8k, as `benchmarks.routing.field_tables` wrote them."""
    path = folder / "restaurant8k.jsonl"
    if not path.exists():
        return None
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    right = np.array([row["correct"] for row in rows], dtype=int)
    said = np.array([row["confidence"] for row in rows], dtype=float)
    return Pool("Restaurant-8k, fine-tuned 135M, all fields right", said, right, right * 0 + 1, 2)


POOLS: dict[str, Callable[[Path], Pool | None]] = {
    "banking77_words": lambda folder: of_run(folder, "hosted_banking77", "words", "Banking77, words + linear"),
    "banking77_encoder": lambda folder: of_run(folder, "hosted_banking77", "encoder", "Banking77, MiniLM + linear"),
    "clinc150": lambda folder: of_run(folder, "clinc150", "encoder", "CLINC150 with out of scope, MiniLM + linear"),
    "gsm8k": of_gsm8k,
    "restaurant8k": of_table,
}


def ours(said: np.ndarray, right: np.ndarray, alpha: float) -> float:
    """Return our threshold; the first fifth of the rows are selection rows."""
    n = round(SELECTION * len(said))
    choosing, certifying = as_data(said[:n], right[:n]), as_data(said[n:], right[n:])
    return float(search_cascade(certifying, Guarantee(max_error=alpha), selection=choosing).thresholds[-1])


def as_data(said: np.ndarray, right: np.ndarray) -> CascadeData:
    n = len(said)
    nothing = np.zeros((2, n))
    return CascadeData(
        names=("small",),
        confidence=said[None, :],
        right=right[None, :],
        answer=np.full((1, n), None, dtype=object),
        cost_usd=nothing,
        latency_ms=nothing,
        asked=np.zeros(n, dtype=bool),
        large_right=np.zeros(n, dtype=bool),
    )


def plain(said: np.ndarray, right: np.ndarray, alpha: float) -> float:
    """Return the lowest threshold whose accepted answers are wrong at most as often as promised on the same rows."""
    order = np.argsort(-said, kind="stable")
    good = np.flatnonzero(np.cumsum(~right[order]) <= alpha * np.arange(1, len(said) + 1))
    return float(said[order][good[-1]]) if good.size else NEVER_ACCEPT


def mapie(said: np.ndarray, right: np.ndarray, alpha: float) -> float:
    """Fit MAPIE's controller of precision with its defaults: "accepted" is its positive class, "right" its label."""
    from mapie.risk_control import BinaryClassificationController, precision

    controller = BinaryClassificationController(
        lambda x: np.column_stack([1 - x, x]), precision, target_level=1 - alpha, confidence_level=0.95
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        controller.calibrate(said, right.astype(int))
    best = controller.best_predict_param
    return NEVER_ACCEPT if best is None else float(best)  # type: ignore[arg-type]


METHODS: dict[str, Callable[[np.ndarray, np.ndarray, float], float]] = {
    "smallfirst": ours,
    "plain threshold": plain,
    "MAPIE, its defaults": mapie,
}


def oracle(pool: Pool, alpha: float) -> float:
    """Return the largest share of the pool whose answers are wrong at most so often, the surest first."""
    kept = pool.confidence >= plain(pool.confidence, pool.right, alpha)
    return float(kept.mean())


def figures(pool: Pool, thresholds: np.ndarray) -> list[dict[str, float]]:
    """Return issued, mean share kept over all draws with its standard error, and broken, by promise."""
    order = np.sort(pool.confidence)
    wrong = np.append(np.cumsum(~pool.right[np.argsort(pool.confidence, kind="stable")][::-1])[::-1], 0)
    first = np.searchsorted(order, thresholds, side="left")
    kept = len(order) - first
    error = wrong[first] / np.maximum(kept, 1)
    share = kept / len(order)
    return [
        {
            "issued": float((kept[:, i] > 0).mean()),
            "share": float(share[:, i].mean()),
            "se": float(share[:, i].std(ddof=1) / np.sqrt(len(share))),
            "n_broken": int((error[:, i] > alpha + 1e-12).sum()),
        }
        for i, alpha in enumerate(ALPHA)
    ]


def measure(pool: Pool, n: int, draws: int, environments: Path | None, scratch: Path) -> dict[str, Any]:
    """Return the figures of all methods with n labelled rows a draw; what a peer chose on the same draws is kept."""
    rows = np.random.default_rng(n).integers(0, len(pool.confidence), (draws, n))
    found: dict[str, Any] = {}
    for name, choose in METHODS.items():
        began = time.process_time()
        chosen = np.array([[choose(pool.confidence[r], pool.right[r], a) for a in ALPHA] for r in rows])
        found[name] = {"points": figures(pool, chosen), "ms": 1000 * (time.process_time() - began) / chosen.size}
        print(f"{pool.title}, n={n}: {name} {found[name]['ms']:.1f} ms", flush=True)
    drawn = {"confidence": pool.confidence, "answer": pool.answer, "gold": pool.gold, "rows": rows, "alpha": ALPHA}
    key = hashlib.sha256(b"".join(np.asarray(values).tobytes() for values in drawn.values())).hexdigest()[:12]
    source = scratch / f"draws-{key}.npz"
    np.savez(source, n_labels=pool.n_labels, **drawn)
    for peer in PEERS:
        python = environments / f"venv-{peer}" / "bin" / "python" if environments else None
        target = scratch / f"{peer}-{key}.npz"
        if python is None or not python.exists():
            continue
        command = [str(python), "-m", "benchmarks.peers.route_thresholds", peer, str(source), str(target)]
        if not target.exists() and not os.environ.get("CACHED_ONLY"):
            subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": ""}, check=True)
        for name, chosen in np.load(target).items() if target.exists() else ():
            found[name] = {"points": figures(pool, chosen)}
            print(f"{pool.title}, n={n}: {name}", flush=True)
    return found


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folder", type=Path)
    asked.add_argument("--peers", type=Path)
    asked.add_argument("--pools", default=",".join(POOLS))
    asked.add_argument("--draws", type=int, default=200)
    asked.add_argument("--sizes", default=",".join(map(str, SIZES)))
    given = asked.parse_args()
    place = given.folder / "frontier"
    place.mkdir(exist_ok=True)
    for name in filter(None, given.pools.split(",")):
        pool = POOLS[name](given.folder)
        if pool is None:
            continue
        stored = {
            "title": pool.title,
            "n_rows": len(pool.confidence),
            "accuracy": float(pool.right.mean()),
            "draws": given.draws,
            "alpha": ALPHA,
            "oracle": [oracle(pool, alpha) for alpha in ALPHA],
            "by_n": {n: measure(pool, n, given.draws, given.peers, place) for n in map(int, given.sizes.split(","))},
        }
        (place / f"{name}.json").write_text(json.dumps(stored, indent=1), encoding="utf-8")
    frontier_page.write(place)


if __name__ == "__main__":
    main()
