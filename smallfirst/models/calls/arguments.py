"""One argument of a function: the values that it may have in a conversation, and which of them it has.

Each candidate has features of the places that name it; a usual value of a closed set has the words of the conversation
beside. A conditional logit (McFadden 1974) chooses among them and "left out".
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from smallfirst.base.records import Record
from smallfirst.data.row_formats import to_json
from smallfirst.models.calls.mentions import Candidates, Mention, State, known_strings, word_list
from smallfirst.models.protocol import ValuePlace
from smallfirst.tasks.value_matching import lowered, normalize_value

FEW, MIN_SEEN = 64, 3
"""Most values of a closed set, and rows that each must have."""
COVERED = 0.5
"""Share of the training values that a closed set must hold."""
PHRASES_BELOW = 0.97
"""Share of training values found without phrases, below which every phrase of the texts is a candidate."""
L2 = 0.05
TOPIC_C = 10.0
"""C of the logistic regression on sentence vectors, as that of the candidate `encoder`."""
WORD = 0.3
"""Of a feature that says one word, so that its weight costs more than that of one which says where a value stands."""
MAX_PARTLY = 1000
"""Most values that are looked for by a part of their words."""
LOOSE = ("span", "number", "money", "phrase")
"""Sources that may name the value of any argument."""
FAR = 99
"""Turns back of what was not said."""
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_SHAPES = {"date": re.compile(r"\d{4}-\d\d-\d\d"), "time": re.compile(r"\d\d:\d\d")}
"""Of values that are read in a form, by the kind of their argument."""
_SURE = frozenset(("result", "call", "known", "listed", "partly"))
"""Sources of values that are known, not only words that stand there."""
_WORD = re.compile(r"\w+")
_PLAIN = "the a an of for to in on at is are be was if has have by or and with name number type date time value id"
_SAYS_NOTHING = frozenset(_PLAIN.split())
"""Words of an argument's name that do not tell what it is about."""

Features = dict[str, float]
Options = list[tuple[str | None, Features]]
"""Values as JSON with their features; None: left out."""


class ArgumentPlan(Record):
    """How the values of one argument are found, learned from training rows."""

    function: str
    name: str
    kind: Literal["closed", "date", "time", "text"]
    is_number: bool = False
    """True if its values are numbers, not texts."""
    usual: tuple[str, ...] = ()
    """Values, as JSON, that are judged from words too."""
    seen: dict[str, int] = {}
    """Rows by value of all functions' arguments of this name, as JSON."""
    phrases: bool = False
    """True if any phrase may be the value."""

    @property
    def path(self) -> str:
        return f"{self.function}.{self.name}"


class Argument:
    """The candidates of an argument, and its model where it is fitted."""

    def __init__(self, plan: ArgumentPlan, weights: Mapping[str, float], topic: Topic | None = None) -> None:
        self.plan, self.weights, self.topic = plan, weights, topic
        texts = {lowered(value): value for value in map(json.loads, plan.seen) if isinstance(value, str) and value}
        self._forms, self._pattern = texts, word_list(list(texts)) if texts else None
        self._words = {value: _spellings(value) for value in plan.usual}
        self._name = _topic_words(plan)

    def candidates(self, state: State, seen: Mapping[str, int], *, loose: bool = True) -> Candidates:
        """Return what the conversation offers, by value; `seen` are the training rows that have each.

        Not `loose`: without spans, numbers and phrases that may be anything.
        """
        found, names = Candidates(), dict[object, str]()

        def add(mentions: Iterable[tuple[Any, Mention]]) -> None:
            for given, mention in mentions:
                value = _as_number(given) if self.plan.is_number else given
                if isinstance(value, float) and not math.isfinite(value):
                    continue
                found.setdefault(names.setdefault(_comparable(value), to_json(value)), []).append(mention)

        add(self._known(state, seen))
        add(self._in_its_form(state))
        if self.plan.kind == "text" and loose:
            for form in ("number", "money", "span"):
                add(state.said(form))
            _drop_parts(found)
            add(state.said("phrase") if self.plan.phrases else ())
        return found

    def _known(self, state: State, seen: Mapping[str, int]) -> Iterator[tuple[Any, Mention]]:
        """Yield values of training rows, of results and of former calls where the conversation names them."""
        plan, held = self.plan, state.fields.get(self.plan.name, [])
        if self._pattern is not None and plan.kind != "closed":
            listed = state.listed(self._pattern, self._forms, "listed")
            yield from ((value, mention) for value, mention in listed if seen.get(to_json(value), 0) > 0)
        yield from held
        yield from known_strings(state, [plan.name])
        if plan.kind == "text":
            texts = {json.loads(value) for value, n in seen.items() if n > 0} | {value for value, _ in held}
            yield from state.partly(sorted(text for text in texts if isinstance(text, str))[:MAX_PARTLY])

    def _in_its_form(self, state: State) -> Iterator[tuple[Any, Mention]]:
        """Yield the days or times of texts, and those of other fields of results and calls."""
        if (shape := _SHAPES.get(self.plan.kind)) is None:
            return
        for form in ("date",) if self.plan.kind == "date" else ("time", "time_pm"):
            yield from state.said(form)
        for key, held in state.fields.items():
            for value, mention in held if key != self.plan.name else ():
                if isinstance(value, str) and shape.fullmatch(value):
                    yield value, mention._replace(source=f"{mention.source}*")

    def options(self, state: State, vector: np.ndarray | None = None, without: Counter[str] | None = None) -> Options:
        """Return every value that may be chosen, and None, with their features.

        `vector` (dimensions,) is of the user's last turns. `without`: values of the training rows of the same
        conversation, which count as not seen.
        """
        options = self._options(state, without)
        if self.topic is not None and vector is not None:
            for (_, features), nats in zip(
                options, self.topic.nats(vector, [value for value, _ in options]), strict=True
            ):
                features["topic"] = max(nats, -8.0)
        return options

    def _options(self, state: State, without: Counter[str] | None) -> Options:
        plan = self.plan
        seen = {value: n - without[value] for value, n in plan.seen.items()} if without else plan.seen
        said = {} if plan.kind == "closed" else self.candidates(state, seen)
        found: Options = []
        words = _SaidWords(state)
        context = _Context(said, state)
        for value, mentions in said.items():
            features = context.features(seen.get(value, 0), value, mentions)
            if plan.usual:
                features["read"] = 1.0
            if value in self._words:
                features |= self._judged(state, value, words)
            found.append((value, features))
        found += [(value, self._judged(state, value, words)) for value in plan.usual if value not in said]
        none = {"none": 1.0, f"none|{len(found) > 0}": 1.0}
        none["none user"] = math.log(min((m.age for ms in said.values() for m in ms if m.role == "user"), default=FAR))
        none["none call"] = math.log(
            min((m.age for ms in said.values() for m in ms if m.source == "call"), default=FAR)
        )
        fresh = [m for ms in said.values() for m in ms if m.role == "user" and m.age < state.last_call]
        none["none fresh"] = float(bool(fresh))
        none["none sure"] = float(any(m.source not in ("span", "phrase", "number") for m in fresh))
        none["none topic"] = words.topic(self._name, "user")
        for word in words.user:
            none[f"none|{word}"] = WORD
        return [*found, (None, none)]

    def marks(self, state: State) -> list[str]:
        """Return what the user has said of the argument: a value, one since the last call, or its name."""
        plan = self.plan
        if plan.usual:
            ages = [
                age
                for role, text, age in state.texts
                if role == "user" and any(words.search(lowered(text)) for words in self._words.values())
            ]
        else:
            ages = []
        if plan.kind != "closed":
            found = self.candidates(state, plan.seen, loose=False)
            ages += [m.age for ms in found.values() for m in ms if m.role == "user" and m.source not in LOOSE]
        named = [text for role, text, _ in state.texts if role == "user" and self._named(text)]
        found_marks = {"said": bool(ages), "fresh": any(age < state.last_call for age in ages), "named": bool(named)}
        return [f"{plan.path}={mark}" for mark, holds in found_marks.items() if holds]

    def _named(self, text: str) -> bool:
        return any(map(self._name.match, _WORD.findall(lowered(text))))

    def place(self, state: State, value: str) -> ValuePlace | None:
        """Return where a chosen value, as JSON, is said last, a usual one by the argument's name; None if nowhere."""
        mentions = [one for known, one in state.fields.get(self.plan.name, ()) if to_json(known) == value]
        if self.plan.kind != "closed":
            mentions += self.candidates(state, self.plan.seen).get(value, [])
        if value in self._words:
            mentions += [one for _, one in state.listed(self._words[value], Counter(), "listed")]

        def later(one: Mention) -> tuple[bool, int, int]:
            around = [*_WORD.findall(one.before)[-3:], *_WORD.findall(one.after)[:2]]
            return value in self._words and not any(map(self._name.match, around)), one.age, -one.start

        last = min(mentions, key=later, default=None)
        return last and state.place(last, json.loads(value))

    def choose(self, state: State, vector: np.ndarray | None = None) -> tuple[str | None, float]:
        """Return the likeliest value as JSON, None for none, and its log-probability in nats."""
        options = self.options(state, vector)
        weight = self.weights.get
        scores = np.array([math.fsum(weight(name, 0.0) * x for name, x in features.items()) for _, features in options])
        best = int(scores.argmax())
        return options[best][0], float(scores[best] - np.logaddexp.reduce(scores))

    def _judged(self, state: State, value: str, words: _SaidWords) -> Features:
        """Return the features of a usual value: where it is said, in former calls, and every word beside it."""
        found: Features = {f"={value}": 1.0}
        for role in ("user", "assistant"):
            places = [
                (age, low, place)
                for kind, text, age in state.texts
                if kind == role
                for low in [lowered(text)]
                for place in self._words[value].finditer(low)
            ]
            found[f"usual {role}"] = math.log(min((age for age, *_ in places), default=FAR))
            found[f"usual n {role}"] = len({age for age, *_ in places})
            for _, low, place in places[-1:]:
                around = [
                    *_WORD.findall(low[: place.start()])[-3:],
                    *(f"{w}<" for w in _WORD.findall(low[place.end() :])[:2]),
                ]
                for word in around:
                    found[f"near {word}|{role}"] = 1.0
                found[f"near topic|{role}"] = float(any(self._name.match(word) for word in around))
            found[f"{value} topic|{role}"] = words.topic(self._name, role)
        own = [
            (mention.age, to_json(known) == value)
            for known, mention in state.fields.get(self.plan.name, ())
            if mention.source == "call"
        ]
        found["usual call"] = math.log(min((age for age, same in own if same), default=FAR))
        found["other call"] = math.log(min((age for age, same in own if not same), default=FAR))
        found["usual"] = self.plan.seen.get(value, 0) / max(1, sum(self.plan.seen.values()))
        for word in words.user:
            found[f"{value}|{word}"] = WORD
        for word in words.assistant:
            found[f"{value}|a:{word}"] = WORD
        return found


class Topic:
    """What the user talks about, by an encoder: nats of each usual value and of None from a sentence vector."""

    def __init__(self, values: Sequence[str | None], weights: np.ndarray, bias: np.ndarray) -> None:
        """Weights (values, dimensions) and bias (values,)."""
        self.values, self.weights, self.bias = list(values), weights, bias

    @classmethod
    def fit(cls, vectors: np.ndarray, values: Sequence[str | None], usual: Sequence[str]) -> Topic | None:
        """Return a logistic regression of usual values, or None, on vectors (rows, dimensions); None with one value."""
        from smallfirst.models.linear.classifier import fit_linear

        names = [None, *usual]
        rows = [i for i, value in enumerate(values) if value in names]
        gold = np.array([names.index(values[i]) for i in rows])
        if len(set(gold.tolist())) < 2:
            return None
        return cls(names, *fit_linear(vectors[rows], gold, len(names), TOPIC_C))

    def nats(self, vector: np.ndarray, values: Sequence[str | None]) -> list[float]:
        """Return the log-probability of each value; the least one for those that are not usual."""
        scores = self.weights @ vector + self.bias
        logs = scores - np.logaddexp.reduce(scores)
        by_value = dict(zip(self.values, logs.tolist(), strict=True))
        return [by_value.get(value, -8.0) for value in values]


class _SaidWords:
    """Words and pairs of the last turns of the user, words of the assistant's last."""

    def __init__(self, state: State) -> None:
        user = [lowered(text) for role, text, _ in state.texts if role == "user"][-4:]
        split = [_WORD.findall(text) for text in user]
        said = [*(w for words in split for w in words), *(f"{a} {b}" for ws in split for a, b in pairwise(ws))]
        self.user = list(dict.fromkeys(said))  # lists: the order of a set differs from process to process
        last = next((text for role, text, _ in reversed(state.texts) if role == "assistant"), "")
        self.assistant = list(dict.fromkeys(_WORD.findall(last.lower())))
        self._texts = state.texts

    def topic(self, pattern: re.Pattern[str], role: str) -> float:
        """Return 1 + 1 / age of the last turn of a role that says a word of the pattern; 0 if none does."""
        ages = [
            age
            for kind, text, age in self._texts
            if kind == role and any(map(pattern.match, _WORD.findall(lowered(text))))
        ]
        return 1 + 1 / min(ages) if ages else 0.0


class _Context:
    """What the features of one candidate say of the others."""

    def __init__(self, found: Candidates, state: State) -> None:
        self.n, self.last_call = len(found), state.last_call
        self.ages = {value: min(m.age for m in mentions) for value, mentions in found.items()}
        self.sorted_ages = sorted(self.ages.values())
        self.by_role = {
            role: sorted(age for ms in found.values() if (age := _age(ms, role)) < FAR)
            for role in ("user", "assistant")
        }

    def features(self, n_seen: int, value: str, mentions: Sequence[Mention]) -> Features:
        user, assistant = _age(mentions, "user"), _age(mentions, "assistant")
        recent = min(mentions, key=lambda m: (m.age, -m.start))
        found: Features = {
            "fresh": float(user < self.last_call),
            "user said": float(user < FAR),
            "assistant said": float(assistant < FAR),
            "user": math.log(user),
            "assistant": math.log(assistant),
            "n": len(mentions),
            "age": math.log(recent.age),
            "rank": min(10, int(np.searchsorted(self.sorted_ages, self.ages[value]))),
            "newer user": min(10, int(np.searchsorted(self.by_role["user"], user))),
            "newer assistant": min(10, int(np.searchsorted(self.by_role["assistant"], assistant))),
            "confirmed": float(assistant == 2),
            "candidates": math.log1p(self.n),
            "seen": math.log1p(n_seen),
            "in list": float(n_seen > 0),
            "place": min(10, min((m.start for m in mentions if m.role == "result"), default=9)),
            "partly": max((m.start / 100 for m in mentions if m.source == "partly"), default=0.0),
            "call": math.log(min((m.age for m in mentions if m.source == "call"), default=FAR)),
            f"role {recent.role}": 1.0,
        }
        for source in dict.fromkeys(m.source for m in mentions):
            found[f"source {source}"] = 1.0
        only = {m.source for m in mentions} <= {"phrase", "span"}
        for mention in sorted(mentions, key=lambda m: m.age)[:3]:
            role, first = mention.role[0], _WORD.findall(mention.before)[-2:]
            for i, word in enumerate(reversed(first)):
                found[f"before{i} {word}|{role}"] = 1.0
            if only:
                behind = mention.after[:1]
                next_word = _WORD.findall(mention.after)[:1]
                found[f"after {next_word[0] if next_word else ''}|{behind in '.,!?;:' and behind}|{role}"] = 1.0
                if mention.start == 0:
                    found[f"begins|{role}"] = 1.0
        if only:
            words = str(json.loads(value)).split()
            found[f"words {len(words)}"] = 1.0
            found[f"first {words[0].lower()}"] = found[f"last {words[-1].lower()}"] = 1.0
            found["capitals"] = sum(word[:1].isupper() for word in words) / len(words)
            found["all capitals"] = float(all(word[:1].isupper() for word in words))
        return found


def _topic_words(plan: ArgumentPlan) -> re.Pattern[str]:
    """Return what begins words like those of the argument's name, such as `furnish`."""
    words = set(plan.name.lower().replace("_", " ").split()) - _SAYS_NOTHING
    stems = sorted({word[: max(3, len(word) - 2)] if len(word) > 3 else word for word in words})
    return re.compile("|".join(map(re.escape, stems)) or r"(?!)")


def _drop_parts(found: Candidates) -> None:
    """Leave out spans and numbers that hold, or are a part of, a value that is known."""
    texts = {value: str(json.loads(value)).lower() for value in found}
    sure = {texts[value] for value, own in found.items() if any(mention.source in _SURE for mention in own)}
    for value, words in texts.items():
        unsure = all(mention.source in ("span", "number") for mention in found[value])
        if unsure and any(words in one or one in words for one in sure):
            del found[value]


def _as_number(value: Any) -> Any:
    """Return the number that a text is; the value as it is, if it is no such text."""
    if not isinstance(value, str):
        return value
    try:
        number = int(value) if value.isdecimal() else float(value)
    except ValueError:
        return value
    return number if math.isfinite(number) else value  # JSON has no NaN


def _age(mentions: Sequence[Mention], role: str) -> int:
    return min((m.age for m in mentions if m.role == role), default=FAR)


def _spellings(value: str) -> re.Pattern[str]:
    """Return what finds a usual value in a text in lower case; numbers as words, too."""
    plain = lowered(value.strip('"'))
    forms = [plain, *([_NUMBERS[int(plain)]] if plain.isdigit() and int(plain) < len(_NUMBERS) else [])]
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, forms))})(?!\w)")


class TrainingChoice(NamedTuple):
    """One training choice: the options, and which is right."""

    options: Options
    right: int


def fit_weights(choices: Sequence[TrainingChoice], l2: float = L2) -> dict[str, float]:
    """Return the weights of a conditional logit with a ridge penalty, by L-BFGS, without those that are nearly 0."""
    from scipy import optimize, sparse

    column: dict[str, int] = {}
    indices, values, ends, starts, right = list[int](), list[float](), [0], [0], list[int]()
    for options, at in choices:
        right.append(starts[-1] + at)
        for _, features in options:
            indices += [column.setdefault(name, len(column)) for name in features]
            values += features.values()
            ends.append(len(indices))
        starts.append(len(ends) - 1)
    rows = sparse.csr_matrix((np.array(values, float), indices, ends), shape=(len(ends) - 1, len(column)))
    first, of = np.array(starts[:-1]), np.repeat(np.arange(len(choices)), np.diff(starts))
    wanted, back = np.asarray(rows[right].sum(axis=0)).ravel(), rows.T.tocsr()

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scores = rows @ weights
        top = np.maximum.reduceat(scores, first)
        odds = np.exp(scores - top[of])
        total = np.add.reduceat(odds, first)
        nats = (top + np.log(total) - scores[right]).sum() + 0.5 * l2 * (weights @ weights)
        return float(nats), back @ (odds / total[of]) - wanted + l2 * weights

    found = optimize.minimize(loss, np.zeros(len(column)), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    return {name: float(found[i]) for name, i in column.items() if abs(found[i]) > 1e-4}


def plan_argument(
    function: str, name: str, schema: Mapping[str, Any], values: Sequence[Any], seen: Mapping[str, int]
) -> ArgumentPlan:
    """Return the plan of an argument from its training values; `seen`: rows by value of all arguments of the name."""
    own = Counter(map(to_json, values))
    usual = {value for value, n in own.items() if n >= MIN_SEEN}
    texts = [value for value in values if isinstance(value, str)]
    is_number = schema.get("type") in ("integer", "number")
    is_listed = "enum" in schema or not (texts or is_number)
    if is_listed:
        usual = set(own)
    if len(usual) > FEW or sum(own[value] for value in usual) < COVERED * own.total():
        usual = set()
    kind: Any = next((kind for kind, shape in _SHAPES.items() if texts and all(map(shape.fullmatch, texts))), "text")
    if is_listed and usual:
        kind = "closed"
    return ArgumentPlan(
        function=function,
        name=name,
        kind=kind,
        is_number=is_number,
        seen=dict(seen),
        usual=tuple(sorted(usual)) if kind in ("closed", "text") else (),
    )


def gold_place(options: Options, value: Any) -> int | None:
    """Return which option is the value of a row, None for a missing one included; None if none is."""
    if value is None:
        return len(options) - 1
    wanted = _comparable(value)
    return next(
        (i for i, (own, _) in enumerate(options) if own is not None and _comparable(json.loads(own)) == wanted), None
    )


def _comparable(value: Any) -> object:
    return to_json(value).casefold() if isinstance(value, dict | list) else normalize_value(value, "case")
