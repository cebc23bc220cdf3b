"""The record of an int8 check, kept beside the weights it was made for; it decides whether they are read in int8."""

from __future__ import annotations

from pathlib import Path

from pydantic import AliasChoices, Field

from smallfirst.models.manifest import Manifest
from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate

INT8_FILE = "int8.json"
OLD_INT8_FILE = "eight_bits.json"
"""Name of the file in model folders of before 2026-11-26."""


class Int8Check(Record):
    """How int8 arithmetic changed a model's answers on some rows."""

    weights_fingerprint: str
    """Of the weights that were checked."""
    agreement: Estimate
    """Share of rows with the same likeliest label."""
    difference: Estimate | None = None
    """Accuracy in int8 minus accuracy in the model's own precision, same rows; None without gold labels."""
    exact_right: int | None = None
    """Rows answered correctly in the model's own precision."""
    int8_right: int | None = Field(default=None, validation_alias=AliasChoices("int8_right", "eight_bits_right"))
    """Rows answered correctly in int8."""
    mean_shift: float
    """Mean absolute change of the likeliest label's probability, in [0, 1]."""
    rows: str
    """Name of the rows."""
    kept: bool
    """True if the model is read in int8 from now on, where the processor supports it."""
    why: str
    """The reason, in one sentence."""


def int8_allowed(folder: Path, manifest: Manifest) -> bool:
    """Return whether a check in the folder, made for these weights, allows int8.

    What follows a dash in the manifest's fingerprint was fitted to the weights later, and does not count.
    """
    path = next((path for name in (INT8_FILE, OLD_INT8_FILE) if (path := folder / name).is_file()), None)
    if path is None or not manifest.weights_fingerprint:
        return False
    found = Int8Check.load(path)
    return found.kept and found.weights_fingerprint == manifest.weights_fingerprint.partition("-")[0]
