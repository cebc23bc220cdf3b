"""The statement of a month: what was asked, promised, proven, paid and saved, signed, with a row for each figure.

A folder holds `rows.csv`, one line for each request, audit and expense; `statement.html`, the page for people; and
`statement.json`, which names the SHA-256 of both and is signed with Ed25519. All figures come from the rows alone and
the page from the figures, so that a reader who has nothing but the folder adds them up and makes the page again
(`verify`). The key comes with the folder, so it shows that one hand made it all; whose hand, only a key shows that came
another way.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import secrets
from collections import Counter, defaultdict, namedtuple
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pydantic_core

import smallfirst
from smallfirst.base.errors import ConfigError, as_missing_extra
from smallfirst.base.files import sha256, write_atomically
from smallfirst.base.records import Record, parse_record
from smallfirst.base.stats.intervals import Estimate
from smallfirst.base.stats.sequential import share_wrong
from smallfirst.deployment.billing.saved import ANSWERS, Account, Amount, MachineCost, Saving, total, verdict
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, ExpenseRow, LedgerRow, StateRow
from smallfirst.ledger.sums import DrawnAudits, Sums, outcome_of
from smallfirst.models.pricing import Charge
from smallfirst.models.stages import Answerer, answerer
from smallfirst.path.report.page import render_page

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_KEY = ("period", "kind", "task", "stage", "outcome")
_TOKENS = ("cache_write_tokens", "reasoning_tokens")
_AMOUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens", "busy_s", "draft_usd")

Line = namedtuple(
    "Line",
    "kind id at task stage outcome model prompt_tokens cached_tokens cache_write_tokens completion_tokens"
    " reasoning_tokens busy_s usd draft_usd cost_unknown estimated basis price price_source tier certified"
    " guarantee propensity weight wrong judged_by certificate",
)
"""One line of text cells, named as in the ledger; what does not apply is empty, a yes is 1.

`kind` is `answer`, `audit` or an expense's; `stage` of an audit is that of the answer; `model` of an expense says what
was paid for, and several models or prices of one request are joined by +; `guarantee` is the digest of its words;
`judged_by` of an answer that chance drew says who judged it.
"""


class PriceUsed(Record):
    """What was paid at one price."""

    model: str
    basis: str
    price: str
    """USD per million tokens by kind, per request, or per hour of a machine."""
    price_source: str
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
    audits: tuple[DrawnAudits, ...] = ()
    """By task; an answer's line names the judge of its audit."""

    @property
    def n(self) -> int:
        return sum(one.n for one in self.sums)


def ledger_lines(
    ledger: Ledger, since: datetime, until: datetime, tasks: Collection[str], guarantees: dict[str, str]
) -> Iterator[Line]:
    """Yield the lines of [since, until), those of `tasks` only if any are named.

    The words of guarantees are put into `guarantees` by their digests.
    """
    audited: dict[str, tuple[str | None, bool]] = {}
    drawn = ledger.drawn(since, until)
    for answer in ledger.scan(LedgerRow, since, until):
        if not tasks or answer.task in tasks:
            if answer.audited:
                audited[answer.id] = answer.stage, bool(answer.certified)
            if answer.guarantee:
                guarantees[digest(answer.guarantee)] = answer.guarantee
            yield _answer_line(answer)._replace(judged_by=drawn.get(answer.id, ("", ""))[1])
    for audit in ledger.scan(AuditRow, since, until):
        if not tasks or audit.task in tasks:
            yield _audit_line(audit, *(audited.get(audit.id) or ledger.judged(audit.id)))
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
        self._drawn: list[tuple[str, str]] = []

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
            price = self._prices[line.model, line.basis, line.price, line.price_source, line.tier]
            price[:] = price[0] + 1, price[1] + usd
        if line.kind == "audit":
            if line.judged_by != "nobody":
                self._verdicts[line.task, line.certificate].append(line)
            self._accounts[line.task].audit_usd += usd
            if line.judged_by == "large" and line.certified:
                self._accounts[line.task].audits.add(usd, float(line.propensity))
        elif line.outcome == "answered" and line.task:
            if line.judged_by:
                self._drawn.append((line.task, line.judged_by))
            unknown = line.cost_unknown != ""
            account = self._accounts[line.task]
            account.add_answers(line.stage, line.at[:13], 1, usd, n_unknown=unknown, draft_usd=draft_usd)

    def figures(self, evaluated: Mapping[str, Amount]) -> Figures:
        """Return the figures, once all lines are added; `evaluated` as in `savings`."""
        prices = [dict(zip(PriceUsed.model_fields, (*key, *of), strict=True)) for key, of in self._prices.items()]
        promises = [{"task": task, "guarantee": words, "n": n} for (task, words), n in self._promises.items()]
        sums = [dict(zip(_KEY, key, strict=True)) | of for key, of in sorted(self._sums.items())]
        return Figures(
            sums=tuple(map(Sums.model_validate, sums)),
            prices=tuple(map(PriceUsed.model_validate, prices)),
            promises=tuple(map(Promise.model_validate, promises)),
            proofs=_proofs(self._verdicts),
            audits=DrawnAudits.of(self._drawn),
            savings=tuple(one.saving(task, evaluated.get(task)) for task, one in sorted(self._accounts.items())),
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


def _audit_line(row: AuditRow, stage: str | None, certified: bool) -> Line:
    bill = _bill(row)
    unknown = any(one["usd"] is None for one in bill)
    return _line(
        kind="audit",
        stage=_text(stage),
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
    paid = {"model": "model", "basis": "basis", "price_source": "source", "tier": "tier"}
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
    return tuple(
        Proof(
            task=task,
            certificate=certificate,
            n_wrong=sum(line.wrong != "" for line in lines),
            wrong=share_wrong((float(line.weight), line.wrong != "") for line in lines),
            judged_by=Counter(line.judged_by for line in lines),
        )
        for (task, certificate), lines in sorted(verdicts.items())
    )


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)


def _text(value: str | None) -> str:
    """Return a cell; a spreadsheet would run one that begins like a formula, so it gets an apostrophe."""
    return f"'{value}" if value and value[0] in "=+-@\t\r" else value or ""


KEY = "statement.key"
"""File of the private key in the state folder."""
ROWS, SIGNED, PAGE = "rows.csv", "statement.json", "statement.html"
MADE_BY = f"smallfirst {smallfirst.__version__}"


class Statement(Record):
    """All that is signed."""

    month: str
    """`2026-11`, in UTC."""
    since: datetime
    until: datetime
    so_far: bool
    """True if the month was not over."""
    made_at: datetime
    made_by: str
    tasks: tuple[str, ...]
    """The tasks that it is limited to; none: all that the ledger has."""
    rows_sha256: str
    page_sha256: str = ""
    n_refused_without_row: int
    """Refused requests beyond those that the ledger keeps a row of; they cost nothing."""
    guarantees: dict[str, str]
    """Words of each promise, by their digest in the rows."""
    changes: tuple[StateRow, ...]
    """Alarms, fallbacks and recoveries of the month."""
    evaluated: dict[str, Amount]
    """By task, the large model's mean bill on the rows of its evaluation."""
    machines: tuple[MachineCost, ...]
    """Machines of our own as they were used, from the servers' notes of their uptime."""
    figures: Figures

    @property
    def saving(self) -> Saving:
        """The saving of all tasks, before what comes once and before idle machines."""
        return total(self.figures.savings)

    @property
    def uncharged_usd(self) -> float:
        """Time of our own machines that no row carries; below 0 if they worked more than their price assumes."""
        return sum(machine.uncharged_usd for machine in self.machines)

    @property
    def net_usd(self) -> Amount | None:
        """What is left of the saving after what comes once and after idle machines; None if it is unknown."""
        saved = self.saving.saved_usd
        return saved and saved.times(1, less=self.once_usd + self.uncharged_usd)

    @property
    def once_usd(self) -> float:
        """Spent once in the month: training, labelling, evaluation, labels."""
        return sum(one.cost_usd for one in self.figures.sums if one.kind not in ("answer", "audit"))

    @property
    def verdict(self) -> str:
        """Whether the small models pay, and from how many requests on."""
        return verdict(self.saving, self.machines, self.once_usd)

    @property
    def total_usd(self) -> float:
        """All that was spent and is known."""
        return sum(one.cost_usd for one in self.figures.sums) + self.uncharged_usd

    @property
    def n_cost_unknown(self) -> int:
        """Rows of which nobody knows whether, or how much, is to be paid."""
        return sum(one.n_cost_unknown for one in self.figures.sums)

    @property
    def bill(self) -> dict[str, tuple[int, float]]:
        """Number and USD by kind of cost, in plain words; discarded drafts are apart from the answers they led to."""
        found: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
        for one in self.figures.sums:
            drafts = one.draft_usd * (answerer(one.stage) is not Answerer.SMALL)
            for kind, amount in ((_kind(one), one.cost_usd - drafts), ("discarded drafts", drafts)):
                if amount or kind != "discarded drafts":
                    n, usd = found[kind]
                    found[kind] = n + one.n, usd + amount
        return dict(sorted(found.items(), key=lambda one: (*_KINDS, one[0]).index(one[0])))


def make(
    ledger: Ledger,
    month: str,
    folder: Path,
    *,
    key: Ed25519PrivateKey,
    tasks: Collection[str] = (),
    evaluated: Mapping[str, Amount] | None = None,
    machines: Sequence[MachineCost] = (),
    now: datetime | None = None,
) -> Statement:
    """Write rows, page and signed statement of a month into `folder`, and return it; `evaluated` as in `savings`.

    Raise ConfigError for a month that is none or has not begun, and if rows are missing that the ledger's sums count.
    """
    made_at = now or datetime.now(UTC)
    since, end = month_of(month)
    if since > made_at:
        raise ConfigError(f"{month} has not begun", hint="name a month that has: --month 2026-11")
    until = min(end, made_at)
    folder.mkdir(parents=True, exist_ok=True)
    tally, guarantees = _write_rows(ledger, folder / ROWS, since, until, tasks)
    changes = [row for row in ledger.scan(StateRow, since, until) if row.before and (not tasks or row.task in tasks)]
    statement = Statement(
        month=month,
        since=since,
        until=until,
        so_far=until < end,
        made_at=made_at,
        made_by=MADE_BY,
        tasks=tuple(tasks),
        rows_sha256=sha256(folder / ROWS),
        n_refused_without_row=sum(one.n_without_row for one in _sums(ledger, since, until, tasks)),
        guarantees=guarantees,
        changes=tuple(changes),
        evaluated={task: cost for task, cost in (evaluated or {}).items() if cost},
        machines=tuple(machines),
        figures=tally.figures(evaluated or {}),
    )
    computed: Any = {"machines": {"__all__": set(MachineCost.model_computed_fields)}}
    computed["figures"] = {"audits": {"__all__": set(DrawnAudits.model_computed_fields)}}
    content = statement.model_dump(mode="json", exclude_defaults=True, exclude=computed)
    public_key = public_text(key)
    read = parse_record(Statement, json.loads(canonical(content)), where=SIGNED)  # as its reader reads it
    page = page_of(read, public_key)
    content["page_sha256"] = hashlib.sha256(page).hexdigest()
    signature = base64.b64encode(key.sign(canonical(content))).decode()
    write_atomically(folder / PAGE, page)
    write_atomically(
        folder / SIGNED, canonical({"statement": content, "public_key": public_key, "signature": signature})
    )
    return read.model_copy(update={"page_sha256": content["page_sha256"]})


def _write_rows(
    ledger: Ledger, path: Path, since: datetime, until: datetime, tasks: Collection[str]
) -> tuple[Tally, dict[str, str]]:
    """Write a line for each row, and return their sums and the words of the guarantees. Raise ConfigError."""
    hour = until.replace(minute=0, second=0, microsecond=0)
    n_rows = sum(one.n - one.n_without_row for one in _sums(ledger, since, hour, tasks))
    tally, guarantees, n_found = Tally(), dict[str, str](), 0
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Line._fields)
            for row in ledger_lines(ledger, since, until, tasks, guarantees):
                writer.writerow(row)
                tally.add(row)
                n_found += row.at < hour.isoformat()
        if n_found < n_rows:
            raise ConfigError(
                f"of the {n_rows:,} rows of {since:%Y-%m} that the ledger's sums count, {n_found:,} are left: "
                "others expired",
                hint="make a statement before rows expire: smallfirst serve --keep-rows-days",
            )
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return tally, guarantees


def _sums(ledger: Ledger, since: datetime, until: datetime, tasks: Collection[str]) -> list[Sums]:
    return [one for one in ledger.sums(since, until, by=("task",)) if not tasks or one.task in tasks]


_KINDS = (*[*ANSWERS.values()][:3], "discarded drafts", "audits", *[*ANSWERS.values()][3:])
"""Kinds of cost that come first in a bill, in this order."""


def _kind(one: Sums) -> str:
    if one.kind != "answer":
        return "audits" if one.kind == "audit" else one.kind
    if one.outcome != "answered":
        return {"refused": "refused requests", "left": "requests the client left"}.get(one.outcome, "failed requests")
    return ANSWERS[answerer(one.stage if one.task else "")]


def month_of(month: str) -> tuple[datetime, datetime]:
    """Return begin and end of a month such as `2026-11` in UTC. Raise ConfigError if it is none."""
    found = re.fullmatch(r"(\d{4})-(0[1-9]|1[0-2])", month)
    if found is None:
        raise ConfigError(f'"{month}" is no month', hint="write year and month: --month 2026-11")
    year, number = int(found[1]), int(found[2])
    return datetime(year, number, 1, tzinfo=UTC), datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)


def signing_key(state: Path) -> Ed25519PrivateKey:
    """Return the key of a state folder; make it if there is none, readable by its owner only. Raise ConfigError."""
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ModuleNotFoundError as error:
        raise as_missing_extra(error) from None
    path = state / KEY
    try:
        if not path.exists():
            write_atomically(path, base64.b64encode(os.urandom(32)) + b"\n", mode=0o600)
        return Ed25519PrivateKey.from_private_bytes(base64.b64decode(path.read_bytes(), validate=False))
    except (OSError, ValueError) as error:
        hint = "put it back from a backup, or move it away"
        raise ConfigError(f"{path}: no signing key: {error}", hint=hint) from None


def public_text(key: Ed25519PrivateKey) -> str:
    """Return the public key: 32 bytes in Base64."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def canonical(content: Any) -> bytes:
    """Return JSON with sorted keys and without spaces, in UTF-8: what is signed."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def page_of(statement: Statement, public_key: str) -> bytes:
    """Return the page of a statement: it follows from what is signed and the key, byte for byte."""
    title = f"Statement of {statement.since:%B %Y}{' so far' if statement.so_far else ''}"
    values = {"title": title, "statement": statement, "public_key": public_key}
    return render_page("statement.html", **values).encode()


class Verified(NamedTuple):
    """What was checked."""

    statement: Statement
    public_key: str
    """The key that signed it."""
    page: str
    """What was found out about the page, in words."""


def verify(folder: Path, *, public_key: str = "") -> Verified:
    """Return the statement in `folder` after all has been checked offline.

    Raise ConfigError, naming what does not fit: the signature, the key if `public_key` is given, the rows, figures that
    do not follow from the rows, or the page.
    """
    path, rows = folder / SIGNED, folder / ROWS
    content, signer = _read_signed(path)
    if public_key and public_key != signer:
        raise ConfigError(f"{path} is signed by {signer}, not by {public_key}", hint="ask who sent it to you")
    statement = parse_record(Statement, content, where=str(path))
    found = _add_up(rows, statement).figures(statement.evaluated)
    if differing := [name for name in Figures.model_fields if getattr(found, name) != getattr(statement.figures, name)]:
        made = "" if statement.made_by == MADE_BY else f"; {statement.made_by} made it: check it with that version"
        raise _changed(f"{path}: {', '.join(differing)} do not follow from the rows{made}")
    if wrong := [words for name, words in statement.guarantees.items() if digest(words) != name]:
        raise _changed(f'{path}: the rows know no promise "{wrong[0]}"')
    return Verified(statement, signer, _check_page(folder / PAGE, statement, signer))


def _read_signed(path: Path) -> tuple[Any, str]:
    """Return what is signed, and the key. Raise ConfigError unless the file is, byte for byte, as it is written.

    So each name stands once, and none that nobody signed.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        signed = json.loads(raw := path.read_bytes())
        if canonical(signed) != raw or sorted(signed) != ["public_key", "signature", "statement"]:
            raise ValueError("it is not as a statement is written")
        key, signature = (base64.b64decode(signed[name], validate=True) for name in ("public_key", "signature"))
        written = tuple(base64.b64encode(part).decode() for part in (key, signature))
        if written != (signed["public_key"], signed["signature"]):
            raise ValueError("key or signature is not as Base64 is written")
        Ed25519PublicKey.from_public_bytes(key).verify(signature, canonical(signed["statement"]))
    except InvalidSignature:
        raise _changed("the signature does not fit: the statement was changed after it was signed") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        hint = "name the folder that holds it, as it was sent"
        raise ConfigError(f"{path}: no statement: {error}", hint=hint) from None
    return signed["statement"], signed["public_key"]


def _add_up(path: Path, statement: Statement) -> Tally:
    """Return the sums of the rows. Raise ConfigError if they are not those that were signed."""
    tally = Tally()
    try:
        if sha256(path) != statement.rows_sha256:
            raise ValueError("its SHA-256 is another")
        for row in read_lines(path):
            tally.add(row)
    except (OSError, ValueError, csv.Error) as error:
        raise _changed(f"{path}: these are not the rows that were signed: {error}") from None
    return tally


def _check_page(path: Path, statement: Statement, public_key: str) -> str:
    """Say what was found out about the page. Raise ConfigError if it was changed, or shows other figures."""
    if not path.exists():
        return f"{path.name} is not there: no page was compared"
    if sha256(path) != statement.page_sha256:
        raise _changed(f"{path} was changed after it was signed: its SHA-256 is another")
    if statement.made_by != MADE_BY:  # whose pages look otherwise
        return f"{path.name} is as it was signed, by {statement.made_by}"
    if page_of(statement, public_key) != path.read_bytes():
        raise _changed(f"{path} is not the page of these figures: made anew from them it is another")
    return f"{path.name} was made anew from these figures: equal, byte for byte"


def _changed(message: str) -> ConfigError:
    return ConfigError(message, hint="ask the sender for the folder as it was signed")
