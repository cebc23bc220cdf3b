"""Verbs that look at served answers. They read the ledger and load nothing heavy."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smallfirst.cli.options import JSON, LEDGER, OF_TASK, TASK, load_task_file, verb

if TYPE_CHECKING:
    from smallfirst.deployment.review_queue import Waiting


@verb("smallfirst explain chatcmpl-4f0c2a")
@click.argument("response_id")
@OF_TASK
@LEDGER
@JSON
def explain(response_id: str, as_json: bool) -> None:
    """Explain one served answer step by step.

    Each step with score, threshold and price; then the guarantee, audits and feedback.
    """
    from smallfirst.cli.explain import explanation, in_words
    from smallfirst.improvement.harvest.evidence import open_ledger

    with closing(open_ledger()) as opened:
        found = explanation(opened, response_id.strip())
    click.echo(found.model_dump_json(indent=2) if as_json else "\n".join(in_words(found)))


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
    from smallfirst.improvement.harvest.evidence import open_ledger

    task = name or load_task_file(task_yaml).name
    with closing(open_ledger()) as opened:
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
    from smallfirst.improvement.harvest.evidence import last_user_message

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
