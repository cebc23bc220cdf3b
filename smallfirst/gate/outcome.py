"""The outcome of a run: one of four verdicts about what goes live, with its proof."""

from __future__ import annotations

from typing import Literal

from smallfirst.gate.verdict import Verdict
from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate

OutcomeKind = Literal["small alone", "small first", "keep the large model", "cannot be told yet"]
"""`small alone`: a small model answers every request of the task. `small first`: it answers those that a certificate
covers, and the others go to the large model, or to a person where there is none. `cannot be told yet`: more labelled
rows are likely to decide."""


class PlanTrial(Record):
    """One plan that was certified on calibration rows and confirmed, or not, on test rows."""

    candidate: str
    share_expected: float
    """Share of requests that selection rows let expect to stay small, in [0, 1]; by it the plans were ordered."""
    usd_per_1k_expected: float | None = None
    """Cost of 1,000 requests that selection rows let expect; None without a price of the large model."""
    verdict: Verdict
    """What the certificate and the test rows showed."""


class LabelsNeeded(Record):
    """Rows to label before it can be told."""

    part: Literal["calibration", "test"]
    """The part of the rows that is too small."""
    n_rows: int
    """Rows of that part that are missing."""
    n_data_rows: int
    """Rows to add to the data file, from which that part is split off."""
    usd: float | None = None
    """What labelling them costs in USD; None if no price is known."""
    priced_by: str = ""
    """Whose price it is: "a person" or "the large model"; empty without one."""
    in_words: str
    """As a phrase, such as "90 more calibration rows, which is about 560 more rows in rows.jsonl"."""


class Outcome(Record):
    """What a run decided."""

    kind: OutcomeKind
    sentence: str
    """What to do and why, for a person, in one or two sentences."""
    candidate: str | None = None
    """The candidate that answers small; None if the large model is kept or nothing can be told."""
    share_small: Estimate | None = None
    """Share of the test requests that stay small, with its 95 % interval; None if nothing goes live."""
    share_of_bill: float | None = None
    """Cost of the plan over the large model's on the same test rows; None without a price of both."""
    promise: str = ""
    """The guarantee in words; empty without a certificate."""
    n_kept: int = 0
    """Test rows that the certificate covers."""
    n_kept_wrong: int = 0
    """Wrong answers among them."""
    labels_needed: LabelsNeeded | None = None
    """The fewest rows that are likely to decide it; None unless the verdict is `cannot be told yet`."""
    trials: tuple[PlanTrial, ...] = ()
    """The plans that were tried because no candidate passed its gate alone, in order."""
