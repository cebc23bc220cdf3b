"""Which unlabelled requests to label, how many, what they cost and what they bring, before and while they are labelled.

Only requests above a cut are drawn, since no other would stay small; rows that were labelled before choose the cut. The
promise may be tested after every label (smallfirst.routing.sampling_plan).
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydantic

from smallfirst.data.dataset import Dataset, Example
from smallfirst.errors import ConfigError, DataError
from smallfirst.improvement.labelling.unlabelled import filter_texts, read_texts
from smallfirst.pipeline.planned_labels.certificate import is_right, right_above
from smallfirst.pipeline.planned_labels.drafts import Draft, TrafficDrafts, draft_traffic, model_fingerprint
from smallfirst.pricing.money import format_usd
from smallfirst.project.planned_rows import load_plan, plan_path, read_planned, write_planned
from smallfirst.project.project import Project, shown_as
from smallfirst.project.run_folder import RunFolder
from smallfirst.records import Record
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.cut_choice import CHANCE, SIZES, CutChooser, CutOption
from smallfirst.routing.sampling_plan import Cut, PlannedRow, SamplingPlan, judge_cuts
from smallfirst.stats.intervals import Estimate, wilson

SPARE = 3
"""A file holds so many times the rows that are advised, so that labelling can go on."""
SHOWN_SIZES = (100, 200, 400, 800)
"""Numbers of labels whose gain is shown beside the plan's."""


class LabelPlanOptions(Record):
    """What a plan is made from."""

    unlabelled: Path | None = None
    """Requests without answers; needed unless the plan is there."""
    out: Path = Path("to_label.jsonl")
    """File to fill in, JSON Lines or CSV; the plan is written beside it as `<name>.plan.json`."""
    labels: int | None = pydantic.Field(default=None, ge=1)
    """How many rows above the cut to label; None: as many as bring most of what many would."""
    share: float | None = pydantic.Field(default=None, gt=0, le=1)
    """Share of the traffic that should stay small; chooses cut and number of labels."""
    below: int = pydantic.Field(default=0, ge=0)
    """Rows below the cut to label as well: they certify nothing, and give the accuracy over all requests."""


class LabelPlanReport(Record):
    """A plan and what its labels show so far."""

    out: Path
    """File to fill in."""
    plan: SamplingPlan
    """How its rows were chosen."""
    n_labelled: int
    """Rows above the cut that count: those up to the first without a label."""
    n_waiting: int
    """Labelled rows above the cut that follow one without a label."""
    n_wrong: int
    """Rows that count on which the small model is wrong."""
    shown_share: float
    """Share of the traffic that may stay small by now, in [0, 1]."""
    n_more: int
    """Labels that show the next cut if the small model is right on all of them; 0 once every cut is shown."""
    next_share: float
    """Share of the traffic above the next cut."""
    forecasts: tuple[CutOption, ...] = ()
    """What this plan's labels probably bring, then other numbers of labels; empty for a plan that was there already."""
    usd_per_label: float | None = None
    """None if no price is known."""
    priced_by: str = ""
    """`a person` or `the large model`; empty without a price."""
    saves_usd_per_month: float | None = None
    """By the expected share, or the shown one; None if the large model was not measured."""
    accuracy: Estimate | None = None
    """Of the small model over all requests, from both strata; None without labels below the cut."""

    @property
    def in_words(self) -> list[str]:
        lines = self._so_far if self.n_labelled else self._before
        if self.n_waiting:
            lines.append(f"{self.n_waiting:,} labels follow a row without one; they count once it has one")
        if self.saves_usd_per_month is not None:
            lines.append(f"that saves about {format_usd(self.saves_usd_per_month)} a month")
        if self.accuracy:
            lines.append(f"right on {self.accuracy} of the requests that reach the small model, below the cut too")
        return lines

    @property
    def _before(self) -> list[str]:
        plan, n, cut = self.plan, self.plan.n_labels, self.plan.cuts[-1]
        cost = "no price is known: set prices.usd_per_label"
        if self.usd_per_label is not None:
            cost = f"{format_usd(n * self.usd_per_label)}, {self.priced_by}"
        lines = [
            f"label the first {n:,} rows of {self.out} ({cost}), drawn from the {cut.n_above:,} of {plan.n_traffic:,} "
            f"requests that the small model is at least {cut.threshold:.3f} sure of"
        ]
        for one in self.forecasts[:1]:
            lines.append(
                f"they probably show {plan.guarantee.in_words} for {100 * one.expected_share:.0f} % of the requests; "
                f"for {100 * one.likely_share:.0f} % or more with a chance of {100 * CHANCE:.0f} %"
            )
            others = (f"{other.n_labels}: {100 * other.expected_share:.0f} %" for other in self.forecasts[1:])
            lines.append(f"other numbers of labels: {', '.join(others)}")
        return lines

    @property
    def _so_far(self) -> list[str]:
        shown = f"{100 * self.shown_share:.0f} % of the requests may stay small" if self.shown_share else "nothing"
        wrong = f"{self.n_wrong:,} wrong" if self.n_wrong else "all right"
        more = "that is all that this plan can show: stop labelling"
        if self.n_more:
            more = f"{self.n_more:,} more, all right, show {100 * self.next_share:.0f} %"
        labelled = f"{self.n_labelled:,} rows labelled, {wrong} so far; {more}"
        return [labelled, f"shown: {shown} ({self.plan.guarantee.in_words})"]


@shown_as("planning labels")
def label_plan(project: Project, run_folder: RunFolder, options: LabelPlanOptions) -> LabelPlanReport:
    """Make a plan and the file to fill in, or say what the labels of one that is there show.

    Raise ConfigError for a guarantee that is not one limit on errors, DataError if too little traffic is left, or a
    label cannot be read.
    """
    _refuse_other_guarantees(project)
    if not plan_path(options.out).exists():
        return _made(project, run_folder, options)
    return _judged(project, run_folder, load_plan(options.out), options)


def _refuse_other_guarantees(project: Project) -> None:
    guarantee = project.file.routing.guarantee
    plain = Guarantee(max_error=guarantee.max_error or 0.05, confidence=guarantee.confidence)
    if guarantee != plain or project.file.routing.ahead:
        raise ConfigError(
            "label-plan plans for one drafting stage and a limit on all kept errors alone",
            hint="set routing.guarantee: {max_error: 0.05}, and nothing else but confidence, without routing.ahead",
        )


def _made(project: Project, run_folder: RunFolder, options: LabelPlanOptions) -> LabelPlanReport:
    if options.unlabelled is None:
        raise ConfigError(
            f"{plan_path(options.out)}: no such file, so there is no plan yet",
            hint="smallfirst label-plan task.yaml --unlabelled ROWS   makes one",
        )
    if options.out.exists():
        raise ConfigError(f"{options.out} exists, and no plan beside it", hint="name another file: --out to_label.csv")
    candidate = _candidate(run_folder)
    drafts, traffic = _drafted(project, run_folder, candidate, options.unlabelled)
    confidence = -np.sort(-np.array([d.confidence for d in drafts.reached]))
    guarantee, n = project.file.routing.guarantee, drafts.n_requests
    chooser = CutChooser(
        np.searchsorted(-confidence, -drafts.pilot_confidence, side="right") / n,
        drafts.pilot_right,
        limit=guarantee.max_error or 0.0,
        level=1 - guarantee.confidence,
    )
    option = _chosen(chooser, options, n)
    plan = SamplingPlan(
        run=run_folder.path.name,
        candidate=candidate,
        model_fingerprint=model_fingerprint(run_folder, candidate),
        heads_fingerprint=drafts.heads_fingerprint,
        guarantee=guarantee,
        traffic=str(options.unlabelled),
        traffic_fingerprint=traffic.content_fingerprint,
        n_traffic=n,
        n_reached=len(drafts.reached),
        n_labels=option.n_labels,
        cuts=_cuts(option, confidence, n),
        rows=(),
    )
    plan = plan.model_copy(update={"rows": _rows(plan, drafts.reached, SPARE * option.n_labels, options.below)})
    _save(project, plan, options.out)
    others = (chooser.best(size, n_traffic=n) for size in SHOWN_SIZES if size != option.n_labels)
    found = _judged(project, run_folder, plan, options)
    saved = _saving(project, run_folder, candidate, option.expected_share)
    return found.model_copy(update={"forecasts": (option, *others), "saves_usd_per_month": saved})


def _drafted(
    project: Project, run_folder: RunFolder, candidate: str, unlabelled: Path
) -> tuple[TrafficDrafts, Dataset]:
    read = read_texts(unlabelled, project.rows.train.examples[0].shape, project.file.data.columns)
    traffic, filtered = filter_texts(read, project.rows, project.rows.selection)
    project.progress.log(filtered.in_words)
    found = asyncio.run(draft_traffic(project, run_folder, candidate, traffic))
    if len(found.reached) < SIZES[0]:
        raise DataError(
            f"{unlabelled}: {filtered.in_words}, and {len(found.reached):,} of these reach the small model",
            hint=f"give at least {SIZES[0]} requests that do, better thousands",
        )
    return found, traffic


def _candidate(run_folder: RunFolder) -> str:
    """Return what went live, or would have with a certificate."""
    outcome = run_folder.outcome()
    tried = [trial.candidate for trial in outcome.trials] if outcome and not outcome.candidate else []
    return tried[0] if tried else run_folder.live_candidate()


def _chosen(chooser: CutChooser, options: LabelPlanOptions, n: int) -> CutOption:
    if options.labels is not None:
        return chooser.best(options.labels, n_traffic=n)
    return chooser.usual(n_traffic=n) if options.share is None else chooser.for_share(options.share, n_traffic=n)


def _cuts(option: CutOption, confidence: np.ndarray, n: int) -> tuple[Cut, ...]:
    """Return the option's cuts as confidences; those that equal a stricter one, or keep nothing back, are one."""
    cuts: dict[float, Cut] = {}
    for share in option.shares:
        place = min(max(1, round(share * n)), len(confidence))
        threshold = float(confidence[place - 1])
        cuts[threshold] = Cut(threshold=threshold, n_above=int((confidence >= threshold).sum()))
    return tuple(cuts.values())


def _rows(plan: SamplingPlan, drafts: Sequence[Draft], n_above: int, n_below: int) -> tuple[PlannedRow, ...]:
    """Return rows drawn at random from each side of the loosest cut, in a random order that a larger number keeps."""
    least = plan.cuts[-1].threshold
    rows: list[PlannedRow] = []
    for stratum, wanted in (("above", n_above), ("below", n_below)):
        own = [d for d in drafts if (d.confidence >= least) == (stratum == "above")]
        own.sort(key=lambda d: hashlib.sha256(f"label-plan\0{d.example.asked}".encode()).digest())
        rows += [
            PlannedRow(
                text=d.example.text,
                answer=d.answer,
                confidence=d.confidence,
                stratum=stratum,
                propensity=min(1.0, wanted / len(own)),
            )
            for d in own[:wanted]
        ]
    return tuple(rows)


def _save(project: Project, plan: SamplingPlan, out: Path) -> None:
    plan.save(plan_path(out))
    write_planned(plan.rows, out, shape=project.rows.train.examples[0].shape, columns=project.file.data.columns)


def _judged(project: Project, run_folder: RunFolder, plan: SamplingPlan, options: LabelPlanOptions) -> LabelPlanReport:
    if not options.out.exists():
        _save(project, plan, options.out)
    labels = read_planned(
        options.out, plan, project.task, shape=project.rows.train.examples[0].shape, columns=project.file.data.columns
    )
    right = right_above(project, plan, labels)
    judged = judge_cuts(plan, right)
    shown, missing = [one for one in judged if one.shown], [one for one in judged if not one.shown]
    usd, priced_by = _price(project, run_folder)
    n_filled = sum(row.stratum == "above" and bool(label) for row, label in zip(plan.rows, labels, strict=True))
    share = plan.share(shown[-1].cut).value if shown else 0.0
    more = [math.ceil(one.n_more_right * plan.cuts[-1].n_above / one.cut.n_above) for one in missing]
    return LabelPlanReport(
        out=options.out,
        plan=plan,
        n_labelled=len(right),
        n_waiting=n_filled - len(right),
        n_wrong=right.count(False),
        shown_share=share,
        n_more=more[0] if more else 0,
        next_share=plan.share(missing[0].cut).value if missing else 0.0,
        usd_per_label=usd,
        priced_by=priced_by,
        saves_usd_per_month=_saving(project, run_folder, plan.candidate, share) if shown else None,
        accuracy=_accuracy(project, plan, labels),
    )


def _accuracy(project: Project, plan: SamplingPlan, labels: Sequence[Example | str | None]) -> Estimate | None:
    """Return the accuracy over all requests that reach the model from the rows of both strata, weighted by their sizes.

    The interval adds the squared distances to the ends of Wilson's (MOVER: Zou and Donner 2008).
    """
    value, low, high, n = 0.0, 0.0, 0.0, 0
    share_above = plan.cuts[-1].n_above / plan.n_reached
    for stratum, weight in (("above", share_above), ("below", 1 - share_above)):
        right = [
            is_right(project, label, row.answer)
            for row, label in zip(plan.rows, labels, strict=True)
            if row.stratum == stratum and label is not None
        ]
        if not right:
            return None
        part = wilson(sum(right), len(right))
        value, n = value + weight * part.value, n + len(right)
        low, high = low + (weight * (part.value - part.low)) ** 2, high + (weight * (part.high - part.value)) ** 2
    return Estimate(value=value, low=max(0.0, value - low**0.5), high=min(1.0, value + high**0.5), n=n)


def _price(project: Project, run_folder: RunFolder) -> tuple[float | None, str]:
    """Return what a label costs in USD and who is paid; None if neither price is known."""
    usd, large = project.file.prices.usd_per_label, run_folder.evaluation("large", "test")
    if usd is not None:
        return usd, "a person"
    return (large.cost_usd_per_1k / 1000, "the large model") if large else (None, "")


def _saving(project: Project, run_folder: RunFolder, candidate: str, share: float) -> float | None:
    """Return what a month costs less with this share of the requests kept small; None without both prices."""
    large, small = (run_folder.evaluation(name, "test") for name in ("large", candidate))
    if large is None or small is None:
        return None
    return share * (large.cost_usd_per_1k - small.cost_usd_per_1k) * project.file.requests_per_month / 1000
