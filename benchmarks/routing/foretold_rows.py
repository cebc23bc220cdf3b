"""How often the rows that are asked for decide, beside the chance that was said with them.

    SMALLFIRST_DATA=DIR python -m benchmarks.routing.foretold_rows FOLDER --tables     # right and confidence by row
    python -m benchmarks.routing.foretold_rows FOLDER [--draws 6]

A table is the truth. Rows are drawn from it with replacement, the gate or the certificate is asked, and where it says no
the rows that are foretold are drawn as well and it is asked again. Bars lie around the truth, evenly spaced, as nobody
knows beforehand where it lies. Prints the tables of benchmarks/results/foretold_rows.md.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
from pathlib import Path

import numpy as np

from smallfirst.models.linear.classifier import INVERSE_REGULARIZATION, fit_logistic_regression
from smallfirst.models.linear.tfidf import TfidfFeatures
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import CascadeData
from smallfirst.routing.certificate.threshold_search import search_cascade
from smallfirst.stats.intervals import clopper_pearson, wilson
from smallfirst.stats.sample_size import UNLIKELY, chance_of_share, fewest_rows, rows_for_error

SETS = {"banking77": "words", "clinc150": "words", "tool_calls": "words", "clinc150 MiniLM": "encoder"}
"""Pools with the features of their model."""
N_TRAINED, MOST_ROWS = 1000, 8000
"""Rows that a table's model is fitted on, and rows of a table."""


def pool(name: str) -> tuple[list[str], list[str]]:
    """Return the texts and labels of all splits of a set, in an order of chance."""
    place = Path(os.environ["SMALLFIRST_DATA"]) / name.split()[0]
    rows: list[tuple[str, str]] = []
    for path in sorted(place.glob("*.jsonl*")):
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            for one in map(json.loads, lines):
                if "request" in one:
                    told = [m["content"] or "" for m in one["request"]["messages"] if m["role"] != "system"]
                    calls = one["response"]["choices"][0]["message"].get("tool_calls")
                    rows.append((" ".join(told[-2:]), calls[0]["function"]["name"] if calls else "text"))
                elif one["label"] != "oos":
                    rows.append((one["text"], one["label"]))
    order = np.random.default_rng(0).permutation(len(rows))[: N_TRAINED + MOST_ROWS]
    texts, labels = zip(*(rows[i] for i in order.tolist()), strict=True)
    return list(texts), list(labels)


def answers(
    kind: str, texts: list[str], gold: np.ndarray, n_labels: int, new: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return label and confidence by row of `new`, of a linear model fitted on texts with labels."""
    if kind == "words":
        features = TfidfFeatures.fit(texts).matrix
    else:
        from smallfirst.models.catalog import find_weights
        from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, open_encoder

        features = open_encoder(find_weights(DEFAULT_ENCODER, download=False)).embed
    weights, bias = fit_logistic_regression(features(texts), gold, n_labels, INVERSE_REGULARIZATION[kind])
    found = [np.asarray(features(new[at : at + 500]) @ weights.T) + bias for at in range(0, len(new), 500)]
    logits = np.concatenate(found)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return shares.argmax(axis=1), shares.max(axis=1)


def record(name: str, folder: Path) -> None:
    texts, labels = pool(name)
    names, gold = np.unique(labels, return_inverse=True)
    n = N_TRAINED
    said, confidence = answers(SETS[name], texts[:n], gold[:n], len(names), texts[n:])
    right = said == gold[n:]
    np.savez(folder / f"{name.replace(' ', '_')}.npz", right=right, confidence=confidence)
    print(name, len(right), right.mean(), flush=True)


BINS = (0.0, UNLIKELY, 0.25, 0.4, 0.55, 0.7, 1.01)
FIRST, NEXT = 0.04, 0.005
"""Levels of a certificate's first look and of the one after it."""
Asked = list[tuple[float, bool, int, bool]]
"""Said chance, whether it came, rows asked for, and whether the truth is beyond the bar."""


def ask_gates(right: np.ndarray, draws: int) -> Asked:
    """Return what was said of gates that failed within two standard errors of their bar."""
    draw, truth, found = np.random.default_rng(1), float(right.mean()), Asked()
    for n in (50, 100, 200, 400):
        for bar in truth + np.linspace(-0.12, 0.12, 25):
            for _ in range(5 * draws if 0.02 < bar < 0.985 else 0):
                n_right = int(draw.binomial(n, truth))
                if wilson(n_right, n).low >= bar or abs(n_right / n - bar) > 2 * np.sqrt(bar * (1 - bar) / n):
                    continue
                needed = fewest_rows(lambda m, k=n_right, n=n, bar=bar: chance_of_share(k, n, m, bar))
                later = n_right + draw.binomial(needed.n_more, truth)
                came = wilson(int(later), n + needed.n_more).low >= bar
                found.append((needed.chance, came, needed.n_more, truth > bar))
    return found


def ask_certificates(confidence: np.ndarray, right: np.ndarray, draws: int) -> Asked:
    """Return what was said of certificates that were refused at their first look."""
    pool, draw, found = _cascade(confidence, right), np.random.default_rng(1), Asked()
    for n in (60, 120, 240, 480):
        for limit in (0.02, 0.03, 0.05, 0.08, 0.12, 0.2):
            first, later = (Guarantee(max_error=limit, confidence=1 - level) for level in (FIRST, NEXT))
            for _ in range(draws):
                rows, choosing = (pool.take(draw.integers(0, pool.n, m)) for m in (n, max(20, n // 4)))
                if search_cascade(rows, first, selection=choosing).issued:
                    continue
                needed = rows_for_error(rows.confidence[0], rows.right[0], limit, NEXT, refused_at=FIRST)
                more = pool.take(draw.integers(0, pool.n, needed.n_more))
                both = (
                    np.concatenate([getattr(one, name)[0] for one in (rows, more)]) for name in ("confidence", "right")
                )
                came = search_cascade(_cascade(*both), later, selection=choosing).issued
                found.append((needed.chance, came, needed.n_more, came))
    return found


def _cascade(confidence: np.ndarray, right: np.ndarray) -> CascadeData:
    n = len(right)
    return CascadeData(
        confidence=confidence[None],
        right=right[None],
        cost_usd=np.zeros((2, n)),
        asked=np.zeros(n, bool),
        large_right=np.zeros(n, bool),
    )


def show(name: str, asked: Asked) -> None:
    print(f"\n{name}: {len(asked)} refusals\n\n| said | n | mean said | came | median rows |\n|---|---|---|---|---|")
    for low, high in itertools.pairwise(BINS):
        ours = [one for one in asked if low <= one[0] < high]
        if ours:
            came = clopper_pearson(sum(one[1] for one in ours), len(ours))
            said, rows = np.mean([one[0] for one in ours]), np.median([one[2] for one in ours])
            print(f"| {low:.2f} to {min(high, 1):.2f} | {len(ours)} | {said:.3f} | {came} | {rows:,.0f} |")
    print(f"true rate beyond the bar among those called unlikely: {sum(o[3] for o in asked if o[0] < UNLIKELY)}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--draws", type=int, default=6)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.tables:
        for name in SETS:
            record(name, options.folder)
        return
    tables = [np.load(path) for path in sorted(options.folder.glob("*.npz"))]
    show("Gate", [one for table in tables for one in ask_gates(table["right"], options.draws)])
    show(
        "Certificate",
        [one for table in tables for one in ask_certificates(table["confidence"], table["right"], options.draws)],
    )


if __name__ == "__main__":
    main()
