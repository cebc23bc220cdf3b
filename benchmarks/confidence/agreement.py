"""Measure what the agreement of a cheap candidate adds to the confidence of a draft: AUC, and the share certified.

    SMALLFIRST_DATA=FOLDER python -m benchmarks.confidence.agreement [--train-rows N] [banking77 clinc150]

`words` and `encoder` (frozen MiniLM) are fitted on the training rows, temperatures and the head on a part of the
validation rows (selection), the certificate on the others (calibration), and everything is judged on test rows. The
head is that of `routing.agreement`. Writes benchmarks/results/agreement.md; some ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.paths import RESULTS
from benchmarks.routing.frontier import as_data
from smallfirst.evaluation.calibration import fit_temperature
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, SentenceEncoder
from smallfirst.models.linear.classifier import INVERSE_REGULARIZATION, TfidfFeatures, fit_logistic_regression
from smallfirst.models.protocol import Completion
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.threshold_search import search_cascade
from smallfirst.routing.confidence_head import DraftHead
from smallfirst.stats.intervals import clopper_pearson, wilson

RESULT = RESULTS / "agreement.md"
PROMISE = 0.05
SHARES = (0.2, 0.5)
"""Shares of the validation rows that are selection rows; 0.2 is the default of `routing.selection_share`."""
RESAMPLES = 1000


class Part(NamedTuple):
    """Rows of one split, with each candidate's log-probabilities (rows, labels)."""

    gold: np.ndarray
    scores: dict[str, np.ndarray]

    def rows(self, chosen: np.ndarray) -> Part:
        return Part(self.gold[chosen], {name: score[chosen] for name, score in self.scores.items()})


def measured(folder: Path, n_train: int | None) -> tuple[list[str], dict[str, Part]]:
    """Return the labels, and validation and test rows as both candidates answer them."""
    read = {
        split: [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in ("train", "validation", "test")
    }
    if n_train is not None:
        read["train"] = [read["train"][i] for i in np.random.default_rng(0).permutation(len(read["train"]))[:n_train]]
    labels = sorted({row["label"] for rows in read.values() for row in rows})
    number = {label: i for i, label in enumerate(labels)}
    texts = {split: [row["text"] for row in rows] for split, rows in read.items()}
    gold = {split: np.array([number[row["label"]] for row in rows]) for split, rows in read.items()}
    words, encoder = TfidfFeatures.fit(texts["train"]), SentenceEncoder(find_weights(DEFAULT_ENCODER))
    found: dict[str, dict[str, np.ndarray]] = {"validation": {}, "test": {}}
    for name, features in (("words", words), ("encoder", encoder.embed)):
        weights, bias = fit_logistic_regression(
            features(texts["train"]), gold["train"], len(labels), INVERSE_REGULARIZATION[name]
        )
        for split, scores in found.items():
            scores[name] = np.asarray(features(texts[split]) @ weights.T) + bias
        print(folder.name, name, "fitted", flush=True)
    return labels, {split: Part(gold[split], scores) for split, scores in found.items()}


def answers(labels: Sequence[str], logits: np.ndarray, temperature: float) -> list[Completion]:
    """Return the answers as the candidates give them: the best label and five alternatives."""
    scaled = logits / temperature
    exp = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    completions = []
    for row in exp / exp.sum(axis=1, keepdims=True):
        best = np.argsort(-row)[:5]
        shown = tuple((labels[i], float(row[i])) for i in best)
        text, own = shown[0]
        completions.append(
            Completion(text=text, answered_by="", latency_ms=0, cost_usd=0, confidence=own, alternatives=shown)
        )
    return completions


def auc(said: np.ndarray, other: np.ndarray, right: np.ndarray) -> str:
    """Return both AUCs and the 95 % interval of their difference from resampled rows."""
    draw, n = np.random.default_rng(0), len(right)
    gains = []
    for _ in range(RESAMPLES):
        rows = draw.integers(0, n, n)
        gains.append(roc_auc_score(right[rows], other[rows]) - roc_auc_score(right[rows], said[rows]))
    low, high = np.quantile(gains, [0.025, 0.975])
    return f"{roc_auc_score(right, said):.3f} | {roc_auc_score(right, other):.3f} | {low:+.3f} to {high:+.3f}"


def kept(calibration: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> str:
    """Return the share of test rows that is kept under the certificate of the calibration rows, and what is wrong."""
    threshold = search_cascade(as_data(*calibration), Guarantee(max_error=PROMISE)).thresholds[-1]
    said, right = test
    accepted = said >= threshold
    n, wrong = int(accepted.sum()), int((accepted & ~right).sum())
    error = clopper_pearson(wrong, n) if n else "none"
    return f"{wilson(n, len(said))} | {error}"


def line(name: str, labels: Sequence[str], parts: dict[str, Part], draft: str, share: float) -> str:
    """Return the row of the table for one draft, the other candidate answering beside it."""
    (beside,) = {"words", "encoder"} - {draft}
    order = np.random.default_rng(0).permutation(len(parts["validation"].gold))
    cut = round(share * len(order))
    split = {
        "selection": parts["validation"].rows(order[:cut]),
        "calibration": parts["validation"].rows(order[cut:]),
        "test": parts["test"],
    }
    chosen_on = split["selection"]
    temperature = {one: fit_temperature(scores, chosen_on.gold) for one, scores in chosen_on.scores.items()}
    drafts, others, right = {}, {}, {}
    for where, part in split.items():
        drafts[where] = answers(labels, part.scores[draft], temperature[draft])
        others[where] = [(one,) for one in answers(labels, part.scores[beside], temperature[beside])]
        right[where] = np.array([one.text == labels[gold] for one, gold in zip(drafts[where], part.gold, strict=True)])
    head = DraftHead.fit(drafts["selection"], right["selection"].tolist(), others=others["selection"])
    print(name, draft, share, head.why, flush=True)
    own = {where: np.array([one.confidence for one in found]) for where, found in drafts.items()}
    with_head = {
        where: np.array([head.confidence(one, beside_) for one, beside_ in zip(found, others[where], strict=True)])
        for where, found in drafts.items()
    }
    before, after = (
        kept((said["calibration"], right["calibration"]), (said["test"], right["test"])) for said in (own, with_head)
    )
    sizes = f"{cut} ({int((~right['selection']).sum())} wrong) | {len(order) - cut} | {len(right['test'])}"
    what = head.why.split(" are used")[0] if head.weights else "none"
    areas = auc(own["test"], with_head["test"], right["test"])
    return f"| {name} | {draft} | {sizes} | {what} | {areas} | {before} | {after} |\n"


PAGE = """# Agreement of cheap candidates as confidence

`python -m benchmarks.confidence.agreement{options}`, {today}, one of 2 shared cores, Zen 5, 24 GB, other work beside.

One candidate drafts, the other answers beside it (`routing.agreement`). Fitted on {rows}; temperatures and
head on selection rows, the certificate (at most {promise:.0%} wrong, at 95 %) on calibration rows, judged on test rows. The
features were chosen by the head on selection rows. AUC: how well the confidence tells right from wrong drafts, before and
with the head, with the 95 % interval of the difference. Kept: share of test rows under the certificate, with 95 % intervals.

{head}{lines}"""
COLUMNS = (
    *(
        "set",
        "draft",
        "selection rows",
        "calibration",
        "test",
        "head uses",
        "AUC before",
        "with the head",
        "difference",
    ),
    *("kept before", "wrong among them", "kept with the head", "wrong among them"),
)
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sets", nargs="*", default=["banking77", "clinc150"])
    parser.add_argument("--train-rows", type=int, help="so many training rows, drawn at random; all without it")
    wanted, lines = parser.parse_args(), []
    for name in wanted.sets:
        labels, parts = measured(Path(os.environ["SMALLFIRST_DATA"]) / name, wanted.train_rows)
        lines += [line(name, labels, parts, draft, share) for draft in ("encoder", "words") for share in SHARES]
        print("".join(lines), flush=True)
        RESULT.write_text(
            PAGE.format(
                options="".join(f" {argument}" for argument in sys.argv[1:]),
                rows=f"{wanted.train_rows:,} training rows drawn at random"
                if wanted.train_rows
                else "all training rows",
                today=date.today(),
                promise=PROMISE,
                head=HEAD,
                lines="".join(lines),
            ),
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
