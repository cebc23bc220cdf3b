"""Calibration rows weighted as the traffic is: a certificate where requests differ, and answers to each do not.

The assumption is a covariate shift: how often each request comes has changed, how often it is answered right has not.
A logistic regression on words tells the traffic's texts from reference texts, which are drawn like the calibration rows
and certify nothing; its odds are the ratio of the two densities (Tibshirani et al. 2019). Ratios above a cap count as
the cap. So a row weighs in [0, 1], and the tests of `clusters` stay exact for these weights: they reject, or bet on,
each row in proportion. The traffic cut off by the cap counts as wrong. What remains is the regression itself: no
unlabelled text shows that the answers' quality is unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from smallfirst.errors import ConfigError, DataError
from smallfirst.evaluation.results import Evaluation
from smallfirst.records import Record
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT
from smallfirst.routing.certificate.units.clusters import Parts
from smallfirst.stats.intervals import wilson
from smallfirst.stats.sample_size import min_rows_without_error

MIN_TEXTS = 50
"""Texts of the traffic, and of the reference, that a regression needs."""
MAX_RATIO = 50.0
"""Largest cap of the ratio of densities."""
CUT_SHARE = 0.1
"""Share of the limit that the traffic cut off by the cap may take up."""
MIN_KEPT = 0.5
"""Share of the traffic that is taken to be kept when the cut part is set against the limit."""


class TrafficShift(Record):
    """How the traffic differs from the calibration rows, and what that leaves of them."""

    n_traffic: int
    """Texts of the traffic."""
    n_rows: int
    """Calibration rows."""
    n_effective: float
    """Kish's effective sample size of their weights, sum squared over sum of squares: n_rows without a shift."""
    n_counted: float
    """Sum of the weights in [0, 1]: about as many rows of the traffic itself would show as much."""
    cap: float
    """Largest ratio of the two densities that counts."""
    cut: float
    """Share of the traffic that the cap cuts off, in [0, 1]; it counts as wrong."""
    refused: str = ""
    """Why nothing can be certified for this traffic; empty if something can."""

    @property
    def in_words(self) -> str:
        return (
            f"weighted as {self.n_traffic:,} requests of the traffic, {self.n_rows:,} calibration rows are worth "
            f"{self.n_effective:.0f} by effective sample size and count as {self.n_counted:.0f}"
        )


class WeightedRows(NamedTuple):
    """Weights of calibration rows for the traffic."""

    shift: TrafficShift
    weights: Mapping[str, float]
    """By row key, in [0, 1]."""

    def changes(self, drafts: Evaluation, guarantee: Guarantee, *, level: float) -> dict[str, Any]:
        """Return what the weights change in a certificate of one stage's answers and a limit on errors alone."""
        _refuse_other_limits(guarantee)
        assert guarantee.max_error is not None
        rows = drafts.rows
        confidence = np.array([row.confidence or 0.0 for row in rows])
        wrong = np.array([not row.correct for row in rows])
        weight = np.array([self.weights[row.key] for row in rows])
        group = np.array([row.group for row in rows], dtype=object) if any(row.group for row in rows) else None
        limit = guarantee.max_error - self.shift.cut / MIN_KEPT
        threshold, bound = NEVER_ACCEPT, 1.0
        if not self.shift.refused:
            threshold, bound = Parts(confidence[:, None], wrong[:, None], group, weight).search(limit, level=level)
        kept = confidence >= threshold
        share = wilson(round(float(weight[kept].sum())), max(1, round(float(weight.sum()))))
        issued = threshold <= 1
        shown = f"at most {bound + self.shift.cut / MIN_KEPT:.3f} of kept answers wrong" if issued else "not shown"
        told = (
            f"it holds for traffic like the {self.shift.n_traffic:,} unlabelled requests, if what makes them differ "
            "from the calibration rows is in their words and each is answered right as often as before; "
            f"{100 * self.shift.cut:.2g} % of them, too unlike any calibration row, count as wrong"
        )
        return {
            "shift": self.shift,
            "issued": issued,
            "why": f"{guarantee.in_words}: {self.shift.refused or f'{self.shift.in_words}; {shown}'}",
            "threshold": threshold,
            "n_accepted": int(kept.sum()),
            "n_errors": int((kept & wrong).sum()),
            "error_bound": min(1.0, bound + self.shift.cut / MIN_KEPT),
            "coverage": share,
            "limits_of_validity": (told,),
            "risks": (),
            "frontier": (),
        }


def weigh_rows(
    drafts: Evaluation, traffic: Sequence[str], reference: Sequence[str], guarantee: Guarantee
) -> WeightedRows:
    """Weigh the rows of `drafts` as the texts of `traffic`; `reference` texts are drawn like the rows and others.

    Raise DataError for too few texts, ConfigError for a guarantee of other limits.
    """
    _refuse_other_limits(guarantee)
    assert guarantee.max_error is not None
    for name, texts in (("traffic", traffic), ("reference", reference)):
        if len(texts) < MIN_TEXTS:
            raise DataError(
                f"{name}: {len(texts)} texts; to tell how requests differ takes {MIN_TEXTS} or more",
                hint="give unlabelled requests of the last weeks, and selection or training rows as the reference",
            )
    of_traffic, of_rows = _ratios(traffic, reference, [row.text for row in drafts.rows])
    most = CUT_SHARE * MIN_KEPT * guarantee.max_error
    cap = _least_cap(of_traffic, most)
    weights = np.minimum(of_rows, cap) / cap
    cut = float(np.maximum(0.0, 1 - cap / of_traffic).mean())
    shift = TrafficShift(
        n_traffic=len(traffic),
        n_rows=len(weights),
        n_effective=float(weights.sum() ** 2 / max(1e-12, (weights**2).sum())),
        n_counted=float(weights.sum()),
        cap=cap,
        cut=cut,
    )
    fewest = min_rows_without_error(guarantee.max_error - cut / MIN_KEPT, 1 - guarantee.confidence)
    refused = ""
    if cut > most:
        unlike = float((of_traffic > MAX_RATIO).mean())
        refused = (
            f"{100 * unlike:.1f} % of the traffic is unlike the calibration rows ({MAX_RATIO:g} times as frequent or "
            "more): label some of it"
        )
    elif shift.n_counted < fewest:
        refused = f"{shift.in_words}; even without an error it takes {fewest}: label some of the traffic"
    found = shift.model_copy(update={"refused": refused})
    return WeightedRows(found, dict(zip((row.key for row in drafts.rows), weights.tolist(), strict=True)))


def _refuse_other_limits(guarantee: Guarantee) -> None:
    if set(guarantee.limits) != {"error"} or guarantee.grouped_by or guarantee.max_wrong_fields is not None:
        raise ConfigError(
            "a certificate for shifted traffic limits errors alone, of all answers together",
            hint="leave only max_error and confidence in the guarantee",
        )


def _least_cap(ratios: np.ndarray, most: float) -> float:
    """Return the least of a few caps up to MAX_RATIO that cuts off at most `most` of the traffic; else MAX_RATIO."""
    for cap in np.geomspace(1.0, MAX_RATIO, 60):
        if np.maximum(0.0, 1 - cap / ratios).mean() <= most:
            return float(cap)
    return MAX_RATIO


def _ratios(traffic: Sequence[str], reference: Sequence[str], rows: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the density of the traffic over that of the reference at the traffic's texts, held out, and at `rows`."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline

    texts, target = [*traffic, *reference], np.repeat([1, 0], [len(traffic), len(reference)])
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = make_pipeline(words, LogisticRegression(max_iter=200))
    held_out = cross_val_predict(model, texts, target, cv=5, method="decision_function")[:, None]
    calibrated = LogisticRegression(C=1e6).fit(held_out, target)  # held-out scores are surer than they may be
    if calibrated.coef_[0, 0] <= 0:  # held out, nothing tells the two apart
        return np.ones(len(traffic)), np.ones(len(rows))
    at_rows = model.fit(texts, target).decision_function(list(rows))[:, None]
    prior = math.log(len(traffic) / len(reference))
    logs = [calibrated.decision_function(scores) - prior for scores in (held_out[: len(traffic)], at_rows)]
    of_traffic, of_rows = (np.exp(np.clip(log, -20, 20)) for log in logs)
    return of_traffic, of_rows
