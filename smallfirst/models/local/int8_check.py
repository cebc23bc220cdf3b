"""int8 arithmetic only at equal answers: a model reads selection rows in both precisions, and the result is recorded.

The proof is that evaluation, gate, certificate and parity then measure the chosen arithmetic on other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smallfirst.data.dataset import Dataset
from smallfirst.errors import DataError
from smallfirst.models.label_model import LabelLogProbs, Scorer
from smallfirst.models.manifest import INT8_FILE, Int8Check, Manifest, read_manifest
from smallfirst.stats.intervals import Estimate, paired_difference, wilson

MIN_ROWS = 100
"""Fewer rows decide nothing: one row would be more than a point."""
MIN_AGREEMENT = 0.98
"""Share of rows with the same label."""
MAX_ACCURACY_LOSS = 0.01
"""Accuracy that may be lost on them."""


def compare(
    exact: Sequence[LabelLogProbs],
    int8: Sequence[LabelLogProbs],
    gold: Sequence[int],
    *,
    manifest: Manifest,
    rows: str,
) -> Int8Check:
    """Compare the answers to the same rows in both precisions; `gold` holds label indices.

    int8 is kept if, on MIN_ROWS or more, MIN_AGREEMENT of labels agree and at most MAX_ACCURACY_LOSS is lost. Raise
    DataError without rows.
    """
    if not exact:
        raise DataError(f"{rows}: no rows to check int8 on")
    first, second = (np.array([row.log_probabilities for row in scored]) for scored in (exact, int8))  # (rows, labels)
    before, after = first.argmax(axis=1), second.argmax(axis=1)
    agreement = wilson(int((before == after).sum()), len(before))
    unchanged = np.take_along_axis(second, before[:, None], 1)[:, 0]
    right_before, right_after = before == np.asarray(gold), after == np.asarray(gold)
    difference = paired_difference(right_after.tolist(), right_before.tolist())
    kept, why = _decide(agreement, difference)
    return Int8Check(
        weights_fingerprint=manifest.weights_fingerprint,
        agreement=agreement,
        difference=difference,
        exact_right=int(right_before.sum()),
        int8_right=int(right_after.sum()),
        mean_shift=float(np.abs(np.exp(first.max(axis=1)) - np.exp(unchanged)).mean()),
        rows=rows,
        kept=kept,
        why=why,
    )


def check_int8(folder: Path, data: Dataset) -> Int8Check | None:
    """Check a folder on selection rows, before evaluation, and write the record; None if int8 is not possible."""
    manifest = read_manifest(folder)
    loaded = _in_both_precisions(folder, manifest)
    if loaded is None:
        return None
    exact, int8 = loaded
    texts = [example.text for example in data.examples]
    index = {label: i for i, label in enumerate(manifest.task.closed)}
    gold = [index.get(example.answer, -1) for example in data.examples]
    found = compare(exact.score(texts), int8.score(texts), gold, manifest=manifest, rows=data.name)
    found.save(folder / INT8_FILE)
    return found


def _in_both_precisions(folder: Path, manifest: Manifest) -> tuple[Scorer, Scorer] | None:
    if manifest.kind == "encoder":
        from smallfirst.models.linear.classifier import LinearClassifier

        exact = LinearClassifier.load(folder, manifest, int8=False)
        if exact.encoder is None or exact.encoder.engine is None:
            return None
        return exact, LinearClassifier.load(folder, manifest, int8=True)
    if manifest.kind != "label_tokens":
        return None
    from smallfirst.models.local.label_scorer import LabelScorer

    int8 = LabelScorer.load(folder, manifest, engine="int8")
    return (LabelScorer.load(folder, manifest, engine="packed"), int8) if int8.engine == "int8" else None


def _decide(agreement: Estimate, difference: Estimate) -> tuple[bool, str]:
    if agreement.n < MIN_ROWS:
        return False, f"{agreement.n} rows are too few to decide on; at least {MIN_ROWS} are needed"
    if agreement.value < MIN_AGREEMENT:
        return False, f"the same label on {agreement}, but at least {MIN_AGREEMENT:.0%} is required"
    if difference.value < -MAX_ACCURACY_LOSS:
        return False, f"accuracy changes by {difference}, but no more than {MAX_ACCURACY_LOSS:.0%} may be lost"
    return True, f"the same label on {agreement}, accuracy changes by {difference}"
