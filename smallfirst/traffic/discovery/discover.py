"""What is in recorded traffic: its tasks, what each costs, which part can move to a small model, and what stays.

It is written to discovery.json and shown by the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from smallfirst.base.files import write_atomically
from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate
from smallfirst.measuring.data_issues import DataIssue, RecordedRow, find_issues
from smallfirst.path.report.page import render_page
from smallfirst.traffic.discovery import draft
from smallfirst.traffic.discovery.agent_runs import AgentRuns, Step, find_steps
from smallfirst.traffic.discovery.assistants import (
    MORE,
    AssistantTask,
    CallFigures,
    examples_of,
    find_assistants,
    foretell_calls,
    prompt_of,
    source_of,
    write_draft,
)
from smallfirst.traffic.discovery.mine import Miner
from smallfirst.traffic.discovery.outlook import MIN_ROWS, Outlook, PlannedRun, foretell_fields, foretell_labels
from smallfirst.traffic.discovery.tasks import (
    MONTH,
    MOST_CASES,
    AnswerKind,
    Case,
    RecurringTask,
    as_text,
    find_tasks,
    free_name,
    read_cases,
    total_cost_usd,
)
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.task_source import SECOND_LOOK_AFTER, FormatCheck, Template

# What was found

Verdict = Literal["moves", "unclear", "stays"]
"""A share above 0 is expected to move, nothing is foretold, or nothing can move."""


def month_factor(days: float) -> float:
    """Return by what figures of so many days are multiplied for a month; 1 for logs without times or of hours."""
    return MONTH.total_seconds() / 86400 / days if days >= 1 else 1.0


class FoundWording(Record):
    """One wording of a task's prompt."""

    prompt: str
    """The messages, slots written as ⟨name⟩."""
    n_requests: int
    first_at: datetime
    last_at: datetime
    slots: dict[str, str]
    """What each slot is used for: text or ignored."""


class FoundTask(Record):
    """A recurring task."""

    name: str
    kind: AnswerKind
    folder: str = ""
    """Where it was drafted; empty if it was not."""
    n_requests: int
    n_cases: int
    """Different cases with an answer of the task's kind."""
    requests_per_month: int
    cost_usd: float | None
    """Of its answers; None if no price is known."""
    usd_per_month: float | None
    models: tuple[str, ...]
    answered_by: str
    first_at: datetime
    last_at: datetime
    wordings: tuple[FoundWording, ...]
    labels: dict[str, int] = {}
    """Labels with numbers of answers."""
    answer: str
    """The format of its answers in words."""
    format_check: FormatCheck | None
    repeats: Estimate
    """Share of repeated cases that got the same answer again."""
    examples: tuple[tuple[str, str], ...]
    issues: tuple[DataIssue, ...] = ()
    """What seems to be wrong with its answers."""
    outlook: Outlook
    calls: CallFigures | None = None
    """Of an assistant; its `labels` are functions with numbers of calls."""
    step: Step | None = None
    """What it does in agents' runs; None if it is no step of them."""
    verdict: Verdict
    why: str
    """What the verdict rests on."""


class Rest(Record):
    """Requests that belong to no task."""

    what: str
    n_requests: int
    cost_usd: float | None


class Discovery(Record):
    """What was found in traffic."""

    sources: tuple[str, ...]
    made_at: datetime
    n_exchanges: int
    n_drawn: int = 0
    """Of the others, those that were looked at; figures are theirs, and those of a month are scaled to all. 0: all."""
    left_out: dict[str, int]
    """Exchanges without a prompt or an answer, by reason."""
    since: datetime | None
    until: datetime | None
    days: float
    """Time from the first to the last request; 0 for a log without times."""
    cost_usd: float | None
    """Of all requests that were looked at."""
    max_error: float
    """Share of kept answers that may differ from the large model's, for which the shares are given."""
    tasks: tuple[FoundTask, ...]
    runs: AgentRuns | None = None
    """Of agents; None if there are none, or if not all requests were looked at."""
    rest: tuple[Rest, ...]
    problems: tuple[str, ...] = ()
    """Lines of logs that could not be read."""

    @property
    def usd_per_month(self) -> float | None:
        return None if self.cost_usd is None else self.cost_usd * self.per_month

    @property
    def per_month(self) -> float:
        """By what figures of the log are multiplied for a month."""
        others = self.n_exchanges - sum(self.left_out.values())
        return month_factor(self.days) * (others / self.n_drawn if self.n_drawn else 1.0)

    @property
    def moving(self) -> Estimate:
        """Share of the bill that can move, or of the requests if no price is known. The ends add those of the tasks."""
        n = sum(task.n_requests for task in self.tasks) + self.n_rest
        parts = [(_weight(task, self) / (self.cost_usd or n), at) for task in self.tasks if (at := task.outlook.moves)]
        ends = {name: sum(share * getattr(at, name) for share, at in parts) for name in ("value", "low", "high")}
        return Estimate(**{name: round(end, 4) for name, end in ends.items()}, n=n)

    @property
    def n_rest(self) -> int:
        """Requests of no task."""
        return sum(rest.n_requests for rest in self.rest)


# How it is found

MAX_ERROR = 0.05
"""Share of kept answers that may differ from the large model's, unless another is asked for."""
_EXAMPLES, _MOST_CHARACTERS, _MOST_LABELS = 3, 2000, 300
_OPEN = {
    "open text": "open text: agreement cannot say whether another wording is as good",
    "mixed": "its answers have no common format",
}
_UNTOLD = "nothing is foretold of such answers: how many can move shows when it is learnt"


def discover(
    exchanges: Iterable[Exchange],
    *,
    sources: Sequence[str] = (),
    out: Path | None = None,
    max_error: float = MAX_ERROR,
    teacher_of: draft.TeacherOf = draft.unknown_terms,
    problems: Sequence[object] = (),
    most: int = MOST_CASES,
    log: Callable[[str], None] = lambda _: None,
) -> Discovery:
    """Find the tasks in recorded traffic, of which `most` requests are held; with `out` draft a folder for each."""
    read = read_cases(exchanges, most)
    log(f"{len(read.cases):,} of {read.n:,} requests with messages and an answer")
    assistants = find_assistants(read.cases)
    taken = {case.id for one in assistants for case in one.cases}
    others = [case for case in read.cases if case.id not in taken]
    miner = Miner[Case]()
    for case in others:
        miner.add(case, case.at, case.prompt)
    mined = miner.templates()
    log(f"{len(mined):,} recurring prompts")
    tasks = find_tasks(mined)
    named, every = list[str](), list[RecurringTask | AssistantTask]([*tasks, *assistants])
    for one in every:
        one.name = free_name(_settled_name(one, out, named), set(named))
        named.append(one.name)
    runs, steps = find_steps(others, tasks) if len(read.cases) == read.n else (None, {})
    timed = [case.at for case in read.cases if case.timed]
    days = (timed[-1] - timed[0]).total_seconds() / 86400 if timed else 0.0
    per_month = month_factor(days) * read.n / max(1, len(read.cases))
    found: list[FoundTask] = []
    for task in tasks:
        judged = _judge(task, out, max_error, teacher_of, per_month)
        if step := steps.get(task.name):
            step = step.promising(judged.outlook, max_error, judged.n_cases)
        found.append(judged.model_copy(update={"step": step}))
        log(f"{found[-1].name}: {found[-1].why}")
    for assistant in assistants:
        found.append(_judge_assistant(assistant, out, max_error, teacher_of, per_month))
        log(f"{found[-1].name}: {found[-1].why}")
    return Discovery(
        sources=tuple(sources),
        made_at=datetime.now(UTC),
        n_exchanges=read.n + sum(read.left_out.values()),
        n_drawn=len(read.cases),
        left_out=read.left_out,
        since=timed[0] if timed else None,
        until=timed[-1] if timed else None,
        days=days,
        cost_usd=total_cost_usd(read.cases),
        max_error=max_error,
        tasks=tuple(found),
        runs=runs,
        rest=_rest(others, tasks),
        problems=tuple(map(str, problems)),
    )


def _settled_name(task: RecurringTask | AssistantTask, out: Path | None, taken: Sequence[str]) -> str:
    """Return the name that an earlier discovery gave to the task, if any."""
    ids = (
        [task.assistant.id] if isinstance(task, AssistantTask) else [one.template.template.id for one in task.wordings]
    )
    known = draft.known_name(ids, out) if out and out.is_dir() else None
    return known if known and known not in taken else task.name


def _judge(
    task: RecurringTask, out: Path | None, max_error: float, teacher_of: draft.TeacherOf, per_month: float
) -> FoundTask:
    rows = draft.rows_of(task)
    settings = draft.task_settings(task, rows)
    outlook = _outlook(task, rows, settings, max_error)
    verdict, why = _verdict(task, settings, outlook, max_error)
    folder = ""
    if out and not isinstance(settings, str) and rows:
        source = draft.source_of(task, outlook, teacher_of)
        if source is not None:
            folder = str(out / task.name)
            draft.write_draft(task, source, settings, rows, out / task.name, max_error)
    cases = [case for case, _, _ in task.cases]
    cost = total_cost_usd(cases)
    return FoundTask(
        name=task.name,
        kind=task.kind,
        folder=folder,
        n_requests=len(cases),
        n_cases=len(rows),
        requests_per_month=round(len(cases) * per_month),
        cost_usd=cost,
        usd_per_month=None if cost is None else cost * per_month,
        models=task.models,
        answered_by=task.most_frequent("answered_by"),
        first_at=task.first_at,
        last_at=task.last_at,
        wordings=tuple(
            FoundWording(
                prompt=_shown(wording.template.template, [slot.name for slot in wording.template.slots]),
                n_requests=len(wording.cases),
                first_at=wording.cases[0].at,
                last_at=wording.cases[-1].at,
                slots={slot.name: slot.use for slot in wording.template.slots},
            )
            for wording in task.wordings
        ),
        labels=dict(list(task.labels.items())[:_MOST_LABELS]),
        answer=_answer_in_words(task),
        format_check=task.format_check,
        repeats=task.repeats,
        examples=_examples(rows),
        issues=_issues(task),
        outlook=outlook,
        verdict=verdict,
        why=why,
    )


def _judge_assistant(
    task: AssistantTask, out: Path | None, max_error: float, teacher_of: draft.TeacherOf, per_month: float
) -> FoundTask:
    outlook, figures = foretell_calls(task, max_error)
    verdict, why = _verdict_of_calls(figures, outlook, max_error)
    folder = str(out / task.name) if out and verdict != "stays" else ""
    if out and folder:
        write_draft(task, source_of(task, outlook, teacher_of), out / task.name, max_error)
    cost, first, last = total_cost_usd(task.cases), task.cases[0].at, task.cases[-1].at
    asked = {"n_requests": len(task.cases), "first_at": first, "last_at": last}
    return FoundTask(
        name=task.name,
        kind="functions",
        folder=folder,
        n_cases=len(set(task.texts)),
        requests_per_month=round(len(task.cases) * per_month),
        cost_usd=cost,
        usd_per_month=None if cost is None else cost * per_month,
        models=task.models,
        answered_by=task.answered_by,
        wordings=(FoundWording(prompt=prompt_of(task)[:_MOST_CHARACTERS], slots={}, **asked),),
        labels=dict(task.calls.most_common(_MOST_LABELS)),
        answer="⟨function⟩(⟨arguments⟩), or text",
        format_check=task.found.check,
        repeats=task.repeats,
        examples=examples_of(task, _EXAMPLES, 400),
        outlook=outlook,
        calls=figures,
        verdict=verdict,
        why=why,
        **asked,
    )


def _verdict_of_calls(figures: CallFigures, outlook: Outlook, max_error: float) -> tuple[Verdict, str]:
    at = figures.moves
    if at is None:
        return "unclear", outlook.why
    limit = f"{max_error:.0%} of the kept calls differing"
    if max(figures.chance, figures.chance_of_more) < 0.05:
        right = outlook.agreement
        shown = f", and {right.value:.0%} of those that a simple model makes are right" if right and right.n else ""
        return "stays", f"its next act is open: nothing can be kept with at most {limit}{shown}"
    told = f"learn promises at most {limit} with a chance of {figures.chance:.0%}, and then {share_in_words(at)}"
    more = f"; of {MORE} times the conversations with one of {figures.chance_of_more:.0%}"
    surely = figures.chance >= 0.95
    return "moves" if surely else "unclear", f"{told} of its calls move{'' if surely else more}"


def _issues(task: RecurringTask) -> tuple[DataIssue, ...]:
    """Return what seems to be wrong with the answers; the keys of rows are those of requests."""
    if task.kind in ("open text", "mixed"):
        return ()
    recorded = [
        RecordedRow(case.id, text, value, case.at if case.timed else None, case.tenant, case.id)
        for case, text, value in task.cases
    ]
    return find_issues(recorded, labels=tuple(task.labels))


def _outlook(
    task: RecurringTask, rows: Sequence[draft.CaseRow], settings: Mapping[str, Any] | str, max_error: float
) -> Outlook:
    """Return what a cheap model's answers foretell of labels and fields; of other answers nothing is."""
    if isinstance(settings, str) or task.kind not in ("labels", "label lists", "fields"):
        return Outlook(why=_OPEN.get(task.kind, settings if isinstance(settings, str) else _UNTOLD))
    if len(rows) < MIN_ROWS:
        return Outlook(why=f"{len(rows)} different cases are too few to foretell anything: {MIN_ROWS} are needed")
    n_finished = task.format_check.n_answers if task.format_check else 0
    run = PlannedRun(
        n_training=draft.n_training(len(rows)),
        n_certifying=draft.n_certifying(len(rows)),
        in_format=min(1.0, sum(row.n for row in rows) / max(1, n_finished)),
        repeatable=task.repeats.high,
    )
    cases = [(row.drawn.text, row.usual.value, row.drawn.value, row.n) for row in rows]
    if task.kind == "fields":
        return foretell_fields(cases, max_error, run, settings["schema"])
    return foretell_labels(cases, max_error, run)


def _verdict(
    task: RecurringTask, settings: Mapping[str, object] | str, outlook: Outlook, max_error: float
) -> tuple[Verdict, str]:
    if isinstance(settings, str):
        return "stays", _OPEN.get(task.kind, settings)
    first, later = outlook.moves, outlook.later
    if first is None or later is None:
        return "unclear", outlook.why
    limit = f"{max_error:.0%} of the kept answers differing"
    both = f"{share_in_words(first)} of its requests can move when it is learnt, with at most {limit}"
    told = f"{both}; {share_in_words(later)} after {SECOND_LOOK_AFTER:,} more texts in shadow"
    if outlook.why:
        return "unclear", f"{told}: {outlook.why}"
    if max(first.low, later.low) >= 0.01:
        return "moves", told
    if max(first.high, later.high) >= 0.05:
        return "unclear", f"{told}, or nothing: learn tells, or collect more"
    return "stays", f"little can move with at most {limit} (up to {max(first.high, later.high):.0%})"


def share_in_words(at: Estimate) -> str:
    """Return a share with its interval in percent."""
    return f"{at.value:.0%} [{at.low:.0%}, {at.high:.0%}]"


def _rest(cases: Sequence[Case], tasks: Sequence[RecurringTask]) -> tuple[Rest, ...]:
    """Return the requests of no task by what they are, the most frequent first."""
    taken = {case.id for task in tasks for case, _, _ in task.cases}
    by_kind: dict[str, list[Case]] = {}
    for case in cases:
        if case.id not in taken:
            by_kind.setdefault(_kind_of_rest(case), []).append(case)
    found = [Rest(what=what, n_requests=len(cases), cost_usd=total_cost_usd(cases)) for what, cases in by_kind.items()]
    return tuple(sorted(found, key=lambda rest: -rest.n_requests))


def _kind_of_rest(case: Case) -> str:
    if case.prompt.has_media:
        return "with images, audio or files"
    roles = [turn.role for turn in case.prompt.turns]
    if "tool" in roles or case.answer.tool_calls:
        return "agents that call tools"
    return "conversations" if "assistant" in roles else "open requests"


def _shown(template: Template, names: Sequence[str]) -> str:
    left, lines = list(names), []
    for turn in template.turns:
        pieces = [turn.pieces[0]]
        for piece in turn.pieces[1:]:
            pieces += [f"⟨{left.pop(0)}⟩" if left else "⟨…⟩", piece]
        lines.append(f"{turn.role}: {''.join(pieces)}")
    return "\n\n".join(lines)[:_MOST_CHARACTERS]


def _answer_in_words(task: RecurringTask) -> str:
    own = task.answer_format
    if own is None:
        return "no common format"
    if own.calls:
        return f"⟨label⟩({own.prefix})"
    what = {"label": "⟨label⟩", "json": "⟨JSON⟩"}.get(own.kind, "⟨text⟩")
    text = f"{own.prefix}{what}{own.suffix}"
    shown = f"{own.tool}({text})" if own.tool else text
    others = len({w.found.format.model_dump_json() for w in task.wordings if w.found}) - 1
    return shown + (f" and {others} other way{'s' if others > 1 else ''} of writing it" if others else "")


def _examples(rows: Sequence[draft.CaseRow]) -> tuple[tuple[str, str], ...]:
    """Return a few cases with different answers, the most frequent first."""
    shown: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: -row.n):
        shown.setdefault(as_text(row.usual.value)[:400], row.usual.text[:400])
    return tuple((text, answer) for answer, text in list(shown.items())[:_EXAMPLES])


# The report

_ORDER = {"moves": 0, "unclear": 1, "stays": 2}
_WORDS = {"moves": "can move", "unclear": "unclear", "stays": "stays"}


def save_report(found: Discovery, path: Path) -> Path:
    """Write the report to `path` and return the path."""
    return write_atomically(path, render_report(found).encode())


def render_report(found: Discovery) -> str:
    """Return the report as HTML."""
    tasks = sorted(found.tasks, key=lambda task: (_ORDER[task.verdict], -_weight(task, found)))
    return render_page(
        "discovery.html",
        found=found,
        tasks=tasks,
        weight={task.name: _weight(task, found) for task in tasks},
        heaviest=max((_weight(task, found) for task in tasks), default=1.0) or 1.0,
        headline=headline(found),
        words=_WORDS,
    )


def headline(found: Discovery) -> str:
    """Return in a sentence how much can move."""
    if not found.tasks:
        return "No recurring task was found in this traffic"
    what = "bill" if found.cost_usd else "requests"
    at = found.moving
    if at.high < 0.005:
        if any(task.verdict == "moves" for task in found.tasks):
            return f"Nothing of the {what} can move when it is learnt, a part after shadow"
        if any(task.verdict == "unclear" for task in found.tasks):
            return f"What of the {what} can move cannot be told yet"
        return f"Nothing of the {what} can be expected to move"
    return f"About {at.value:.0%} of the {what} can move when it is learnt: between {at.low:.0%} and {at.high:.0%}"


def _weight(task: FoundTask, found: Discovery) -> float:
    """Return the task's part of the bill, or of the requests if no price is known."""
    return (task.cost_usd or 0.0) if found.cost_usd else float(task.n_requests)
