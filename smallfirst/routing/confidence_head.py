"""How far a draft may be believed: what it shows of itself, weighed on rows whose answers are known.

A fine-tuned model's own probability is a good order and a bad number, and it does not see everything: how near the
second label was, which field of a JSON answer is the weak one, whether a cheaper model says the same. A DraftHead
weighs these in a logistic regression and reads the probability off rising steps. It takes selection rows (no row that a
certificate is made from), and microseconds a draft. Where held-out rows are not clearly foretold better than by the
model's own probability, it stays unfitted and gives that probability back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from smallfirst.evaluation.calibration import MIN_ROWS, fit_isotonic
from smallfirst.models.confidence import CalibratedHead, IsotonicCurve
from smallfirst.models.protocol import Completion

FEATURES = ("own", "margin", "entropy", "tokens", "characters", "least_field", "mean_field", "same", "cheaper")
"""What is looked at. `own`: log-odds of the draft's confidence · `margin`: log of the best label's probability over the
second's · `entropy` of the labels in nats · `tokens`, `characters`: log of 1 + their number · `least_field`,
`mean_field`: of the fields' log-odds, `own` where there are none · `same`: 1 if a cheaper model answers the same, -1 if
not, 0 without one · `cheaper`: log-odds that it gives the draft's answer."""
MIN_PROBABILITY = 1e-6
"""Probabilities are told apart down to this distance from 0 and 1."""
FOLDS = 5
MIN_Z_SCORE = 1.645
"""Standard errors by which a candidate must win: 95 %, one-sided. The own confidence is a good order already, and few
wrong answers make much noise."""
MIN_ROWS_PER_FEATURE = 10
"""Rows of the rarer kind, right or wrong, that each feature which differs at all must have (Peduzzi et al. 1996): with
15 wrong rows cross-validation itself is fooled, as it was on Banking77's 209 selection rows."""
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class DraftHead(CalibratedHead):
    """From a draft to the probability that it is right; unfitted it gives the draft's own confidence."""

    FEATURES = FEATURES

    field_steps: dict[str, IsotonicCurve] = {}
    """By field path, from the field's own probability to that of its being right; other fields keep their own."""
    why: str = "not fitted"
    """What the fit found, in one sentence."""

    @classmethod
    def fit(
        cls,
        drafts: Sequence[Completion],
        correct: Sequence[bool],
        *,
        cheaper: Sequence[Completion | None] | None = None,
        fields_correct: Sequence[Mapping[str, bool]] | None = None,
    ) -> DraftHead:
        """From drafts and whether each was right; `cheaper` holds a cheaper model's answers to the same requests.

        All features are weighed only if that has a clearly lower 5-fold log loss than the own confidence has, as it is
        and bent by steps; the latter only if it clearly beats the former. `fields_correct` says by field path which
        fields of each draft were right; a field with 30 rows or more, ten of each kind, gets steps of its own by the
        same test. Raises ValueError if the lengths differ.
        """
        right, beside = np.asarray(correct, dtype=bool), cheaper or [None] * len(drafts)
        _same_number(drafts, right, beside, fields_correct or drafts)
        fields = _field_steps(drafts, fields_correct or [])
        if not _enough(right):
            why = f"too few rows to weigh anything: {right.sum()} right, {(~right).sum()} wrong; 10 of each are needed"
            return cls(field_steps=fields, n_rows=len(right), why=why)
        features = np.array([features_of(*pair) for pair in zip(drafts, beside, strict=True)])
        chosen, why = _columns_that_help(features, right)
        if not chosen:
            return cls(field_steps=fields, n_rows=len(right), why=why)
        centres, scales = means_and_scales(features)
        standard = (features - centres) / scales
        weights = np.zeros(len(FEATURES))
        weights[chosen] = logistic(1.0).fit(standard[:, chosen], right).coef_[0]
        if len(chosen) == 1:
            weights[chosen] = 1.0  # the order of the own confidence is kept, whatever a regression makes of it
        return cls(
            weights=tuple(weights.tolist()),
            centres=tuple(centres.tolist()),
            scales=tuple(scales.tolist()),
            steps=fit_isotonic((standard @ weights).tolist(), right.tolist()),
            field_steps=fields,
            n_rows=len(right),
            why=why,
        )

    def confidence(self, completion: Completion, cheaper: Completion | None = None) -> float:
        """Probability in [0, 1] that the draft is right; 0 where it is unfitted and the model has no view.

        One that was fitted with a cheaper model's answers needs them here too.
        """
        if not self.weights:
            return completion.confidence or 0.0
        return self.probability(features_of(completion, cheaper))

    def fields(self, completion: Completion) -> dict[str, float]:
        """By field path of a JSON draft, the probability in [0, 1] that its value is right."""
        plain = IsotonicCurve()
        return {path: self.field_steps.get(path, plain).at(own) for path, own in completion.field_confidence.items()}


def features_of(completion: Completion, cheaper: Completion | None = None) -> tuple[float, ...]:
    """One number for each of FEATURES."""
    own = log_odds(0.5 if completion.confidence is None else completion.confidence)
    labels = [probability for _, probability in completion.alternatives]
    rest = max(0.0, 1.0 - math.fsum(labels)) if labels else 0.0
    margin = math.log(max(labels[0], MIN_PROBABILITY) / max(labels[1], MIN_PROBABILITY)) if len(labels) > 1 else own
    entropy = -math.fsum(p * math.log(p) for p in (*labels, rest) if p > 0)
    fields = [log_odds(p) for p in completion.field_confidence.values()] or [own]
    length = math.log1p(completion.completion_tokens), math.log1p(len(completion.text))
    return own, margin, entropy, *length, min(fields), math.fsum(fields) / len(fields), *_agreement(completion, cheaper)


def draft_features(
    texts: Sequence[str], drafts: Sequence[Completion], cheaper: Sequence[Completion | None] | None = None
) -> list[list[float]]:
    """What each draft shows: FEATURES, its lines and numbers, and whether it ran out of room.

    Of numbers: how many, which of the request's are used, and how many are new. Raises ValueError if lengths differ.
    """
    found = []
    for text, draft, beside in zip(texts, drafts, cheaper or [None] * len(drafts), strict=True):
        asked, said = set(NUMBER.findall(text)), set(NUMBER.findall(draft.text))
        used, new = len(asked & said) / max(1, len(asked)), len(said - asked) / max(1, len(said))
        lines, cut = math.log1p(draft.text.count("\n")), float(draft.finish_reason == "length")
        found.append([*features_of(draft, beside), lines, math.log1p(len(said)), used, new, cut])
    return found


def _agreement(completion: Completion, cheaper: Completion | None) -> tuple[float, float]:
    """Whether a cheaper model says the same, and the log-odds of the draft's answer in its eyes."""
    if cheaper is None:
        return 0.0, 0.0
    own = 0.5 if cheaper.confidence is None else cheaper.confidence
    if cheaper.text == completion.text:
        return 1.0, log_odds(dict(cheaper.alternatives).get(completion.text, own))
    listed = dict(cheaper.alternatives).get(completion.text)
    return -1.0, log_odds(1.0 - own if listed is None else listed)  # unlisted: at most what its answer leaves over


def log_odds(probability: float) -> float:
    """log(p / (1 - p)), with p kept 1e-6 away from 0 and 1."""
    p = min(max(probability, MIN_PROBABILITY), 1 - MIN_PROBABILITY)
    return math.log(p / (1 - p))


def logistic(inverse_penalty: float) -> Any:
    """A logistic regression with an L2 penalty."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=inverse_penalty, max_iter=100, solver="newton-cholesky")


def means_and_scales(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column; 1 where it never differs."""
    spread = features.std(axis=0)
    return features.mean(axis=0), np.where(spread > 1e-9, spread, 1.0)


def log_losses(said: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Log loss in nats of each row; a target in (0, 1) is a share of right answers."""
    p = np.clip(said, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    losses: np.ndarray = -(target * np.log(p) + (1 - target) * np.log1p(-p))
    return losses


def significantly_lower(losses: np.ndarray, others: np.ndarray, *, errors: float = 1.0) -> bool:
    """True if the mean of `losses` is below that of `others` on the same rows by more than `errors` standard errors.

    With one it is the one-standard-error rule (Breiman et al. 1984): the simpler candidate stays unless clearly beaten.
    """
    gain = others - losses
    return bool(gain.mean() > errors * gain.std(ddof=1) / math.sqrt(len(gain)))


def _columns_that_help(features: np.ndarray, right: np.ndarray) -> tuple[list[int], str]:
    """Columns to weigh, none for the own confidence as it is; and what was found, in words."""
    own, every = [FEATURES.index("own")], list(range(len(FEATURES)))
    plain, bent, weighed = _plain(features[:, own]), _held_out(features[:, own], right), _held_out(features, right)
    plain, bent, weighed = (log_losses(said, right) for said in (plain, bent, weighed))
    means = f"as it is {plain.mean():.4f}, bent {bent.mean():.4f}, with all features {weighed.mean():.4f}"
    found = f"5-fold log loss on {len(right)} rows: {means}"
    n_differ, rarer = int((features.std(axis=0) > 1e-9).sum()), int(min(right.sum(), (~right).sum()))
    enough = rarer >= MIN_ROWS_PER_FEATURE * n_differ
    if enough and significantly_lower(weighed, min(plain, bent, key=np.mean), errors=MIN_Z_SCORE):
        return every, f"all features are weighed. {found}"
    if significantly_lower(bent, plain, errors=MIN_Z_SCORE):
        return own, f"the model's confidence is bent by steps. {found}"
    return [], f"the model's confidence stays as it is. {found}"


def _plain(own: np.ndarray) -> np.ndarray:
    """The probabilities that a column of log-odds stands for."""
    said: np.ndarray = 1 / (1 + np.exp(-own[:, 0]))
    return said


def _held_out(features: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Probability of each row by a regression on the other folds."""
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    centres, scales = means_and_scales(features)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    said = cross_val_predict(logistic(1.0), (features - centres) / scales, right, cv=folds, method="predict_proba")
    return np.asarray(said[:, 1])


def _enough(right: np.ndarray) -> bool:
    """True if there is something to weigh, and both kinds in every fold."""
    return len(right) >= MIN_ROWS and min(right.sum(), (~right).sum()) >= 2 * FOLDS


def _field_steps(drafts: Sequence[Completion], outcomes: Sequence[Mapping[str, bool]]) -> dict[str, IsotonicCurve]:
    """Steps of the fields whose own probability is clearly worse on held-out rows than a bent one."""
    said: dict[str, list[tuple[float, bool]]] = {}
    for draft, outcome in zip(drafts, outcomes, strict=False):
        for path in draft.field_confidence.keys() & outcome.keys():
            said.setdefault(path, []).append((draft.field_confidence[path], outcome[path]))
    found = {}
    for path, rows in sorted(said.items()):
        own, right = np.array([[log_odds(p)] for p, _ in rows]), np.array([ok for _, ok in rows])
        if _enough(right):
            bent, plain = log_losses(_held_out(own, right), right), log_losses(_plain(own), right)
            if significantly_lower(bent, plain, errors=MIN_Z_SCORE):
                found[path] = fit_isotonic([p for p, _ in rows], right.tolist())
    return found


def _same_number(*columns: Sequence[object] | np.ndarray) -> None:
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"drafts and outcomes differ in number: {', '.join(str(len(c)) for c in columns)}")
