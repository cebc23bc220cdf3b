"""Turn served and judged answers into training rows.

    ledger ─ hear ─▶ voices on texts ─ settle ─▶ one answer a text ─ sift, redact ─▶ rows, HarvestResult

The price is that rows come from where the Router was in doubt, or where somebody complained: they are no random sample
of the traffic, so they train and never measure.
"""

from smallfirst.improvement.harvest.evidence import open_ledger
from smallfirst.improvement.harvest.harvest import harvest
from smallfirst.improvement.harvest.result import HarvestResult

__all__ = ["HarvestResult", "open_ledger", "harvest"]
