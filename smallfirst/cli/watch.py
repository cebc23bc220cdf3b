"""Verbs that look at served answers. They read the ledger and load nothing heavy."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smallfirst.cli.options import JSON, LEDGER, OF_TASK, TASK, load_task_file, verb

if TYPE_CHECKING:
    from smallfirst.serving.ledger.rows import LedgerRow


@verb("smallfirst explain chatcmpl-4f0c2a")
@click.argument("response_id")
@OF_TASK
@LEDGER
@JSON
def explain(response_id: str, ledger: Path | None, as_json: bool) -> None:
    """Explain one served answer step by step.

    Each step with score, threshold and price; then the guarantee, audits and feedback.
    """
    from smallfirst.cli.explain import explanation, in_words
    from smallfirst.improvement.harvest.evidence import open_ledger

    with closing(open_ledger(ledger)) as opened:
        found = explanation(opened, response_id.strip())
    click.echo(found.model_dump_json(indent=2) if as_json else "\n".join(in_words(found)))


@verb("smallfirst queue tickets --limit 5")
@TASK
@click.option("--task", "name", help="Name of the task, instead of its file.")
@LEDGER
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Oldest entries to show.")
@JSON
def queue(task_yaml: Path, name: str | None, ledger: Path | None, limit: int, as_json: bool) -> None:
    """List answers that wait for a person.

    Those are answers no model was sure of, and audits without a verdict.
    """
    from smallfirst.deployment.review_queue import waiting_for_review
    from smallfirst.improvement.harvest.evidence import open_ledger

    task = name or load_task_file(task_yaml).name
    with closing(open_ledger(ledger)) as opened:
        rows = waiting_for_review(opened, [task])
    shown = [_told(row) for row in rows[:limit]]
    if as_json:
        click.echo(json.dumps({"task": task, "n_waiting": len(rows), "data": shown}, indent=2, ensure_ascii=False))
        return
    click.echo(f"{len(rows):,} answers of {task} wait for a person" + (", the oldest first" if rows else ""))
    for entry in shown:
        click.echo(f"\n{entry['id']}  {entry['at']}  {entry['why']}")
        click.echo(f"  asked    {entry['question'] or '(not stored: smallfirst serve --store-bodies)'}")
        click.echo(f"  draft    {entry['draft'] or '(not stored)'}")
    if len(rows) > limit:
        click.echo(f"\nand {len(rows) - limit:,} more: --limit {len(rows)}")
    if rows:
        click.echo('\nnext: POST /v1/feedback {"id": "…", "verdict": "right"}, or "wrong" and the right "answer"')


def _told(row: LedgerRow) -> dict[str, Any]:
    from smallfirst.improvement.harvest.evidence import last_user_message

    unsure = "no model was sure" if row.confidence is None else f"no model was sure ({row.confidence:.3f})"
    return {
        "id": row.id,
        "at": row.at.isoformat(timespec="seconds"),
        "why": unsure if row.stage == "person" else "audit without a verdict",
        "confidence": row.confidence,
        "question": last_user_message(row),
        "draft": row.answer_text or "",
    }
