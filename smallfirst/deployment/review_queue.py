"""The review queue: answers that a person should judge and nobody has, for HTTP and the command line alike.

Two kinds of answers wait: those that no model was certain of and that the Router marked for a person, and those that
were selected for an audit and have no verdict of a judge. Where a person judges a task, all selected answers wait; in a
fallback the verdict names the right answer, by which the small model's draft is judged. Where the large model judges,
its verdict comes within seconds, so a selected answer stays in the queue only if that audit failed.
"""

from __future__ import annotations

from collections.abc import Iterable

from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import AuditRow, DraftRow, FeedbackRow, LedgerRow, standing

PERSON_STAGE = "person"
"""Stage of answers that the Router marks for a person."""


def waiting_for_review(ledger: Ledger, tasks: Iterable[str]) -> list[LedgerRow]:
    """Return the answers of `tasks` that wait for a person, oldest first."""
    judged = {feedback.id for feedback in standing(ledger.entries(FeedbackRow)) if feedback.judge}
    last = {audit.id: audit for audit in ledger.entries(AuditRow)}
    audited = {id for id, audit in last.items() if audit.judged_by != "nobody"}
    waiting: dict[str, LedgerRow] = {}
    for task in tasks:
        marked = ledger.entries(LedgerRow, task=task, stage=PERSON_STAGE)
        selected = [row for row in ledger.entries(LedgerRow, task=task, audited="1") if row.certified]
        waiting |= {row.id: row for row in marked if row.id not in judged}
        drafts = {draft.id for draft in ledger.entries(DraftRow, task=task)} - judged - audited
        selected += [row for row in map(ledger.get, sorted(drafts)) if row is not None]
        waiting |= {row.id: row for row in selected if row.id not in judged | audited}
    return sorted(waiting.values(), key=lambda row: row.at)
