"""Take a task over again and again where the large model varies: is "at most so many differ" kept?

    python -m benchmarks.traffic.agreement [--draws 200]

The large model's usual answers are the ten domains of 8,000 messages (clinc150); asked again, it gives the second
likeliest domain in a share of askings. A log is drawn, its rows are made and split by `rows_of` and `parts_of` as `discover`
does ("after") or by the rule before (the most frequent answer, the newest to test), a linear model on words learns, and
`search_cascade` takes the threshold from the validation rows with the whole level. The truth is computed, not sampled: the
chance that the large model, asked once more, says something else, over texts or over requests. "Broken": issued and
above the limit, of all draws. Writes the tables of benchmarks/results/agreement.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import TruncatedSVD

from benchmarks.paths import RESULTS, ROOT
from benchmarks.serving.takeover_redraws import answers
from smallfirst.models.linear.tfidf import TfidfFeatures
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.threshold_search import rejected_on_path, search_cascade
from smallfirst.stats.bounds import betting_p_value
from smallfirst.stats.intervals import wilson
from smallfirst.traffic.discovery.cases import Case
from smallfirst.traffic.discovery.draft import ROWS, TEST, VALIDATION, parts_of, rows_of

LIMITS, VARIATIONS = (0.05, 0.1), (0.0, 0.02, 0.04)
SELECTION, WIDTH, RIDGE = 0.2, 256, 1.0
N_TEXTS, N_REQUESTS, N_POOL = 2_000, 6_000, 8_000
"""Texts of a log whose texts are asked equally often, requests of one in which they are not, and texts of the pool."""
HEAD = (
    "| askings, or frequent texts | varies | may differ | rule | issued | kept, of requests | differ, measured | by texts | "
    "by requests | broken by texts | broken by requests |"
)
LINE = "|---" * 11 + "|"
START = datetime(2026, 10, 1, tzinfo=UTC)


class Pool(NamedTuple):
    """Texts that may be asked."""

    x: np.ndarray
    """(texts, WIDTH)."""
    usual: np.ndarray
    """(texts,), number of the label that the large model usually gives."""
    second: np.ndarray
    """(texts,), number of the one that it gives at times."""
    difficulty: np.ndarray
    """(texts,), higher where a model that did not learn the text is less sure of the usual label."""
    n_labels: int


class Truth(NamedTuple):
    """What the texts of the pool weigh."""

    texts: np.ndarray
    """(texts,), the chance to be in the log."""
    requests: np.ndarray
    """(texts,), the chance that a request asks it."""


class Fitted(NamedTuple):
    """A small model's answers to the whole pool."""

    says: np.ndarray
    confidence: np.ndarray


Log = list[tuple[int, int]]
"""Requests in order: number of the text, number of the label that was given."""


def pool() -> Pool:
    root = Path(os.environ.get("SMALLFIRST_DATA", ROOT.parent / "shared" / "datasets")) / "clinc150"
    lines = [
        line for part in ("train", "validation", "test") for line in (root / f"{part}.jsonl").open(encoding="utf-8")
    ]
    rows = [row for row in map(json.loads, lines) if row["label"] != "oos"]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:N_POOL]]
    words = TfidfFeatures.fit([row["text"] for row in rows]).matrix([row["text"] for row in rows])
    x = TruncatedSVD(WIDTH, random_state=0).fit_transform(words)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    labels, usual = np.unique([row["domain"] for row in rows], return_inverse=True)
    halves, scores = np.arange(len(usual)) % 2, np.zeros((len(usual), len(labels)))
    for half in (0, 1):
        scores[halves == half] = _scores(x, usual, np.flatnonzero(halves != half), len(labels))[halves == half]
    own = scores[np.arange(len(usual)), usual].copy()
    scores[np.arange(len(usual)), usual] = -np.inf
    return Pool(x, usual, scores.argmax(axis=1), scores.max(axis=1) - own, len(labels))


def _scores(x: np.ndarray, labels: np.ndarray, train: np.ndarray, n_labels: int) -> np.ndarray:
    """Return the scores of a ridge regression on one column a label: (texts, labels)."""
    wanted = np.eye(n_labels, dtype=np.float32)[labels[train]]
    mean, own = wanted.mean(axis=0), x[train]
    return np.asarray(
        x @ np.linalg.solve(own.T @ own + RIDGE * np.eye(x.shape[1], dtype=np.float32), own.T @ (wanted - mean)) + mean
    )


def fit(p: Pool, train: Sequence[int], labels: Sequence[int]) -> Fitted:
    said = np.zeros(len(p.usual), dtype=int)
    said[list(train)] = labels
    scores = _scores(p.x, said, np.asarray(train), p.n_labels)
    ranked = np.partition(scores, -2, axis=1)
    return Fitted(scores.argmax(axis=1), np.clip(0.5 + 0.5 * (ranked[:, -1] - ranked[:, -2]), 0, 1))


def asked(p: Pool, texts: np.ndarray, variation: float, rng: np.random.Generator) -> Log:
    varies = rng.random(len(texts)) < variation
    return list(zip(texts.tolist(), np.where(varies, p.second[texts], p.usual[texts]).tolist(), strict=True))


def equal_log(p: Pool, askings: int, variation: float, rng: np.random.Generator) -> tuple[Log, Truth]:
    texts = rng.permutation(len(p.usual))[:N_TEXTS]
    even = np.ones(len(p.usual))
    return asked(p, rng.permutation(np.repeat(texts, askings)), variation, rng), Truth(even, even)


def zipf_log(p: Pool, related: bool, variation: float, rng: np.random.Generator) -> tuple[Log, Truth]:
    """Texts by Zipf's law: the most frequent ones drawn by chance, or rather the difficult ones."""
    noise = rng.permutation(len(p.usual)) / len(p.usual)
    hard = np.argsort(np.argsort(-p.difficulty)) / len(p.usual)
    share = 1 / (1 + np.argsort(np.argsort((2 * noise + hard) if related else noise)))
    share /= share.sum()
    texts = rng.choice(len(p.usual), size=N_REQUESTS, p=share)
    return asked(p, texts, variation, rng), Truth(1 - (1 - share) ** N_REQUESTS, share)


class Parts(NamedTuple):
    """Texts and labels that train, and the rows that choose and certify."""

    train: list[tuple[int, int]]
    validation: list[tuple[int, int]]
    n: list[int]
    """By validation row: how often its text was asked."""
    askings: list[tuple[int, int]] = []
    """All requests for the texts of the validation rows."""
    test: list[tuple[int, int, int]] = []
    """Texts, labels and numbers of requests of the test rows."""


def after(log: Log) -> Parts:
    """As `discover` makes rows."""

    def case(number: int) -> Case:
        at = START + timedelta(minutes=number)
        return Case._make((f"x{number}", at, None, None, "", None, None, None, None, True))  # words are of no account

    cases = [(case(i), f"text {text}", str(label)) for i, (text, label) in enumerate(log)]
    task = SimpleNamespace(kind="labels", labels={str(label) for _, label in log}, cases=cases)
    parts = parts_of(rows_of(task))  # type: ignore[arg-type]

    def read(asking: object) -> tuple[int, int]:
        return int(asking.text.removeprefix("text ")), int(asking.value)  # type: ignore[attr-defined]

    validation = [read(row.drawn) for row in parts[VALIDATION]]
    texts = {text for text, _ in validation}
    return Parts(
        [read(row.usual) for row in parts[ROWS]],
        validation,
        [row.n for row in parts[VALIDATION]],
        [one for one in log if one[0] in texts],
        [(*read(row.drawn), row.n) for row in parts[TEST]],
    )


def before(log: Log) -> Parts:
    """By the rule before: the most frequent answer, in the order in which it was last given."""
    given: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for at, (text, label) in enumerate(log):
        given[text].append((at, label))
    rows = []
    for text, all_given in given.items():
        counts = Counter(label for _, label in all_given)
        at, label = next(one for one in reversed(all_given) if counts[one[1]] == max(counts.values()))
        rows.append((at, text, label, len(all_given)))
    rows.sort()
    half, end = round(0.5 * len(rows)), round(0.85 * len(rows))
    return Parts(
        [(text, label) for _, text, label, _ in rows[:half]],
        [(text, label) for _, text, label, _ in rows[half:end]],
        [n for *_, n in rows[half:end]],
    )


def threshold(fitted: Fitted, parts: Parts, limit: float, rng: np.random.Generator) -> float:
    texts, said = np.array(parts.validation).T
    data = fitted.confidence[texts], fitted.says[texts] == said
    chooses = rng.random(len(texts)) < SELECTION
    found = search_cascade(
        answers(*(one[~chooses] for one in data)),
        Guarantee(max_error=limit),
        selection=answers(*(one[chooses] for one in data)),
    )
    return found.thresholds[0]


def weighted_threshold(
    fitted: Fitted, parts: Parts, limit: float, rng: np.random.Generator, *, most: int | None
) -> float:
    """Bet that the mean over texts of askings * kept * (wrong - limit) is below 0, askings counted up to `most`."""
    texts, said = np.array(parts.validation).T
    most = most or max(parts.n)
    weight = np.minimum(parts.n, most) / most
    confidence, wrong = fitted.confidence[texts], fitted.says[texts] != said
    tried = np.quantile(confidence, 1 - np.arange(1, 51) / 50)

    def shows(first: int, end: int, level: float) -> np.ndarray:
        excess = [weight * (confidence >= at) * (wrong - limit) for at in tried[first:end]]
        return np.array([betting_p_value(one, 0.0, low=-limit, high=1 - limit) <= level for one in excess], dtype=bool)

    shown = np.flatnonzero(rejected_on_path(shows, [(3, 0.25), (6, 0.25), (12, 0.5)], len(tried), 0.05))
    return float(tried[shown[-1]]) if shown.size else 1.01


class Outcome(NamedTuple):
    """What a certificate of one draw is worth."""

    issued: bool
    kept: float
    """Share of requests."""
    texts: float
    """Share of kept texts that were not learnt and would be answered otherwise."""
    requests: float
    """The same of all kept requests, learnt texts among them."""
    measured: float
    """The same of all validation rows that are kept."""


def outcome(p: Pool, fitted: Fitted, at: float, parts: Parts, truth: Truth, variation: float) -> Outcome:
    usual, second = fitted.says == p.usual, fitted.says == p.second
    differs = 1 - usual * (1 - variation) - second * variation
    kept = fitted.confidence >= at
    new = np.ones(len(p.usual), dtype=bool)
    new[[text for text, _ in parts.train]] = False
    seen = [(fitted.says[text] != label) for text, label in parts.validation if kept[text]]

    def share(weight: np.ndarray) -> float:
        return float((weight * differs)[kept].sum() / max(1e-12, weight[kept].sum()))

    return Outcome(
        at <= 1,
        float(truth.requests[kept].sum() / truth.requests.sum()),
        share(truth.texts * new),
        share(truth.requests),
        float(np.mean(seen)) if seen else 0.0,
    )


def split_requests(log: Log) -> Parts:
    """Requests, not texts, are split: what certifies may ask a text that was learnt."""
    place = np.random.default_rng(0).random(len(log))
    train = [one for one, at in zip(log, place, strict=True) if at < 0.5]
    labels: dict[int, Counter[int]] = defaultdict(Counter)
    for text, label in train:
        labels[text][label] += 1
    validation = [one for one, at in zip(log, place, strict=True) if 0.5 <= at < 0.85]
    return Parts([(text, counts.most_common(1)[0][0]) for text, counts in labels.items()], validation, [])


def of_all_askings(fitted: Fitted, parts: Parts, limit: float, rng: np.random.Generator) -> float:
    """Every asking of a validation text is a row."""
    return threshold(fitted, parts._replace(validation=parts.askings), limit, rng)


class Rule(NamedTuple):
    """How a log becomes parts, and these a threshold."""

    make: Callable[[Log], Parts]
    threshold: Callable[[Fitted, Parts, float, np.random.Generator], float] = threshold


RULES = {"before": Rule(before), "after": Rule(after)}
UNITS = {
    "after, all askings of the validation texts": Rule(after, of_all_askings),
    "after, askings as weights": Rule(after, partial(weighted_threshold, most=None)),
    "after, askings as weights up to 10": Rule(after, partial(weighted_threshold, most=10)),
    "requests split, texts on both sides": Rule(split_requests),
}


def draws(
    p: Pool, make: Callable[[np.random.Generator], tuple[Log, Truth]], variation: float, n: int, rules: dict[str, Rule]
) -> dict[tuple[str, float], list[Outcome]]:
    found: dict[tuple[str, float], list[Outcome]] = defaultdict(list)
    for seed in range(n):
        log, truth = make(np.random.default_rng(seed))
        parts = {make_parts: make_parts(log) for make_parts in {rule.make for rule in rules.values()}}
        fitted = {make_parts: fit(p, *zip(*one.train, strict=True)) for make_parts, one in parts.items()}
        for (name, rule), limit in itertools.product(rules.items(), LIMITS):
            own = fitted[rule.make], parts[rule.make]
            at = rule.threshold(*own, limit, np.random.default_rng(seed))
            found[name, limit].append(outcome(p, own[0], at, own[1], truth, variation))
    return found


def _broken(found: Sequence[Outcome], limit: float, of: str) -> str:
    n = sum(one.issued and getattr(one, of) > limit for one in found)
    share = wilson(n, len(found))
    return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"


def _means(found: Sequence[Outcome], limit: float) -> Iterator[str]:
    issued = [one for one in found if one.issued]
    yield f"{len(issued) / len(found):.2f}"
    yield f"{np.mean([one.kept * one.issued for one in found]):.3f}"
    yield f"{np.mean([one.measured for one in issued]):.3f}" if issued else "–"
    yield f"{np.mean([one.texts for one in issued]):.3f}" if issued else "–"
    yield f"{np.mean([one.requests for one in issued]):.3f}" if issued else "–"
    yield _broken(found, limit, "texts")
    yield _broken(found, limit, "requests")


def warned(p: Pool, related: bool, limit: float, n: int) -> str:
    """Return how often `learn` says of a certificate that more requests differ than it promises of texts."""
    counts: Counter[tuple[bool, bool]] = Counter()
    for seed in range(n):
        log, truth = zipf_log(p, related, 0.0, np.random.default_rng(seed))
        parts = after(log)
        fitted = fit(p, *zip(*parts.train, strict=True))
        at = threshold(fitted, parts, limit, np.random.default_rng(seed))
        found = outcome(p, fitted, at, parts, truth, 0.0)
        text, label, weight = np.array(parts.test).T
        kept = fitted.confidence[text] >= at
        if found.issued and kept.any():
            differ = np.average((fitted.says[text] != label)[kept], weights=weight[kept])
            counts[found.requests > limit, bool(differ > limit)] += 1
    broken, held = counts[True, True] + counts[True, False], counts[False, True] + counts[False, False]
    return f"{counts[True, True]} of {broken} broken by requests, {counts[False, True]} of {held} others"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS / "agreement_tables.md")
    given = parser.parse_args()
    p, tables = pool(), dict[str, list[str]]()
    for related, limit in itertools.product((False, True), LIMITS):
        print("warned", "the hard ones" if related else "by chance", limit, warned(p, related, limit, given.draws // 2))
    for askings, variation in itertools.product((2, 5), VARIATIONS):
        found = draws(p, partial(equal_log, p, askings, variation), variation, given.draws, RULES)
        _add(tables, "Every text asked equally often", f"{askings} | {variation:.0%}", found)
    for related, variation in itertools.product((False, True), VARIATIONS):
        rules = RULES | (UNITS if variation == 0.02 else {})
        found = draws(p, partial(zipf_log, p, related, variation), variation, given.draws, rules)
        _add(tables, "Zipf's law", f"{'the hard ones' if related else 'by chance'} | {variation:.0%}", found)
    pages = ["\n".join([f"## {title}\n", HEAD, LINE, *lines]) for title, lines in tables.items()]
    given.out.write_text("\n\n".join(pages) + "\n", encoding="utf-8")


def _add(tables: dict[str, list[str]], table: str, where: str, found: dict[tuple[str, float], list[Outcome]]) -> None:
    for (name, limit), one in sorted(found.items(), key=lambda item: item[0][1]):
        tables.setdefault(table, []).append(f"| {where} | {limit:.0%} | {name} | {' | '.join(_means(one, limit))} |")
        print(tables[table][-1], flush=True)


if __name__ == "__main__":
    main()
