"""Which share of a task's requests can move to a small model, foretold from recorded answers before one is trained.

A cheap model is cross-validated on the recorded answers. Resamples of its right and wrong answers then go through the
search for a threshold that the certificate will use, with as many calibration rows as a run would have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from smallfirst.base.errors import WeightsNotFound
from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate, wilson
from smallfirst.models.linear.tfidf import (
    VECTOR_ERRORS,
    WORD_ERRORS,
    Embed,
    ErrorsLeft,
    HeldOutAnswers,
    hold_out_labels,
)
from smallfirst.routing.certificate.certificate import Guarantee
from smallfirst.routing.certificate.threshold_search import choose_starts, search_threshold

MIN_ROWS = 100
"""Fewest different cases from which anything is foretold."""
_LEVEL = 0.05
_RESAMPLES, _SEED = 100, 0
MOST_CASES, MOST_CHARACTERS = 2500, 600_000
"""Most cases that the cheap model looks at, and most characters of all together."""


class Outlook(Record):
    """What can be expected of a small model."""

    agreement: Estimate | None = None
    """Share of held-out cases in which a cheap model gives the large model's answer; None if none was tried."""
    moves: Estimate | None = None
    """Share of requests that can move, with a 95 % interval: the cheap model on unlucky calibration rows, and a model
    that makes as few errors as are possible. None if nothing is foretold."""
    n_certifying: int = 0
    """Rows that would certify in a run."""
    why: str = ""
    """Why nothing can be said or nothing can move; empty otherwise."""

    def can_show(self, max_error: float) -> bool:
        """Return True if there are enough rows to show a limit at 95 %, were all of them right."""
        return (1 - max_error) ** self.n_certifying <= _LEVEL


def drawn_cases(texts: Sequence[str]) -> list[int]:
    """Return which cases are looked at: all, or so many drawn at random that they are not too many or too long."""
    order: list[int] = np.random.default_rng(_SEED).permutation(len(texts))[:MOST_CASES].tolist()
    mean = sum(len(texts[i]) for i in order) / max(1, len(order))
    return order[: max(1, int(MOST_CHARACTERS / max(1.0, mean)))]


def sentence_encoder() -> Embed | None:
    """Return the default encoder, if its weights are here already."""
    from smallfirst.models.catalog import find_weights
    from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, open_encoder

    try:
        return open_encoder(find_weights(DEFAULT_ENCODER, download=False)).embed
    except (WeightsNotFound, ModuleNotFoundError):
        return None


def foretell_labels(
    cases: Sequence[tuple[str, str, str, int]],
    max_error: float,
    *,
    n_certifying: int,
    in_format: float,
    repeatable: float,
) -> Outlook:
    """Return the outlook of a task whose cases were answered by labels; otherwise as `foretell`.

    `cases`: text, its usual label, the label of the asking that was drawn, and how often it was asked.
    """
    drawn, embed = drawn_cases([text for text, *_ in cases]), sentence_encoder()
    texts, labels, said, n = zip(*(cases[i] for i in drawn), strict=True)
    return foretell(
        hold_out_labels(texts, labels, said, embed)._replace(n=np.array(n)),
        max_error,
        n_certifying=n_certifying,
        errors_left=VECTOR_ERRORS if embed else WORD_ERRORS,
        in_format=in_format,
        repeatable=repeatable,
    )


def foretell(
    held_out: HeldOutAnswers,
    max_error: float,
    *,
    n_certifying: int,
    errors_left: ErrorsLeft = WORD_ERRORS,
    in_format: float = 1.0,
    repeatable: float = 1.0,
) -> Outlook:
    """Return the outlook of a task of which so many rows will certify that at most `max_error` of kept answers differ.

    `in_format` is the share of answers that have the task's format: the others cannot be right. `repeatable` is the
    share of repeated cases that got the same answer again, the sum of squares of the answers' shares: the most frequent
    answer has at most its root, so no model can agree more often than that.
    """
    floor = (1 - math.sqrt(repeatable)) / max(1e-9, 1 - float(held_out.right.mean()))
    rng = np.random.default_rng(_SEED)
    n, guarantee = len(held_out.right), Guarantee(max_error=max_error)
    kept = np.zeros((len(errors_left), _RESAMPLES))
    asked = np.ones(n) if held_out.n is None else held_out.n
    luck = rng.random(n)
    selecting = rng.integers(0, n, size=max(1, n_certifying // 4))
    for scenario, left in enumerate(errors_left):
        right = held_out.right | (luck >= min(1.0, max(left, floor)))
        level = 1 - guarantee.confidence
        starts = choose_starts(held_out.confidence[selecting], right[selecting], n_certifying, max_error, level)
        for resample in range(_RESAMPLES):
            rows, certifying = rng.integers(0, n, size=n), rng.integers(0, n, size=n_certifying)
            found = search_threshold(
                held_out.confidence[certifying].tolist(), right[certifying].tolist(), guarantee, starts
            )
            kept[scenario, resample] = np.average(held_out.confidence[rows] >= found.threshold, weights=asked[rows])
    middle = float(kept[1].mean())
    low, high = float(np.quantile(kept[0], 0.025)), float(np.quantile(kept[-1], 0.975))
    shares = (middle, min(low, middle), max(high, middle))
    share, low, high = (round(in_format * one, 4) for one in shares)
    agreement = wilson(int(held_out.right.sum()), n)
    return Outlook(agreement=agreement, moves=Estimate(value=share, low=low, high=high, n=n), n_certifying=n_certifying)
