"""Turn served and judged answers into training rows.

They are no random sample of the traffic, so they train and never measure.
"""

from smallfirst.improvement.harvest.evidence import open_ledger
from smallfirst.improvement.harvest.harvest import harvest
from smallfirst.improvement.harvest.result import HarvestResult

__all__ = ["HarvestResult", "open_ledger", "harvest"]
