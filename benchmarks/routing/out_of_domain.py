"""Detect the task of a request, or none: CLINC150's out-of-scope requests, and three tasks behind `auto`.

    python -m benchmarks.routing.out_of_domain FOLDER

CLINC150: every model is trained on the 15,000 in-scope rows, none of the out-of-scope ones; temperatures, weights of
the ensemble, ranks and the operating point come from the 3,000 in-scope validation rows. Lines marked so use
the 100 out-of-scope training rows to weight the scores. `auto`: signatures of Banking77, SNIPS slots and MedQuAD from
their own training and selection rows; the open requests (four sets) are used for nothing but the measurement.

Rows are found as benchmarks/accuracy/run.py finds them, weights in SMALLFIRST_HOME. Models and scores are stored in
FOLDER, so a rerun takes two minutes; from scratch it takes about an hour and a half on one core, most of it fine-tuning.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.datasets import RESULTS
from benchmarks.routing import out_of_domain_auto
from benchmarks.routing.out_of_domain_models import (
    MODELS,
    PARTS,
    Scope,
    Seen,
    logsumexp,
    mixture,
    see,
    see_small,
    worded,
)
from smallfirst.models.state_features import STATE_FEATURES
from smallfirst.routing.domain import SCORES, ConformalScorer, ScoreFusion
from smallfirst.stats import intervals as stats

RESULT = RESULTS / "out_of_domain.md"
LEAST_ACCURACY = 0.965
"""Lowest in-scope accuracy of the operating point on validation rows, where a rejected row counts as wrong: half a point
above the target of 0.96, since models and weights were chosen on the same rows."""
RESAMPLES = 300


class Answers(NamedTuple):
    """Right or wrong for each in-scope row of two parts, and a score by which rows are rejected (larger: stranger)."""

    right: dict[str, np.ndarray]
    strange: dict[str, np.ndarray]

    def limit(self) -> float:
        """Return the lowest limit that keeps LEAST_ACCURACY on validation rows, else the one with most right.

        Only rejecting right rows costs accuracy, so the limit is the score of one of them.
        """
        right = np.sort(self.strange["validation"][self.right["validation"]])
        needed = int(np.ceil(LEAST_ACCURACY * len(self.right["validation"])))
        return float(right[min(needed, len(right)) - 1])

    def line(self, name: str) -> str:
        """A row of the table."""
        limit, test, oos = self.limit(), self.strange["test"], self.strange["oos_test"]
        kept = self.right["test"] & (test <= limit)
        inside, outside = stats.wilson(int(kept.sum()), len(kept)), stats.wilson(int((oos > limit).sum()), len(oos))
        both, is_oos = np.concatenate([test, oos]), np.repeat([False, True], [len(test), len(oos)])

        def auroc(rows: np.ndarray) -> float:
            return _auroc(both[rows][~is_oos[rows]], both[rows][is_oos[rows]])

        def let_in(rows: np.ndarray) -> float:
            return float((both[rows][is_oos[rows]] <= np.quantile(both[rows][~is_oos[rows]], 0.95)).mean())

        area, fpr = (stats.bootstrap_share(m, len(both), resamples=RESAMPLES) for m in (auroc, let_in))
        return f"| {name} | {inside} | {outside} | {area} | {fpr} |"

    def by_share(self, name: str) -> list[str]:
        """Return a table row for each share of validation rows that the limit accepts."""
        ranks, found = ConformalScorer.fit(self.strange["validation"]), []
        for keep in (0.995, 0.99, 0.98, 0.97, 0.95):
            kept, gone = (ranks.ood_score(self.strange[part]) <= keep for part in ("test", "oos_test"))
            shares = [(kept, len(kept)), (kept & self.right["test"], len(kept)), (~gone, len(gone))]
            cells = [str(stats.wilson(int(one.sum()), n)) for one, n in shares]
            found.append(f"| {name} | {keep} | {' | '.join(cells)} |")
        return found


def _auroc(own: np.ndarray, foreign: np.ndarray) -> float:
    """Return P(a foreign row scores higher than an own one), ties halved."""
    rising = np.sort(own)
    below, above = (np.searchsorted(rising, foreign, side=side) for side in ("left", "right"))
    return float((below + above).mean() / 2 / len(own))


def clinc(folder: Path) -> dict[str, list[str]]:
    """Return the two tables of the result page about CLINC150."""
    scope = Scope.read()
    gold = {part: scope.gold(part) for part in ("validation", "test")}
    models = [see(name, scope, folder) for name in MODELS]
    wording = worded(scope, folder)
    weights = mixture(models, gold["validation"])
    mixed = {p: sum(w * m.log_probabilities(p) for w, m in zip(weights, models, strict=True)) for p in PARTS}
    mixed = {p: log - logsumexp(log) for p, log in mixed.items()}
    lines = [_closed(models, mixed, gold, weights), HEAD, *(line for model in models for line in _alone(model, gold))]
    right = {p: mixed[p].argmax(axis=1) == gold[p] for p in gold}
    for at, score in enumerate(SCORES):
        lines.append(Answers(right, {p: wording[p][:, at] for p in PARTS}).line(f"ensemble | words: {score}"))
    lines += _fused("ensemble", right, wording, of="the words' four")
    lines.append(Answers(right, {p: -mixed[p].max(axis=1) for p in PARTS}).line("ensemble | probability"))
    heeded = {p: sum(w * _nats(m)[p] for w, m in zip(weights, models, strict=True)) for p in PARTS}
    lines.append(Answers(right, heeded).line("ensemble | each model's four, fused, counted as its answers are"))
    everything = {p: np.column_stack([wording[p], *(m.signals[p] for m in models)]) for p in PARTS}
    lines += _fused("ensemble", right, everything, of=f"all {everything['test'].shape[1]}")
    lines += _small(scope, folder, gold)
    tuned_alone = models[list(MODELS).index("tuned")]
    alone = Answers({p: tuned_alone.logits[p].argmax(axis=1) == gold[p] for p in gold}, _nats(tuned_alone))
    kept = [KEPT, *alone.by_share("fine-tuned MiniLM"), *Answers(right, heeded).by_share("ensemble")]
    return {"clinc": lines, "kept": kept}


def _alone(model: Seen, gold: dict[str, np.ndarray]) -> list[str]:
    """Return the table rows of one model: each of its signals, and all four."""
    right, name = {p: model.logits[p].argmax(axis=1) == gold[p] for p in gold}, MODELS[model.name][1]
    by_signal = [
        Answers(right, {p: model.signals[p][:, at] for p in PARTS}).line(f"{name} | {signal}")
        for at, signal in enumerate(STATE_FEATURES)
    ]
    return [*by_signal, *_fused(name, right, model.signals)]


def _small(scope: Scope, folder: Path, gold: dict[str, np.ndarray]) -> list[str]:
    """Return the table rows of a model trained with the out-of-scope rows as a label."""
    small, oos_label = see_small(scope, folder)
    right = {p: small.logits[p].argmax(axis=1) == gold[p] for p in gold}
    name = "SmolLM2-135M, trained with the 100 as a label"
    return [Answers(right, oos_label).line(f"{name} | probability of that label"), *_fused(name, right, small.signals)]


def _nats(model: Seen) -> dict[str, np.ndarray]:
    """Return minus the logarithm of each row's p-value by the model's four signals together."""
    fusion = ScoreFusion.fit(model.signals["validation"])
    return {part: fusion.fused.neg_log_p_values(fusion.nonconformity(model.signals[part])) for part in PARTS}


def _closed(
    models: Sequence[Seen], mixed: dict[str, np.ndarray], gold: dict[str, np.ndarray], weights: np.ndarray
) -> str:
    """Return in-scope accuracy without rejection and the cost, of every model and of the ensemble."""
    lines = [
        "| answers by | weight | in-scope accuracy, nothing rejected | ms of one core a text |",
        "|---|---|---|---|",
    ]
    named = [(MODELS[m.name][1], f"{w:.1f}", m.logits["test"], m.ms) for m, w in zip(models, weights, strict=True)]
    busy = sum(m.ms for m, w in zip(models, weights, strict=True) if w)
    for name, weight, logits, ms in (*named, ("ensemble", "", mixed["test"], busy)):
        right = logits.argmax(axis=1) == gold["test"]
        lines.append(f"| {name} | {weight} | {stats.wilson(int(right.sum()), len(right))} | {ms:.1f} |")
    return "\n".join(lines) + "\n"


def _fused(
    name: str, right: dict[str, np.ndarray], scores: dict[str, np.ndarray], *, of: str = "its four"
) -> list[str]:
    """Return the table rows of scores fused without out-of-scope rows, and with the 100 training ones."""
    found = []
    for foreign, title in ((None, f"{of}, fused"), (scores["oos_train"], f"{of}, weighed on 100 out-of-scope rows")):
        fusion = ScoreFusion.fit(scores["validation"])
        nats = {part: fusion.neg_log_p_values(scores[part]) for part in PARTS}
        weights = np.ones(len(fusion.ranks))
        if foreign is not None:
            weights = _weights(nats["validation"], fusion.neg_log_p_values(foreign))
        strange = {part: nats[part] @ weights for part in PARTS}
        found.append(Answers(right, strange).line(f"{name} | {title}"))
    return found


def _weights(own: np.ndarray, foreign: np.ndarray) -> np.ndarray:
    """Return the weights of a balanced logistic regression of own rows against foreign ones, at least 0."""
    from sklearn.linear_model import LogisticRegression

    features, is_foreign = np.vstack([own, foreign]), np.repeat([0, 1], [len(own), len(foreign)])
    fitted = LogisticRegression(class_weight="balanced").fit(features, is_foreign)
    return np.maximum(fitted.coef_[0], 0)


HEAD = """| answers by | rejected by | in-scope accuracy | out-of-scope recall | AUROC | FPR at 95 % TPR |
|---|---|---|---|---|---|"""

KEPT = """| limit accepts, of validation rows | share | in-scope rows accepted | in-scope accuracy | out-of-scope recall |
|---|---|---|---|---|"""

PAGE = """# Out of domain

`python -m benchmarks.routing.out_of_domain FOLDER`, {today}, one of 2 shared cores, Zen 5, 24 GB. Needs the sets of
`benchmarks/accuracy/run.py`, the weights of MiniLM and the run of `python -m benchmarks.accuracy.run clinc150` in SMALLFIRST_HOME.

## CLINC150 without out-of-scope training rows

Official splits: 15,000 training, 3,000 validation and 4,500 test rows in scope, 1,000 test rows out of it. No model
below but the last has seen an out-of-scope row, and all is chosen on in-scope validation rows: epoch, temperatures, the
ensemble's weights (least loss), ranks, and the limit, which is the strictest that leaves {least:.1%} of validation rows
right and accepted. **In-scope accuracy counts a rejected row as wrong**, as Larson et al. (2019) do; their BERT has 0.962
with an out-of-scope recall of 0.523, or 0.969 with 0.403. AUROC: probability that a row out of scope scores higher than one in scope.
FPR at 95 % TPR: rows out of scope accepted by a limit that accepts 95 % of the test rows in scope. 95 % intervals: Wilson;
bootstrap over {resamples} resamples for the last two columns.

{clinc}

The limit chosen by the accuracy target accepts about 98 % of the rows in scope. By the share that a limit accepts, as
`fit_signature(keep=...)` sets it, with the four signals fused without out-of-scope rows:

{kept}

How scores are fused was fixed before a test row was scored: by Fisher's method, each model's score having the same weight in the
ensemble as its answers.

## `auto`: three tasks and open requests

Signatures of three tasks from their own training and selection rows (of Banking77 {n_banking77} selection rows, SNIPS
{n_snips_slots}, MedQuAD {n_medquad_short}); the limit of each accepts 97 % of its requests, which so few rows fix to
a point or two. Rows are test requests; none of the open ones was fitted on, but where it says so. `second look`: share
of requests for which the encoder was asked. `right`: went to its task, or to none for open requests. The words' fourth
score (`unlike`) was added after a first measurement, in which words alone sent 46 % of nq_open to snips_slots; it was
picked on validation rows of other sets.

Time: requests one by one in a fresh process with one thread, nothing else running. Memory is the process's.

{auto}
"""


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1]).absolute()
    (folder / "clinc").mkdir(parents=True, exist_ok=True)
    parts = {**clinc(folder / "clinc"), "auto": out_of_domain_auto.page(folder)}
    told: dict[str, object] = {f"n_{t}": len(out_of_domain_auto.rows(t)[1]) for t in out_of_domain_auto.TASKS}
    told |= {"today": date.today(), "least": LEAST_ACCURACY, "resamples": RESAMPLES}
    text = PAGE.format(**told, **{name: "\n".join(lines) for name, lines in parts.items()})
    RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
