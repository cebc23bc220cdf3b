"""The last hours or days in figures: share answered small, accuracy on both paths, money, latency, states."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any, NamedTuple

from smallfirst.base.stats.intervals import Estimate, wilson
from smallfirst.base.stats.sequential import share_wrong
from smallfirst.data.conversations import NO_CALL
from smallfirst.deployment.audited_router import AuditedRouter
from smallfirst.deployment.billing.saved import Amount, Saving, machine_costs, savings, total
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, FeedbackRow, LedgerRow, StateRow, standing
from smallfirst.ledger.sums import DrawnAudits, Period, Sums
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.models.pricing import PriceBook
from smallfirst.models.stages import Answerer, answerer
from smallfirst.routing.router import Router
from smallfirst.serving.errors import ApiError

RANGES: dict[str, tuple[int, Period]] = {"24h": (24, "hour"), "7d": (7, "day"), "30d": (30, "day")}
"""Windows by name: so many periods, the present one among them."""
MAX_CALLS = 5_000
"""Newest answers of an assistant among which calls are counted by function."""
ALL_CALLS = "all calls"
MAX_MARKS = 100
"""Newest verdicts of judges whose answers are looked up."""


class Window(NamedTuple):
    """Whole periods up to now, in UTC."""

    since: datetime
    until: datetime
    every: Period

    periods: Sequence[str]
    """All of them, also those without a request, as `Sums` names them."""

    @classmethod
    def of(cls, name: str, now: datetime) -> Window:
        n, every = RANGES[name]
        step = timedelta(hours=1) if every == "hour" else timedelta(days=1)
        start = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        start = start if every == "hour" else start.replace(hour=0)
        starts = [start - index * step for index in reversed(range(n))]
        return cls(starts[0], now, every, [one.isoformat()[: 13 if every == "hour" else 10] for one in starts])


def watch(
    ledger: Ledger,
    routers: Mapping[str, AuditedRouter],
    query: Mapping[str, str],
    measured: Callable[[str], Evaluation | None] = lambda task: None,
    prices: Callable[[str], PriceBook | None] = lambda task: None,
    evaluated: Callable[[Sequence[str]], Mapping[str, Amount]] = lambda tasks: {},
    *,
    now: datetime | None = None,
) -> dict[str, Any]:
    """Return the figures of the `task` in a query, or of all without, for its `range`, 30 days without one.

    `measured` returns the large model on test rows, `prices` the prices by which idle machines count, `evaluated` what
    `billing.saved.evaluated_costs` says of tasks. Raise ApiError 400 for an unknown range.
    """
    if (name := query.get("range", "30d")) not in RANGES:
        raise ApiError(400, f"`range` is one of {', '.join(RANGES)}.", param="range")
    task, window, routers = query.get("task", ""), Window.of(name, now or datetime.now(UTC)), dict(routers)
    equal = {"task": task} if task else {}
    rows = ledger.sums(
        window.since, window.until, by=("kind", "task", "stage", "outcome"), every=window.every, latencies=True, **equal
    )
    names = [task] if task else sorted({*routers, *(row.task for row in rows if row.task)})
    found_savings = savings(ledger, window.since, window.until, evaluated=evaluated(names))
    saved = {one.task: one for one in found_savings if one.task in names}
    drawn = ledger.drawn(window.since, window.until, **equal)
    found: dict[str, Any] = {
        "task": task,
        "every": window.every,
        "since": window.since.isoformat(),
        "until": window.until.isoformat(),
        **_traffic(rows),
        "saving": _saving(total(saved.values())),
        "idle_usd": _idle_usd(ledger, prices(task), task, window),
        "periods": [_period(name, [row for row in rows if row.period == name], saved) for name in window.periods],
        "latency": {path: _latency(row for row in rows if _path(row) == path) for path in ("small", "large")},
        "audits": [one.model_dump() for one in DrawnAudits.of(drawn.values())],
        "changes": [
            row.model_dump(mode="json") for row in ledger.entries(StateRow, since=window.since, limit=20, **equal)
        ],
    }
    audits = [*ledger.scan(AuditRow, window.since, window.until, **equal)]
    audited = _audited(audits)
    if task:
        found["calls"] = _calls(ledger.entries(LedgerRow, since=window.since, limit=MAX_CALLS, task=task), audits)
        large = {"large_marked": _marked(ledger, task, window), "large_measured": None}
        if evaluation := measured(task):
            large["large_measured"] = evaluation.accuracy.model_dump()
        found["accuracy"] = {"small": audited.get(task), **large}
        return found | ({"router": _router(ledger, routers[task])} if task in routers else {})
    tasks = [
        {
            "task": name,
            **_traffic(row for row in rows if row.task == name),
            "saving": _saving(saved.get(name)),
            "small": audited.get(name),
            "standing": routers[name].standing.model_dump() if name in routers else None,
        }
        for name in names
    ]
    return found | {"tasks": tasks}


def _period(name: str, rows: Sequence[Sums], saved: Mapping[str, Saving]) -> dict[str, Any]:
    """Return one period, and what the large model alone would have billed in it, where that is known of each task."""
    alone: float | None = 0.0
    for row in rows:
        large = saved[row.task].large_usd if row.task in saved else None
        if _path(row) == "large":
            alone = alone if alone is None else alone + row.cost_usd - row.draft_usd
        elif _path(row) == "small" and row.n:
            alone = None if alone is None or large is None else alone + row.n * large.usd
    return {"period": name, **_traffic(rows), "large_alone_usd": alone}


def _idle_usd(ledger: Ledger, prices: PriceBook | None, task: str, window: Window) -> float | None:
    """Return the machines' rent that no row carries, as a statement counts it; None without prices."""
    if prices is None:
        return None
    found = machine_costs(ledger, prices, window.since, window.until, task=task or None)
    return math.fsum(one.uncharged_usd for one in found)


def _saving(saving: Saving | None) -> dict[str, Any] | None:
    if saving is None:
        return None
    said = f"saved {saving.saved_usd}" if saving.saved_usd else "saving unknown"
    return {**saving.model_dump(), "in_words": saving.in_words.removeprefix(f"{said}: ")}


def _traffic(rows: Iterable[Sums]) -> dict[str, Any]:
    """Return the answers by path, the money by what it was paid for, and how requests ended."""
    n, usd, outcomes, unknown = Counter[str](), defaultdict[str, float](float), Counter[str](), 0
    for row in rows:
        unknown += row.n_cost_unknown
        if row.kind != "answer":
            usd["audits" if row.kind == "audit" else "once"] += row.cost_usd
            continue
        outcomes[row.outcome] += row.n
        usd[_path(row)] += row.cost_usd
        if row.outcome == "answered":
            n[_path(row)] += row.n
    routed = n["small"] + n["large"]
    share = wilson(n["small"], routed).model_dump() if routed else None
    return {"n": n, "share": share, "usd": usd, "outcomes": outcomes, "n_cost_unknown": unknown}


_PATHS = {Answerer.SMALL: "small", Answerer.LARGE: "large", Answerer.GENERAL: "large"}


def _path(row: Sums) -> str:
    """Return which path answered: `small`, `large`, or `other`, where no Router chose or nobody answered."""
    if row.kind != "answer" or not row.task:
        return "other"
    return _PATHS.get(answerer(row.stage), "other")


def _latency(rows: Iterable[Sums]) -> dict[str, float] | None:
    """Return median and 95 % quantile in ms, to the width of a bucket (10 %); None without answers."""
    buckets = Counter[int]()
    for row in rows:
        buckets.update(row.latency_ms_buckets if row.outcome == "answered" else {})
    return {"p50": latency_ms(buckets, 0.5), "p95": latency_ms(buckets, 0.95)} if buckets else None


def latency_ms(buckets: Mapping[int, int], q: float) -> float:
    """Return the q-quantile of latencies counted by `Sums.latency_ms_buckets`, exact to 5 %; 0 without any."""
    counts = sorted(buckets.items())
    reached = accumulate(n for _, n in counts)
    wanted = q * sum(buckets.values())
    return next((1.1 ** (i + 0.5) for (i, _), n in zip(counts, reached, strict=True) if n >= wanted), 0.0)


def _audited(audits: Iterable[AuditRow]) -> dict[str, dict[str, Any]]:
    """Return by task the accuracy of kept answers by the verdicts that stand, and how many each kind of judge gave."""
    found: dict[str, list[AuditRow]] = defaultdict(list)
    for row in audits:
        if row.judged_by != "nobody":
            found[row.task].append(row)
    return {
        task: {
            **_right(share_wrong((row.weight, row.wrong) for row in rows)),
            "n_wrong": sum(row.wrong for row in rows),
            "judges": Counter(row.judged_by for row in rows),
        }
        for task, rows in found.items()
    }


def _calls(answers: Sequence[LedgerRow], audits: Iterable[AuditRow]) -> list[dict[str, Any]]:
    """Return by function, the most frequent first, who made an assistant's calls, and the verdicts on small ones."""
    verdicts = {one.id: one.wrong for one in audits if one.judged_by != "nobody"}
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for row in answers:
        made = (
            [step.function for step in row.steps if step.decision in ("kept", "answered")] if row.status == 200 else []
        )
        function, path = made[-1] if made else "", _PATHS.get(answerer(row.stage), "other")
        for name in (function, *([] if function == NO_CALL else [ALL_CALLS])) if function else ():
            verdict = verdicts.get(row.id) if path == "small" else None
            found[name].update({path: 1, "audited": verdict is not None, "wrong": bool(verdict)})
    ordered = sorted(found.items(), key=lambda one: (one[0] == NO_CALL, -one[1]["small"] - one[1]["large"], one[0]))
    return [
        {"function": name, **n, "share": wilson(n["small"], n["small"] + n["large"]).model_dump()}
        for name, n in ordered
    ]


def _marked(ledger: Ledger, task: str, window: Window) -> dict[str, Any] | None:
    """Return the accuracy of the large model's answers by the newest verdicts of judges, which are no random sample."""
    marks = [said for said in standing(ledger.scan(FeedbackRow, window.since)) if said.judge][-MAX_MARKS:]
    rows = [(said, ledger.get(said.id)) for said in marks]
    large = [said for said, row in rows if row and row.task == task and answerer(row.stage) is Answerer.LARGE]
    return wilson(sum(said.verdict == "right" for said in large), len(large)).model_dump() if large else None


def _right(error: Estimate) -> dict[str, Any]:
    return {"value": 1 - error.value, "low": 1 - error.high, "high": 1 - error.low, "n": error.n}


def _live(router: AuditedRouter) -> dict[str, Any]:
    """Return the accuracy of small answers since the version went live, and the least that is promised or gated."""
    audited = [watch.quantity for watch in router.monitor.watches]
    promised = [one.limit for one in audited if not one.by_gate and router.standing.promise]
    by_gate = [one.limit for one in audited if one.by_gate and router.outcome.watched_by]
    least = {name: 1 - min(of) if of else None for name, of in (("promised", promised), ("by_gate", by_gate))}
    return {**_right(router.monitor.live_error), **least}


def covered_before(router: Router) -> dict[str, Any] | None:
    """Return the share of calibration rows that the certificate covers; None where something else decides who answers.

    About as many requests stay small as long as they are like those rows.
    """
    certificate = router.certificate
    decides = certificate.issued and certificate.below == "escalate" and not router.options.policies
    return certificate.coverage.model_dump() if decides else None


def _router(ledger: Ledger, router: AuditedRouter) -> dict[str, Any]:
    states = ledger.entries(StateRow, task=router.name)
    last = next((row for row in reversed(states) if row.before != row.after), None)
    first = next((row.at for row in states if row.certificate == router.certificate), None)
    monitor = router.monitor
    return {
        "certified_at": first.isoformat() if first else None,
        "state": monitor.state,
        "why": last.why if last else "",
        "since": last.at.isoformat() if last else None,
        "guarantee": router.standing.promise,
        "standing": router.standing.model_dump(),
        "live": _live(router),
        "covered": covered_before(router.router) if monitor.state == "live" else None,
        "judge": router.auditing.judge,
        "audit_share": monitor.audit_share,
    }
