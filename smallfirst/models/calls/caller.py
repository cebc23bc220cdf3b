"""The caller: which function comes next, from words, and its arguments, chosen among the values that were read.

The act is a logistic regression over the last turn of the user, the last of the assistant and the earlier ones, each by
its own words, and over former calls and their number. The confidence of a call is calibrated from the log-probabilities
of the act and of every argument. It is 0 where there is no call to make: the large model answers then.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from smallfirst.base.files import write_atomically
from smallfirst.base.progress import ProgressCallback, no_progress
from smallfirst.data.conversations import NO_CALL, write_call
from smallfirst.data.row_formats import to_json
from smallfirst.models.calls.arguments import (
    PHRASES_BELOW,
    Argument,
    ArgumentPlan,
    Topic,
    TrainingChoice,
    fit_weights,
    gold_place,
    plan_argument,
)
from smallfirst.models.calls.injection import Embed, InjectionGuard
from smallfirst.models.calls.mentions import State
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import open_encoder
from smallfirst.models.linear.tfidf import SparseRow, SparseRows, Vocabulary, sparse_matrix, term_row, word_grams
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import ValuePlace
from smallfirst.models.spans.model import SpanAnswer
from smallfirst.tasks.call import Call, function_of

FOLDS = 5
"""Parts of the conversations, each of which the others' topic models read for the training of an argument."""
FULL, MAX_CALLS = 0.7, 8
"""Least share of filled places by which calls of a conversation are bounded, and the most calls."""
MAX_CHARACTERS = 20_000
"""Of what user and assistant said in a longer conversation, no call is made."""
PARTS = 3
"""Sentence vectors of a conversation, the last one of what the user talks about."""
NOTHING = "."
"""What an encoder reads where nothing was said."""
LEAST = 1e-9
"""Confidence of a call of which nothing is sure: no call has 0."""
ACT_C = 10.0
"""C of the act's logistic regression, as that of other linear models on features of unit length."""
PLAN_FILE, WEIGHTS_FILE = "caller.json", "act.safetensors"


_GRAMS: tuple[Callable[[str], Iterable[str]], ...] = (word_grams, word_grams, word_grams, str.split, str.split)


class ActFeatures:
    """What tells the next act: words of the last and earlier turns, where the conversation stands, and vectors."""

    def __init__(self, parts: Sequence[Vocabulary], arguments: Sequence[Argument], embed: Embed | None) -> None:
        self.parts, self.arguments, self.embed = parts, arguments, embed

    @classmethod
    def fit(cls, states: Sequence[State], arguments: Sequence[Argument], embed: Embed | None) -> ActFeatures:
        texts = list(zip(*(_act_texts(state, arguments) for state in states), strict=True))
        parts = [Vocabulary.fit(grams, own) for grams, own in zip(_GRAMS, texts, strict=True)]
        return cls(parts, arguments, embed)

    def matrix(self, states: Sequence[State]) -> Any:
        """Return the features as a sparse matrix of SciPy (states, features)."""
        from scipy import sparse

        words = sparse_matrix(map(self._row, states), sum(len(part.idf) for part in self.parts))
        return sparse.hstack([words, sparse.csr_matrix(self.vectors(states))]).tocsr()

    def scores(self, states: Sequence[State], vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the products with weights (acts, features): (states, acts); `vectors` as the method returns them."""
        width, rows = sum(len(part.idf) for part in self.parts), SparseRows(tuple(map(self._row, states)))
        found: np.ndarray = rows @ weights[:, :width].T + vectors @ weights[:, width:].T
        return found

    def vectors(self, states: Sequence[State]) -> np.ndarray:
        """Return the vectors of the user's last turn, of the assistant's and of what the user talks about."""
        if self.embed is None:
            return np.zeros((len(states), 0))
        texts = [text for state in states for text in (state.last("user"), state.last("assistant"), state.topic)]
        texts = [text if text.strip() else NOTHING for text in texts]
        return np.asarray(self.embed(texts)).reshape(len(states), -1)

    def _row(self, state: State) -> SparseRow:
        texts = _act_texts(state, self.arguments)
        terms = (grams(text) for grams, text in zip(_GRAMS, texts, strict=True))
        return term_row(zip(terms, self.parts, strict=True))


def _act_texts(state: State, arguments: Sequence[Argument]) -> tuple[str, str, str, str, str]:
    """Return the user's last turn, the assistant's last, the user's earlier ones, the state and what is known."""
    user = [text for role, text, _ in state.texts if role == "user"]
    assistant = [text for role, text, _ in state.texts if role == "assistant"]
    calls = [str(call.get("name")) for call in state.calls]
    last = state.turns[-1].kind if state.turns else ""
    empty = [turn.value in ([], "", None, {}) for turn in state.turns if turn.kind == "result"]
    marks = [
        f"last_{last}",
        f"call_{calls[-1] if calls else ''}",
        f"n_{min(len(calls), 5)}",
        f"turn_{min(len(state.turns), 24) // 2}",
    ]
    marks += [f"had_{name}" for name in sorted(set(calls))] + [f"empty_{one}" for one in empty[-1:]]
    since = next((age for role, _, age in reversed(state.texts) if role == "assistant"), 0)
    return (
        (user or [""])[-1],
        (assistant or [""])[-1],
        " ".join(user[:-1]),
        " ".join([*marks, f"since_{since}"]),
        " ".join(mark for argument in arguments for mark in argument.marks(state)),
    )


class Reading(NamedTuple):
    """A call as it was read, before its confidence is calibrated."""

    answer: str
    logs: list[float]
    """Log-probabilities in nats of the act, then of the arguments in the order of the function's parameters."""
    arguments: dict[str, float]
    """By argument the log-probability of its value or absence."""
    n_before: int
    """Calls of the conversation so far."""
    places: dict[str, ValuePlace | None] = {}
    """By argument of the call where its value was read."""


class FunctionCaller:
    """A SpanScorer of conversations: answers are calls, or NO_CALL with a confidence of 0."""

    def __init__(
        self,
        act: tuple[ActFeatures, np.ndarray, np.ndarray],
        arguments: Sequence[Argument],
        manifest: Manifest,
        *,
        embed: Embed | None,
        most: int,
        guard: InjectionGuard | None = None,
    ) -> None:
        """The act's features, weights (acts, features) and bias (acts,); acts are NO_CALL, then the task's functions.

        `most`: calls of a conversation after which every further one goes to the large model.
        """
        self.features, self.weights, self.bias = act
        self.manifest, self.embed, self.most, self.guard = manifest, embed, most, guard
        task = manifest.task
        assert isinstance(task, Call)
        self.task, self.acts = task, (NO_CALL, *task.names)
        self.arguments = {(one.plan.function, one.plan.name): one for one in arguments}

    @classmethod
    def fit(
        cls,
        turns: Sequence[tuple[str, str, str]],
        manifest: Manifest,
        embed: Embed | None = None,
        *,
        progress: ProgressCallback = no_progress,
    ) -> FunctionCaller:
        """Return a caller learned from turns: a conversation, its answer in canonical form and what names it."""
        from smallfirst.models.linear.classifier import fit_linear

        task = manifest.task
        assert isinstance(task, Call)
        acts, states = (NO_CALL, *task.names), [State(text) for text, _, _ in turns]
        gold = np.array([acts.index(function_of(answer)) for _, answer, _ in turns])
        calls = [
            TrainingCall(state, json.loads(answer), group)
            for state, (_, answer, group) in zip(states, turns, strict=True)
            if answer != NO_CALL
        ]
        vectors = embed([one.state.topic or NOTHING for one in calls]) if embed and calls else None
        arguments = list(_fit_arguments(task, calls, vectors, progress))
        features = ActFeatures.fit(states, arguments, embed)
        act = (features, *fit_linear(features.matrix(states), gold, len(acts), ACT_C))
        said = [(state.last("user"), group) for state, (_, _, group) in zip(states, turns, strict=True)]
        values = [value for one in calls for value in one.call["arguments"].values()]
        guard = InjectionGuard.fit(task, said, values, embed)
        most = most_calls(Counter(one.group for one in calls).values())
        return cls(act, arguments, manifest, embed=embed, most=most, guard=guard)

    def answer(self, texts: Sequence[str]) -> list[SpanAnswer]:
        began, found = time.perf_counter(), list[SpanAnswer]()
        read = self.read(texts)
        busy_s = (time.perf_counter() - began) / max(1, len(texts))
        for one in read:
            certain = self.manifest.calibration.confidence(one.logs)
            sure = 0.0 if one.answer == NO_CALL or one.n_before >= self.most else max(LEAST, certain)
            fields = {name: math.exp(log) for name, log in one.arguments.items()}
            found.append(SpanAnswer(one.answer, sure, fields, 0, busy_s, one.places))
        return found

    def read(self, texts: Sequence[str]) -> list[Reading]:
        """Return for each conversation the likeliest act with its arguments."""
        states = [State(text) for text in texts]
        vectors = self.features.vectors(states)
        nats = special.log_softmax(self.features.scores(states, vectors, self.weights) + self.bias, axis=1)
        topics = vectors[:, -(vectors.shape[1] // PARTS) :] if vectors.size else [None] * len(states)
        return [self._read(state, *both) for state, *both in zip(states, nats, topics, strict=True)]

    def _read(self, state: State, nats: np.ndarray, vector: np.ndarray | None) -> Reading:
        """Return the act with its arguments; NO_CALL where a required one has no value, or for what is never small.

        Neither is what follows an order of the user's to the model.
        """
        function, logs = self.acts[int(nats.argmax())], [float(nats.max())]
        nothing = Reading(NO_CALL, logs, {}, state.n_calls)
        if function == NO_CALL or self.task.is_never_small(function) or state.n_characters > MAX_CHARACTERS:
            return nothing
        if self.guard and self.guard.flags([text for role, text, _ in state.texts if role == "user"], self.embed):
            return nothing
        said, own, places = dict[str, Any](), dict[str, float](), dict[str, ValuePlace | None]()
        for name in self.task.parameters(function):
            argument = self.arguments.get((function, name))
            value, own[name] = argument.choose(state, vector) if argument else (None, 0.0)
            if value is None and name in self.task.required(function):
                return nothing
            if value is not None and argument:
                said[name], places[name] = json.loads(value), argument.place(state, value)
        return Reading(write_call(function, said), [*logs, *own.values()], own, state.n_calls, places)

    def save(self, folder: Path) -> str:
        """Write the model's files; return a fingerprint of them."""
        from safetensors.numpy import save

        weights, arguments = {"act": self.weights, "act.bias": self.bias}, list[dict[str, Any]]()
        for number, one in enumerate(self.arguments.values()):
            arguments.append({"plan": one.plan.model_dump(mode="json"), "weights": one.weights})
            if one.topic is not None:
                arguments[-1]["topic"] = one.topic.values
                weights |= {f"{number}.topic": one.topic.weights, f"{number}.topic.bias": one.topic.bias}
        words = [part.saved() for part in self.features.parts]
        plan = {"most": self.most, "words": words, "arguments": arguments}
        if guard := self.guard:
            plan["guard"] = guard.words.saved() | {"least": guard.least}
            weights |= {"guard": guard.weights, "guard.bias": np.array([guard.bias])}
        written, content = json.dumps(plan, ensure_ascii=False).encode(), save(weights)
        write_atomically(folder / PLAN_FILE, written)
        write_atomically(folder / WEIGHTS_FILE, content)
        return hashlib.sha256(written + content).hexdigest()[:16]

    @classmethod
    def load(cls, folder: Path, manifest: Manifest) -> FunctionCaller:
        from safetensors.numpy import load_file

        plan, weights = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8")), load_file(folder / WEIGHTS_FILE)
        words = [Vocabulary.load(part) for part in plan["words"]]
        arguments = []
        for number, one in enumerate(plan["arguments"]):
            topic = None
            if "topic" in one:
                topic = Topic(one["topic"], weights[f"{number}.topic"], weights[f"{number}.topic.bias"])
            arguments.append(Argument(ArgumentPlan.model_validate(one["plan"]), one["weights"], topic))
        embed = open_encoder(find_weights(manifest.base)).embed if manifest.base else None
        act, guard = (ActFeatures(words, arguments, embed), weights["act"], weights["act.bias"]), None
        if (own := plan.get("guard")) is not None:
            bias = float(weights["guard.bias"][0])
            guard = InjectionGuard(Vocabulary.load(own), weights["guard"], bias, own["least"])
        return cls(act, arguments, manifest, embed=embed, most=plan["most"], guard=guard)


def most_calls(calls: Iterable[int]) -> int:
    """Return how many calls of a conversation may be made small, from the calls of each training conversation.

    As many as leave at least FULL of the places filled: the promise is tested by the sums of conversations, each as
    large as the most that one may have.
    """
    counts = np.array([n for n in calls if n], dtype=int)
    filled = [n for n in range(1, MAX_CALLS + 1) if counts.size and np.minimum(counts, n).mean() >= FULL * n]
    return max(filled, default=1)


def read_most(folder: Path) -> int:
    """Return the most calls of a conversation that the caller in a folder makes."""
    return int(json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))["most"])


class TrainingCall(NamedTuple):
    """A conversation, the call that follows, and what is common to the turns of one conversation."""

    state: State
    call: dict[str, Any]
    group: str


def _fit_arguments(
    task: Call, calls: Sequence[TrainingCall], vectors: np.ndarray | None, progress: ProgressCallback
) -> Iterator[Argument]:
    """Yield the model of every argument that a training call has; vectors (calls, dimensions)."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    own: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for one in calls:
        for name, value in one.call["arguments"].items():
            seen[name][to_json(value)] += 1
            own[one.group, name][to_json(value)] += 1
    n_arguments, done = sum(len(task.parameters(function)) for function in task.names), 0
    for function in task.names:
        at = [i for i, one in enumerate(calls) if one.call["name"] == function]
        rows = [calls[i] for i in at]
        for name, schema in task.parameters(function).items():
            done += 1
            progress(done, n_arguments, f"{function}.{name}")
            given = [to_json(one.call["arguments"][name]) if name in one.call["arguments"] else None for one in rows]
            if not any(given):
                continue
            values = [json.loads(value) for value in given if value is not None]
            plan = plan_argument(function, name, schema, values, seen[name])
            training = _Rows(rows, [own[one.group, name] for one in rows], name)
            choices = training.choices(Argument(plan, {}))
            if plan.kind == "text" and len(choices) < PHRASES_BELOW * len(rows):
                plan = plan.model_copy(update={"phrases": True})
            topic, held = None, None
            if vectors is not None and plan.usual:
                topic, held = _topics(vectors[at], given, plan.usual, [one.group for one in rows])
            if plan.phrases or topic is not None:
                choices = training.choices(Argument(plan, {}), held, None if vectors is None else vectors[at])
            if choices:
                yield Argument(plan, fit_weights(choices), topic)


def _topics(
    vectors: np.ndarray, given: Sequence[str | None], usual: Sequence[str], groups: Sequence[str]
) -> tuple[Topic | None, list[Topic | None]]:
    """Return the topic model of an argument, and for each row one that has not seen its conversation."""
    order = {group: i % FOLDS for i, group in enumerate(dict.fromkeys(groups))}
    fold = np.array([order[group] for group in groups])
    by_fold = []
    for k in range(FOLDS):
        others = np.flatnonzero(fold != k)
        by_fold.append(Topic.fit(vectors[others], [given[i] for i in others.tolist()], usual))
    return Topic.fit(vectors, given, usual), [by_fold[k] for k in fold]


class _Rows(NamedTuple):
    """Training rows of one argument, with the values of their own conversations."""

    rows: Sequence[TrainingCall]
    without: Sequence[Counter[str]]
    name: str

    def choices(
        self, argument: Argument, topics: Sequence[Topic | None] | None = None, vectors: np.ndarray | None = None
    ) -> list[TrainingChoice]:
        """Return the choices of rows whose value is among the candidates; those of its conversation are not known."""
        found = []
        for i, (row, own) in enumerate(zip(self.rows, self.without, strict=True)):
            argument.topic = topics[i] if topics else None
            options = argument.options(row.state, None if vectors is None else vectors[i], own)
            place = gold_place(options, row.call["arguments"].get(self.name))
            if place is not None:
                found.append(TrainingChoice(options, place))
        return found
