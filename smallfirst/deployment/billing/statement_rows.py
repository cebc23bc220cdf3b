"""The rows of a statement: one line of CSV for each request, audit and expense, and the figures that follow from them.

A line holds what its figures need, as text, so that its reader gets the same figures as its writer.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict, namedtuple
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pydantic_core

from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate
from smallfirst.deployment.billing.saved import Account, Amount, Saving
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, ExpenseRow, LedgerRow
from smallfirst.ledger.sums import Sums, outcome_of
from smallfirst.models.pricing import Charge
from smallfirst.routing.monitor import share_wrong

_KEY = ("period", "kind", "task", "stage", "outcome")
_TOKENS = ("cache_write_tokens", "image_tokens", "reasoning_tokens")
_AMOUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens", "busy_s", "draft_usd")

Line = namedtuple(
    "Line",
    "kind id at task stage outcome model prompt_tokens cached_tokens cache_write_tokens image_tokens completion_tokens"
    " reasoning_tokens busy_s usd draft_usd cost_unknown estimated basis price price_source price_date tier certified"
    " guarantee propensity weight wrong judged_by certificate",
)
"""One line of text cells, named as in the ledger; what does not apply is empty, a yes is 1.

`kind` is `answer`, `audit` or an expense's; `stage` of an audit is that of the answer; `model` of an expense says what
was paid for, and several models or prices of one request are joined by +; `guarantee` is the digest of its words.
"""


class PriceUsed(Record):
    """What was paid at one price."""

    model: str
    basis: str
    price: str
    """USD per million tokens by kind, per request, or per hour of a machine."""
    price_source: str
    price_date: str
    tier: str
    n: int
    usd: float


class Promise(Record):
    """Answers under one promise."""

    task: str
    guarantee: str
    """Digest of its words."""
    n: int


class Proof(Record):
    """What audits in the period say about the promise of one certificate."""

    task: str
    certificate: str
    """Its fingerprint."""
    n_wrong: int
    wrong: Estimate
    """Share of answers under the promise that are wrong, 95 %, valid at every moment; `n` is the number of audits."""
    judged_by: dict[str, int]
    """Verdicts by who gave them: the `large` model, with whom an answer may only disagree, or a `person`."""


class Figures(Record):
    """All that follows from the rows."""

    sums: tuple[Sums, ...]
    """By day, kind, task, stage and outcome."""
    prices: tuple[PriceUsed, ...]
    promises: tuple[Promise, ...]
    proofs: tuple[Proof, ...]
    savings: tuple[Saving, ...]
    """By task."""

    @property
    def n(self) -> int:
        """Number of rows."""
        return sum(one.n for one in self.sums)


def ledger_lines(
    ledger: Ledger, since: datetime, until: datetime, tasks: Collection[str], guarantees: dict[str, str]
) -> Iterator[Line]:
    """Yield the lines of [since, until), those of `tasks` only if any are named.

    The words of guarantees are put into `guarantees` by their digests.
    """
    audited: dict[str, LedgerRow] = {}
    for answer in ledger.scan(LedgerRow, since, until):
        if not tasks or answer.task in tasks:
            if answer.audited:
                audited[answer.id] = answer.model_copy(update={"charges": None, "trail": None})
            if answer.guarantee:
                guarantees[digest(answer.guarantee)] = answer.guarantee
            yield _answer_line(answer)
    for audit in ledger.scan(AuditRow, since, until):
        if not tasks or audit.task in tasks:
            yield _audit_line(audit, audited.get(audit.id) or ledger.get(audit.id))
    for spent in ledger.scan(ExpenseRow, since, until):
        if not tasks or spent.task in tasks:
            cells = {"model": _text(spent.what), "busy_s": repr(spent.busy_s), "usd": repr(spent.cost_usd)}
            at = spent.at.isoformat()
            yield _line(kind=spent.kind, id=_text(spent.id), at=at, task=_text(spent.task), **cells)


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a file. Raise ValueError naming the first that is none."""
    with path.open(encoding="utf-8", newline="") as file:
        for number, cells in enumerate(csv.reader(file), 1):
            if len(cells) != len(Line._fields) or (number == 1 and cells != list(Line._fields)):
                raise ValueError(f"line {number} is none of a statement")
            if number > 1:
                yield Line(*cells)


class Tally:
    """Adds lines up to figures."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        self._prices: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0, 0.0])
        self._promises: Counter[tuple[str, str]] = Counter()
        self._verdicts: dict[tuple[str, str], list[Line]] = defaultdict(list)
        self._accounts: dict[str, Account] = defaultdict(Account)

    def add(self, line: Line) -> None:
        is_answer, usd, draft_usd = line.kind == "answer", float(line.usd or 0), float(line.draft_usd or 0)
        sums: Counter[Any] = self._sums[line.at[:10], line.kind, line.task, line.stage * is_answer, line.outcome]
        certified = is_answer and line.certified != ""
        sums.update({"n": 1, "cost_usd": usd, "n_certified": certified})
        sums.update({"n_cost_unknown": line.cost_unknown != "", "n_estimated": line.estimated != ""})
        sums.update({name: float(cell) for name in _AMOUNTS if (cell := getattr(line, name))})
        if line.guarantee:
            self._promises[line.task, line.guarantee] += 1
        if line.basis:
            price = self._prices[line.model, line.basis, line.price, line.price_source, line.price_date, line.tier]
            price[:] = price[0] + 1, price[1] + usd
        if line.kind == "audit":
            self._verdicts[line.task, line.certificate].append(line)
            self._accounts[line.task].audit_usd += usd
            if line.judged_by == "large" and line.certified:
                self._accounts[line.task].audits.add(usd, float(line.propensity))
        elif line.outcome == "answered" and line.task:
            unknown = line.cost_unknown != ""
            account = self._accounts[line.task]
            account.add_answers(line.stage, line.at[:13], 1, usd, n_unknown=unknown, draft_usd=draft_usd)

    def figures(self, evaluated: Mapping[str, Amount]) -> Figures:
        """Return the figures, once all lines are added; `evaluated` as in `savings`."""
        prices = [dict(zip(PriceUsed.model_fields, (*key, *of), strict=True)) for key, of in self._prices.items()]
        promises = [{"task": task, "guarantee": words, "n": n} for (task, words), n in self._promises.items()]
        return Figures(
            sums=tuple(Sums.model_validate(dict(zip(_KEY, key, strict=True)) | of) for key, of in _sorted(self._sums)),
            prices=tuple(PriceUsed.model_validate(one) for one in prices),
            promises=tuple(Promise.model_validate(one) for one in promises),
            proofs=_proofs(self._verdicts),
            savings=tuple(one.saving(task, evaluated.get(task)) for task, one in _sorted(self._accounts)),
        )


def digest(words: str) -> str:
    """Return 16 hex digits that name a text."""
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def _line(**cells: str) -> Line:
    return Line(**dict.fromkeys(Line._fields, "") | cells)


def _answer_line(row: LedgerRow) -> Line:
    bill = _bill(row)
    unknown = any(one["usd"] is None for one in bill) or (row.status == 200 and row.cost_usd is None)
    drafts = [one["usd"] or 0.0 for one in bill if one.get("purpose") == "draft"]
    cells = {"model": _text(row.answered_by)} | _cells(row, bill, unknown=unknown, certified=row.certified)
    return _line(
        kind="answer",
        stage=_text(row.stage),
        outcome=outcome_of(row),
        estimated="1" if row.estimated else "",
        draft_usd=_number(sum(drafts) or None),
        guarantee=digest(row.guarantee) if row.guarantee else "",
        **{name: _number(getattr(row, name)) for name in ("prompt_tokens", "cached_tokens", "completion_tokens")},
        **cells,
    )


def _audit_line(row: AuditRow, answer: LedgerRow | None) -> Line:
    bill = _bill(row)
    unknown, certified = any(one["usd"] is None for one in bill), answer is not None and answer.certified
    return _line(
        kind="audit",
        stage=_text(answer.stage if answer else None),
        propensity=repr(row.propensity),
        weight=repr(row.weight),
        wrong="1" if row.wrong else "",
        judged_by=row.judged_by,
        certificate=row.certificate,
        **_cells(row, bill, unknown=unknown, certified=certified),
    )


def _bill(row: LedgerRow | AuditRow) -> list[dict[str, Any]]:
    """Return the lines of the bill as they are kept, which is without defaults; a record of each takes its time."""
    usual = {"basis": Charge.model_fields["basis"].default}
    return [usual | one for one in pydantic_core.from_json(row.charges or "[]")]


def _cells(
    row: LedgerRow | AuditRow, bill: list[dict[str, Any]], *, unknown: bool, certified: bool | None
) -> dict[str, str]:
    """Return the cells that answers and audits share; several models or prices are joined by +."""
    paid = {"model": "model", "basis": "basis", "price_source": "source", "price_date": "price_date", "tier": "tier"}
    joined = {name: " + ".join(dict.fromkeys(str(one[of]) for one in bill if one.get(of))) for name, of in paid.items()}
    rates = (", ".join(f"{name} {usd:g}" for name, usd in one.get("rates", {}).items()) for one in bill)
    joined["price"] = " + ".join(dict.fromkeys(filter(None, rates)))
    tokens = {name: sum((one.get("tokens") or {}).get(name, 0) for one in bill) for name in _TOKENS}
    busy_s = sum(one.get("busy_s", 0.0) for one in bill)
    return {
        "id": _text(row.id),
        "at": row.at.isoformat(),
        "task": _text(row.task),
        "usd": _number(row.cost_usd),
        "cost_unknown": "1" if unknown else "",
        "certified": "1" if certified else "",
        **{name: _number(n or None) for name, n in {**tokens, "busy_s": busy_s}.items()},
        **{name: _text(cell) for name, cell in joined.items() if cell},
    }


def _proofs(verdicts: Mapping[tuple[str, str], Sequence[Line]]) -> tuple[Proof, ...]:
    """Return the proofs from the verdicts by task and certificate."""
    return tuple(
        Proof(
            task=task,
            certificate=certificate,
            n_wrong=sum(line.wrong != "" for line in lines),
            wrong=share_wrong((float(line.weight), line.wrong != "") for line in lines),
            judged_by=Counter(line.judged_by for line in lines),
        )
        for (task, certificate), lines in _sorted(verdicts)
    )


def _sorted(found: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    return sorted(found.items(), key=lambda pair: pair[0])


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)


def _text(value: str | None) -> str:
    """Return a cell; a spreadsheet would run one that begins like a formula, so it gets an apostrophe."""
    return f"'{value}" if value and value[0] in "=+-@\t\r" else value or ""
