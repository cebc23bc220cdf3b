"""Measure how soon a broken guarantee and changed traffic are noticed after go-live, and how often an alarm is false.

    python -m benchmarks.routing.alarms     # after benchmarks/accuracy/run.py banking77; 2 minutes on one core

Streams are drawn, with replacement, from the recorded answers of the small model to Banking77's 3,080 test rows: which
label it gave, with what confidence, and whether that was right. The guarantee and the threshold are those of its
certificate; a reference as large as the calibration set is drawn anew for each stream. Quiet streams do not
change; the others change after a number of quiet requests:

- label shift: one third of the requests now has one of three intents.
- new class: one request in five now has one of five intents that were held out before. Whatever the model says then
  counts as wrong, with a label and a confidence that it gave to a test row it got wrong.
- new class, other business: the same with the model on words, its own threshold (guarantee: 5 %) and its real answers
  to CLINC150's test rows outside banking.
- broken model: 30 % or all of the answers are random labels, with the confidences as before.

The monitor is `smallfirst.routing.monitoring.monitor.Monitor` as it runs in the endpoint. An audit judges by the
gold answer.
Writes benchmarks/results/alarms.md.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import random
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import cached_property
from typing import NamedTuple

import numpy as np

from benchmarks.accuracy.run import data_folder
from benchmarks.paths import RESULTS
from benchmarks.routing.intervals import processor
from smallfirst.evaluation.results import EvaluatedRow
from smallfirst.models.label_model import softmax
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.manifest import read_manifest
from smallfirst.project.run_folder import RunFolder
from smallfirst.routing.certificate.guarantee import Guarantee, describe_limit
from smallfirst.routing.certificate.threshold_search import search_threshold
from smallfirst.routing.monitoring.monitor import Monitor, MonitorSettings
from smallfirst.routing.monitoring.quantities import Quantity
from smallfirst.stats.intervals import wilson
from smallfirst.stats.sequential import GuaranteeTest, RecoveryTest

RESULT = RESULTS / "alarms.md"
N_QUIET, QUIET_REQUESTS, QUIET_AUDITS = 1000, 3000, 1000
N_CHANGED, N_CHANGED_LATE = 200, 20
SOON, LATE, PATIENCE = 500, 50_000, 20_000
SHARES = (0.02, 0.1)
WORDS_LIMIT = 0.05
MOST_AUDITS = 5000


class Seen(NamedTuple):
    """A request as the watch sees it."""

    confidence: float
    label: str
    wrong: bool


World = Callable[[random.Random], Seen]
"""Draws the next request."""


class Setting(NamedTuple):
    """A model under watch and its traffic."""

    name: str
    limit: float
    threshold: float
    n_reference: int
    before: World
    after: World
    looked_for: tuple[str, ...]
    """Alarms to wait for: `drift`, `guarantee`."""


class Delay(NamedTuple):
    """What became of the streams that changed."""

    setting: Setting
    audit_share: float
    quiet: int
    wrong: float
    """Share of accepted answers wrong after the change."""
    delays: dict[str, list[float]]
    """Requests until each awaited alarm; infinite if it did not occur."""
    redrawn: int
    """Streams left out because of an alarm before the change."""


def drawn_from(rows: Sequence[Seen]) -> World:
    return lambda draw: draw.choice(rows)


def mixed(share: float, some: World, others: World) -> World:
    """Replace each request by one of `some` with probability `share`."""
    return lambda draw: (some if draw.random() < share else others)(draw)


def broken(share: float, world: World, labels: Sequence[str]) -> World:
    """Replace this share of answers by random labels; some are right by chance."""

    def one(draw: random.Random) -> Seen:
        seen = world(draw)
        if draw.random() >= share:
            return seen
        return Seen(seen.confidence, draw.choice(labels), draw.randrange(len(labels)) > 0)

    return one


def erring(rate: float, world: World) -> World:
    """Make answers wrong with this probability, whatever was recorded."""
    return lambda draw: world(draw)._replace(wrong=draw.random() < rate)


def errors_at_most(limit: float) -> list[Quantity]:
    """Return the one quantity of a guarantee on errors."""
    return [Quantity("error", limit, describe_limit("error", limit))]


def monitor_of(setting: Setting, audit_share: float, draw: random.Random) -> Monitor:
    reference = [setting.before(draw) for _ in range(setting.n_reference)]
    return Monitor(
        MonitorSettings(audit_share=audit_share, audit_share_on_drift=max(0.1, audit_share)),
        quantities=errors_at_most(setting.limit),
        reference_confidence=[seen.confidence for seen in reference],
        reference_labels=[seen.label for seen in reference],
    )


def pass_by(monitor: Monitor, world: World, threshold: float, draw: random.Random) -> None:
    """Pass one request to the monitor as the endpoint would."""
    seen, share, beside = world(draw), monitor.audit_share, monitor.state == "fallback"
    if beside and draw.random() >= share:
        return
    monitor.observe(seen.confidence, None, seen.label)
    if seen.confidence >= threshold and (beside or draw.random() < share):
        monitor.record_audit(seen.wrong)


def quiet_streams(setting: Setting) -> dict[str, int]:
    """Count streams without a change that raised an alarm, by cause."""
    found = {"guarantee": 0, "confidence": 0, "label": 0, "either drift": 0, "any": 0}
    for number in range(N_QUIET):
        draw = random.Random(f"quiet {number}")
        monitor = monitor_of(setting, SHARES[0], draw)
        for _ in range(QUIET_REQUESTS):
            pass_by(monitor, setting.before, setting.threshold, draw)
        causes = {alarm.cause for alarm in monitor.alarms}
        for cause in causes:
            found[cause] += 1
        found["either drift"] += bool(causes - {"guarantee"})
        found["any"] += bool(causes)
    return found


def quiet_audits(limit: float, rate: float) -> int:
    """Count streams of audits alone in which the guarantee was reported broken."""
    alarms = 0
    for number in range(N_QUIET):
        draw = random.Random(f"audits {number}")
        monitor = Monitor(MonitorSettings(), quantities=errors_at_most(limit), reference_confidence=())
        for _ in range(QUIET_AUDITS):
            monitor.record_audit(draw.random() < rate)
        alarms += bool(monitor.alarms)
    return alarms


def delays(settings: Sequence[Setting], audit_share: float, quiet: int, streams: int) -> Iterator[Delay]:
    """Return requests until the alarms for settings with the same quiet part, which is simulated once."""
    begun: list[tuple[Monitor, random.Random]] = []
    redrawn = 0
    while len(begun) < streams:
        draw = random.Random(f"change {quiet} {len(begun) + redrawn}")
        monitor = monitor_of(settings[0], audit_share, draw)
        for _ in range(quiet):
            pass_by(monitor, settings[0].before, settings[0].threshold, draw)
        if monitor.alarms:
            redrawn += 1
        else:
            begun.append((monitor, draw))
    for setting in settings:
        found: dict[str, list[float]] = {alarm: [] for alarm in setting.looked_for}
        for monitor, draw in begun:
            for alarm, delay in delay_of(setting, copy.deepcopy(monitor), copy.deepcopy(draw)).items():
                found[alarm].append(delay)
        yield Delay(setting, audit_share, quiet, error_of(setting), found, redrawn)


def delay_of(setting: Setting, monitor: Monitor, draw: random.Random) -> dict[str, float]:
    """Requests until the alarms of one stream."""
    found: dict[str, float] = {}
    known = 0
    for number in range(1, PATIENCE + 1):
        pass_by(monitor, setting.after, setting.threshold, draw)
        if len(monitor.alarms) == known:
            continue
        for alarm in monitor.alarms[known:]:
            found.setdefault("guarantee" if alarm.cause == "guarantee" else "drift", number)
        known = len(monitor.alarms)
        if set(setting.looked_for) <= found.keys():
            break
    return {alarm: found.get(alarm, float("inf")) for alarm in setting.looked_for}


def error_of(setting: Setting) -> float:
    """Return the share of accepted answers wrong after the change, from 20,000 draws."""
    draw = random.Random(0)
    seen = [setting.after(draw) for _ in range(20_000)]
    return float(np.mean([one.wrong for one in seen if one.confidence >= setting.threshold]))


def audits_to_alarm(limit: float, rate: float) -> list[float]:
    """Return the audits until the guarantee is reported broken, for an error above the limit from the start."""
    found = []
    for number in range(N_CHANGED):
        draw, test = random.Random(f"broken {number}"), GuaranteeTest(limit, 1 - (1 - MonitorSettings().confidence) / 2)
        while not test.rejected and test.n < MOST_AUDITS:
            test.update(draw.random() < rate)
        found.append(float(test.n) if test.rejected else float("inf"))
    return found


def recoveries(limit: float, rate: float) -> list[float]:
    """Return the audits until a repaired model is seen to meet the guarantee, after 100 audits with half wrong."""
    found = []
    for number in range(N_CHANGED):
        draw, test = random.Random(f"recovery {number}"), RecoveryTest(limit)
        for _ in range(100):
            test.update(draw.random() < 0.5)
        while not test.rejected and test.n < 100 + MOST_AUDITS:
            test.update(draw.random() < rate)
        found.append(float(test.n - 100) if test.rejected else float("inf"))
    return found


def as_seen(rows: Sequence[EvaluatedRow]) -> list[Seen]:
    return [Seen(row.confidence or 0.0, row.answer or "", not row.correct) for row in rows]


class Recorded:
    """Recorded rows and the settings made from them."""

    def __init__(self) -> None:
        self.workspace = RunFolder.latest("banking77")
        self.certificate = self.workspace.certificate()
        self.calibration, self.test = self.rows("small", "calibration"), self.rows("small", "test")
        self.labels = sorted({str(row.gold) for row in self.test})
        assert self.certificate.max_error is not None
        self.limit = self.certificate.max_error

    def rows(self, candidate: str, split: str) -> tuple[EvaluatedRow, ...]:
        """What was recorded of a candidate on a split."""
        found = self.workspace.evaluation(candidate, split)
        assert found is not None, (
            f"no answers of {candidate} to the {split} rows: python -m benchmarks.accuracy.run banking77"
        )
        return found.rows

    def setting(self, name: str, before: World, after: World, *looked_for: str) -> Setting:
        """One of the small model under its certificate."""
        return Setting(name, self.limit, self.certificate.threshold, len(self.calibration), before, after, looked_for)

    @cached_property
    def settings(self) -> list[list[Setting]]:
        """Those that begin alike in one list."""
        usual = drawn_from(as_seen(self.test))
        three = drawn_from(as_seen([row for row in self.test if row.gold in self.labels[::26]]))
        out = self.labels[::16]
        known = drawn_from(as_seen([row for row in self.test if row.gold not in out]))
        unknown = drawn_from([seen for seen in as_seen(self.test) if seen.wrong])
        alike = [
            self.setting("label shift", usual, mixed(1 / 3, three, usual), "drift"),
            self.setting("broken model, 30 %", usual, broken(0.3, usual, self.labels), "guarantee"),
            self.setting("broken model, all", usual, broken(1.0, usual, self.labels), "guarantee"),
        ]
        new = self.setting("new class", known, mixed(0.2, unknown, known), "drift", "guarantee")
        return [alike, [new], [self.other_business()]]

    def other_business(self) -> Setting:
        """Return the model on words, which is fast enough to label other texts here."""
        folder = self.workspace.path / "words"
        manifest = read_manifest(folder)
        lines = (data_folder("clinc150") / "test.jsonl").read_text(encoding="utf-8").splitlines()
        others = [row["text"] for row in map(json.loads, lines) if row.get("domain") != "banking"]
        scores = LinearClassifier.load(folder, manifest).score(others)
        shares = [softmax(scored.log_probabilities, manifest.temperature) for scored in scores]
        foreign = [Seen(float(p.max()), manifest.task.closed[int(p.argmax())], True) for p in shares]
        usual, rows = drawn_from(as_seen(self.rows("words", "test"))), self.rows("words", "calibration")
        confidence, right = [row.confidence or 0.0 for row in rows], [row.correct for row in rows]
        found = search_threshold(confidence, right, Guarantee(max_error=WORDS_LIMIT))
        after = mixed(0.2, drawn_from(foreign), usual)
        name = "new class, other business"
        return Setting(name, WORDS_LIMIT, found.threshold, len(rows), usual, after, ("drift",))

    def real(self) -> list[float]:
        """Return requests until the first alarm on shuffled test rows with the calibration rows as reference."""
        found = []
        for number in range(20):
            draw, rows = random.Random(number), as_seen(self.test)
            draw.shuffle(rows)
            reference = as_seen(self.calibration)
            monitor = Monitor(
                MonitorSettings(),
                quantities=errors_at_most(self.limit),
                reference_confidence=[seen.confidence for seen in reference],
                reference_labels=[seen.label for seen in reference],
            )
            for seen in rows:
                monitor.observe(seen.confidence, None, seen.label)
            found.append(float(monitor.alarms[0].at_request) if monitor.alarms else float("inf"))
        return found


def quantiles(values: Sequence[float], most: str) -> str:
    """Return median, 90th percentile and the share that never occurred, as table cells."""
    ordered = sorted(values)
    ends = [ordered[int(np.ceil(q * len(ordered))) - 1] for q in (0.5, 0.9)]
    shown = [f"{end:,.0f}" if end < float("inf") else f"> {most}" for end in ends]
    never = sum(value == float("inf") for value in values) / len(values)
    return f"{shown[0]} | {shown[1]} | {100 * never:.1f} %"


def quiet_lines(recorded: Recorded) -> Iterator[str]:
    usual = recorded.settings[0][0]
    yield "| quiet streams | alarm | streams with one | share [95 %] | bound |\n|---|---|---:|---|---:|"
    for cause, count in quiet_streams(usual).items():
        print("quiet", cause, count, flush=True)
        bound = {"guarantee": "0.05", "either drift": "0.05", "any": "0.10"}.get(cause, "0.025")
        share = wilson(count, N_QUIET)
        yield f"| {QUIET_REQUESTS:,} requests, 2 % audited, recorded errors | {cause} | {count} | {share} | {bound} |"
    kept = [row for row in recorded.test if (row.confidence or 0.0) >= usual.threshold]
    measured = 1 - sum(row.correct for row in kept) / len(kept)
    for name, rate in (("at the limit", usual.limit), ("as recorded", measured)):
        count = quiet_audits(usual.limit, rate)
        cells = f"{QUIET_AUDITS:,} audits, error {name} ({rate:.4f}) | guarantee | {count} | {wilson(count, N_QUIET)}"
        yield f"| {cells} | 0.05 |"


def delay_lines(recorded: Recorded) -> Iterator[str]:
    yield "| change | accepted wrong then | quiet before | audited | alarm | median | 90 % | never | streams | left out |"
    yield "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|"
    for quiet, streams in ((SOON, N_CHANGED), (LATE, N_CHANGED_LATE)):
        for alike in recorded.settings:
            if quiet == LATE and len(alike) == 1:
                continue
            for share in SHARES if quiet == SOON else SHARES[:1]:
                for found in delays(alike, share, quiet, streams):
                    for alarm, values in found.delays.items():
                        cells = (
                            f"{found.setting.name} | {found.wrong:.3f} | {quiet:,} | {share:.0%} | {alarm}",
                            quantiles(values, f"{PATIENCE:,}"),
                            f"{streams} | {found.redrawn}",
                        )
                        yield f"| {' | '.join(cells)} |"
                        print(cells, flush=True)


def audit_lines(recorded: Recorded) -> Iterator[str]:
    yield "| error | shown | audits: median | 90 % | never |\n|---:|---|---:|---:|---:|"
    for times in (1.33, 2, 4, 10):
        found = audits_to_alarm(recorded.limit, times * recorded.limit)
        yield f"| {times * recorded.limit:.3f} | broken | {quantiles(found, f'{MOST_AUDITS:,}')} |"
    for times in (0, 1 / 3, 1 / 2, 2 / 3):
        found = recoveries(recorded.limit, times * recorded.limit)
        yield f"| {times * recorded.limit:.3f} | holds again | {quantiles(found, f'{MOST_AUDITS:,}')} |"


def main() -> None:
    """Simulate everything and write the page."""
    began, recorded = time.process_time(), Recorded()
    changed, audits, quiet = ("\n".join(part(recorded)) for part in (delay_lines, audit_lines, quiet_lines))
    real = recorded.real()
    facts = {
        "today": date.today(),
        "seconds": time.process_time() - began,
        "cores": os.cpu_count(),
        "machine": f"{processor()}), Python {platform.python_version()}, numpy {np.__version__}",
        "limit": 100 * recorded.limit,
        "threshold": recorded.certificate.threshold,
        "n_calibration": len(recorded.calibration),
        "coverage": recorded.certificate.coverage.value,
        "most_audits": MOST_AUDITS,
        "n_test": len(recorded.test),
        "patience": PATIENCE,
        "real_alarms": sum(value < float("inf") for value in real),
    }
    RESULT.write_text(PAGE.format(quiet=quiet, changed=changed, audits=audits, **facts), encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


PAGE = """# Alarms after go-live: how soon, and how many false ones

`python -m benchmarks.routing.alarms`, {today}, {seconds:.0f} s of processor time on one of {cores} cores ({machine}.

Banking77, the small model's recorded answers to {n_test:,} test rows; its certificate: at most {limit:g} % of accepted
answers wrong, accepted from a confidence of {threshold:.3f}. The script's docstring says what is simulated. Bounds hold for
an endless stream, so the share in a finite one may be lower. Drift tests share half of 5 %, and each test spends half
of its part on its first alarm.

## False alarms

{quiet}

## Requests until an alarm

Counted from the change, over all requests, accepted or not. `never`: not within {patience:,}. `left out`: streams with an
alarm before the change, drawn anew. After a drift alarm 10 % of the accepted answers are audited, so an alarm of the
guarantee comes sooner where traffic changed visibly; in a fallback the small model sees one request in ten, so that a
drift alarm that has not occurred yet takes longer.

{changed}

## Audits until the guarantee is shown broken, or shown to hold again

`broken`: an error above the limit from go-live on. `holds again`: after a fallback and 100 audits with half of the
answers wrong, the model is repaired. Divide by the audit share and the share of accepted answers ({coverage:.2f}) to get
requests. `never`: not within {most_audits:,} audits.

{audits}

## Not simulated

Traffic that depends on the hour, rows that depend on each other, audits that err. Banking77's test rows have another
mix of labels than its training rows, of which the {n_calibration} calibration rows are a part: with these as reference
and the test rows in random order, {real_alarms} of 20 orders raise a drift alarm within {n_test:,} requests. Such an
alarm would not be false.
"""


if __name__ == "__main__":
    main()
