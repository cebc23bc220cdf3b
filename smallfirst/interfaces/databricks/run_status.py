"""Where a run stands, in the words and the order of Databricks' RunStatus."""

from __future__ import annotations

from enum import Enum
from functools import total_ordering


@total_ordering
class RunStatus(Enum):
    """Later means further on: UNKNOWN, PENDING, QUEUED, …, COMPLETED, STOPPED, FAILED."""

    UNKNOWN = "UNKNOWN"
    PENDING = "PENDING"
    """Submitted; its process has not said anything yet."""
    QUEUED = "QUEUED"
    """Waits for another run on this machine to end."""
    STARTING = "STARTING"
    """Reads its rows and weights."""
    RUNNING = "RUNNING"
    """Trains."""
    TERMINATING = "TERMINATING"
    """Was asked to stop and has not stopped yet."""
    COMPLETED = "COMPLETED"
    """The model is registered."""
    STOPPED = "STOPPED"
    """Was asked to stop, and stopped."""
    FAILED = "FAILED"
    """Went wrong; `details` says why."""

    def __str__(self) -> str:
        return str(self.value)

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, RunStatus):
            return NotImplemented
        places = [*RunStatus]
        return places.index(self) < places.index(other)

    def before(self, other: RunStatus, inclusive: bool = False) -> bool:
        """True if a run is in this status earlier than in the other; `inclusive` counts the same one."""
        return self < other or (inclusive and self is other)

    def after(self, other: RunStatus, inclusive: bool = False) -> bool:
        """True if a run is in this status later than in the other; `inclusive` counts the same one."""
        return self > other or (inclusive and self is other)

    def is_terminal(self) -> bool:
        """True if a run never leaves it."""
        return self in (RunStatus.COMPLETED, RunStatus.STOPPED, RunStatus.FAILED)

    @classmethod
    def from_string(cls, run_status: str | RunStatus) -> RunStatus:
        """The status of this name in any case; UNKNOWN for any other text."""
        if isinstance(run_status, RunStatus):
            return run_status
        return cls.__members__.get(run_status.strip().upper(), cls.UNKNOWN)

    @property
    def display_name(self) -> str:
        """As shown to people: `Completed`."""
        return str(self.value).capitalize()
