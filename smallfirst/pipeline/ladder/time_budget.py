"""The time that a run may take, from its start: a part of it is kept for what comes after the ladder."""

from __future__ import annotations

from smallfirst.project.project import Project

REST_SHARE, REST_S = 0.05, 10.0
"""Kept for gate, certificate, Router and report: a share of the time, and seconds."""


class TimeBudget:
    """Seconds that are left of `minutes` since the run began, on the clock of its progress."""

    def __init__(self, project: Project, *, used_minutes: float = 0.0) -> None:
        """`used_minutes` were used before a run was resumed."""
        assert project.file.minutes is not None
        self.total_s = 60 * project.file.minutes
        self._clock = project.progress.clock
        self._began = project.progress.began - 60 * used_minutes
        self._kept_s = REST_SHARE * self.total_s + REST_S

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
