"""What is wrong with recorded answers: findings with their rows, their cost and what settles them, from words alone.

Names first: answers outside the list, two versions of the labels or fields, answers of another task. Then who answers
otherwise: a changed rule, a tenant unlike all others. Last single rows: near copies that disagree, values that stand
nowhere in the text, answers that are probably wrong (`label_noise`). A row is named once. At most MOST_ROWS rows are
looked at, some 2 s; documents of several pages are not, whose words say little of an answer.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from scipy import optimize, stats

from smallfirst.base.progress import one_line
from smallfirst.base.records import Record, fingerprint
from smallfirst.data.copies import clusters
from smallfirst.data.dataset import fold_text
from smallfirst.data.pages import PAGE_BREAK
from smallfirst.measuring.label_noise import WordsModel, estimate_noise, folds_by
from smallfirst.models.linear.tfidf import TfidfFeatures
from smallfirst.models.spans.values import FORMS, occurrences

T = TypeVar("T")
IssueKind = Literal["outside", "versions", "foreign", "rule", "tenant", "copies", "values", "answers"]
SYSTEMATIC: tuple[IssueKind, ...] = ("versions", "rule", "tenant")
"""Kinds that a certificate cannot average out: unsettled, it promises agreement with the recorded answers alone."""
SINGLE_ROWS: tuple[IssueKind, ...] = ("copies", "values", "answers")
"""Kinds that models tell row by row: what is done about them must not touch rows that measure or certify."""
MOST_ROWS, MIN_ROWS = 2_500, 60
"""Rows that are looked at, of more drawn at random; with fewer nothing is looked for."""
_COSTS: dict[IssueKind, str] = {
    "outside": "a model that keeps to the list cannot give them",
    "versions": "a model that learns both versions is wrong by name",
    "foreign": "answers of another task are learnt and counted as right",
    "rule": "one of the two rules is wrong, and both are learnt and counted as right",
    "tenant": "if these answers are wrong, they are learnt and counted as right",
    "copies": "at most one of the answers is right, so no model can agree with all",
    "values": "no model can read from a text what does not stand in it",
    "answers": "if they are wrong, they are learnt and counted as right",
}
_EXAMPLES, _SUSPECT, _LEAST = 5, 0.5, 3
_LEVEL = 0.01
_MORE = 0.1
"""Least difference of shares that is worth naming."""


class RecordedRow(NamedTuple):
    """A recorded answer as it is looked at."""

    key: str
    text: str
    answer: Any
    """A label, a list of labels, a JSON object, or text; None: it could not be read."""
    at: datetime | None = None
    tenant: str = ""
    place: str = ""
    """File and line, or an id."""


class IssueExample(Record):
    """One row of a finding."""

    place: str
    text: str
    given: str
    suggested: str = ""
    """What the other rows say; empty where they say nothing."""


class DataIssue(Record):
    """One finding."""

    kind: IssueKind
    what: str
    n: int
    of: int
    """Rows that were looked at."""
    keys: tuple[str, ...]
    """Content keys of its rows."""
    suggested: dict[str, str] = {}
    """What the other rows say, by key."""
    examples: tuple[IssueExample, ...] = ()
    names: dict[str, str] = {}
    """Proposed map of old names to new ones; of a changed rule, the answers before and after."""
    since: datetime | None = None
    """When the second version or rule began."""
    tenant: str = ""

    @property
    def id(self) -> str:
        """16 hex digits, the same as long as it is about the same thing."""
        about = [self.tenant, sorted(self.names.items())] if self.kind in SYSTEMATIC else sorted(self.keys)
        return fingerprint([self.kind, about])

    @property
    def share(self) -> float:
        return self.n / self.of

    @property
    def cost(self) -> str:
        """What it costs if nobody settles it."""
        return f"{_COSTS[self.kind]}: up to {self.share:.1%} of the answers"

    @property
    def in_words(self) -> list[str]:
        lines = [f"{self.what}: {self.n:,} of {self.of:,} rows ({self.share:.1%})", f"  {self.cost}"]
        lines += [f"  {old} → {new}" for old, new in list(self.names.items())[:_EXAMPLES]]
        for one in self.examples:
            said = f"{one.given}{f'  (rather {one.suggested})' if one.suggested else ''}"
            lines.append(f"  {one.place}  {one_line(one.text, 60)} → {said}")
        return lines


def looked_at(rows: Sequence[T]) -> Sequence[T]:
    """Return all rows, or MOST_ROWS of them drawn at random, in their order."""
    if len(rows) <= MOST_ROWS:
        return rows
    return [rows[i] for i in np.sort(np.random.default_rng(0).permutation(len(rows))[:MOST_ROWS])]


def find_issues(rows: Sequence[RecordedRow], *, labels: Sequence[str] = ()) -> tuple[DataIssue, ...]:
    """Return the findings, systematic ones first, then the largest; `labels` are the allowed answers, if known."""
    rows = [row._replace(text=row.text[:4000]) for row in looked_at(rows) if PAGE_BREAK not in row.text]
    if all(row.at for row in rows):
        rows = sorted(rows, key=lambda row: row.at or datetime.min)
    if len(rows) < MIN_ROWS:
        return ()
    return tuple(sorted(_Search(rows, labels).found(), key=lambda one: (one.kind not in SYSTEMATIC, -one.n)))


class _Aspect(NamedTuple):
    """What of the answers is learnt as one: the label, whether a list has an item, a field's value or presence."""

    name: str
    categories: tuple[str, ...]
    given: np.ndarray
    """(rows,), numbers of categories."""


class _Search:
    """The rows with what is known of them; rows that a finding names are settled, and no other finding has them."""

    def __init__(self, rows: Sequence[RecordedRow], labels: Sequence[str]) -> None:
        self.rows, self.labels = list(rows), frozenset(labels)
        self.n = len(rows)
        self.settled = np.zeros(self.n, dtype=bool)
        self.answers: list[Any] = [row.answer for row in rows]
        """Under the names of the newest version."""

    def found(self) -> Iterator[DataIssue]:
        yield from self._outside()
        kinds = Counter(type(answer) for answer in self.answers if answer is not None)
        self.kind = kinds.most_common(1)[0][0] if kinds else str
        texts = {answer for answer in self.answers if isinstance(answer, str)}
        if self.kind is str and len(texts) > self.n / 3:  # they are no labels
            yield from self._copies(np.zeros(self.n))
            return
        yield from self._versions()
        yield from self._foreign()
        self.aspects = list(self._aspects())
        if not self.aspects:
            return
        yield from self._rule()
        yield from self._tenants()
        yield from self._values()
        yield from self._copies(self._wrong(self.folds))
        yield from self._probably_wrong(self._wrong(self.folds))

    @cached_property
    def model(self) -> WordsModel:
        return WordsModel([row.text for row in self.rows])

    @cached_property
    def copies(self) -> list[int]:
        return clusters([row.text for row in self.rows])

    @cached_property
    def folds(self) -> np.ndarray:
        return folds_by(self.copies)

    def _left(self) -> list[int]:
        """Return the rows that no finding has."""
        found: list[int] = np.flatnonzero(~self.settled).tolist()
        return found

    def _issue(
        self, kind: IssueKind, what: str, at: Sequence[int], suggested: Mapping[int, str] | None = None, **facts: Any
    ) -> DataIssue:
        said = suggested or {}
        self.settled[list(at)] = True
        shown = [
            IssueExample(
                place=self.rows[i].place, text=self.rows[i].text[:300], given=_as_text(self.rows[i].answer)[:200],
                suggested=said.get(i, "")[:200],
            )
            for i in list(at)[:: max(1, len(at) // _EXAMPLES)][:_EXAMPLES]  # not the surest alone
        ]  # fmt: skip
        by_key = {self.rows[i].key: answer for i, answer in said.items()}
        keys = tuple(dict.fromkeys(self.rows[i].key for i in at))
        return DataIssue(
            kind=kind, what=what, n=len(at), of=self.n, keys=keys, suggested=by_key, examples=tuple(shown), **facts
        )

    # Names

    def _names(self, i: int) -> frozenset[str]:
        return names_in(self.answers[i])

    def _outside(self) -> Iterator[DataIssue]:
        at = [i for i in range(self.n) if self.answers[i] is None or (self.labels and self._names(i) - self.labels)]
        if at:
            yield self._issue("outside", "answers outside the label list or the format", at)

    def _versions(self) -> Iterator[DataIssue]:
        """Yield names that give way to others on a day, with the old name that the texts of each new one had."""
        if not all(row.at for row in self.rows):
            return
        uses: dict[str, list[int]] = defaultdict(list)
        for i in self._left():
            for name in self._names(i):
                uses[name].append(i)
        first = {name: at[int(0.03 * len(at))] for name, at in uses.items()}
        last = {name: at[-1 - int(0.03 * len(at))] for name, at in uses.items()}

        def gain(day: int) -> float:
            share = day / self.n
            new = sum(max(0.0, -len(uses[b]) * np.log1p(-share) - 3) for b in uses if first[b] >= day)
            old = sum(max(0.0, -len(uses[a]) * np.log(share) - 3) for a in uses if last[a] < day)
            return float(new + old)

        days = sorted({at for at in first.values() if 0.02 * self.n < at < 0.99 * self.n})
        days = days[:: max(1, len(days) // 200)]
        day = max(days, key=gain, default=0)
        if not day or gain(day) < 12:
            return
        old, new = ([n for n in uses if last[n] < day], [n for n in uses if first[n] >= day])
        if not old or not new:
            return
        is_old, is_new = (np.array([bool(self._names(i) & set(n)) for i in range(self.n)]) for n in (old, new))
        day = int((np.cumsum(is_new) - is_new + np.cumsum(is_old[::-1])[::-1]).argmin())
        old, new = [n for n in old if uses[n][0] < day], [n for n in new if uses[n][-1] >= day]
        names = self._map(old, new, day) if old and new else {}
        after = [i for i in range(day, self.n) if self._names(i) & names.keys()]
        before = [i for i in range(day) if self._names(i) & set(names.values())]
        if min(len(after), len(before)) < _LEAST:
            return
        fewer = after if len(after) <= len(before) else before
        self.answers = [with_names(answer, names) for answer in self.answers]
        since = self.rows[day].at
        noun, more = "label" if self.kind is str else "name", len(names) > 1
        what = f"{len(names)} {noun}{'s have others' if more else ' has another'} since {since:%Y-%m-%d}"
        found = self._issue("versions", what, fewer, names={old: new for new, old in names.items()}, since=since)
        self.settled[fewer] = False  # under one name they are as good as others
        yield found

    def _map(self, old: Sequence[str], new: Sequence[str], day: int) -> dict[str, str]:
        """Return the old name for each new one that texts, or of fields the values, give one."""
        known = list(old) + sorted({n for i in range(day) for n in self._names(i)} - {*old}) * (self.kind is not dict)
        has = np.array([[name in self._names(i) for name in known] for i in range(self.n)], dtype=np.float64)
        scores = self.model.held_out(has, self.folds, np.arange(self.n) < day)
        shift = scores - scores[day:].mean(axis=0)
        rows = {b: [i for i in range(day, self.n) if b in self._names(i)] for b in new}
        near = np.array([shift[rows[b]].mean(axis=0) for b in new])
        if self.kind is dict:
            texts = ["\n".join(self._values_of(name)) or "-" for name in (*old, *new)]
            alike = TfidfFeatures.fit(texts).matrix(texts)
            near = near + (alike[len(old) :] @ alike[: len(old)].T).toarray() / 2
        at = optimize.linear_sum_assignment(-near)  # a rename gives each name one other

        def is_clear(b: int, a: int) -> bool:
            """Return True if all pairs together fit clearly worse without this one, which costs all rows of a name."""
            n, others = len(rows[new[b]]), near.copy()
            others[b, a] = -9.0
            worse = near[at].sum() - others[optimize.linear_sum_assignment(-others)].sum()
            return bool(near[b, a] > 0.1 + 0.1 / n and (self.kind is dict or worse > 0.3 / n))

        return {new[b]: old[a] for b, a in zip(*at, strict=True) if a < len(old) and is_clear(b, a)}

    def _values_of(self, name: str) -> list[str]:
        found = (a[name] for a in self.answers if isinstance(a, dict) and a.get(name) is not None)
        return [_as_text(value) for value, _ in zip(found, range(200), strict=False)]

    def _foreign(self) -> Iterator[DataIssue]:
        """Yield JSON answers whose fields never stand beside those of the others, and answers of another type."""
        groups: dict[str, str] = {}

        def root(name: str) -> str:
            while groups.setdefault(name, name) != name:
                name = groups[name]
            return name

        named = {i: sorted(self._names(i)) for i in range(self.n) if isinstance(self.answers[i], dict)}
        for names in named.values() if self.kind is dict else ():
            for name in names[1:]:
                groups[root(name)] = root(names[0])
        sizes = Counter(root(names[0]) for names in named.values() if names)
        own = sizes.most_common(1)[0][0] if sizes else ""
        at = [
            i
            for i in self._left()
            if not isinstance(self.answers[i], self.kind)
            or (self.kind is dict and named[i] and root(named[i][0]) != own and sizes[root(named[i][0])] >= _LEAST)
        ]
        if at:
            yield self._issue("foreign", "rows that seem to belong to another task", at)

    # Who answers otherwise

    def _aspects(self) -> Iterator[_Aspect]:
        if self.kind is str:
            yield _aspect("", ["" if self.settled[i] else str(answer) for i, answer in enumerate(self.answers)])
            return
        counts = Counter(name for i in self._left() for name in self._names(i))
        for name, n in counts.items():
            if n < 20:
                continue
            if self.kind is list:
                values = ["yes" if name in self._names(i) else "no" for i in range(self.n)]
            else:
                values = [
                    _as_text(a[name]) if isinstance(a, dict) and a.get(name) is not None else "" for a in self.answers
                ]
                different = len(set(values))
                if different > 20 or different > 0.1 * n:
                    values = ["given" if value else "" for value in values]
            if len(set(values)) > 1:
                yield _aspect(name, values)

    def _held_out(self, folds: np.ndarray, learn: np.ndarray) -> Iterator[tuple[_Aspect, np.ndarray]]:
        """Yield what other folds say of each aspect, (rows, categories)."""
        targets = np.concatenate([np.eye(len(one.categories))[one.given] for one in self.aspects], axis=1)
        scores, start = self.model.held_out(targets, folds, learn), 0
        for one in self.aspects:
            yield one, scores[:, start : start + len(one.categories)]
            start += len(one.categories)

    def _rule(self) -> Iterator[DataIssue]:
        """Yield rows of the second half with another answer than texts of their kind had in the first."""
        if not all(row.at for row in self.rows):
            return
        late, at, days = np.arange(self.n) >= self.n // 2, list[int](), list[int]()
        names, said_of = dict[str, str](), dict[int, str]()
        for one, scores in list(self._held_out(self.folds, ~late & ~self.settled)):
            said, tests = scores.argmax(axis=1), []
            for p, g in sorted({(p, g) for p, g in zip(said[late], one.given[late], strict=True) if p != g}):
                meant = (said == p) & ~self.settled
                hits = [int((meant & part & (one.given == g)).sum()) for part in (late, ~late)]
                of = [int((meant & part).sum()) for part in (late, ~late)]
                if hits[0] >= 4:
                    more = hits[0] / of[0] - hits[1] / max(1, of[1])
                    tests.append((_chance(hits[0], of[0], hits[1], of[1]), more, int(p), int(g)))
            shown = stats.false_discovery_control([test[0] for test in tests]) if tests else ()
            for (_, more, p, g), chance in zip(tests, shown, strict=True):
                if chance < _LEVEL and more >= 0.3:
                    day, own = self._changed(one, scores[:, p] > scores[:, g], p, g)
                    before, after = (one.categories[k] or "no value" for k in (p, g))
                    names[f"{one.name}: {before}" if one.name else before] = after
                    days.append(day)
                    at += own
                    said_of |= dict.fromkeys(own, before if not one.name else f"{one.name}: {before}")
        if at:
            since = self.rows[int(np.median(days))].at
            what = f"texts like those of {len(names)} answers have other ones since about {since:%Y-%m-%d}"
            yield self._issue("rule", what, sorted(set(at)), said_of, since=since, names=names)

    def _changed(self, one: _Aspect, meant: np.ndarray, p: int, g: int) -> tuple[int, list[int]]:
        """Return the row at which texts that meant p came to have g, and those that do."""
        about = np.flatnonzero(meant & ((one.given == p) | (one.given == g)) & ~self.settled)
        new = one.given[about] == g
        wrong = np.concatenate(([0], np.cumsum(new))) + np.concatenate((np.cumsum(~new[::-1])[::-1], [0]))
        first = int(wrong.argmin())
        return int(about[min(first, len(about) - 1)]), [int(i) for i in about[first:] if one.given[i] == g]

    def _wrong(self, folds: np.ndarray) -> np.ndarray:
        """Return each row's probability of a wrong answer, by its worst aspect; 0 for settled rows."""
        open_rows = np.flatnonzero(~self.settled)
        worst = np.zeros(self.n)
        self.said: list[tuple[_Aspect, np.ndarray, np.ndarray]] = []
        for one, scores in self._held_out(folds, ~self.settled):
            wrong = np.zeros(self.n)
            if len(open_rows) >= MIN_ROWS:
                wrong[open_rows] = estimate_noise(scores[open_rows], one.given[open_rows]).wrong
            wrong[scores.argmax(axis=1) == one.given] = 0.0  # nothing else is said
            self.said.append((one, scores, wrong))
            worst = np.maximum(worst, wrong)
        return worst

    def _tenants(self) -> Iterator[DataIssue]:
        """Yield the tenants whose answers the others' rows call wrong far more often than those of the others."""
        numbers = {name: k for k, name in enumerate(dict.fromkeys(row.tenant for row in self.rows))}
        if not 3 <= len(numbers) <= 500:
            return
        folds = np.array([numbers[row.tenant] for row in self.rows])
        wrong = self._wrong(folds) >= _SUSPECT
        tests = []
        for name, k in numbers.items():
            own, others = wrong[(folds == k) & ~self.settled], wrong[(folds != k) & ~self.settled]
            is_more = len(own) >= 10 and len(others) > 0 and own.mean() >= others.mean() + _MORE
            if is_more and _chance(own.sum(), len(own), others.sum(), len(others)) < _LEVEL / len(numbers):
                tests.append((name, k, own.mean(), others.mean()))
        for name, k, own, others in tests:
            at = [int(i) for i in np.flatnonzero((folds == k) & ~self.settled)]
            what = f'tenant "{name}" is answered unlike all others ({own:.0%} doubtful, elsewhere {others:.0%})'
            yield self._issue("tenant", what, at, tenant=name)

    # Single rows

    def _copies(self, wrong: np.ndarray) -> Iterator[DataIssue]:
        groups: dict[int, list[int]] = defaultdict(list)
        for i, cluster in enumerate(self.copies):
            if not self.settled[i]:
                groups[cluster].append(i)
        at, said = list[int](), dict[int, str]()
        for group in groups.values():
            answers = {i: _as_text(self.answers[i]) for i in group}
            counts = Counter(answers.values())
            if len(counts) > 1:
                doubt = {answer: min(wrong[i] for i in group if answers[i] == answer) for answer in counts}
                best = max(counts, key=lambda answer: (counts[answer], -doubt[answer]))
                others = [i for i in group if answers[i] != best]
                at += others
                said |= dict.fromkeys(others, best)
        if at:
            yield self._issue("copies", "near copies of a text with another answer", at, said)

    def _values(self) -> Iterator[DataIssue]:
        """Yield rows with a value that is not in the text, of fields whose values nearly always are."""
        if self.kind is not dict:
            return
        missing: dict[str, list[int]] = defaultdict(list)
        n: Counter[str] = Counter()
        for i in self._left():
            text = f" {fold_text(self.rows[i].text)} "
            for name, value in self.answers[i].items():
                if value is not None and not isinstance(value, dict | list | bool):
                    n[name] += 1
                    is_there = f" {fold_text(_as_text(value))} " in text
                    if not is_there and not any(occurrences(self.rows[i].text, value, form) for form in FORMS):
                        missing[name].append(i)
        shares = {name: len(missing[name]) / times for name, times in n.items() if times >= 20}
        # Wrong values are in all fields; what one alone lacks is worked out or written otherwise, as "€" for EUR.
        most = min(0.4, 0.1 + 2 * float(np.median([*shares.values()]))) if shares else 0.0
        kept = {name: missing[name] for name, share in shares.items() if share <= most and missing[name]}
        at = sorted({i for found in kept.values() for i in found})
        if at:
            worst = sorted(kept, key=lambda name: -len(kept[name]))[:3]
            yield self._issue("values", f"values that stand nowhere in the text ({', '.join(worst)})", at)

    def _probably_wrong(self, wrong: np.ndarray) -> Iterator[DataIssue]:
        at = [int(i) for i in np.argsort(-wrong, kind="stable") if wrong[i] >= _SUSPECT and not self.settled[i]]
        if len(at) < _LEAST:
            return
        said = {}
        for i in at:
            one, scores, _ = max(self.said, key=lambda entry: entry[2][i])
            said[i] = f"{one.name}: " * bool(one.name) + (one.categories[int(scores[i].argmax())] or "no value")
        what = f"answers that are probably wrong (some {wrong[at].sum():,.0f} of them are)"
        yield self._issue("answers", what, at, said)


def _chance(hits: int, n: int, others: int, n_others: int) -> float:
    """Return the p-value of so many hits where the others' share would be as large (Fisher's exact test)."""
    table = [[hits, n - hits], [others, n_others - others]]
    return float(stats.fisher_exact(table, alternative="greater")[1])


def _aspect(name: str, values: Sequence[str]) -> _Aspect:
    categories, given = np.unique(np.asarray(values, dtype=object).astype(str), return_inverse=True)
    return _Aspect(name, tuple(categories.tolist()), given)


def names_in(answer: Any) -> frozenset[str]:
    """Return the label, the labels or the fields of an answer; none of anything else."""
    if isinstance(answer, str):
        return frozenset([answer])
    return frozenset(map(str, answer)) if isinstance(answer, dict | list) else frozenset()


def with_names(answer: Any, names: Mapping[str, str]) -> Any:
    """Return an answer with other names of its label, labels or fields."""
    if isinstance(answer, str):
        return names.get(answer, answer)
    if isinstance(answer, dict):
        return {names.get(key, key): value for key, value in answer.items()}
    return [names.get(item, item) for item in answer] if isinstance(answer, list) else answer


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
