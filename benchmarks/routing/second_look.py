"""What the second look adds: kept share and broken promises with one look, and with a second one after texts in shadow.

    python -m benchmarks.routing.second_look FOLDER [--draws 300]

Fits a linear model on few training rows of three sets under $SMALLFIRST_DATA, once (FOLDER/SET.npz), and draws from its
answers to all other rows, the pool: calibration and selection rows, then 1,000 in shadow. A promise is broken if it is
in force and does not hold over the whole pool; with two looks, if either is. Of hosted_banking77 right is what a hosted
model answered. Nothing is tuned. Writes benchmarks/results/second_look.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.paths import RESULTS
from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.looks import LARGE, SMALL
from smallfirst.routing.certificate.outcomes import CascadeData
from smallfirst.routing.certificate.threshold_search import search_cascade
from smallfirst.stats.intervals import clopper_pearson
from smallfirst.tasks.classify import Classify

SETS = {
    "clinc150": ("words", 1500, 0.05),
    "banking77": ("words", 2500, 0.1),
    "hosted_banking77": ("encoder", 1500, 0.1),
}
"""By set: the candidate, its training rows, the limit."""
SIZES, N_SHADOW = (60, 120, 240), 1000
PAGE = """# The second look after 1,000 texts in shadow

Made by `python -m benchmarks.routing.second_look FOLDER --draws {draws}` on {day}, 2 Intel cores with AMX, 24 GB, no GPU,
Python 3.11. Pools: linear models' answers to rows that they were not fitted on. Calibration rows and a quarter as many
selection rows are drawn with replacement, then 1,000 rows in shadow; {draws} draws a line. "One look before": half of the
5 %, as one look spent until now. "First": a small portion ({first:.3f} of the 5 %). "Second": the large one ({second:.3f}) on
calibration and shadow rows together. Broken: in force and false over the pool; with two looks either of them.
"Best": the largest share that keeps the promise over the pool.

| set, candidate, limit | calibration rows | best | one look before: kept | broken | first: kept | second: kept | either broken |
|---|---|---|---|---|---|---|---|
{lines}
"""


class Pool(NamedTuple):
    """A model's answers to rows that it was not fitted on."""

    confidence: np.ndarray
    right: np.ndarray

    def take(self, rows: np.ndarray) -> CascadeData:
        n = len(rows)
        nothing, asked = np.zeros((2, n)), np.ones(n, dtype=bool)
        answer = np.full((1, n), None, dtype=object)
        confidence, right = self.confidence[rows][None], self.right[rows][None]
        return CascadeData(("small",), confidence, right, answer, nothing, nothing, asked, asked, labels="large")

    def kept(self, threshold: float, limit: float) -> tuple[float, bool]:
        """Return the share kept at a threshold, and whether more than `limit` of it is wrong."""
        kept = self.confidence >= threshold
        return float(kept.mean()), bool(kept.any() and (~self.right[kept]).mean() > limit)

    def best(self, limit: float) -> float:
        order = np.argsort(-self.confidence, kind="stable")
        n = np.arange(1, len(order) + 1)
        return float(n[np.cumsum(~self.right[order]) <= limit * n].max(initial=0)) / len(order)


def rows_of(name: str, part: str) -> list[tuple[str, str]]:
    """Return texts and labels, of a hosted set the label that the hosted model gave."""
    place = Path(os.environ["SMALLFIRST_DATA"]) / name
    packed = place / f"{part}.jsonl.gz"
    text = gzip.decompress(packed.read_bytes()) if packed.exists() else (place / f"{part}.jsonl").read_bytes()
    lines = map(json.loads, text.decode().splitlines())
    return [(row["text"], row.get("answer_label") or row["label"]) for row in lines]


def pool_of(name: str, folder: Path) -> Pool:
    """Fit the set's model on few rows, drawn by a fixed seed, and return its answers to the others."""
    candidate, n_train, _ = SETS[name]
    saved = folder / f"{name}.npz"
    if not saved.exists():
        train = rows_of(name, "train")
        order = np.random.default_rng(0).permutation(len(train))[:n_train]
        parts = ["test"] if name.startswith("hosted") else ["validation", "test"]
        unseen = [row for part in parts for row in rows_of(name, part)]
        fitted_on = [train[i] for i in order]
        labels = tuple(sorted({label for _, label in fitted_on}))
        asked = [(Message(role="user", content=text), label) for text, label in fitted_on]
        examples = tuple(Example(messages=(one,), answer=label, shape="label") for one, label in asked)
        task = Classify(name=name, labels=labels)
        model = LinearClassifier.fit(candidate, Dataset(name="train", examples=examples), task)
        scored = [np.asarray(one.log_probabilities) for one in model.score([text for text, _ in unseen])]
        said = [labels[int(one.argmax())] for one in scored]
        right = [answer == label for answer, (_, label) in zip(said, unseen, strict=True)]
        np.savez(saved, confidence=[float(np.exp(one.max())) for one in scored], right=right)
    found = np.load(saved)
    return Pool(found["confidence"], found["right"])


def measure(pool: Pool, limit: float, n: int, draws: int) -> str:
    """Return the cells of one line."""
    draw, kept, broken = np.random.default_rng(n), np.zeros((draws, 3)), np.zeros((draws, 2), dtype=bool)
    first, guarantee = SMALL / 2, Guarantee(max_error=limit)
    for i in range(draws):
        rows, chosen, shadow = (draw.integers(0, len(pool.right), size) for size in (n, n // 4, N_SHADOW))
        selection = pool.take(chosen)
        looks = [(0.5, rows), (first, rows), (LARGE, np.concatenate([rows, shadow]))]
        found = [search_cascade(pool.take(own), guarantee.at_share(share), selection=selection) for share, own in looks]
        shares = [pool.kept(one.thresholds[-1], limit) for one in found]
        kept[i] = [share for share, _ in shares]
        broken[i] = [shares[0][1], shares[1][1] or shares[2][1]]

    def share(of: np.ndarray) -> str:
        found = clopper_pearson(int(of.sum()), draws)
        return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"

    before, small, large = kept.mean(axis=0)
    spread = 1.96 * kept[:, 2].std() / draws**0.5
    second = f"{large:.3f} ± {spread:.3f}"
    return f"{pool.best(limit):.3f} | {before:.3f} | {share(broken[:, 0])} | {small:.3f} | {second} | {share(broken[:, 1])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, default=300)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, (candidate, n_train, limit) in SETS.items():
        pool = pool_of(name, given.folder)
        what = f"{name}, {candidate} on {n_train:,} rows ({pool.right.mean():.3f} right), {limit:.0%}"
        for n in SIZES:
            lines.append(f"| {what} | {n} | {measure(pool, limit, n, given.draws)} |")
            print(lines[-1], flush=True)
    spent = {"first": 0.05 * SMALL / 2, "second": 0.05 * LARGE}
    page = PAGE.format(draws=given.draws, day=date.today().isoformat(), lines="\n".join(lines), **spent)
    (RESULTS / "second_look.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
