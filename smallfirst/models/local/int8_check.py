"""Eight bits only at equal answers: a model is read both ways on rows, and what was seen is kept beside its weights.

In eight bits a product takes half the time or less, and rounds. Whether the rounding changes answers is a matter of the
model, so it is chosen on selection rows, as the best epoch is, before anything is measured: the file travels with the
model folder and says for which weights it was made. A choice on a few hundred rows proves nothing; the proof is that
evaluation, gate, certificate and parity then measure the arithmetic that was chosen, on other rows. A model without
such a file is read in its own precision. The price is reading the selection rows twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smallfirst.data.dataset import Dataset
from smallfirst.errors import DataError
from smallfirst.files import write_atomically
from smallfirst.models.label_model import LabelLogProbs
from smallfirst.models.manifest import Manifest
from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate, paired_difference, wilson

INT8_FILE = "eight_bits.json"
MIN_ROWS = 100
"""Rows below which nothing is chosen: one row would be more than a point."""
MIN_AGREEMENT = 0.98
"""Share of rows with the same label."""
MAX_ACCURACY_LOSS = 0.01
"""Accuracy that may be lost on them."""


class Int8Check(Record):
    """What eight bits did to a model's answers on some rows."""

    weights_fingerprint: str
    """Of the weights that were checked."""
    agreement: Estimate
    """Share of rows with the same likeliest label."""
    difference: Estimate | None = None
    """Accuracy in eight bits minus accuracy in the model's own precision, same rows; None without gold labels."""
    exact_right: int | None = None
    """Rows answered right in the model's own precision."""
    eight_bits_right: int | None = None
    """Rows answered right in eight bits."""
    mean_shift: float
    """Mean absolute change of the likeliest label's probability, in [0, 1]."""
    rows: str
    """Which rows these were."""
    kept: bool
    """True if the model is read in eight bits from now on, where the processor has them."""
    why: str
    """One sentence a person understands."""


def compare(
    exact: Sequence[LabelLogProbs],
    eight: Sequence[LabelLogProbs],
    gold: Sequence[int] | None,
    *,
    manifest: Manifest,
    rows: str,
) -> Int8Check:
    """What the same rows, read both ways, say. `gold` holds places of labels.

    Kept if on ROWS_AT_LEAST rows or more at least AGREE_AT_LEAST of the labels are the same and, with gold, at most
    LOSE_AT_MOST accuracy is lost. Raises DataError if there are no rows.
    """
    if not exact:
        raise DataError(f"{rows}: no rows to check eight bits on")
    first, second = (np.array([row.log_probabilities for row in scored]) for scored in (exact, eight))  # (rows, labels)
    said, now = first.argmax(axis=1), second.argmax(axis=1)
    agreement = wilson(int((said == now).sum()), len(said))
    shift = float(np.abs(np.exp(first.max(axis=1)) - np.exp(np.take_along_axis(second, said[:, None], 1)[:, 0])).mean())
    difference, before_right, after_right = None, None, None
    if gold is not None:
        before, after = said == np.asarray(gold), now == np.asarray(gold)
        difference = paired_difference(after.tolist(), before.tolist())
        before_right, after_right = int(before.sum()), int(after.sum())
    kept, why = _verdict(agreement, difference)
    return Int8Check(
        weights_fingerprint=manifest.weights_fingerprint,
        agreement=agreement,
        difference=difference,
        exact_right=before_right,
        eight_bits_right=after_right,
        mean_shift=shift,
        rows=rows,
        kept=kept,
        why=why,
    )


def check_int8(folder: Path, data: Dataset) -> Int8Check | None:
    """The check of a model folder on selection rows, written beside its weights; None if it cannot be read so.

    Answers may change by it, so it belongs before evaluation, certificate and promotion. Never give it rows that judge.
    """
    from smallfirst.models.local.label_scorer import LabelScorer
    from smallfirst.models.manifest import read_manifest

    manifest = read_manifest(folder)
    if manifest.kind != "codes":
        return None
    exact = LabelScorer.load(folder, manifest, engine="packed")
    eight = LabelScorer.load(folder, manifest, engine="eight bits")
    if eight.engine != "eight bits":
        return None
    texts = [example.text for example in data.examples]
    places = {label: at for at, label in enumerate(manifest.task.closed)}
    gold = [places.get(example.answer, -1) for example in data.examples]
    found = compare(exact.score(texts), eight.score(texts), gold, manifest=manifest, rows=data.name)
    write_atomically(folder / INT8_FILE, found.model_dump_json(indent=2).encode())
    return found


def int8_allowed(folder: Path, manifest: Manifest) -> bool:
    """Whether a check in the folder, made for these weights, allows eight bits."""
    path = folder / INT8_FILE
    if not path.is_file() or not manifest.weights_fingerprint:
        return False
    found = Int8Check.load(path)
    return found.kept and found.weights_fingerprint == manifest.weights_fingerprint


def _verdict(agreement: Estimate, difference: Estimate | None) -> tuple[bool, str]:
    if agreement.n < MIN_ROWS:
        return False, f"{agreement.n} rows are too few to choose on, {MIN_ROWS} are enough"
    if agreement.value < MIN_AGREEMENT:
        return False, f"the same label on {agreement}, and on at least {MIN_AGREEMENT:.0%} it must be"
    if difference is not None and difference.value < -MAX_ACCURACY_LOSS:
        return False, f"accuracy changes by {difference}, and no more than {MAX_ACCURACY_LOSS:.0%} may be lost"
    return True, f"the same label on {agreement}" + (f", accuracy changes by {difference}" if difference else "")
