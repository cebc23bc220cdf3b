"""Verbs on what was served: explain an answer, review what a label would help, and make better models from it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smallfirst.base.errors import ConfigError, DataError
from smallfirst.base.progress import Progress, format_table, one_line
from smallfirst.base.records import Record
from smallfirst.data.conversations import from_text, to_messages
from smallfirst.data.pages import PagePlace, kept_span
from smallfirst.interfaces.cli.options import (
    JSON,
    LEDGER,
    OF_TASK,
    PATH,
    TASK,
    load_project,
    load_task_file,
    named_in_task,
    read_ledger,
    show,
    verb,
)
from smallfirst.ledger.rows import AttemptRow, AuditRow, FeedbackRow, LedgerRow, StateRow
from smallfirst.models.protocol import RouteStep, ValuePlace

if TYPE_CHECKING:
    from smallfirst.deployment.review_queue import Waiting
    from smallfirst.ledger.ledger import Ledger
    from smallfirst.path.project.settlements import Settlement

STEP_COLUMNS = ("stage", "decision", "score", "asked for", "ms", "USD", "model", "why")


@verb("smallfirst explain chatcmpl-4f0c2a")
@click.argument("response_id")
@OF_TASK
@LEDGER
@JSON
def explain(response_id: str, as_json: bool) -> None:
    """Explain one served answer step by step.

    Each step with score, threshold and price; then the guarantee, audits and feedback.
    """
    with read_ledger() as opened:
        found = explanation(opened, response_id.strip())
    show(found, as_json, in_words)


class Explanation(Record):
    """The ledger's rows about one answer."""

    answer: LedgerRow
    steps: tuple[RouteStep, ...]
    """Its steps through the Router, in order."""
    state: StateRow | None
    """The last change of the task's state before it; None if there is none in the ledger."""
    attempts: tuple[AttemptRow, ...]
    """Requests to endpoints for it and its audit, oldest first."""
    audits: tuple[AuditRow, ...]
    feedback: tuple[FeedbackRow, ...]
    """Feedback on it, oldest first."""


def explanation(ledger: Ledger, id: str) -> Explanation:
    """Return the explanation of a response. Raise ConfigError if it is unknown."""
    row = ledger.get(id)
    if row is None:
        raise ConfigError(
            f"no answer with the id {id!r} is in {ledger.place}",
            hint="an id is `id` in the response body, its header x-request-id, or in: smallfirst review",
        )
    states = ledger.entries(StateRow, task=row.task) if row.task else ()
    earlier = [s for s in states if s.at <= row.at and s.before != s.after]  # the others are further alarms
    return Explanation(
        answer=row,
        steps=row.steps,
        state=earlier[-1] if earlier else None,
        attempts=ledger.entries(AttemptRow, id=id),
        audits=ledger.entries(AuditRow, id=id),
        feedback=ledger.entries(FeedbackRow, id=id),
    )


def in_words(found: Explanation) -> Iterator[str]:
    """Yield the explanation as tables: facts, steps, and what came of it."""
    from smallfirst.traffic.harvest import last_user_message

    row, state = found.answer, found.state
    facts = [
        ("answer", row.id),
        ("asked", f"{_time(row.at)}, as {row.served_name}"),
        ("question", one_line(last_user_message(row))),
    ]
    if row.status == 200:
        by = f"by {row.answered_by} (stage {row.stage}) in {row.latency_ms:.1f} ms for {_usd(row.cost_usd)}"
        promise = (row.guarantee or "covered by the certificate") if row.certified else "none about this answer"
        facts += [("answered", by), ("says", one_line(row.answer_text or ""))]
        facts += [("task", row.task or "none: no Router decided"), ("guarantee", promise if row.task else "")]
    else:
        facts.append(("failed", f"{row.status} {row.error_code or ''} after {row.latency_ms:.0f} ms"))
    if state is not None:
        since = f"{state.after} since {_time(state.at)}: {state.why} (certificate {state.certificate})"
        facts.append(("state", since))
    if row.audit_share is not None:
        drawn = "chosen" if row.audited else "not chosen"
        facts.append(("audit", f"{drawn} by chance, of which it had {100 * row.audit_share:.3g} %"))
    facts += [
        ("attempt", f"{one.model} at {one.endpoint} for the {one.purpose}: {one.outcome}, for {_usd(one.cost_usd)}")
        for one in found.attempts
    ]
    facts += [("bill", line.in_words) for line in row.bill]
    for audit in found.audits:
        who = "the large model" if audit.judged_by == "large" else "a person"
        other = f", which says {one_line(audit.other)}" if audit.other else ""
        verdict = f"{'wrong' if audit.wrong else 'right'} by {who}"
        verdict = "no verdict by the large model" if audit.judged_by == "nobody" else verdict
        facts.append(("audited", f"{_time(audit.at)}, {verdict} for {_usd(audit.cost_usd)}{other}"))
    for said in found.feedback:
        right = f"; right is {one_line(said.answer)}" if said.answer else ""
        counted = "; the audit's verdict" if said.counted else ""
        facts.append(("feedback", f"{_time(said.at)}, {said.verdict}{right}{counted}"))
    facts += [("read", f"{name}: {_place(place, row)}") for step in found.steps for name, place in step.read.items()]
    yield from format_table([fact for fact in facts if fact[1]])
    if found.steps:
        yield ""
        yield from format_table([STEP_COLUMNS, *map(_cells, found.steps)], right=range(2, 6))


def _place(place: ValuePlace | None, row: LedgerRow) -> str:
    """Return where a value was read, with its words where the text is kept and redaction has not moved them."""
    from smallfirst.traffic.harvest import last_user_message

    if place is None:
        return "a usual value, judged from words"
    content: Any = last_user_message(row)
    if place.page:
        span = kept_span(content, PagePlace(place.page, place.offset), place.end - place.start)
        return str(place.model_copy(update={"words": one_line(content[slice(*span)])}) if span else place)
    messages = to_messages(from_text(content))
    content = messages[place.message].get("content") if place.message < len(messages) else None
    said = str(content)[: place.end] if content else ""
    return str(place if "[" in said else place.model_copy(update={"words": one_line(said[place.start :])}))


def _cells(step: RouteStep) -> tuple[str, ...]:
    expected = step.decision == "not asked"  # its price is what asking would have cost
    bound = ""
    if step.threshold is not None:  # what the score had to reach; an out-of-domain score must not exceed it
        sign = "<=" if step.stage in ("domain", "front") else ">="
        bound = "never kept" if step.threshold > 1 else f"{sign} {step.threshold:.3f}"
    return (
        step.stage,
        step.decision,
        "" if step.score is None else f"{step.score:.3f}",
        bound,
        "" if expected or not step.latency_ms else f"{step.latency_ms:.1f}",
        ("~" if expected else "") + f"{step.cost_usd:.6f}" if step.cost_usd else "",
        step.model,
        f"{step.why}, differs from the draft" if step.differs else step.why,
    )


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _usd(amount: float | None) -> str:
    return "an unknown price" if amount is None else f"${amount:.6f}"


@verb(
    "smallfirst review tickets",
    "smallfirst review tickets --settle 4f0c2a1b=map",
    "smallfirst review tickets --labels suspects.jsonl --random 200",
)
@TASK
@LEDGER
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Answers to show.")
@click.option("--labels", type=PATH, metavar="FILE", help="Write training rows whose label is probably wrong instead.")
@click.option(
    "--random", "n_random", type=click.IntRange(0), default=0, help="With --labels: calibration rows to judge."
)
@click.option("--settle", multiple=True, metavar="ID=DECISION", help="Settle a finding.")
@click.option("--decisions", type=click.File(), metavar="FILE", help="Lines of ID=DECISION; - reads them from a pipe.")
@click.option("--undo", is_flag=True, help="Take the last decision back.")
@JSON
def review(
    task_yaml: Path,
    limit: int,
    labels: Path | None,
    n_random: int,
    settle: tuple[str, ...],
    decisions: Iterable[str] | None,
    undo: bool,
    as_json: bool,
) -> None:
    """Settle what seems wrong with the answers, and list what a label helps most.

    Findings come first, those that decide most ahead: one decision settles all rows of a finding and goes to
    review.jsonl beside task.yaml, which `run` and `learn` read. On a terminal each is asked. Then the served answers:
    audits without a verdict, what is in doubt, and what is nearest to the certificate's threshold; mark them on the
    endpoint's page. With --labels rows are written to FILE for a person to fill in.
    """
    if labels is not None:
        _write_suspects(task_yaml, labels, n_random)
        return
    from smallfirst.deployment.review_queue import DUE, review_queue
    from smallfirst.path.project.settlements import read_settlements

    if undo:
        _take_back(task_yaml)
        return
    issues = _settle(task_yaml, [*settle, *(decisions or ())], ask=not as_json and not settle and not decisions)
    file = load_task_file(task_yaml)
    task = file.name
    try:
        with read_ledger() as opened:
            found = review_queue(opened, [task])
    except ConfigError:  # nothing was served yet
        if not issues and not read_settlements(file.folder):
            raise
        if not as_json:
            return
        found = []
    n_due, shown = sum(one.reason in DUE for one in found), [_told(one) for one in found[:limit]]
    if as_json:
        told = {"task": task, "issues": issues, "n_waiting": n_due, "data": shown}
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    more = f"; a label would help {len(found) - n_due:,} more" if len(found) > n_due else ""
    click.echo(f"{n_due:,} answers of {task} wait for a person{more}")
    for entry in shown:
        click.echo(f"\n{entry['id']}  {entry['at']}  {entry['why']}")
        click.echo(f"  asked    {entry['question'] or '(not stored: smallfirst serve --store-bodies)'}")
        click.echo(f"  draft    {entry['draft'] or '(not stored)'}")
    if found:
        click.echo('\nnext: POST /v1/feedback {"id": "…", "verdict": "right"}, or "wrong" and the right "answer"')


def _settle(task_yaml: Path, decisions: Iterable[str], *, ask: bool) -> list[dict[str, Any]]:
    """Settle findings by `ID=DECISION`, else ask for each on a terminal or list them; return those that are left."""
    from smallfirst.path.diagnostics import unsettled_issues
    from smallfirst.path.project.settlements import EFFECTS, choices, settle

    folder = load_task_file(task_yaml).folder
    try:
        project = load_project(task_yaml)
    except (ConfigError, DataError):  # its rows are not on this machine, or cannot be read: `check` says which
        return []
    labels = bool(project.task.closed)
    left = {issue.id: issue for issue in unsettled_issues(project)}
    n_found = len(left)
    for line in filter(None, map(str.strip, decisions)):
        start, _, decision = line.partition("=")
        ids = [id for id in left if id.startswith(start.strip())]
        if len(ids) != 1:
            raise ConfigError(
                f"{line!r}: {len(ids)} findings have this id", hint="smallfirst review task.yaml   lists them"
            )
        click.echo(_settled_words(settle(folder, left.pop(ids[0]), decision.strip(), labels=labels)))
    for issue in list(left.values()) if ask else ():
        click.echo(f"\n{issue.id[:8]}  " + "\n".join(issue.in_words))
        known = choices(issue, labels=labels)
        click.echo("\n".join(f"  {one:<6} {EFFECTS[one]}" for one in known))
        if not sys.stdin.isatty():
            click.echo(f"  settle it: --settle {issue.id[:8]}={'|'.join(known)}")
            continue
        said = click.prompt("  decide", type=click.Choice([*known, "skip"]), default="skip")
        if said != "skip":
            click.echo(_settled_words(settle(folder, left.pop(issue.id), said, labels=labels)))
    if len(left) < n_found:
        click.echo(f"next: smallfirst {'learn' if (folder / 'source.json').exists() else 'run'} {task_yaml}")
    return [{"choices": choices(i, labels=labels), "id": i.id} | i.model_dump(mode="json") for i in left.values()]


def _settled_words(made: Settlement) -> str:
    return f"{made.decision}: {made.what} ({made.n:,} rows)"


def _take_back(task_yaml: Path) -> None:
    from smallfirst.path.project.settlements import undo

    taken = undo(load_task_file(task_yaml).folder)
    click.echo(f"taken back: {_settled_words(taken)}" if taken else "nothing was decided")


def _told(one: Waiting) -> dict[str, Any]:
    from smallfirst.traffic.harvest import last_user_message

    row = one.row
    return {
        "id": row.id,
        "at": row.at.isoformat(timespec="seconds"),
        "reason": one.reason,
        "why": one.why,
        "confidence": row.confidence,
        "question": last_user_message(row),
        "draft": row.answer_text or "",
    }


def _write_suspects(task_yaml: Path, out: Path, n_random: int) -> None:
    from smallfirst.path.diagnostics import export_suspects

    project = load_project(task_yaml)
    n = export_suspects(project, out, n_random=n_random)
    if n_random:
        click.echo(f"and {n_random} calibration rows drawn at random: fill in `answer` of each, right or wrong")
    if n or n_random:
        click.echo(f"{n} probable label errors in {out}: fill in `answer` where the given one is wrong")
        setting = f"relabels: {named_in_task(out, project.file)}"
        click.echo(f"then add  {setting}  under data: in task.yaml\nnext: smallfirst run {task_yaml}")
    else:
        click.echo(f"no probable label errors: label more rows\nnext: smallfirst run {task_yaml}")


@verb("smallfirst label tickets new.jsonl --cap-usd 2", "smallfirst label tickets new.jsonl --yes --min-confidence 0.9")
@TASK
@click.argument("rows", type=PATH)
@click.option("--out", type=PATH, default="labelled.jsonl", show_default=True)
@click.option("--cap-usd", type=float, help="Most that the answers may cost in all.")
@click.option("--yes", is_flag=True, help="Accept the estimated cost without a cap.")
@click.option("--min-confidence", type=float, default=0.0, show_default=True, help="Least confidence of a kept answer.")
@JSON
def label(task_yaml: Path, rows: Path, as_json: bool, **settings: Any) -> None:
    """Have the large model label ROWS under a price cap.

    Those it is sure of become training rows. Run again, it asks only what is missing.
    """
    from smallfirst.base.records import parse_record
    from smallfirst.traffic.labelling import LabelOptions
    from smallfirst.traffic.labelling import label as label_stage

    options = parse_record(LabelOptions, settings, where="options")
    show(label_stage(load_task_file(task_yaml), rows, options=options, progress=Progress()), as_json)


@verb("smallfirst harvest tickets")
@TASK
@click.option("--out", type=PATH, default="harvested.jsonl", show_default=True)
@LEDGER
@JSON
def harvest(task_yaml: Path, out: Path, as_json: bool) -> None:
    """Turn served answers into training rows.

    Only those that somebody judged, or that the large model gave.
    """
    from smallfirst.traffic.harvest import harvest as harvest_stage

    project = load_project(task_yaml)
    found = harvest_stage(project, out)
    show(found, as_json)
    if found.n_rows and not as_json:
        click.echo(f"then add  harvested: [{named_in_task(out, project.file)}]  under data: in task.yaml")
        click.echo(f"next: smallfirst run {task_yaml} --challenge")
