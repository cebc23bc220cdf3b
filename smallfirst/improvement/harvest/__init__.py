"""Turn served and judged answers into training rows, which train and never measure: they are no random sample."""

from smallfirst.improvement.harvest.evidence import open_ledger
from smallfirst.improvement.harvest.harvest import harvest
from smallfirst.improvement.harvest.result import HarvestResult

__all__ = ["HarvestResult", "open_ledger", "harvest"]
