"""Which wordings ask for one and the same thing: versions of a prompt, and other ways to ask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from smallfirst.stats.intervals import wilson
from smallfirst.traffic.discovery.wordings import Wording
from smallfirst.traffic.messages import question_of

SAME_DOMAIN = 0.8
"""Share of answers that must lie in the other wording's labels or keys, both ways."""
TELLING_LABELS, TELLING_KEYS = 8, 3
"""Numbers of labels or keys from which an equal set is no coincidence."""
SAME_WORDS = 0.3
"""Jaccard index of the words of two prompts from which one is a version of the other."""
_MOST_ROWS = 800
_SEED = 0


def group_wordings(wordings: Sequence[Wording]) -> list[list[Wording]]:
    """Return the wordings of each task, most frequent task first, wordings in the order of their last case."""
    group = list(range(len(wordings)))
    by_size = sorted(range(len(wordings)), key=lambda i: -len(wordings[i].cases))
    for place, i in enumerate(by_size):
        for j in by_size[:place]:
            if group[i] != group[j] and same_task(wordings[j], wordings[i]):
                old, new = group[i], group[j]
                group = [new if g == old else g for g in group]
    members = [[wordings[i] for i in by_size if group[i] == g] for g in dict.fromkeys(group[i] for i in by_size)]
    members.sort(key=lambda one: -sum(len(wording.cases) for wording in one))
    return [sorted(one, key=lambda wording: wording.cases[-1].at) for one in members]


def same_task(first: Wording, second: Wording) -> bool:
    """Return True if both ask for the same thing.

    Equal sets of many labels or keys are enough. Of few, either the prompts are alike, or a model that learnt on the
    answers of the first gives those of the second.
    """
    asked = [question_of(one.template.template.response_format) for one in (first, second)]
    if first.kind != second.kind or asked[0] != asked[1]:  # each typed question is a task of its own
        return False
    alike = jaccard(first.words, second.words) >= SAME_WORDS
    if not first.domain and not second.domain:
        return alike
    if not _same_domain(first.domain, second.domain):
        return False
    telling = TELLING_KEYS if first.kind == "fields" else TELLING_LABELS
    if alike or min(len(first.domain), len(second.domain)) >= telling:
        return True
    return first.kind == "labels" and predicts(first, second)


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Return the share of the words of either that both have."""
    return len(first & second) / max(1, len(first | second))


def predicts(first: Wording, second: Wording) -> bool:
    """Return True if what was learnt on the first's answers gives half as much about the second's as its own do.

    Both in accuracy above that of always saying the most frequent label; False if its own answers give nothing.
    """
    from smallfirst.models.linear.classifier import fit_logistic_regression
    from smallfirst.models.linear.tfidf import TfidfFeatures

    texts, labels = _sample(first)
    others, wanted = _sample(second)
    half = len(others) // 2
    if len(texts) < 40 or half < 20:
        return False
    names = {label: i for i, label in enumerate(sorted({*labels, *wanted}))}
    features = TfidfFeatures.fit([*texts, *others])
    gold = np.array([names[label] for label in wanted])
    majority = int(np.bincount(gold[half:]).max())

    def n_right(learnt: list[str], answers: list[str]) -> int:
        own = np.array([names[answer] for answer in answers])
        weights, bias = fit_logistic_regression(features.matrix(learnt), own, len(names), 10.0)
        said = features(others[half:]) @ weights.T + bias
        return int((said.argmax(axis=1) == gold[half:]).sum())

    n = len(others) - half
    own = n_right(others[:half], wanted[:half])
    if wilson(own, n).low <= majority / n:
        return False
    return n_right(texts, labels) - majority >= 0.5 * (own - majority)


def _sample(wording: Wording) -> tuple[list[str], list[str]]:
    """Return different texts with their labels, at most _MOST_ROWS of them."""
    rows = {text: value for text, value in zip(wording.texts, wording.values, strict=True) if value in wording.domain}
    pairs = list(rows.items())
    order = np.random.default_rng(_SEED).permutation(len(pairs))[:_MOST_ROWS]
    return [pairs[i][0] for i in order], [str(pairs[i][1]) for i in order]


def _same_domain(first: Counter[str], second: Counter[str]) -> bool:
    if not first or not second:
        return False
    within = [sum(n for key, n in a.items() if key in b) / a.total() for a, b in ((first, second), (second, first))]
    return min(within) >= SAME_DOMAIN
