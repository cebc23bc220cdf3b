"""Commands after go-live: `harvest`, `challenge`, `explain` and `queue`.

`explain` and `queue` only read the ledger and load nothing heavy.
"""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smallfirst.cli.options import JSON, LEDGER, PATH, TASK, load_project, load_task_file
from smallfirst.errors import ConfigError

if TYPE_CHECKING:
    from smallfirst.serving.ledger.rows import LedgerRow


@click.command()
@TASK
@click.option("--out", type=PATH, default="harvested.jsonl", show_default=True)
@LEDGER
@click.option(
    "--since", help="Only answers given or judged from then on, such as 2026-01-31 or 2026-01-31T12:00+01:00."
)
@JSON
def harvest(task_yaml: Path, out: Path, ledger: Path | None, since: str | None, as_json: bool) -> None:
    """Turn served answers that somebody judged, or the large model gave, into training rows."""
    from smallfirst.improvement.harvest import harvest as harvest_stage

    found = harvest_stage(load_project(task_yaml), out=out, ledger=ledger, since=_moment(since) if since else None)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    click.echo("\n".join(found.in_words))
    if found.n_rows:
        click.echo(f"next: smallfirst challenge {task_yaml} --rows {out}")


@click.command()
@TASK
@click.option("--rows", type=PATH, default="harvested.jsonl", show_default=True)
@LEDGER
@click.option("--propose", "only_propose", is_flag=True, help="Say why, and train nothing.")
@click.option("--resume", is_flag=True, help="Go on with a challenge that was broken off.")
@JSON
def challenge(
    task_yaml: Path, rows: Path, ledger: Path | None, only_propose: bool, resume: bool, as_json: bool
) -> None:
    """Train a challenger with harvested rows; it becomes champion only if it passes the gate and wins on test rows.

    It wins if it is shown more accurate than the champion on the same test rows, or at most 0.01 less accurate while
    more of the requests stay small; each challenge of a champion has to show more than the one before. Exit code 3 if
    the gate said no.
    """
    from smallfirst.improvement.challenge import challenge as challenge_stage
    from smallfirst.improvement.challenge.challenge import proposal_of

    project = load_project(task_yaml)
    if only_propose:
        proposal = proposal_of(project, rows, ledger=ledger)
        click.echo(proposal.model_dump_json(indent=2) if as_json else "\n".join(proposal.in_words))
        return
    found = challenge_stage(project, rows, ledger=ledger, resume=resume)
    click.echo(found.model_dump_json(indent=2) if as_json else "\n".join(found.in_words))
    if found.won and not as_json:
        click.echo(f"next: name {rows} under data.harvested in {task_yaml}, so that later runs learn from it as well")
    if not found.verdict.passed:
        click.get_current_context().exit(3)


@click.command()
@click.argument("response_id")
@LEDGER
@JSON
def explain(response_id: str, ledger: Path | None, as_json: bool) -> None:
    """Explain one served answer: every step with score, threshold and price, the guarantee, audits and feedback."""
    from smallfirst.cli.explain import explanation, in_words
    from smallfirst.improvement.harvest.evidence import open_ledger

    with closing(open_ledger(ledger)) as opened:
        found = explanation(opened, response_id.strip())
    click.echo(found.model_dump_json(indent=2) if as_json else "\n".join(in_words(found)))


@click.command()
@TASK
@click.option("--task", "name", help="Name of the task, instead of its file.")
@LEDGER
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Oldest entries to show.")
@JSON
def queue(task_yaml: Path, name: str | None, ledger: Path | None, limit: int, as_json: bool) -> None:
    """List answers that wait for a person: those no model was sure of, and audits without a verdict."""
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


def _moment(text: str) -> datetime:
    """A moment in ISO 8601; UTC where no zone is named. Raises ConfigError."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--since {text!r} is no date or time in ISO 8601", hint="--since 2026-01-31") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
