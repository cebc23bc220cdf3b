"""The record of a run's outcome can be saved and read again."""

from __future__ import annotations

from pathlib import Path

from smallfirst.gate.verdict import LabelsNeeded, Outcome
from smallfirst.stats.intervals import wilson


def test_an_outcome_is_read_as_it_was_saved(tmp_path: Path) -> None:
    needed = LabelsNeeded(part="calibration", n_rows=90, n_data_rows=560, usd=4.2, priced_by="a person", in_words="90")
    saved = Outcome(
        kind="cannot be told yet", sentence="Label.", share_small=wilson(8, 10), n_kept=8, labels_needed=needed
    )
    saved.save(tmp_path / "outcome.json")
    assert Outcome.load(tmp_path / "outcome.json") == saved
