"""Simulate monitors after go-live: how soon an alarm comes, how many are false, and what they cost.

    python -m benchmarks.routing.monitors audits|drafts [--lives 200]

Nothing is read: errors and differences are drawn, and the package's own Monitor and DraftWatch see them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np

from smallfirst.base.stats.intervals import clopper_pearson
from smallfirst.routing.monitor import UNIFORM, AuditAllocation, Monitor, MonitorSettings, Quantity
from smallfirst.traffic.gateway.draft_watch import WEEK_H, DraftWatch

LIMIT = Quantity("error", 0.04, "at most 4 % wrong")
UNSURE_FIRST = AuditAllocation((0.5,), (1.5, 0.5))
"""What `allocate_audits` makes of confidences whose surer half is wrong less often."""
KEPT = ((0.02, 0.02, 0), (0.03, 0.03, 0), (0.04, 0.04, 0))
COURSES = (*KEPT, (0.04, 0.08, 0), (0.04, 0.08, 11_000), (0.02, 0.08, 11_000))
"""Error rates before and after a change, and the answers before it; 11,000 come after it, or 25,000 where none is."""
WEEKS = 4


def audited(
    draw: np.random.Generator, monitor: Monitor, course: tuple[float, float, int], n: int, sure: float
) -> tuple[float, int]:
    """Return at which of `n` answers the alarm came, else infinity, and the number of audits.

    The surer half of the answers has the share `sure` of the errors.
    """
    at = n_audits = 0
    while (at := at + int(draw.geometric(monitor.audit_share))) <= n:
        draws = [monitor.plan_audit(confidence) for confidence in (0.4, 0.6)]
        is_sure = draw.random() * (draws[0].propensity + draws[1].propensity) < draws[1].propensity
        wrong = draw.random() < 2 * course[at > course[2]] * (sure if is_sure else 1 - sure)
        n_audits += 1
        if monitor.record(wrong, draws[is_sure].weight):
            return at, n_audits
    return np.inf, n_audits


def audits(lives: int) -> Iterator[str]:
    """Yield a line for each course of the error; at the limit five times as many lives."""
    yield "| wrong | errors in the surer half | more on suspicion | alarms | median | audited |"
    for sure in (0.5, 0.2):
        for course in COURSES:
            for suspicious in (0.02, 0.1):
                error, then, change = course
                n = 25_000 if error == then else change + 11_000
                draw, found = np.random.default_rng(0), []
                for _ in range(lives * (5 if then == LIMIT.limit else 1)):
                    chosen = MonitorSettings(audit_share=0.02, audit_share_on_suspicion=suspicious)
                    monitor = Monitor(chosen, quantities=[LIMIT], allocation=UNIFORM if sure == 0.5 else UNSURE_FIRST)
                    found.append(audited(draw, monitor, course, n, sure))
                after = np.array([at - change for at, _ in found if at > change])
                spent = sum(k for _, k in found) / sum(min(at, n) for at, _ in found)
                alarms, median = (
                    shown(int(np.isfinite(after).sum()), len(after)),
                    np.quantile(after, 0.5, method="higher"),
                )
                about = f"{error:.0%}, then {then:.0%} after {change:,}" if error != then else f"{error:.0%}"
                yield f"| {about} | {sure:.0%} | {suspicious:.0%} | {alarms} | {median:,.0f} | {spent:.2%} |"


PATTERNS: dict[str, Callable[[int], float]] = {
    "30 %": lambda hour: 0.3,
    "25 %, weekends 35 %": lambda hour: 0.35 if hour % WEEK_H >= 120 else 0.25,
    "25 %, nights 35 %": lambda hour: 0.35 if hour % 24 < 8 else 0.25,
}


def drafts(lives: int) -> Iterator[str]:
    """Yield a line for each pattern: steps back within four weeks, or after shares grow in the middle of them."""
    yield "| differ | drafts a week | then times | steps back | median |"
    for name, share in PATTERNS.items():
        for per_week, times in ((700, 1), (2_000, 1), (2_000, 1.5), (2_000, 2)):
            draw = np.random.default_rng(0)
            found = np.array([_step_back(draw, share, per_week, times) for _ in range(lives)])
            after = found[found > 0]
            median = np.quantile(after, 0.5, method="higher") * per_week / WEEK_H
            alarms = shown(int(np.isfinite(after).sum()), len(after))
            yield f"| {name} | {per_week:,} | {times:g} | {alarms} | {median:,.0f} |"


def _step_back(draw: np.random.Generator, share: Callable[[int], float], per_week: int, times: float) -> float:
    """Return after how many hours since the middle, or since the start where nothing changes, it stepped back."""
    watch, n_hours = DraftWatch(), WEEKS * WEEK_H
    change = n_hours // 2 if times > 1 else 0
    for hour in range(n_hours):
        found = draw.random(draw.poisson(per_week / WEEK_H)) < share(hour) * (times if hour >= change else 1)
        if len(found):
            watch, why = watch.add(found.tolist(), hour * 3600.0)
            if why:
                return hour + 1 - change
    return np.inf


def shown(k: int, n: int) -> str:
    found = clopper_pearson(k, n)
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["audits", "drafts"])
    parser.add_argument("--lives", type=int, default=200)
    args = parser.parse_args()
    for line in {"audits": audits, "drafts": drafts}[args.what](args.lives):
        print(line, flush=True)
