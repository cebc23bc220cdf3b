"""Measure how soon a broken guarantee and changed traffic are noticed after go-live, and how often an alarm is false.

    python -m benchmarks.routing.alarms     # needs MiniLM's weights; ten minutes on one core

What a request is: `alarms_traffic.py`. The monitor is `smallfirst.routing.monitoring.monitor.Monitor` as it runs in the
endpoint, with its default settings; an audit judges by the gold answer. `before` is the rule until 2026-11-26, kept here
alone: the same chance of an audit for every accepted answer, always, and `EarlierRule` on the verdicts.
Writes benchmarks/results/alarms.md.
"""

from __future__ import annotations

import os
import platform
import random
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from typing import NamedTuple

import numpy as np

from benchmarks.paths import RESULTS
from benchmarks.routing.alarms_traffic import KINDS, LIMIT, QUIET_ERROR, Candidate, Kind, Traffic
from benchmarks.routing.intervals import processor
from smallfirst.routing.certificate.guarantee import describe_limit
from smallfirst.routing.monitoring.audit_plan import UNIFORM, AuditAllocation, allocate_audits
from smallfirst.routing.monitoring.monitor import Monitor, MonitorSettings
from smallfirst.routing.monitoring.quantities import Quantity
from smallfirst.stats.intervals import clopper_pearson
from smallfirst.stats.sequential import RecoveryTest, SequentialTest

RESULT = RESULTS / "alarms.md"
N_QUIET, QUIET_REQUESTS, QUIET_DRIFT_REQUESTS = 1000, 20_000, 3000
N_CHANGED, N_DRIFT, N_QUIET_DRIFT = 200, 100, 300
SOON, LATE, PATIENCE = 500, 10_000, 20_000
SHARES = (0.02, 0.1)
ERRORS = (0.10, 0.15, 0.07)
MOST_AUDITS = 5000
NEVER = float("inf")
CHUNK = 2000


class Request(NamedTuple):
    """A request as the monitor sees it."""

    confidence: float
    label: str
    accepted: bool
    wrong: bool


class EarlierRule(SequentialTest):
    """The test until 2026-11-26: six alternatives alike, half of the false-alarm rate, early rows favoured."""

    def __init__(self) -> None:
        odds = (1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
        super().__init__(1 - (1 - MonitorSettings().confidence) / 2, [1.0] * len(odds))
        rates = [times * LIMIT / (1 - LIMIT + times * LIMIT) for times in odds]
        self._factors = [(1 - rate) / (1 - LIMIT) for rate in rates], [rate / LIMIT for rate in rates]

    def update(self, wrong: bool) -> None:
        self._bet(self._factors[wrong])


def stream(candidate: Candidate, traffic: Traffic, draw: np.random.Generator) -> Iterator[Request]:
    """Draw requests without end."""
    test, cumulative = candidate.test, np.cumsum(traffic.chance)
    names = candidate.labels
    while True:
        rows = np.minimum(np.searchsorted(cumulative, draw.random(CHUNK) * cumulative[-1]), len(cumulative) - 1)
        label, wrong = test.label[rows], test.wrong[rows] | (draw.random(CHUNK) < traffic.noise)
        if traffic.random_labels:
            random_label = draw.integers(len(names), size=CHUNK)
            replaced = draw.random(CHUNK) < traffic.random_labels
            label = np.where(replaced, random_label, label)
            wrong = np.where(replaced, random_label != candidate.gold[rows], wrong)
        columns = (test.confidence[rows].tolist(), label.tolist(), candidate.accepted[rows].tolist(), wrong.tolist())
        for confidence, which, accepted, is_wrong in zip(*columns, strict=True):
            yield Request(confidence, names[which], accepted, is_wrong)


class Life:
    """One stream under the monitor, or under the earlier rule."""

    def __init__(self, candidate: Candidate, share: float, seed: str, *, allocation: AuditAllocation | None) -> None:
        """`allocation` None: the earlier rule."""
        self.candidate, self.share = candidate, share
        self.draw = np.random.default_rng(list(seed.encode()))
        self.chance = random.Random(seed)
        self.earlier = EarlierRule() if allocation is None else None
        self.monitor = monitor_of(share, allocation or UNIFORM)
        self.accepted = self.audits = 0

    def run(self, traffic: Traffic, requests: int) -> float:
        """Return the request at which the guarantee is reported broken, or infinity."""
        for number, request in zip(range(1, requests + 1), stream(self.candidate, traffic, self.draw), strict=False):
            if request.accepted and self._audit(request):
                return number
        return NEVER

    def _audit(self, request: Request) -> bool:
        self.accepted += 1
        share, weight = (self.share, 1.0) if self.earlier else self.monitor.plan_audit(request.confidence)
        if self.chance.random() >= share:
            return False
        self.audits += 1
        if self.earlier:
            self.earlier.update(request.wrong)
            return self.earlier.rejected
        return bool(self.monitor.record_audit(request.wrong, weight=weight))


def monitor_of(share: float, allocation: AuditAllocation, reference: Sequence[Request] = ()) -> Monitor:
    return Monitor(
        MonitorSettings(audit_share=share, audit_share_on_drift=max(0.1, share)),
        quantities=[Quantity("error", LIMIT, describe_limit("error", LIMIT))],
        reference_confidence=[request.confidence for request in reference],
        reference_labels=[request.label for request in reference],
        allocation=allocation,
    )


def delays(
    candidate: Candidate, kind: Kind, error: float, share: float, quiet: int, allocation: AuditAllocation | None
) -> list[float]:
    """Return requests until the alarm, over streams without an alarm before the change."""
    before, after = candidate.traffic(QUIET_ERROR), candidate.traffic(error, kind)
    found: list[float] = []
    for number in range(N_CHANGED):
        life = Life(candidate, share, f"{kind} {error} {share} {quiet} {number}", allocation=allocation)
        if life.run(before, quiet) == NEVER:
            found.append(life.run(after, PATIENCE))
    return found


def quantiles(values: Sequence[float], most: int) -> str:
    """Return median, 90th percentile and the share that never occurred, as table cells."""
    ordered = sorted(values)
    ends = [ordered[int(np.ceil(q * len(ordered))) - 1] for q in (0.5, 0.9)]
    shown = [f"{end:,.0f}" if end < NEVER else f"> {most:,}" for end in ends]
    return f"{shown[0]} | {shown[1]} | {100 * sum(value == NEVER for value in values) / len(values):.1f} %"


def delay_lines(candidate: Candidate, allocation: AuditAllocation) -> Iterator[str]:
    yield "| error | change | quiet before | audited | before: median | 90 % | never | now: median | 90 % | never |"
    yield "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    cells = [(error, SOON) for error in ERRORS]
    for error, quiet in (*cells, (ERRORS[0], LATE)):
        for share in SHARES if quiet == SOON else SHARES[:1]:
            for kind in KINDS:
                sides = [
                    quantiles(delays(candidate, kind, error, share, quiet, how), PATIENCE) for how in (None, allocation)
                ]
                yield f"| {QUIET_ERROR:.0%} → {error:.0%} | {kind} | {quiet:,} | {share:.0%} | {' | '.join(sides)} |"


def quiet_lines(candidate: Candidate, allocation: AuditAllocation) -> Iterator[str]:
    yield "| error of accepted answers | audited | streams with an alarm | share [95 %] | audits of accepted answers |"
    yield "|---|---:|---:|---|---:|"
    kinds: list[tuple[str, float, Kind]] = [
        ("4 %", 0.04, "worse rows"),
        ("5 %, worse rows", 0.05, "worse rows"),
        ("5 %, label noise", 0.05, "label noise"),
    ]
    share = SHARES[0]
    for name, error, kind in kinds:
        traffic, alarms, accepted, audits = candidate.traffic(error, kind), 0, 0, 0
        for number in range(N_QUIET):
            life = Life(candidate, share, f"quiet {name} {number}", allocation=allocation)
            alarms += life.run(traffic, QUIET_REQUESTS) < NEVER
            accepted, audits = accepted + life.accepted, audits + life.audits
        found = clopper_pearson(alarms, N_QUIET)
        yield f"| {name} | {share:.0%} | {alarms} | {found} | {100 * audits / accepted:.2f} % |"


def pass_by(monitor: Monitor, request: Request, chance: random.Random) -> None:
    """Pass one request to the monitor as the endpoint would."""
    beside, share = monitor.state == "fallback", monitor.audit_share
    if beside and chance.random() >= share:
        return
    monitor.observe(request.confidence, None, request.label)
    if request.accepted:
        share, weight = monitor.plan_audit(None if beside else request.confidence)
        if beside or chance.random() < share:
            monitor.record_audit(request.wrong, weight=1.0 if beside else weight)


def watched_stream(
    candidate: Candidate, traffic: Sequence[tuple[Traffic, int]], seed: str, allocation: AuditAllocation
) -> Monitor:
    """Return the monitor after a stream with drift tests, against as many quiet requests as there are validation rows."""
    draw, chance = np.random.default_rng(list(seed.encode())), random.Random(seed)
    n = len(candidate.calibration.confidence)
    reference = [one for one, _ in zip(stream(candidate, traffic[0][0], draw), range(n), strict=False)]
    monitor = monitor_of(SHARES[0], allocation, reference)
    for part, requests in traffic:
        for request, _ in zip(stream(candidate, part, draw), range(requests), strict=False):
            pass_by(monitor, request, chance)
    return monitor


def drift_lines(candidate: Candidate, allocation: AuditAllocation) -> Iterator[str]:
    quiet = candidate.traffic(QUIET_ERROR)
    three = np.isin(candidate.gold, np.arange(0, len(candidate.labels), 26))
    focused = Traffic(quiet.chance * 2 / 3 + three / three.sum() / 3)
    changes = {
        "none": quiet,
        "a third of the requests on three intents": focused,
        "harder rows, error 10 %": candidate.traffic(0.10, "harder rows"),
        "30 % of the answers random": Traffic(quiet.chance, random_labels=0.3),
        "all answers random": Traffic(quiet.chance, random_labels=1.0),
    }
    yield "| change | accepted wrong then | alarm | streams | median | 90 % | never |"
    yield "|---|---:|---|---:|---:|---:|---:|"
    for name, after in changes.items():
        streams = N_QUIET_DRIFT if name == "none" else N_DRIFT
        parts = [(quiet, SOON), (after, QUIET_DRIFT_REQUESTS)]
        found: dict[str, list[float]] = {"drift": [], "guarantee": []}
        for number in range(streams):
            alarms = watched_stream(candidate, parts, f"drift {name} {number}", allocation).alarms
            for alarm, delay in found.items():
                at = [one.at_request for one in alarms if (one.cause == "guarantee") == (alarm == "guarantee")]
                delay.append(min((one - SOON for one in at), default=NEVER))
        for alarm, delay in found.items():
            cells = quantiles(delay, QUIET_DRIFT_REQUESTS)
            if name == "none":
                count = sum(value < NEVER for value in delay)
                cells = f"| | {count} alarms, {clopper_pearson(count, streams)}"
            yield f"| {name} | {candidate.error(after):.3f} | {alarm} | {streams:,} | {cells} |"


def recovery_lines() -> Iterator[str]:
    yield "| error | audits: median | 90 % | never |\n|---:|---:|---:|---:|"
    for times in (0, 1 / 3, 1 / 2, 2 / 3):
        found = []
        for number in range(N_DRIFT):
            draw, test = random.Random(f"recovery {number}"), RecoveryTest(LIMIT)
            for _ in range(100):
                test.update(draw.random() < 0.5)
            while not test.rejected and test.n < 100 + MOST_AUDITS:
                test.update(draw.random() < times * LIMIT)
            found.append(float(test.n - 100) if test.rejected else NEVER)
        yield f"| {times * LIMIT:.3f} | {quantiles(found, MOST_AUDITS)} |"


def printed(lines: Callable[[], Iterator[str]]) -> str:
    found = []
    for line in lines():
        print(line, flush=True)
        found.append(line)
    return "\n".join(found)


def main() -> None:
    """Simulate everything and write the page."""
    began, candidate = time.process_time(), Candidate()
    allocation = allocate_audits(candidate.curve(), candidate.threshold)
    tables = {
        "changed": printed(lambda: delay_lines(candidate, allocation)),
        "quiet": printed(lambda: quiet_lines(candidate, allocation)),
        "drift": printed(lambda: drift_lines(candidate, allocation)),
        "recovery": printed(recovery_lines),
    }
    facts = {
        "today": date.today(),
        "seconds": time.process_time() - began,
        "machine": f"{processor()}, {os.cpu_count()} shared cores), Python {platform.python_version()}",
        "accuracy": 1 - candidate.test.wrong.mean(),
        "accepted": candidate.accepted.mean(),
        "measured": 100 * candidate.test.wrong[candidate.accepted].mean(),
        "threshold": candidate.threshold,
        "n_test": len(candidate.test.wrong),
        "n_calibration": len(candidate.calibration.wrong),
        "levels": ", ".join(f"{level:.2f}" for level in allocation.levels),
        "cuts": ", ".join(f"{cut:.3f}" for cut in allocation.cuts),
        "patience": PATIENCE,
        "n_changed": N_CHANGED,
        "n_quiet": N_QUIET,
        "quiet_requests": QUIET_REQUESTS,
        "drift_requests": QUIET_DRIFT_REQUESTS,
        "soon": SOON,
        "most_audits": MOST_AUDITS,
    }
    RESULT.write_text(PAGE.format(**tables, **facts), encoding="utf-8")


PAGE = """# Alarms after go-live: how soon, and how many false ones

`python -m benchmarks.routing.alarms`, {today}, {seconds:,.0f} s of processor time on one core ({machine}.

Banking77: a linear model on MiniLM's vectors, fitted on the training rows, accuracy {accuracy:.3f} on {n_test:,} test
rows. The guarantee is at most 5 % of accepted answers wrong; {n_calibration:,} validation rows certify it from a confidence
of {threshold:.3f} on, which accepts {accepted:.3f} of the test rows, {measured:.1f} % of them wrong. Traffic is drawn from the
test rows with 4 % of the accepted answers wrong; `benchmarks/routing/alarms_traffic.py` says what the changes are. From the validation
rows also come the chances of an audit, relative to the mean: {levels} from the least confident up, cut at {cuts}.
The prior on alternatives, the burst and the reserve were chosen on simulated streams without any rows, in which each audit is
wrong with a fixed probability. The floor of half the mean chance was fixed before; floors of a third and a quarter were tried
on streams like these afterwards (slower where labels are noisy) and changed nothing.

## Requests until the guarantee is reported broken

Counted from the change, over all requests, accepted or not; {n_changed} streams a cell, those with an alarm before the change
left out. `never`: not within {patience:,}. Drift tests are off here on both sides.

{changed}

## False alarms of the guarantee

{n_quiet:,} streams of {quiet_requests:,} requests without a change. The bound for a stream without end is 5 %, of which the
first test has three quarters; intervals are exact (Clopper and Pearson).

{quiet}

The reserve starts full, so where errors are at the limit more than the share is audited until it is spent: over n accepted
answers at most the share of n and 200.

## Drift tests beside it

2 % audited, {soon} quiet requests, then {drift_requests:,} with the change. After a drift alarm 10 % are audited, so an alarm
of the guarantee comes sooner where traffic changed visibly. Drift tests share half of 5 %, and each spends half of its part
on its first alarm.

{drift}

## Audits until the guarantee is shown to hold again

After a fallback and 100 audits with half of the answers wrong, the model is repaired. `never`: not within {most_audits:,} audits.

{recovery}

## Not simulated

Traffic that depends on the hour, rows that depend on each other, audits that err.
"""


if __name__ == "__main__":
    main()
