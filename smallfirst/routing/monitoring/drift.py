"""Detect drift in one statistic of a task's requests (`smallfirst.stats.sequential.DriftTest`).

After an alarm a fixed number of requests becomes the new reference, and the false-alarm rate is halved, so that all
alarms together stay below what was allowed.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Collection, Sequence
from typing import Literal

from smallfirst.records import Record
from smallfirst.stats.sequential import DriftTest

Statistic = Literal["confidence", "ood_score", "label"]
"""A statistic of requests that may drift."""
MIN_FALSE_ALARM_RATE = 1e-12
"""Where the halving of the false-alarm rate ends, after some forty alarms."""
_N_RECENT = 200
"""Requests that an alarm describes."""
_MIN_REFERENCE, _MAX_REFERENCE = 200, 2000
"""Size of the reference that is gathered after an alarm, whatever the size of the first."""


class DriftReading(Record):
    """How far one statistic is from an alarm."""

    statistic: Statistic
    what: str
    """Its recent and its usual value in words; empty before the first request."""
    evidence: float
    """Evidence of a change; 1 or less on average without one."""
    alarm_at: float
    learning: bool
    """True while requests after an alarm become the new reference, during which nothing is watched."""


class DriftDetector:
    """Watch one statistic; a false alarm ever comes with probability `error` at most. Labels are hashed to numbers."""

    def __init__(self, name: Statistic, reference: Sequence[float | str], error: float) -> None:
        self.name, self._error, self._processes = name, error, 1
        self.why = ""
        """The last alarm in a sentence."""
        self.evidence: dict[str, float] = {}
        """Its figures."""
        self._size = min(max(len(reference), _MIN_REFERENCE), _MAX_REFERENCE)
        self._gathered: list[float | str] | None = None
        self._recent: deque[float | str] = deque(maxlen=_N_RECENT)
        self._start(reference)

    def observe(self, value: float | str | None, *, processes: int = 1) -> bool:
        """Add one value, ignoring None; return True if it raises an alarm.

        So many processes share the level: each tests its own requests, and needs as many times the evidence.
        """
        self._processes = processes
        if value is None:
            return False
        if self._gathered is not None:
            self._gathered.append(value)
            if len(self._gathered) == self._size:
                self._start(self._gathered)
            return False
        self._recent.append(value)
        self._test.update(_as_number(value))
        if drifted := self._test.e_value >= self._alarm_at:
            self._alarm()
        return drifted

    @property
    def _alarm_at(self) -> float:
        return self._processes / self._error

    @property
    def reading(self) -> DriftReading:
        """Return where the statistic stands now."""
        what = self._compared() if self._recent else ""
        values = {"statistic": self.name, "what": what, "evidence": self._test.e_value, "alarm_at": self._alarm_at}
        return DriftReading.model_validate({**values, "learning": self._gathered is not None})

    def _start(self, reference: Sequence[float | str]) -> None:
        self._error = max(self._error / 2, MIN_FALSE_ALARM_RATE)
        self._test = DriftTest([_as_number(value) for value in reference], 1 - self._error)
        self._usual, self._gathered = _summary(reference), None

    def _alarm(self) -> None:
        found, alarm_at = self._test.e_value, self._alarm_at
        self.evidence = {"evidence": found, "alarm_at": alarm_at}
        compared = f"evidence {found:.0f} to 1 (alarm at {alarm_at:.0f})"
        self.why = f"the requests have changed: {self._compared()}; {compared}"
        self._gathered = []
        self._recent.clear()

    def _compared(self) -> str:
        now = _summary(self._recent)
        most = max(now, key=lambda name: now[name] - self._usual.get(name, 0.0))
        name = self.name.replace("ood_score", "out-of-domain score")
        what = f"share of the answer {most!r}" if self.name == "label" else f"mean {name}"
        return f"{what} {now[most]:.3f} over the last {len(self._recent)}, {self._usual.get(most, 0.0):.3f} before"


def _as_number(value: float | str) -> float:
    if isinstance(value, str):
        return float(int.from_bytes(hashlib.blake2b(value.encode(), digest_size=6).digest()))
    return value


def _summary(values: Collection[float | str]) -> dict[str, float]:
    labels = Counter(value for value in values if isinstance(value, str))
    if labels:
        return {label: count / len(values) for label, count in labels.items()}
    return {"mean": sum(value for value in values if not isinstance(value, str)) / len(values)}
