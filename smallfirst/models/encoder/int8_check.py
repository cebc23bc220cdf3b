"""An encoder reads in int8 only at equal answers: it reads selection rows in both precisions, and that is recorded.

The proof is that evaluation, gate, certificate and parity then measure the chosen arithmetic on other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smallfirst.base.errors import DataError
from smallfirst.base.stats.intervals import paired_difference, wilson
from smallfirst.data.dataset import Dataset
from smallfirst.models.label_model import LabelLogProbs
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.manifest import INT8_FILE, Int8Check, read_manifest

MIN_ROWS = 100
"""Fewer rows decide nothing: one row would be more than a point."""
MIN_AGREEMENT = 0.98
"""Share of rows with the same label."""
MAX_ACCURACY_LOSS = 0.01
"""Accuracy that may be lost on them."""


def check_int8(folder: Path, data: Dataset) -> Int8Check | None:
    """Check a folder on selection rows, before evaluation, and write the record; None if int8 is not possible."""
    manifest = read_manifest(folder)
    if manifest.kind != "encoder":
        return None
    exact = LinearClassifier.load(folder, manifest, int8=False)
    if exact.encoder is None or exact.encoder.engine is None:
        return None
    int8 = LinearClassifier.load(folder, manifest, int8=True)
    texts = [example.text for example in data.examples]
    index = {label: i for i, label in enumerate(manifest.task.closed)}
    gold = [index.get(example.answer, -1) for example in data.examples]
    found = compare(exact.score(texts), int8.score(texts), gold, weights_fingerprint=manifest.weights_fingerprint)
    found.save(folder / INT8_FILE)
    return found


def compare(
    exact: Sequence[LabelLogProbs], int8: Sequence[LabelLogProbs], gold: Sequence[int], *, weights_fingerprint: str
) -> Int8Check:
    """Compare the answers to the same rows in both precisions; `gold` holds label indices.

    int8 is kept if, on MIN_ROWS or more, MIN_AGREEMENT of labels agree and at most MAX_ACCURACY_LOSS is lost. Raise
    DataError without rows.
    """
    if not exact:
        raise DataError("no rows to check int8 on")
    before, after = (np.array([row.log_probabilities for row in scored]).argmax(axis=1) for scored in (exact, int8))
    agreement = wilson(int((before == after).sum()), len(before))
    difference = paired_difference((after == np.asarray(gold)).tolist(), (before == np.asarray(gold)).tolist())
    kept, why = False, f"the same label on {agreement}, accuracy changes by {difference}"
    if agreement.n < MIN_ROWS:
        why = f"{agreement.n} rows are too few to decide on; at least {MIN_ROWS} are needed"
    elif agreement.value < MIN_AGREEMENT:
        why = f"the same label on {agreement}, but at least {MIN_AGREEMENT:.0%} is required"
    elif difference.value < -MAX_ACCURACY_LOSS:
        why = f"accuracy changes by {difference}, but no more than {MAX_ACCURACY_LOSS:.0%} may be lost"
    else:
        kept = True
    return Int8Check(
        weights_fingerprint=weights_fingerprint, agreement=agreement, difference=difference, kept=kept, why=why
    )
