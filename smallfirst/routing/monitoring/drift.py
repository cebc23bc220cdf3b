"""Drift of one statistic of a task's requests: when an alarm is due, what it says, and what is usual afterwards.

The test, `smallfirst.stats.sequential.DriftTest`, compares with the calibration rows and all earlier requests. After an
alarm the watch goes on: the next requests become what it compares with, as many as were fixed beforehand, so that the
new test is as exact as the first. Its chance of a false alarm is half of the one before, so that all together stay
below what was allowed. A request costs some microseconds; some thousand values are kept in memory.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Collection, Sequence
from typing import Literal

from smallfirst.stats.sequential import DriftTest

Statistic = Literal["confidence", "doubt", "label"]
"""What drift is looked for in."""
MIN_FALSE_ALARM_RATE = 1e-12
"""Where the halving of a test's chance of a false alarm ends, after some forty alarms."""
_LATELY = 200
"""Requests that an alarm describes."""
_FEWEST, _MOST = 200, 2000
"""Size of the reference that is gathered after an alarm, whatever the size of the first."""


class DriftDetector:
    """Watches one statistic. While it is as in `reference`, false alarms ever come with probability `error` at most.

    Labels are compared as numbers and told apart by what they are; which labels there are need not be known.
    """

    def __init__(self, name: Statistic, reference: Sequence[float | str], error: float) -> None:
        self.name, self._error = name, error
        self.why = ""
        """The last alarm in a sentence."""
        self.evidence: dict[str, float] = {}
        """Its figures."""
        self._size = min(max(len(reference), _FEWEST), _MOST)
        self._gathered: list[float | str] | None = None
        self._lately: deque[float | str] = deque(maxlen=_LATELY)
        self._begin(reference)

    def observe(self, value: float | str | None) -> bool:
        """True if it raises an alarm."""
        if value is None:
            return False
        if self._gathered is not None:
            self._gathered.append(value)
            if len(self._gathered) == self._size:
                self._begin(self._gathered)
            return False
        self._lately.append(value)
        self._test.update(_number(value))
        if drifted := self._test.drifted:
            self._alarm()
        return drifted

    def _begin(self, reference: Sequence[float | str]) -> None:
        self._error = max(self._error / 2, MIN_FALSE_ALARM_RATE)
        self._test = DriftTest([_number(value) for value in reference], 1 - self._error)
        self._usual, self._gathered = _summary(reference), None

    def _alarm(self) -> None:
        found, alarm_at = self._test.e_value, 1 / self._error
        self.evidence = {"evidence": found, "alarm_at": alarm_at}
        now = _summary(self._lately)
        most = max(now, key=lambda name: now[name] - self._usual.get(name, 0.0))
        figures = f"{now[most]:.3f} over the last {len(self._lately)}, {self._usual.get(most, 0.0):.3f} before"
        what = f"share of the answer {most!r}" if self.name == "label" else f"mean {self.name}"
        self.why = f"the requests have changed: {what} {figures}; evidence {found:.0f} to 1 (alarm at {alarm_at:.0f})"
        self._gathered = []
        self._lately.clear()


def _number(value: float | str) -> float:
    """A label as a number that depends on nothing but the label: not on which labels were there, or came first."""
    if isinstance(value, str):
        return float(int.from_bytes(hashlib.blake2b(value.encode(), digest_size=6).digest()))
    return value


def _summary(values: Collection[float | str]) -> dict[str, float]:
    """The share of each label, or the mean of numbers."""
    labels = Counter(value for value in values if isinstance(value, str))
    if labels:
        return {label: count / len(values) for label, count in labels.items()}
    return {"mean": sum(value for value in values if not isinstance(value, str)) / len(values)}
