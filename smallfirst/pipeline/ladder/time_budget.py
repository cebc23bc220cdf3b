"""The time that a run may take, from its start: a part of it is kept for what comes after the ladder."""

from __future__ import annotations

from smallfirst.project.project import Project

REST_SHARE, REST_S = 0.05, 10.0
"""Kept for gate, certificate, Router and report: a share of the time, and seconds."""
REST_FACTOR = 2.0
"""They take at least so many times as long as it took to read and to check the rows."""


class TimeBudget:
    """Seconds that are left of `minutes` since the run began, on the clock of its progress."""

    def __init__(self, project: Project, *, began: float | None = None, used_minutes: float = 0.0) -> None:
        """The run `began` at this time of its progress's clock, None: now; `used_minutes` were used before."""
        assert project.file.minutes is not None
        self.total_s = 60 * project.file.minutes
        self._clock = project.progress.clock
        now = self._clock()
        before_s = now - (now if began is None else began)
        self._began = now - before_s - 60 * used_minutes
        self._kept_s = REST_SHARE * self.total_s + max(REST_S, REST_FACTOR * before_s)

    @property
    def used_s(self) -> float:
        """Seconds used so far."""
        return self._clock() - self._began

    @property
    def left_s(self) -> float:
        """Seconds left for candidates."""
        return self.total_s - self.used_s - self._kept_s

    def keep(self, seconds: float) -> None:
        """Keep so many more seconds for later, such as to measure what was fitted."""
        self._kept_s += seconds
