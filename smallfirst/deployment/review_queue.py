"""The review queue: answers that a judge's label would help, those that it helps most first, for HTTP and command line.

An audit comes first: chance drew it, so its verdict moves the bound. Then what a user called wrong, what the Router
left to a person, answers on which draft and large answer differ (the surest draft first), and last those with a
confidence near the certificate's threshold. Labels of answers that chance did not draw train, and measure nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, DraftRow, FeedbackRow, LedgerRow, StateRow, standing

PERSON_STAGE = "person"
"""Stage of answers that the Router marks for a person."""
N_RECENT = 1_000
"""Newest answers of a task, of each kind, that are looked at: drawn, left to a person, any."""
_N_DRAFTS = 200
_CLOCKS_DIFFER = timedelta(hours=1)
Reason = Literal["audit", "reported", "unsure", "disagreement", "near"]
REASONS: tuple[Reason, ...] = ("audit", "reported", "unsure", "disagreement", "near")
"""Why an answer is in the queue, in the order of what a label brings."""
DUE = REASONS[:3]
"""Reasons for which an answer waits for a judge; for the others a label helps, and nobody waits."""


class Waiting(NamedTuple):
    """An answer in the queue."""

    row: LedgerRow
    reason: Reason
    why: str
    """The reason with its figures, in one clause."""
    doubt: float = 0.0
    """Greater comes first among equal reasons, then the older."""


def review_queue(ledger: Ledger, tasks: Iterable[str], *, recent: int = N_RECENT) -> list[Waiting]:
    """Return the answers of `tasks` that a label would help, the most helpful first.

    A text that a judge has marked already, or that comes earlier, is left out where chance did not draw it.
    """
    found = [one for task in tasks for one in _of_task(ledger, task, recent)]
    found.sort(key=lambda one: (REASONS.index(one.reason), -one.doubt, one.row.at))
    seen: set[str] = set()
    kept = []
    for one in found:
        text = one.row.request_sha256
        if one.reason in DUE or text is None or text not in seen:
            kept.append(one)
        if text is not None:
            seen.add(text)
    return kept


def _of_task(ledger: Ledger, task: str, recent: int) -> Iterator[Waiting]:
    newest = ledger.entries(LedgerRow, task=task, limit=recent) if recent else ()
    rows = [row for row in newest if row.status == 200 and row.request_text and row.answer_text is not None]
    drawn = ledger.entries(LedgerRow, task=task, audited="1", limit=N_RECENT)
    drawn = tuple(row for row in drawn if row.certified or row.stage != "large")
    left = ledger.entries(LedgerRow, task=task, stage=PERSON_STAGE, limit=N_RECENT)
    oldest = min((row.at - _CLOCKS_DIFFER for row in (*rows, *drawn, *left)), default=None)
    said: dict[str, list[FeedbackRow]] = defaultdict(list)
    for one in standing(ledger.entries(FeedbackRow, since=oldest)):
        said[one.id].append(one)
    judged = {id for id, verdicts in said.items() if any(one.judge for one in verdicts)}
    audited = {audit.id for audit in ledger.entries(AuditRow, task=task, since=oldest)}
    drafts = [one.id for one in ledger.entries(DraftRow, task=task, limit=N_RECENT) if one.id not in judged | audited]
    drawn += tuple(row for row in map(ledger.get, drafts[-_N_DRAFTS:]) if row is not None)
    due = {one.row.id: one for one in _drawn(drawn, judged | audited, _in_force_since(ledger, task))}
    for row in left:
        if row.id not in judged:
            due[row.id] = Waiting(row, "unsure", f"no model was sure{_measured(row)}: left to a person")
    due |= {one.row.id: one for one in _reported(ledger, task, said, audited)}
    yield from due.values()
    marked = {row.request_sha256 for row in rows if row.id in judged}
    for row in rows:
        if row.id not in due and row.id not in judged and row.request_sha256 not in marked:
            yield from _helpful(row)


def _drawn(rows: Iterable[LedgerRow], done: Collection[str], since: datetime | None) -> Iterator[Waiting]:
    for row in rows:
        if row.id not in done:
            counts = since is None or row.at >= since
            what = "its verdict counts for the guarantee" if counts else "under an earlier certificate, counts no more"
            yield Waiting(row, "audit", f"drawn by chance: {what}", float(counts))


def _reported(
    ledger: Ledger, task: str, said: Mapping[str, Sequence[FeedbackRow]], audited: Collection[str]
) -> Iterator[Waiting]:
    """Yield answers that a user called wrong and nobody has judged."""
    for id, verdicts in list(said.items())[-N_RECENT:]:
        wrong = any(one.verdict == "wrong" for one in verdicts) and not any(one.judge for one in verdicts)
        row = ledger.get(id) if wrong and id not in audited else None
        if row is not None and row.task == task:
            yield Waiting(row, "reported", "a user called it wrong")


def _helpful(row: LedgerRow) -> Iterator[Waiting]:
    """Yield the answer if draft and large answer differ, or its confidence is near the threshold."""
    if row.steps and row.steps[-1].differs:
        why = f"the small model said something else{_measured(row)}"
        yield Waiting(row, "disagreement", why, row.confidence or 0.0)
    elif row.confidence is not None and row.threshold is not None and row.threshold <= 1:
        far = row.confidence - row.threshold
        where = f"{abs(far):.3f} {'above' if far >= 0 else 'below'} the threshold of {row.threshold:.3f}"
        yield Waiting(row, "near", f"confidence {where}", -abs(far))


def _measured(row: LedgerRow) -> str:
    return "" if row.confidence is None else f" (confidence {row.confidence:.3f})"


def _in_force_since(ledger: Ledger, task: str) -> datetime | None:
    """Return when the certificate in force went live; None if the ledger does not say."""
    states = [state for state in ledger.entries(StateRow, task=task) if state.certificate]
    return next((state.at for state in states if state.certificate == states[-1].certificate), None)
