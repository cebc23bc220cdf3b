"""Share of a hosted model's traffic that small models take over at equal certified risk: smallfirst and its peers.

    python -m benchmarks.peers.agreement FOLDER --vectors               # MiniLM's vectors of all rows, once
    python -m benchmarks.peers.agreement FOLDER ARM … --rows N --draws R # fit and measure; FOLDER keeps the figures
    python -m benchmarks.peers.agreement FOLDER                         # write benchmarks/results/peers_agreement.md

Arms: smallfirst, tracer, jevstiller. The peers' packages go into a folder that PYTHONPATH names (`pip install --no-deps
--target FOLDER jevstiller==0.5.3 tracer-llm==0.3.3 threadpoolctl`).

The rows are all 13,083 of hosted_banking77 with the label that deepseek-v4.1-flash gave; right is what it answered. In
each draw N rows are drawn at random to learn from and 3,080 others are the traffic that follows. Every arm gets the same
rows and the same frozen MiniLM vectors and splits them by its own code and defaults.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.paths import RESULTS, ROOT
from smallfirst.evaluation.calibration import fit_temperature
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, open_encoder
from smallfirst.models.linear.classifier import INVERSE_REGULARIZATION, fit_logistic_regression
from smallfirst.project.rows import SPLIT_OFF
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import CascadeData
from smallfirst.routing.certificate.threshold_search import search_cascade

TRAFFIC = 3_080
CONFIDENCE = 0.95
KEPT_WRONG = (0.05, 0.10)
"""Limits on the share of kept answers that differ from the hosted model's."""
ALL_WRONG = (0.02, 0.05)
"""Limits on the share of all requests that are kept and differ."""


class Learning(NamedTuple):
    """The rows of one draw."""

    vectors: np.ndarray
    """(rows, width), of unit length."""
    labels: np.ndarray
    """Number of the hosted model's label, by row."""
    n_labels: int
    seed: int


class Routed(NamedTuple):
    """What a fitted arm does with traffic."""

    kept: np.ndarray
    """By row: answered small."""
    answer: np.ndarray
    """By row: number of the label."""


Fitted = dict[str, Callable[[np.ndarray], Routed]]
"""By limit, such as `kept 0.05`."""


def smallfirst(rows: Learning) -> Fitted:
    """Frozen MiniLM and a linear head, with the splits, the temperature and the certificate of `smallfirst run`."""
    order = np.random.default_rng(rows.seed).permutation(len(rows.labels))
    n_held = round(SPLIT_OFF * len(order))
    selection, calibration, train = np.split(order, [round(0.2 * n_held), n_held])
    weights, bias = fit_logistic_regression(
        rows.vectors[train], rows.labels[train], rows.n_labels, INVERSE_REGULARIZATION["encoder"]
    )

    def nats(x: np.ndarray) -> np.ndarray:
        logits = x @ weights.T + bias
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

    temperature = fit_temperature(nats(rows.vectors[selection]), rows.labels[selection])

    def scored(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hot = nats(x) / temperature
        return hot.argmax(axis=1), np.exp(hot.max(axis=1) - np.logaddexp.reduce(hot, axis=1))

    def data(part: np.ndarray) -> CascadeData:
        said, confidence = scored(rows.vectors[part])
        n, right = len(part), said == rows.labels[part]
        costs, asked = np.vstack([np.zeros(n), np.full(n, 6e-6)]), np.ones(n, dtype=bool)
        return CascadeData(
            ("small", "large"), confidence[None], right[None], said[None], costs, np.zeros((2, n)), asked, asked
        )

    found: Fitted = {}
    limits = [("kept", {"max_error": limit}) for limit in KEPT_WRONG]
    limits += [("all", {"max_error": None, "max_accuracy_loss": limit}) for limit in ALL_WRONG]
    for name, given in limits:
        guarantee = Guarantee(**given, confidence=CONFIDENCE)
        threshold = search_cascade(data(calibration), guarantee, selection=data(selection)).thresholds[0]

        def route(x: np.ndarray, threshold: float = threshold) -> Routed:
            said, confidence = scored(x)
            return Routed(confidence >= threshold, said)

        found[f"{name} {next(v for v in reversed(given.values()))}"] = route
    return found


def tracer(rows: Learning) -> Fitted:
    """TRACER's own search over surrogates and its three ways to accept, at its lower bound with level 0.05."""
    from tracer.fit import pipeline
    from tracer.fit.pipeline import fit_frontier, route_pipeline
    from tracer.fit.surrogate import search_best_surrogate

    searched: dict[int, Any] = {}

    def search_once(x: np.ndarray, y: np.ndarray, *others: Any, **options: Any) -> Any:
        """The same search on the same rows, which several of its ways ask for, is deterministic."""
        key = hash((x.tobytes(), y.tobytes()))
        if key not in searched:
            searched[key] = search_best_surrogate(x, y, *others, **options)
        return searched[key]

    pipeline.search_best_surrogate = search_once
    targets = [1 - limit for limit in KEPT_WRONG]
    frontier, _ = fit_frontier(rows.vectors, rows.labels, targets, alpha=1 - CONFIDENCE, skip=("gbt",))
    found: Fitted = {}
    for item in frontier:
        stages = item["best"]["stages"] if item["best"] else []

        def route(x: np.ndarray, stages: Any = stages) -> Routed:
            if not stages:
                return Routed(np.zeros(len(x), dtype=bool), np.zeros(len(x), dtype=int))
            answer, kept, _ = route_pipeline(stages, x)
            return Routed(np.asarray(kept, dtype=bool), np.asarray(answer))

        found[f"kept {round(1 - item['target'], 2)}"] = route
    return found


def jevstiller(rows: Learning) -> Fitted:
    """Jevstiller's linear student, domain check and policy with the defaults of its Config; hard labels, no weights."""
    from jevstiller._task import Config
    from jevstiller._training import fit_candidate

    config = Config()
    order = np.random.default_rng(rows.seed).permutation(len(rows.labels))
    held, train = np.split(order, [round(config.calib_fraction * len(order))])
    names = [str(i) for i in range(rows.n_labels)]
    counts = np.bincount(rows.labels[train], minlength=rows.n_labels)
    rare = [names[i] for i in np.flatnonzero(counts < config.min_samples_per_class)]
    found: Fitted = {}
    for limit in ALL_WRONG:
        candidate = fit_candidate(
            rows.vectors[train],
            np.eye(rows.n_labels)[rows.labels[train]],
            None,
            rows.vectors[held],
            rows.labels[held],
            budget=(1 - config.fit_headroom) * limit,
            delta=1 - config.confidence,
            ood_quantile=config.ood_quantile,
            ood_k=config.ood_k,
            epochs=config.student_epochs,
            l2=config.student_l2,
            patience=config.student_patience,
            seed=rows.seed,
            labels=names,
            deferred_labels=rare,
            ood_max_ref=config.ood_max_ref,
        )

        def route(x: np.ndarray, candidate: Any = candidate) -> Routed:
            p = candidate.student.predict_proba(x)
            said = p.argmax(axis=1)
            kept = candidate.policy.accepts(p.max(axis=1), candidate.ood.score(x), np.array(names, dtype=object)[said])
            return Routed(np.asarray(kept, dtype=bool), said)

        found[f"all {limit}"] = route
    return found


ARMS: dict[str, tuple[str, Callable[[Learning], Fitted]]] = {
    "smallfirst": ("smallfirst: linear head, Learn then Test", smallfirst),
    "tracer": ("tracer-llm 0.3.3: best of seven surrogates, acceptor, Clopper-Pearson", tracer),
    "jevstiller": ("jevstiller 0.5.3: linear student, domain check, strictest first", jevstiller),
}


def recorded() -> tuple[list[str], list[str]]:
    """Return the texts and the hosted model's labels; `other` for the few answers that are none of the 77."""
    rows: list[dict[str, Any]] = []
    root = Path(os.environ.get("SMALLFIRST_DATA", ROOT.parent / "shared" / "datasets")) / "hosted_banking77"
    for split in ("train", "test"):
        with gzip.open(root / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows += map(json.loads, lines)
    return [row["text"] for row in rows], [row["answer_label"] or "other" for row in rows]


def embed(folder: Path) -> None:
    """Write MiniLM's vectors of all rows."""
    encoder = open_encoder(find_weights(DEFAULT_ENCODER))
    np.save(folder / "vectors.npy", np.asarray(encoder.embed(recorded()[0]), dtype=np.float32))


def measure(folder: Path, arm: str, n_rows: int, draws: Sequence[int]) -> None:
    """Fit one arm on each draw that was not measured yet, and store what it kept."""
    vectors, answers = np.load(folder / "vectors.npy"), recorded()[1]
    names = sorted(set(answers))
    labels = np.array([names.index(one) for one in answers])
    for seed in draws:
        path = folder / f"{arm}-{n_rows}-{seed}.json"
        if path.exists():
            continue
        order = np.random.default_rng(seed).permutation(len(labels))
        learn, traffic = order[:n_rows], order[-TRAFFIC:]
        began = time.process_time()
        fitted = ARMS[arm][1](Learning(vectors[learn], labels[learn], len(names), seed))
        found: dict[str, Any] = {"minutes": (time.process_time() - began) / 60}
        for limit, route in fitted.items():
            kept, said = route(vectors[traffic])
            wrong = kept & (said != labels[traffic])
            found[limit] = {"kept": int(kept.sum()), "wrong": int(wrong.sum())}
        path.write_text(json.dumps(found), encoding="utf-8")
        print(arm, n_rows, seed, found, flush=True)


HEAD = """# Share taken over at equal certified risk

`python -m benchmarks.peers.agreement`, {date}, 2 shared cores (Zen 5), 24 GB, no GPU, Python 3.11, busy with other work. The rows are the
13,083 of Banking77 with the answers of deepseek-v4.1-flash on record; right is what it answered (it agrees with people on 0.758 of the
test rows). In each of the draws N rows are drawn to learn from, and {traffic:,} others are the traffic that follows. Every arm gets the same
rows and the same frozen MiniLM vectors, and splits and fits them by its own code and defaults; no arm sees a person's label. What each
promises differs, so it is compared with smallfirst under its own promise, both at {confidence:.0%} confidence.

Kept: mean (and range over draws) of the share of the traffic answered small. Differs: mean share by that promise's own count. Broken: draws in which the traffic differed
more than was promised; {confidence:.0%} confidence allows one in twenty, and chance among {traffic:,} rows adds some. Minutes: processor
time to fit, all limits of an arm together. Gain: kept by smallfirst minus kept by the peer in the same draws, mean and the 95 % interval of
Student's t; draws come from one pool and overlap, so the interval is narrower than that of new traffic.
"""


def page(folder: Path) -> None:
    """Write the page from the stored figures."""
    lines = [HEAD.format(date=date.today().isoformat(), traffic=TRAFFIC, confidence=CONFIDENCE)]
    sizes = sorted({int(path.stem.split("-")[1]) for path in folder.glob("smallfirst-*.json")})
    for kind, limits, peer, promise in (
        ("kept", KEPT_WRONG, "tracer", "of the kept answers, at most this share differs from the hosted model's"),
        ("all", ALL_WRONG, "jevstiller", "of all requests, at most this share is kept and differs"),
    ):
        lines += [
            f"\n## Promise: {promise}\n",
            "| rows | limit | arm | draws | kept | differs | broken | gain | minutes |",
        ]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        for n in sizes:
            for limit in limits:
                ours, theirs = (_draws(folder, arm, n, f"{kind} {limit}") for arm in ("smallfirst", peer))
                for arm, found in (("smallfirst", ours), (peer, theirs)):
                    if found:
                        gain = _gain(ours, theirs) if arm == peer else ""
                        lines.append(f"| {n:,} | {limit} | {ARMS[arm][0]} | {_cells(found, kind, limit, gain)} |")
    (RESULTS / "peers_agreement.md").write_text("\n".join(lines) + "\n" + TAIL, encoding="utf-8")


TAIL = """
taskdistill 0.1.1, which published the recording, does not run here: Python 3.12 and MLX on Apple silicon.
Jevstiller was given hard labels, since a recorded answer has no probabilities; its loop (shadow, audits, promotion) was not run, so its share
is that of the policy alone, as for the others. By default it sends labels with fewer than 50 training rows on, which at 3,000 rows are most of the
77, and keeps 15 % of the promise in reserve. In one draw of 3,000 rows smallfirst could show nothing at the limit of 5 % of the kept answers:
480 rows certify there. TRACER's `gbt` surrogate was left out, as its own documentation advises for many labels.
"""


def _draws(folder: Path, arm: str, n: int, limit: str) -> dict[str, dict[str, float]]:
    found = {}
    for path in folder.glob(f"{arm}-{n}-*.json"):
        stored = json.loads(path.read_text(encoding="utf-8"))
        found[path.stem.split("-")[2]] = {**stored[limit], "minutes": stored["minutes"]}
    return found


def _cells(found: dict[str, dict[str, float]], kind: str, limit: float, gain: str) -> str:
    kept = np.array([one["kept"] for one in found.values()])
    wrong = np.array([one["wrong"] for one in found.values()])
    differs = wrong / np.maximum(kept, 1) if kind == "kept" else wrong / TRAFFIC
    broken = int((differs > limit).sum())
    minutes = np.mean([one["minutes"] for one in found.values()])
    shares = (
        f"{kept.mean() / TRAFFIC:.3f} ({kept.min() / TRAFFIC:.3f} to {kept.max() / TRAFFIC:.3f}) | {differs.mean():.4f}"
    )
    return f"{len(kept)} | {shares} | {broken} of {len(kept)} | {gain} | {minutes:.2f}"


def _gain(ours: dict[str, dict[str, float]], theirs: dict[str, dict[str, float]]) -> str:
    from scipy.stats import t

    both = sorted(ours.keys() & theirs.keys())
    gaps = np.array([ours[seed]["kept"] - theirs[seed]["kept"] for seed in both]) / TRAFFIC
    if len(gaps) < 2:
        return f"{gaps.mean():+.3f}"
    half = t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps))
    return f"{gaps.mean():+.3f} [{gaps.mean() - half:+.3f}, {gaps.mean() + half:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("arms", nargs="*", choices=[[], *ARMS])
    parser.add_argument("--vectors", action="store_true")
    parser.add_argument("--rows", type=int, default=10_003)
    parser.add_argument("--draws", type=int, default=10)
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    if chosen.vectors:
        embed(chosen.folder)
    for arm in chosen.arms:
        measure(chosen.folder, arm, chosen.rows, range(chosen.draws))
    if not chosen.vectors and not chosen.arms:
        page(chosen.folder)


if __name__ == "__main__":
    main()
