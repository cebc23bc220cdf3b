"""Dirt for recorded sets: rows as a log has them, of which a known share is wrong in a known way.

The product sees time, tenant, text and answer (`Row.seen`); what is right and what was done stand apart (`Row.right`,
`Row.kind`). Equal seeds give equal rows. Set aside for the tables before any finding was developed: `TABLE_KINDS` at
`TABLE_RATES` on `TABLE_SETS` with seeds below 100. Development used `DEVELOPMENT_KINDS` at `DEVELOPMENT_RATES` on
`DEVELOPMENT_SETS` with seeds from 100 on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from benchmarks.accuracy.plain_runs import read_source
from benchmarks.traffic.cases import TASKS

TABLE_SETS, DEVELOPMENT_SETS = ("banking77", "snips", "hosted_invoices", "tool_calls"), ("clinc_intent", "restaurant8k")
TABLE_RATES, DEVELOPMENT_RATES = (0.05, 0.2, 0.5), (0.02, 0.1, 0.3)
TABLE_KINDS = (
    "random", "by_class", "swapped", "other_rows", "renamed", "rule", "foreign", "foreign_forced", "tenant", "duplicates"
)  # fmt: skip
DEVELOPMENT_KINDS = ("random", "swapped", "renamed", "rule", "foreign", "foreign_forced", "tenant", "duplicates")
START, DAYS, TENANTS = datetime(2026, 10, 1, tzinfo=UTC), 30, 12
FOREIGN = {"banking77": "clinc_intent", "clinc_intent": "banking77", "tool_calls": "clinc_intent"}
FOREIGN |= {"snips": "restaurant8k", "restaurant8k": "snips"}
"""The set whose rows are foreign in another one; snips for all others."""


class Row(NamedTuple):
    """One recorded answer."""

    at: datetime
    tenant: str
    text: str
    answer: Any
    right: Any
    """The right answer; None: the row belongs to another task."""
    kind: str = ""
    """What was done to it; empty if it is clean."""

    @property
    def seen(self) -> tuple[datetime, str, str, Any]:
        return self.at, self.tenant, self.text, self.answer


@cache
def clean_cases(name: str) -> list[tuple[str, Any]]:
    """Return the texts of a set with their right answers: labels, or dicts without what is null."""
    if name == "tool_calls":  # what was said last, and the function that is called
        return [*{row.text: row.label for part in read_source(name) for row in part}.items()]
    found = TASKS["hosted_banking77" if name == "banking77" else name]().cases
    return [(case.fields["text"], _bare(case.gold)) for case in found]


def _bare(gold: Any) -> Any:
    return {key: value for key, value in gold.items() if value is not None} if isinstance(gold, dict) else gold


def dirty_log(name: str, kind: str, rate: float, n: int, seed: int) -> list[Row]:
    """Return n rows of a set, oldest first, of which the share `rate` is dirty; no kind leaves all clean."""
    rng = random.Random(f"{name} {kind} {rate} {seed}")
    drawn = rng.sample(clean_cases(name), n)
    times = sorted(START + timedelta(days=rng.uniform(0, DAYS)) for _ in drawn)
    liar = rate if kind == "tenant" else 1 / TENANTS
    weights = [liar, *[(1 - liar) / (TENANTS - 1)] * (TENANTS - 1)]
    tenants = rng.choices([f"tenant-{i:02d}" for i in range(TENANTS)], weights, k=n)
    rows = [Row(at, who, text, gold, gold) for at, who, (text, gold) in zip(times, tenants, drawn, strict=True)]
    return _DIRT[kind](name, rows, rate, rng) if kind else rows


def _drawn(rows: Sequence[Row], rate: float, rng: random.Random) -> list[int]:
    return rng.sample(range(len(rows)), round(rate * len(rows)))


def _marked(row: Row, answer: Any, kind: str) -> Row:
    """Return the row with another answer; a draw that hits the right one leaves it clean."""
    return row if answer == row.right else row._replace(answer=answer, kind=kind)


def _wrong(rows: Sequence[Row], row: Row, rng: random.Random) -> Any:
    if isinstance(row.right, str):
        return rng.choice(sorted({other.right for other in rows} - {row.right}))
    if not row.right:
        return rng.choice(rows).right
    name = rng.choice(sorted(row.right))
    rest = {key: value for key, value in row.right.items() if key != name}
    return rest if rng.random() < 0.5 else _borrowed(rows, row, rng)


def _borrowed(rows: Sequence[Row], row: Row, rng: random.Random) -> Any:
    """Return the answer with one value of another row; a label, of equal frequency as in the log."""
    if isinstance(row.right, str):
        return rng.choice(rows).right
    name = rng.choice(sorted(row.right) or [""])
    values = [other.right[name] for other in rows if name in other.right and other.right[name] != row.right[name]]
    return {**row.right, name: rng.choice(values)} if values else row.right


def _random(name: str, rows: list[Row], rate: float, rng: random.Random) -> list[Row]:
    for i in _drawn(rows, rate, rng):
        rows[i] = _marked(rows[i], _wrong(rows, rows[i], rng), "random")
    return rows


def _other_rows(name: str, rows: list[Row], rate: float, rng: random.Random) -> list[Row]:
    for i in _drawn(rows, rate, rng):
        rows[i] = _marked(rows[i], _borrowed(rows, rows[i], rng), "other_rows")
    return rows


def _swapped(name: str, rows: list[Row], rate: float, rng: random.Random) -> list[Row]:
    order = _drawn(rows, rate, rng)
    for i, j in zip(order[::2], order[1::2], strict=False):
        rows[i], rows[j] = (
            _marked(rows[i], rows[j].right, "swapped"),
            _marked(rows[j], rows[i].right, "swapped"),
        )
    return rows


def _class(row: Row) -> str:
    """Return the label, or of JSON one field."""
    return row.right if isinstance(row.right, str) else min(row.right, default="")


def _by_class(name: str, rows: list[Row], rate: float, rng: random.Random) -> list[Row]:
    """Take four fifths of the rows of classes drawn at random for the next class of the alphabet."""
    left = round(rate * len(rows))
    for label in _shuffled({_class(row) for row in rows} - {""}, rng):
        for i, row in enumerate(rows):
            if left > 0 and _class(row) == label and rng.random() < 0.8:
                rows[i] = _marked(row, _next_class(rows, row, label), "by_class")
                left -= 1
    return rows


def _next_class(rows: Sequence[Row], row: Row, label: str) -> Any:
    if isinstance(row.right, str):
        return _after(label, {other.right for other in rows})
    return {key: value for key, value in row.right.items() if key != label}


def _after(label: str, labels: set[str]) -> str:
    order = sorted(labels)
    return order[(order.index(label) + 1) % len(order)]


def _shuffled(items: set[str], rng: random.Random) -> list[str]:
    return rng.sample(sorted(items), len(items))


def _renamed(name: str, rows: list[Row], rate: float, rng: random.Random) -> list[Row]:
    """Give all labels or fields of the last rows another name."""
    names = (
        {row.right for row in rows} if isinstance(rows[0].right, str) else {key for row in rows for key in row.right}
    )
    new = {old: f"{i:02d}_{name[:2]}" for i, old in enumerate(_shuffled(names, rng))}
    for i in range(round((1 - rate) * len(rows)), len(rows)):
        right = rows[i].right
        changed = new[right] if isinstance(right, str) else {new[key]: value for key, value in right.items()}
        rows[i] = _marked(rows[i], changed, "renamed")
    return rows


def _rule(name: str, rows: list[Row], rate: float, rng: random.Random) -> list[Row]:
    """From half way on give some classes the answer of another one, until `rate` of all rows differ."""
    half, left = len(rows) // 2, round(min(rate, 0.4) * len(rows))
    for label in _shuffled({_class(row) for row in rows} - {""}, rng):
        own = [i for i in range(half, len(rows)) if _class(rows[i]) == label]
        for i in own[: max(0, left)]:
            rows[i] = _marked(rows[i], _next_class(rows, rows[i], label), "rule")
        left -= len(own)
    return rows


def _foreign(name: str, rows: list[Row], rate: float, rng: random.Random, *, forced: bool = False) -> list[Row]:
    others = clean_cases(FOREIGN.get(name, "snips"))
    kind, own = ("foreign_forced" if forced else "foreign"), [row.right for row in rows]
    for i in _drawn(rows, rate, rng):
        text, answer = rng.choice(others)
        rows[i] = rows[i]._replace(text=text, answer=rng.choice(own) if forced else answer, right=None, kind=kind)
    return rows


def _foreign_forced(name: str, rows: list[Row], rate: float, rng: random.Random) -> list[Row]:
    return _foreign(name, rows, rate, rng, forced=True)


def _tenant(name: str, rows: list[Row], rate: float, rng: random.Random) -> list[Row]:
    """Let the first tenant, whose share is `rate`, always get the next class."""
    for i, row in enumerate(rows):
        if row.tenant == "tenant-00":
            rows[i] = _marked(row, _next_class(rows, row, _class(row)), "tenant")
    return rows


def _duplicates(name: str, rows: list[Row], rate: float, rng: random.Random) -> list[Row]:
    """Ask earlier texts again in other case and punctuation, every other time with a wrong answer."""
    kept = len(rows) - round(rate * len(rows))
    for i in range(kept, len(rows)):
        old = rows[rng.randrange(kept)]
        wrong = rng.random() < 0.5
        answer = _wrong(rows[:kept], old, rng) if wrong else old.right
        again = rows[i]._replace(text=f"{old.text.upper()} !", answer=answer, right=old.right)
        rows[i] = again._replace(kind="duplicates") if answer != old.right else again
    return [
        row._replace(at=at) for row, at in zip(rng.sample(rows, len(rows)), sorted(r.at for r in rows), strict=True)
    ]


_DIRT: dict[str, Callable[[str, list[Row], float, random.Random], list[Row]]] = {
    "random": _random, "by_class": _by_class, "swapped": _swapped, "other_rows": _other_rows, "renamed": _renamed,
    "rule": _rule, "foreign": _foreign, "foreign_forced": _foreign_forced, "tenant": _tenant,
    "duplicates": _duplicates,
}  # fmt: skip
