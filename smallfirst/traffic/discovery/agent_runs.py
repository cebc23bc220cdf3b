"""Agents' runs in recorded traffic: which requests are steps of one run, and what each task does in the runs.

A run is what the log names one (a trace). Without such names it is a request and those that repeat it with what its
tools returned. A task is a step if at least STEP_SHARE of its requests stand in runs of several requests.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Literal, NamedTuple

from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate, wilson
from smallfirst.traffic.discovery.draft import n_certifying
from smallfirst.traffic.discovery.outlook import Outlook
from smallfirst.traffic.discovery.tasks import Case, RecurringTask, as_text, total_cost_usd

STEP_SHARE = 0.1
_HALF, _ENDS, _GOES_ON = 0.5, 0.9, 0.1
_MOST_PATHS, _FOLDS = 5, 5
_LEVEL = 0.05
START, OTHER = "start", "another request"

StepKind = Literal["route", "gate", "stop", "shortlist", "extract", "short answer", "open"]
"""One of several labels; of two; of two, one of which ends the run; some labels; JSON; a few words; text."""


class Step(Record):
    """What a task does in agents' runs."""

    kind: StepKind
    n_runs: int
    """Runs that have it."""
    share: float
    """Of all runs, in [0, 1]."""
    per_run: float
    """Its requests in a run that has it."""
    place: Literal["first", "middle", "last"]
    """Where at least half of its requests stand; middle if that is neither end."""
    position: float
    """Median place, from 1, in runs with a median of `of` requests."""
    of: float
    follows: dict[str, float]
    """What stands before it (a step, START or OTHER), with shares of its requests, the most frequent first."""
    ends: tuple[str, ...]
    """Labels after which nearly every run ends, where others are followed by something."""
    usd_per_run: float | None
    """Its bill, divided by all runs; None if no price is known."""
    usual: Estimate | None
    """Share of its answers that are the most frequent one; None if they are no labels."""
    from_before: Estimate | None
    """Share that is the most frequent answer after the step before it and that step's label, learnt from other runs;
    None if they are no labels or nothing is before it. What the request itself tells is `outlook.agreement`."""
    cases_needed: int | None = None
    """Fewest different cases with which a promise can be shown, which takes that no kept answer differs. As many are
    kept as is foretold, all where nothing is. None for open answers, and where nothing would be kept."""
    runs_needed: int | None = None
    """Runs like these that hold so many cases."""

    def promising(self, outlook: Outlook, max_error: float, n_cases: int) -> Step:
        """Return it with what a promise needs; `n_cases` different ones are in the log."""
        foretold = outlook.moves if outlook.can_show(max_error) else None  # of too few none is kept, whatever they are
        kept = 1.0 if foretold is None else foretold.value
        if self.kind == "open" or not kept or not n_cases:
            return self
        certifying = math.log(_LEVEL) / math.log(1 - max_error) / kept
        cases = next(n for n in itertools.count(math.ceil(certifying)) if n_certifying(n) >= certifying)
        runs = math.ceil(cases / n_cases * self.n_runs / self.share)
        return self.model_copy(update={"cases_needed": cases, "runs_needed": runs})


class AgentRuns(Record):
    """The runs of a log."""

    n: int
    n_requests: int
    cost_usd: float | None
    n_others: int
    """Requests of no task: the open turns of agents that converse or call tools."""
    others_usd: float | None
    paths: dict[str, int]
    """The most frequent sequences of steps, with numbers of runs; requests of no task are "…"."""

    def a_run(self, usd: float | None) -> float | None:
        """Return an amount, divided by the runs."""
        return None if usd is None else usd / self.n


class _Taken(NamedTuple):
    """A request in a run."""

    case: Case
    task: str
    """Empty: of no task."""
    label: str
    """Its answer, if that is a label or a list of them."""
    run: int
    at: int
    """From 1."""
    of: int
    before: tuple[str, str]
    """Task and label of the request before it; START if there is none."""


def runs_of(cases: Sequence[Case]) -> list[list[Case]]:
    """Return the requests by run, each in the order of `cases`, which is that of time; a request alone is a run."""
    runs: dict[str, list[Case]] = defaultdict(list)
    asked: dict[int, str] = {}  # the run that asked these messages last
    for case in cases:
        name = case.trace or _continued(case, asked) or f"\0{case.id}"
        asked[hash(case.prompt.turns)] = name
        runs[name].append(case)
    return list(runs.values())


def _continued(case: Case, asked: dict[int, str]) -> str | None:
    """Return the run that a request continues with what tools returned; None if a person goes on, or nothing."""
    turns = case.prompt.turns
    last_tool = max((n for n, turn in enumerate(turns) if turn.role == "tool"), default=0)
    found = (asked.get(hash(turns[:n])) for n in range(last_tool, 0, -1))
    return next((name for name in found if name), None)


def find_steps(cases: Sequence[Case], tasks: Sequence[RecurringTask]) -> tuple[AgentRuns | None, dict[str, Step]]:
    """Return the runs in a log, and what the tasks that are steps do in them, by name; None if no task is a step."""
    known = {
        case.id: (task.name, as_text(v or "") if task.labels else "") for task in tasks for case, _, v in task.cases
    }
    runs = [[(case, *known.get(case.id, ("", ""))) for case in run] for run in runs_of(cases)]
    asked, in_runs = (Counter(task for run in runs if len(run) >= n for _, task, _ in run) for n in (1, 2))
    steps = {task for task, n in in_runs.items() if task and n >= STEP_SHARE * asked[task]}
    runs = [run for run in runs if len(run) > 1 or run[0][1] in steps]
    places: dict[str, list[_Taken]] = defaultdict(list)
    for number, run in enumerate(runs):
        for at, (case, task, label) in enumerate(run, 1):
            before = run[at - 2][1:] if at > 1 else (START, "")
            places[task].append(_Taken(case, task, label, number, at, len(run), before))
    taken = [case for run in runs for case, _, _ in run]
    if not taken or len(taken) < STEP_SHARE * len(cases):
        return None, {}
    paths = Counter(
        " → ".join(name or "…" for name, _ in itertools.groupby(task for _, task, _ in run)) for run in runs
    )
    found = AgentRuns(
        n=len(runs),
        n_requests=len(taken),
        cost_usd=total_cost_usd(taken),
        n_others=len(places[""]),
        others_usd=total_cost_usd([place.case for place in places[""]]),
        paths=dict(paths.most_common(_MOST_PATHS)),
    )
    return found, {task.name: _step(task, places[task.name], len(runs)) for task in tasks if task.name in steps}


def _step(task: RecurringTask, places: Sequence[_Taken], n_runs: int) -> Step:
    n, n_own = len(places), len({place.run for place in places})
    follows = Counter(place.before[0] or OTHER for place in places)
    cost, ends = total_cost_usd([place.case for place in places]), _ends(places)
    ends_of = {"first": sum(place.at == 1 for place in places), "last": sum(place.at == place.of for place in places)}
    end, n_there = max(ends_of.items(), key=lambda one: one[1])
    labels = Counter(place.label for place in places if place.label)
    return Step(
        kind=_kind(task, ends),
        n_runs=n_own,
        share=n_own / n_runs,
        per_run=n / n_own,
        place=end if n_there >= _HALF * n else "middle",
        position=median(place.at for place in places),
        of=median(place.of for place in places),
        follows={name: count / n for name, count in follows.most_common()},
        ends=ends,
        usd_per_run=None if cost is None else cost / n_runs,
        usual=wilson(labels.most_common(1)[0][1], labels.total()) if labels else None,
        from_before=_from_before([place for place in places if place.label and place.at > 1]),
    )


def _kind(task: RecurringTask, ends: Sequence[str]) -> StepKind:
    if task.kind == "labels":
        return "route" if len(task.labels) > 2 else "stop" if ends else "gate"
    kinds: dict[str, StepKind] = {"label lists": "shortlist", "fields": "extract", "short answers": "short answer"}
    return kinds.get(task.kind, "open")


def _ends(places: Sequence[_Taken]) -> tuple[str, ...]:
    """Return the labels that end nearly every run, if after others nearly every run goes on."""
    n = Counter(place.label for place in places)
    last = Counter(place.label for place in places if place.at == place.of)
    shares = {label: last[label] / count for label, count in n.items() if label}
    if not shares or min(shares.values()) > _GOES_ON:
        return ()
    return tuple(label for label, share in shares.items() if share >= _ENDS)


def _from_before(places: Sequence[_Taken]) -> Estimate | None:
    """Return how often a label is the usual one after the same step with the same label in the other folds."""
    if not places:
        return None
    counts: dict[tuple[int, tuple[str, str]], Counter[str]] = defaultdict(Counter)
    for place in places:
        for fold in range(_FOLDS):
            if place.run % _FOLDS != fold:
                counts[fold, place.before][place.label] += 1
    usual = {state: count.most_common(1)[0][0] for state, count in counts.items()}
    return wilson(sum(usual.get((p.run % _FOLDS, p.before)) == p.label for p in places), len(places))
