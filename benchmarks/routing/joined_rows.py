"""What test rows that certify together with calibration rows gain, and whether a promise is broken more often for it.

    python -m benchmarks.routing.joined_rows [--draws 300]

Three models of words for each of two public sets ($SMALLFIRST_DATA/banking77 and clinc150) are the finalists; the rows
that none was fitted on are the pool, which is the truth. Selection, calibration and test rows are drawn from it with
replacement. The gate confirms the most accurate finalist on the same test rows that certify. Writes
benchmarks/results/joined_rows.md.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smallfirst.routing.certificate.looks import LARGE, spent_by_look
from smallfirst.routing.certificate.threshold_search import choose_starts, search_rows, start_rows
from smallfirst.routing.certificate.units.clusters import one_row_a_unit
from smallfirst.stats.intervals import clopper_pearson, wilson

RESULT = Path(__file__).parents[1] / "results" / "joined_rows.md"
LEVEL, N_SELECTION, COPIES = 0.05, 40, 3
SIZES = ((160, 200), (320, 400))
"""Calibration and test rows: 16 and 20 % of a file."""


class Model(NamedTuple):
    """Answers to the pool."""

    confidence: np.ndarray
    right: np.ndarray


def tables() -> Iterator[tuple[str, list[Model]]]:
    """Yield by set three models of words that 1,000 rows were enough to fit."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    for name in ("banking77", "clinc150"):
        folder = Path(os.environ["SMALLFIRST_DATA"]) / name
        lines = [json.loads(x) for f in ("train", "test") for x in (folder / f"{f}.jsonl").read_text().splitlines()]
        rows = [lines[i] for i in np.random.default_rng(0).permutation(len(lines))[:9000]]
        texts, labels = [row["text"] for row in rows], np.array([row["label"] for row in rows])
        models = []
        for upto, c in ((2, 10.0), (1, 30.0), (2, 30.0)):
            vectors = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, upto)).fit(texts[:1000])
            model = LogisticRegression(C=c, max_iter=60).fit(vectors.transform(texts[:1000]), labels[:1000])
            found = model.predict_proba(vectors.transform(texts[1000:]))
            models.append(Model(found.max(1), model.classes_[found.argmax(1)] == labels[1000:]))
        yield name, models


def threshold(model: Model, rows: np.ndarray, selection: np.ndarray, limit: float, level: float) -> float:
    """Return the threshold that rows of the pool certify, of which selection rows choose the start."""
    starts = choose_starts(model.confidence[selection], model.right[selection], len(rows), limit, level)
    first = start_rows(len(rows), limit, level, starts)
    return search_rows(model.confidence[rows], model.right[rows], limit, level, first).threshold


class Drawn(NamedTuple):
    """Rows of the pool."""

    selection: np.ndarray
    calibration: np.ndarray
    test: np.ndarray


def ways(models: list[Model], limit: float, drawn: Drawn, live: int) -> dict[str, float]:
    """Return by way to certify the threshold of the candidate that goes live."""
    own, (selection, calibration, test) = models[live], drawn
    both, part = np.concatenate([calibration, test]), LEVEL * LARGE / len(models)
    found = {
        "before: calibration rows, half of the level": threshold(own, calibration, selection, limit, LEVEL / 2),
        "calibration rows, 0.8 of the level": threshold(own, calibration, selection, limit, LEVEL * LARGE),
        "calibration and test rows, divided by three": threshold(own, both, selection, limit, part),
    }
    again = found["calibration and test rows, divided by three"]
    for look in range(2, 5):  # with a row in ten more each time
        if again <= 1:
            break
        grown = np.concatenate([both, both[: look * len(both) // 10]])
        again = threshold(own, np.unique(grown), selection, limit, LEVEL * spent_by_look(look))
    copies = np.repeat(both, COPIES)
    units = one_row_a_unit(copies.astype(str).astype(object), len(copies))
    return found | {
        "the same, each row three times, one row a group": threshold(own, copies[units], selection, limit, part),
        "the same, and up to three later looks": again,
        "trap: not divided": threshold(own, both, selection, limit, LEVEL * LARGE),
    }


def measure(models: list[Model], limit: float, sizes: tuple[int, int], draws: int) -> dict[str, tuple[float, int, int]]:
    """Return by way the mean share kept, how often a certificate went live, and how often a broken one did."""
    n, kept = len(models[0].right), dict[str, list[float]]()
    issued, broken, bar = dict[str, int](), dict[str, int](), max(float(m.right.mean()) for m in models) - 0.03
    for seed in range(draws):
        draw = np.random.default_rng(seed)
        drawn = Drawn(*(draw.integers(0, n, size) for size in (N_SELECTION, *sizes)))
        right = [int(m.right[drawn.test].sum()) for m in models]
        live = int(np.argmax(right))
        passes = wilson(right[live], sizes[1]).low >= bar - 0.05
        for way, at in ways(models, limit, drawn, live).items():
            accepted = models[live].confidence >= at
            there = passes and at <= 1
            kept.setdefault(way, []).append(float(accepted.mean()) if there else 0.0)
            issued[way] = issued.get(way, 0) + there
            wrong = there and float((~models[live].right[accepted]).mean()) > limit
            broken[way] = broken.get(way, 0) + wrong
    return {way: (float(np.mean(shares)), issued[way], broken[way]) for way, shares in kept.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=300)
    draws = parser.parse_args().draws
    lines = [
        "| table | limit | calibration + test rows | certified by | kept | went live | broken |\n|" + "---|" * 7 + "\n"
    ]
    for name, models in tables():
        for limit in (0.05, 0.1):
            for sizes in SIZES:
                for way, (kept, issued, broken) in measure(models, limit, sizes, draws).items():
                    share = clopper_pearson(broken, draws)
                    cells = f"{name} | {limit:g} | {sizes[0]} + {sizes[1]} | {way} | {kept:.3f} | {issued / draws:.3f}"
                    lines.append(f"| {cells} | {share.value:.3f} [{share.low:.3f}, {share.high:.3f}] |\n")
                    print(lines[-1], end="", flush=True)
    RESULT.write_text(
        f"# Test rows that certify with the calibration rows\n\n`{' '.join(['python -m benchmarks.routing.joined_rows'])} "
        f"--draws {draws}`, {date.today()}, 2 Intel cores with AMX, 24 GB, no GPU, Python 3.11. {draws} draws a cell; "
        f"broken: went live and false over the pool, with its 95 % interval; at most {LEVEL:g} is allowed.\n\n"
        + "".join(lines),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
