"""Estimate the confidence of a draft from more than the model's own probability; both fits are on selection rows.

`DraftHead` is a logistic regression with isotonic calibration. Unless it predicts held-out rows clearly better than the
model's own probability, it stays unfitted and returns that probability.

`AcceptanceScore` is the chance that a request is the task's own and its draft right: a logistic regression of the
log-odds of the draft's confidence and of the domain check's features, no weight of which may have the wrong sign, so it
never falls with the confidence and never rises with a distance. Foreign requests are among the wrong rows; the
certificate's thresholds are searched on it, so that one threshold decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from scipy import optimize, special

from smallfirst.base.records import Record
from smallfirst.data.dataset import Dataset, Example, Message, sample_share
from smallfirst.measuring.calibration import MIN_ROWS, fit_isotonic
from smallfirst.models.confidence import CalibratedHead
from smallfirst.models.protocol import Completion

FEATURES = ("own", "margin", "entropy", "tokens", "characters", "least_field", "mean_field", "same", "cheaper")
"""`own`: log-odds of the draft's confidence · `margin`: log of the best label's probability over the second's ·
`entropy` of the labels in nats · `tokens`, `characters`: log of 1 + their number · `least_field`, `mean_field`: of the
fields' log-odds, `own` where there are none · `same`: mean over cheaper models of 1 for an equal answer and -1 for
another, 0 without any · `cheaper`: their mean log-odds of the draft's answer."""
AGREEMENT = ("own", "same", "cheaper")
"""The features that most often help; with few rows they are fitted without the others."""
MIN_PROBABILITY = 1e-6
"""Probabilities are clipped to this distance from 0 and 1."""
FOLDS = 5
MIN_Z_SCORE = 1.645
"""Standard errors by which a candidate must win: 95 %, one-sided. The model's own ranking is good already, and few
wrong answers make much noise."""
MIN_ROWS_PER_FEATURE = 10
"""Rows of the rarer kind, right or wrong, for each feature that varies (Peduzzi et al. 1996): with 15 wrong rows even
cross-validation is misleading, as it was on Banking77's 209 selection rows."""
MIN_OWN_ROWS, MIN_FOREIGN_ROWS = 20, 20
"""Own and foreign rows below which nothing is fitted."""
MIN_FOREIGN_WEIGHT = 0.2
"""Share of the weight that foreign rows have in the fit where the guarantee counts on fewer."""
PENALTY = 1e-3
"""Of the squared weights, beside the mean log loss in nats."""
BUNDLED = Path(__file__).with_name("open_requests.txt")
"""Generic requests that people send to any assistant, one a line."""


class DraftHead(CalibratedHead):
    """Map a draft to the probability that it is right; unfitted, return the draft's own confidence."""

    FEATURES = FEATURES

    why: str = "not fitted"
    """Result of the fit in one sentence."""

    @classmethod
    def fit(
        cls,
        drafts: Sequence[Completion],
        correct: Sequence[bool],
        *,
        others: Sequence[Sequence[Completion]] | None = None,
    ) -> DraftHead:
        """Fit on drafts and whether each was right; `others` are cheaper models' answers to each of the requests.

        All features, or those of AGREEMENT, are used only if they clearly beat the model's confidence, raw and
        calibrated, in 5-fold log loss.
        """
        right, beside = np.asarray(correct, dtype=bool), others or [()] * len(drafts)
        if not _enough(right):
            why = f"too few rows to fit anything: {right.sum()} right, {(~right).sum()} wrong; 10 of each are needed"
            return cls(n_rows=len(right), why=why)
        features = np.array([features_of(*pair) for pair in zip(drafts, beside, strict=True)])
        chosen, why = _choose_columns(features, right)
        if not chosen:
            return cls(n_rows=len(right), why=why)
        centres, scales = means_and_scales(features)
        standard = (features - centres) / scales
        weights = np.zeros(len(FEATURES))
        weights[chosen] = logistic(1.0).fit(standard[:, chosen], right).coef_[0]
        if len(chosen) == 1:
            weights[chosen] = 1.0  # keeps the order of the model's own confidence
        return cls(
            weights=tuple(weights.tolist()),
            centres=tuple(centres.tolist()),
            scales=tuple(scales.tolist()),
            steps=fit_isotonic((standard @ weights).tolist(), right.tolist()),
            n_rows=len(right),
            why=why,
        )

    def confidence(self, completion: Completion, others: Sequence[Completion] = ()) -> float:
        """Return the probability in [0, 1] that the draft is right; 0 if unfitted and the model gives none."""
        if not self.weights:
            return completion.confidence or 0.0
        return self.probability(features_of(completion, others))


def features_of(completion: Completion, others: Sequence[Completion] = ()) -> tuple[float, ...]:
    """Return one number for each of FEATURES."""
    own = log_odds(0.5 if completion.confidence is None else completion.confidence)
    labels = [probability for _, probability in completion.alternatives]
    rest = max(0.0, 1.0 - math.fsum(labels)) if labels else 0.0
    margin = math.log(max(labels[0], MIN_PROBABILITY) / max(labels[1], MIN_PROBABILITY)) if len(labels) > 1 else own
    entropy = -math.fsum(p * math.log(p) for p in (*labels, rest) if p > 0)
    fields = [log_odds(p) for p in completion.field_confidence.values()] or [own]
    length = math.log1p(completion.completion_tokens), math.log1p(len(completion.text))
    views = [_view_of(completion, other) for other in others] or [(0.0, 0.0)]
    same, cheaper = np.mean(views, axis=0).tolist()
    return own, margin, entropy, *length, min(fields), math.fsum(fields) / len(fields), same, cheaper


def _view_of(completion: Completion, cheaper: Completion) -> tuple[float, float]:
    own = 0.5 if cheaper.confidence is None else cheaper.confidence
    if cheaper.text == completion.text:
        return 1.0, log_odds(dict(cheaper.alternatives).get(completion.text, own))
    listed, rest = dict(cheaper.alternatives), 1.0 - own
    if listed:  # an unlisted answer has at most the probability of the last listed one, and what all of them leave
        rest = min(max(0.0, 1.0 - math.fsum(listed.values())), *listed.values())
    return -1.0, log_odds(listed.get(completion.text, rest))


def log_odds(probability: float) -> float:
    """Return log(p / (1 - p)), with p clipped to 1e-6 from 0 and 1."""
    p = min(max(probability, MIN_PROBABILITY), 1 - MIN_PROBABILITY)
    return math.log(p / (1 - p))


def logistic(inverse_penalty: float) -> Any:
    """Return an unfitted logistic regression with an L2 penalty."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=inverse_penalty, max_iter=100, solver="newton-cholesky")


def means_and_scales(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each column; 1 where it is constant."""
    spread = features.std(axis=0)
    return features.mean(axis=0), np.where(spread > 1e-9, spread, 1.0)


def log_losses(probabilities: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the log loss of each row in nats; a target in (0, 1) is a share of right answers."""
    p = np.clip(probabilities, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    losses: np.ndarray = -(target * np.log(p) + (1 - target) * np.log1p(-p))
    return losses


def significantly_lower(losses: np.ndarray, others: np.ndarray, *, errors: float = 1.0) -> bool:
    """Return True if the mean of `losses` is lower by `errors` standard errors of the paired difference."""
    gain = others - losses
    return bool(gain.mean() > errors * gain.std(ddof=1) / math.sqrt(len(gain)))


def _choose_columns(features: np.ndarray, right: np.ndarray) -> tuple[list[int], str]:
    """Return the features to use, none for the model's own confidence, and why."""
    own = [FEATURES.index("own")]
    raw = log_losses(special.expit(features[:, own[0]]), right)
    calibrated = log_losses(_held_out(features[:, own], right), right)
    plain, rarer = min(raw, calibrated, key=np.mean), int(min(right.sum(), (~right).sum()))
    said, tried = [f"raw {raw.mean():.4f}, calibrated {calibrated.mean():.4f}"], []
    for name, columns in _feature_sets(features).items():
        if rarer >= MIN_ROWS_PER_FEATURE * len(columns):
            losses = log_losses(_held_out(features[:, columns], right), right)
            said.append(f"with {name} {losses.mean():.4f}")
            if significantly_lower(losses, plain, errors=MIN_Z_SCORE):
                tried.append((losses.mean(), name, columns))
    found = f"5-fold log loss on {len(right)} rows: {', '.join(said)}"
    if tried:
        _, name, columns = min(tried)
        return columns, f"{name} are used. {found}"
    if significantly_lower(calibrated, raw, errors=MIN_Z_SCORE):
        return own, f"the model's confidence is calibrated. {found}"
    return [], f"the model's confidence stays as it is. {found}"


def _feature_sets(features: np.ndarray) -> dict[str, list[int]]:
    """Return the columns to try, by name: all that vary and do not repeat the first, and those of AGREEMENT."""
    new = (features.std(axis=0) > 1e-9) & (np.abs(features - features[:, :1]).max(axis=0) > 1e-9)
    varying = [0, *np.flatnonzero(new).tolist()]
    agreement = [column for column in varying if FEATURES[column] in AGREEMENT]
    sets = {"all features": varying, "features of agreement": agreement}
    return {name: columns for name, columns in sets.items() if len(columns) > 1}


def _held_out(features: np.ndarray, right: np.ndarray) -> np.ndarray:
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    centres, scales = means_and_scales(features)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    found = cross_val_predict(logistic(1.0), (features - centres) / scales, right, cv=folds, method="predict_proba")
    return np.asarray(found[:, 1])


def _enough(right: np.ndarray) -> bool:
    return len(right) >= MIN_ROWS and min(right.sum(), (~right).sum()) >= 2 * FOLDS


class AcceptanceScore(Record):
    """The fitted score of one drafting stage."""

    weights: tuple[float, ...] = pydantic.Field(min_length=1)
    """Of the draft's log-odds, and of each feature of the domain check with the sign changed; none is negative."""
    intercept: float
    n_own: int
    """Selection rows it was fitted on."""
    n_foreign: int
    """Foreign rows it was fitted on."""

    def confidence(self, draft: float, features: Sequence[float]) -> float:
        """Return the probability in [0, 1] that the request is the task's own and the draft right."""
        own, *others = self.weights
        found = self.intercept + own * log_odds(draft) - math.fsum(w * x for w, x in zip(others, features, strict=True))
        return float(special.expit(found))

    @classmethod
    def fit(
        cls,
        own: tuple[Sequence[float], np.ndarray, Sequence[bool]],
        foreign: tuple[Sequence[float], np.ndarray],
        *,
        share: float = 0.0,
    ) -> AcceptanceScore | None:
        """Fit on confidences in [0, 1], features (rows, features) and, of own rows, whether the draft was right.

        Foreign rows weigh as much as requests of which a share `share` is foreign, at least MIN_FOREIGN_WEIGHT. None
        with too few rows of either kind.
        """
        if len(own[0]) < MIN_OWN_ROWS or len(foreign[0]) < MIN_FOREIGN_ROWS:
            return None
        share = max(share, MIN_FOREIGN_WEIGHT)
        drafts = np.array([log_odds(value) for value in (*own[0], *foreign[0])])
        columns = np.column_stack([drafts, -np.vstack([own[1], foreign[1]])])
        good = np.concatenate([np.asarray(own[2], dtype=float), np.zeros(len(foreign[0]))])
        weight = np.repeat([(1 - share) / len(own[0]), share / len(foreign[0])], [len(own[0]), len(foreign[0])])
        centres, scales = means_and_scales(columns)
        found = _fit_logistic((columns - centres) / scales, good, weight)
        weights = found[1:] / scales
        intercept = float(found[0] - centres @ weights)
        return cls(weights=tuple(weights.tolist()), intercept=intercept, n_own=len(own[0]), n_foreign=len(foreign[0]))


def _fit_logistic(columns: np.ndarray, target: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the intercept and the weights, at least 0, of least weighted log loss."""

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        linear = values[0] + columns @ values[1:]
        residual = weight * (special.expit(linear) - target)
        total = weight @ (np.logaddexp(0, linear) - target * linear) + PENALTY * values[1:] @ values[1:]
        return float(total), np.concatenate([[residual.sum()], columns.T @ residual + 2 * PENALTY * values[1:]])

    start, n = np.zeros(1 + columns.shape[1]), columns.shape[1]
    found: np.ndarray = optimize.minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=[(None, None)] + [(0, None)] * n
    ).x
    return found


def foreign_rows(open_ended: Dataset | None) -> tuple[Dataset, Dataset]:
    """Return the foreign rows to fit on and those to certify with; without `open_ended` both are bundled requests.

    Those of a task file are like what its users send, so with them the bundled ones are for fitting alone.
    """
    bundled = bundled_requests()
    if open_ended is None:
        return split_foreign(bundled)
    fitting, certifying = split_foreign(open_ended)
    return fitting.subset("foreign", (*fitting.examples, *bundled.examples)), certifying


def split_foreign(rows: Dataset) -> tuple[Dataset, Dataset]:
    """Return two halves by content hash."""
    return sample_share(rows, 0.5, "domain")


def bundled_requests() -> Dataset:
    """Return the generic requests that the package brings."""
    lines = BUNDLED.read_text(encoding="utf-8").splitlines()
    return Dataset(
        name="open requests",
        examples=tuple(
            Example(messages=(Message(role="user", content=text),), answer="", shape="text", path=BUNDLED.name, line=i)
            for i, text in enumerate(lines, 1)
        ),
    )
