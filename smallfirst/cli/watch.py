"""Verbs that look at served answers. They read the ledger and load nothing heavy."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smallfirst.cli.options import JSON, LEDGER, OF_TASK, TASK, load_task_file, read_ledger, show, verb
from smallfirst.errors import ConfigError
from smallfirst.models.protocol import RouteStep
from smallfirst.progress import format_table, one_line
from smallfirst.records import Record
from smallfirst.serving.ledger.rows import AttemptRow, AuditRow, FeedbackRow, LedgerRow, StateRow

if TYPE_CHECKING:
    from smallfirst.deployment.review_queue import Waiting
    from smallfirst.serving.ledger.ledger import Ledger

NEAREST_AMONG = 20_000
"""Newest answers among whose ids a mistyped one is looked for."""
COLUMNS = ("stage", "decision", "score", "asked for", "ms", "USD", "model", "why")


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


@verb("smallfirst queue tickets --limit 5")
@TASK
@click.option("--task", "name", help="Name of the task, instead of its file.")
@LEDGER
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Entries to show.")
@JSON
def queue(task_yaml: Path, name: str | None, limit: int, as_json: bool) -> None:
    """List answers whose label helps most.

    Audits without a verdict come first, then what is in doubt, answers on which models disagree, and those nearest to
    the certificate's threshold. Mark them on the endpoint's page, or by POST /v1/feedback.
    """
    from smallfirst.deployment.review_queue import DUE, review_queue

    task = name or load_task_file(task_yaml).name
    with read_ledger() as opened:
        found = review_queue(opened, [task])
    n_due = sum(one.reason in DUE for one in found)
    shown = [_told(one) for one in found[:limit]]
    if as_json:
        click.echo(json.dumps({"task": task, "n_waiting": n_due, "data": shown}, indent=2, ensure_ascii=False))
        return
    more = f"; a label would help {len(found) - n_due:,} more" if len(found) > n_due else ""
    click.echo(f"{n_due:,} answers of {task} wait for a person{more}")
    for entry in shown:
        click.echo(f"\n{entry['id']}  {entry['at']}  {entry['why']}")
        click.echo(f"  asked    {entry['question'] or '(not stored: smallfirst serve --store-bodies)'}")
        click.echo(f"  draft    {entry['draft'] or '(not stored)'}")
    if len(found) > limit:
        click.echo(f"\nand {len(found) - limit:,} more: --limit {len(found)}")
    if found:
        click.echo('\nnext: POST /v1/feedback {"id": "…", "verdict": "right"}, or "wrong" and the right "answer"')


def _told(one: Waiting) -> dict[str, Any]:
    from smallfirst.improvement.harvest import last_user_message

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


class Explanation(Record):
    """The ledger's rows about one answer."""

    answer: LedgerRow
    steps: tuple[RouteStep, ...]
    """Its steps through the Router, in order."""
    state: StateRow | None
    """The last change of the task's state before it; None if there is none in the ledger."""
    attempts: tuple[AttemptRow, ...] = ()
    """Requests to endpoints for it and its audit, oldest first."""
    audits: tuple[AuditRow, ...]
    """The verdict of its audit, if there is one."""
    feedback: tuple[FeedbackRow, ...]
    """Feedback on it, oldest first."""
    not_made: str
    """Cost of the alternative, in words; empty if there was none."""


def explanation(ledger: Ledger, id: str) -> Explanation:
    """Return the explanation of a response. Raise ConfigError naming similar ids if it is unknown."""
    row = ledger.get(id)
    if row is None:
        raise _unknown(ledger, id)
    states = ledger.entries(StateRow, task=row.task) if row.task else ()
    earlier = [s for s in states if s.at <= row.at and s.before != s.after]  # the others are hints and further alarms
    return Explanation(
        answer=row,
        steps=row.steps,
        state=earlier[-1] if earlier else None,
        attempts=ledger.entries(AttemptRow, id=id),
        audits=ledger.entries(AuditRow, id=id),
        feedback=ledger.entries(FeedbackRow, id=id),
        not_made=_not_made(row),
    )


def in_words(found: Explanation) -> list[str]:
    """Return the explanation as aligned lines."""
    lines = format_table([(name, value) for name, value in _facts(found) if value])
    if found.steps:
        lines += ["", *format_table([COLUMNS, *map(_cells, found.steps)], right=range(2, 6))]
    after = [*_after(found)]
    return [*lines, "", *after] if after else lines


def _facts(found: Explanation) -> Iterator[tuple[str, str]]:
    from smallfirst.improvement.harvest import last_user_message

    row = found.answer
    yield "answer", row.id
    yield "asked", f"{_time(row.at)}, as {row.served_name}"
    yield "question", one_line(last_user_message(row))
    if row.status != 200:
        yield "failed", f"{row.status} {row.error_code or ''} after {row.latency_ms:.0f} ms"
        return
    yield "answered", f"by {row.answered_by} (stage {row.stage}) in {row.latency_ms:.1f} ms for {_usd(row.cost_usd)}"
    yield "says", one_line(row.answer_text or "")
    yield "task", row.task or "none: no Router decided"
    if row.certified:
        yield "guarantee", row.guarantee or "covered by the certificate"
    elif row.task:
        yield "guarantee", "none about this answer"
    if found.state is not None:
        s = found.state
        yield "state", f"{s.after} since {_time(s.at)}: {s.why} (certificate {s.certificate})"


def _after(found: Explanation) -> Iterator[str]:
    row = found.answer
    for one in found.attempts:
        cost = "of unknown cost" if one.cost_usd is None else f"for {_usd(one.cost_usd)}"
        yield f"attempt: {_time(one.at)}  {one.model} at {one.endpoint} for the {one.purpose}: {one.outcome}, {cost}"
    for line in row.bill:
        yield f"bill: {line.in_words}"
    if found.not_made:
        yield f"not chosen: {found.not_made}"
    if row.audit_share is not None:
        drawn = "chosen" if row.audited else "not chosen"
        weight = f" (weight {row.audit_weight:.3g})" if row.audit_weight != 1 else ""
        yield f"audit: {drawn} by chance, of which it had {100 * row.audit_share:.3g} %{weight}"
    for audit in found.audits:
        who = "the large model" if audit.judged_by == "large" else "a person"
        verdict = "wrong" if audit.wrong else "right"
        other = f", which says {one_line(audit.other)}" if audit.other else ""
        yield f"  {_time(audit.at)}  {verdict}, judged by {who} for {_usd(audit.cost_usd)}{other}"
    if row.audited and not found.audits:
        yield "  no verdict yet"
    for said in found.feedback:
        right = f"; right is {one_line(said.answer)}" if said.answer else ""
        counted = "; the audit's verdict" if said.counted else ""
        yield f"feedback: {_time(said.at)}  {said.verdict}{right}{counted}"
    if row.status == 200 and row.task and not found.feedback:
        yield "feedback: none"


def _not_made(row: LedgerRow) -> str:
    """Describe the alternative and its cost: asking the large model, or keeping the last draft."""
    paid = row.cost_usd or 0.0
    if waived := next((step for step in row.steps if step.decision == "not asked"), None):
        more = f"{_usd(waived.cost_usd)} more than the {_usd(paid)} that was paid"
        return f"asking {waived.model or waived.stage} as well would have cost about {more}"
    drafts = [step for step in row.steps if step.decision == "passed on" and step.model]
    asked = [step for step in row.steps if step.decision == "answered"]
    if drafts and asked:
        saved = _usd(sum(step.cost_usd for step in asked))
        return f"letting the draft of {drafts[-1].model} stand would have saved {saved} of {_usd(paid)}"
    if row.certified:
        return "asking the large model; its price was not measured"
    return ""


def _cells(step: RouteStep) -> tuple[str, ...]:
    waived = step.decision == "not asked"
    return (
        step.stage,
        step.decision,
        "" if step.score is None else f"{step.score:.3f}",
        _bar(step),
        "" if waived or not step.latency_ms else f"{step.latency_ms:.1f}",
        ("~" if waived else "") + f"{step.cost_usd:.6f}" if step.cost_usd else "",
        step.model,
        f"{step.why}, differs from the draft" if step.differs else step.why,
    )


def _bar(step: RouteStep) -> str:
    """Return what the score had to reach; for an out-of-domain score, what it must not exceed."""
    if step.threshold is None:
        return ""
    if step.threshold > 1:
        return "never kept"
    return f"{'<=' if step.stage in ('domain', 'front') else '>='} {step.threshold:.3f}"


def _unknown(ledger: Ledger, id: str) -> ConfigError:
    known = [row.id for row in reversed(ledger.rows(limit=NEAREST_AMONG))]
    near = [other for other in known if id and (other.startswith(id) or id in other)][:3]
    near = near or difflib.get_close_matches(id, known, n=3, cutoff=0.6)
    told = f"; near it: {', '.join(near)}" if near else ""
    return ConfigError(
        f"no answer with the id {id!r} is in {ledger.place}{told}",
        hint="an id is `id` in the response body, its header x-request-id, or in: smallfirst queue",
    )


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _usd(amount: float | None) -> str:
    if amount is None:
        return "an unknown price"
    if amount >= 1 or not amount:
        return f"${amount:.2f}"
    return f"${amount:.8f}".rstrip("0") if amount >= 5e-9 else f"${amount:.1e}"
