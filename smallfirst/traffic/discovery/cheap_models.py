"""Cheap models, cross-validated on recorded answers in seconds, to foretell what a trained one can do."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from smallfirst.data.dataset import Example, Message
from smallfirst.errors import WeightsNotFound
from smallfirst.models.spans.alignment import Row, align, learn_plan, parse_row
from smallfirst.models.spans.decoding import absence, best_labels, marks
from smallfirst.models.spans.plan import AnswerPlan, Found, assemble
from smallfirst.models.spans.values import read_value
from smallfirst.tasks.extract import Extract

FOLDS, FIELD_FOLDS = 3, 2
MOST_CASES, MOST_CHARACTERS = 2500, 600_000
"""Most cases that are looked at for labels, and most characters of all together."""
MOST_FIELD_CASES, MOST_FIELD_CHARACTERS = 600, 1_000_000
"""The same for fields, where every word is a row and every field a class: characters are shared by the fields."""
_RIDGE, _VECTOR_WEIGHT, _BATCH = 1.0, 4.0, 256
_SEED = 0
_TOKEN = re.compile(r"\w(?:\S*\w)?|\S|\n")
_BUCKETS = 2**17
_MOST_TOKENS = 400
_STEPS = 40


class HeldOut(NamedTuple):
    """A cheap model's answers to cases that it did not learn."""

    confidence: np.ndarray
    """(cases,), in [0, 1]."""
    right: np.ndarray
    """(cases,), True where the answer is the large model's."""


def drawn_cases(texts: Sequence[str], most_cases: int, most_characters: int) -> list[int]:
    """Return which cases are looked at: all, or so many drawn at random that they are not too many or too long."""
    order: list[int] = np.random.default_rng(_SEED).permutation(len(texts))[:most_cases].tolist()
    mean = sum(len(texts[i]) for i in order) / max(1, len(order))
    return order[: max(1, int(most_characters / max(1.0, mean)))]


def sentence_encoder() -> Callable[[Sequence[str]], np.ndarray] | None:
    """Return what makes vectors of unit length of texts, if the default encoder's weights are here already."""
    from smallfirst.models.catalog import find_weights
    from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, open_encoder

    try:
        return open_encoder(find_weights(DEFAULT_ENCODER, download=False)).embed
    except (WeightsNotFound, ModuleNotFoundError):
        return None


def hold_out_labels(
    texts: Sequence[str], labels: Sequence[str], embed: Callable[[Sequence[str]], np.ndarray] | None = None
) -> HeldOut:
    """Return the answers of a ridge regression to the cases of the other folds, left out in closed form.

    It knows words and their parts, and with `embed` sentence vectors. Confidence is the margin over the second label.
    """
    from smallfirst.models.linear.classifier import TfidfFeatures

    gold = np.unique(labels, return_inverse=True)[1]
    features = TfidfFeatures.fit(texts)(texts)
    kernel = np.asarray((features @ features.T).todense(), dtype=np.float64)
    if embed is not None:
        vectors = np.concatenate([embed(texts[at : at + _BATCH]) for at in range(0, len(texts), _BATCH)])
        kernel += _VECTOR_WEIGHT * (vectors @ vectors.T)
    inverse = np.linalg.inv(kernel + _RIDGE * np.eye(len(kernel)))
    wanted = np.eye(int(gold.max()) + 1)[gold]
    dual = inverse @ (wanted - wanted.mean(axis=0))
    scores = np.zeros_like(wanted)
    for fold in range(FOLDS):
        left_out = np.arange(fold, len(gold), FOLDS)
        scores[left_out] = wanted[left_out] - np.linalg.solve(inverse[np.ix_(left_out, left_out)], dual[left_out])
    ranked = np.sort(scores, axis=1)
    margin = ranked[:, -1] - ranked[:, -2] if ranked.shape[1] > 1 else ranked[:, -1]
    return HeldOut(np.clip(0.5 + 0.5 * margin, 0.0, 1.0), scores.argmax(axis=1) == gold)


def hold_out_fields(texts: Sequence[str], values: Sequence[Any], task: Extract) -> HeldOut | str:
    """Return the answers of a token classifier to the cases of the other folds, or why fields cannot be marked.

    A field's words are marked by a linear model of each word and its neighbours; a field of few values is judged from
    the whole text. Right means that every field is.
    """
    examples = [
        Example(messages=(Message(role="user", content=text),), answer=json.dumps(value), shape="target")
        for text, value in zip(texts, values, strict=True)
    ]
    plan, problem = learn_plan(task, examples)
    if problem:
        return problem
    confidence, right = np.zeros(len(texts)), np.zeros(len(texts), dtype=bool)
    for fold in range(FIELD_FOLDS):
        marker = _FieldMarker(task, plan, [e for i, e in enumerate(examples) if i % FIELD_FOLDS != fold])
        asked = range(fold, len(texts), FIELD_FOLDS)
        for i, (answer, sure) in zip(asked, marker.answers([texts[i] for i in asked]), strict=True):
            said = task.parse(answer)
            confidence[i], right[i] = sure, said is not None and task.score([examples[i].answer], said) == 1
    return HeldOut(confidence, right)


class _FieldMarker:
    """Marks fields by linear models, and writes them as JSON."""

    def __init__(self, task: Extract, plan: AnswerPlan, examples: Sequence[Example]) -> None:
        from sklearn.linear_model import LogisticRegression

        self._task, self._plan = task, plan
        rows = [parse_row(example) for example in examples]
        wanted = []
        for row in rows:
            places = [place.span() for place in _tokens(row.text)]
            labels = np.zeros(len(places), dtype=np.int64)
            for value in align(task, plan, row):
                start, end = value.places[0]
                inside = [n for n, (a, b) in enumerate(places) if a < end and b > start]
                if inside and not labels[inside].any():
                    labels[inside] = 2 + 2 * value.field
                    labels[inside[0]] = 1 + 2 * value.field
            wanted.append(labels)
        self._n_labels = 1 + 2 * len(plan.spans)
        self._model = LogisticRegression(C=10.0, max_iter=_STEPS, tol=1e-3)
        self._trained = bool(rows) and len(np.unique(np.concatenate(wanted))) > 1
        if self._trained:
            self._model.fit(_features([row.text for row in rows]), np.concatenate(wanted))
        texts = [row.text for row in rows]
        self._closed = [_ClosedField(texts, _values(field.path, rows)) for field in plan.closed]

    def answers(self, texts: Sequence[str]) -> Iterator[tuple[str, float]]:
        """Yield the JSON answer to each text and its confidence."""
        log_probs = np.full((sum(len(_tokens(text)) for text in texts), self._n_labels), -20.0)
        log_probs[:, 0] = -1e-6
        if self._trained and len(log_probs):
            log_probs[:, self._model.classes_] = np.log(np.clip(self._model.predict_proba(_features(texts)), 1e-9, 1))
        closed = [field.answers(texts) for field in self._closed]
        at = 0
        for n, text in enumerate(texts):
            places = [place.span() for place in _tokens(text)]
            own, at = log_probs[at : at + len(places)], at + len(places)
            yield self._answer(text, places, own, [values[n] for values in closed])

    def _answer(
        self, text: str, places: Sequence[tuple[int, int]], log_probs: np.ndarray, closed: Sequence[tuple[str, float]]
    ) -> tuple[str, float]:
        found: dict[str, list[Found]] = {}
        sure = 0.0
        for field, (listed, log) in zip(self._plan.closed, closed, strict=True):
            sure += log
            if listed:
                found[field.path] = [Found(0, json.loads(listed))]
        marked = marks(log_probs, best_labels(log_probs)) if len(log_probs) else []
        absent = absence(log_probs) if len(log_probs) else np.zeros(len(self._plan.spans))
        spans = sorted(enumerate(self._plan.spans), key=lambda pair: any(f.startswith("days:") for f in pair[1].forms))
        for number, field in spans:
            known = {path: held[0].value for path, held in found.items()}
            own = [mark for mark in marked if mark.field == number]
            if not field.is_list and field.group is None:
                own = sorted(own, key=lambda mark: -mark.log_probability)[:1]
            sure += sum(mark.log_probability for mark in own) if own else float(absent[number])
            for mark in own:
                start, end = places[mark.start][0], places[mark.end - 1][1]
                read = (read_value(text[start:end], form, known) for form in field.forms)
                if (value := next((v for v in read if v is not None), None)) is not None:
                    found.setdefault(field.path, []).append(Found(start, value))
        return assemble(self._plan, self._task.json_schema, found, text), math.exp(min(0.0, sure))


class _ClosedField:
    """A field of few values, judged from the whole text."""

    def __init__(self, texts: Sequence[str], values: Sequence[str]) -> None:
        from smallfirst.models.linear.classifier import TfidfFeatures, fit_logistic_regression

        self._values, gold = np.unique(list(values), return_inverse=True)
        self._features = TfidfFeatures.fit(texts)
        self._fitted = fit_logistic_regression(self._features(texts), gold, len(self._values), 10.0)

    def answers(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """Return the likeliest value for each text, as JSON, and its log-probability."""
        weights, bias = self._fitted
        logits = np.asarray(self._features(list(texts)) @ weights.T) + bias
        logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        return [(str(self._values[row.argmax()]), float(row.max())) for row in logs]


def _values(path: str, rows: Sequence[Row]) -> list[str]:
    return [json.dumps(row.values[path][0], ensure_ascii=False) if path in row.values else "" for row in rows]


def _tokens(text: str) -> list[re.Match[str]]:
    return list(_TOKEN.finditer(text))[:_MOST_TOKENS]


def _features(texts: Sequence[str]) -> Any:
    """Return a sparse matrix (tokens of all texts, hashed features): each word, its form and its neighbours."""
    from scipy import sparse

    columns: list[int] = []
    ends = [0]
    for text in texts:
        words = [place.group() for place in _tokens(text)]
        padded = ["<<", "<", *(word.lower() for word in words), ">", ">>"]
        forms = [_form(word) for word in words]
        for n in range(len(words)):
            near = padded[n : n + 5]
            named = [f"{place}={one}" for place, one in enumerate(near)]
            named += [f"{'abcd'[i]}={near[i]} {near[i + 1]}" for i in range(4)]
            named += [f"f={forms[n]}", f"p={near[2][:3]}", f"s={near[2][-3:]}", f"g={near[1]}|{forms[n]}"]
            named += [f"h={forms[n - 1] if n else ''}|{forms[n]}|{forms[n + 1] if n + 1 < len(forms) else ''}"]
            columns += [zlib.crc32(one.encode()) % _BUCKETS for one in named]
            ends.append(len(columns))
    data = np.ones(len(columns), dtype=np.float32)
    return sparse.csr_matrix((data, np.asarray(columns), np.asarray(ends)), shape=(len(ends) - 1, _BUCKETS))


def _form(word: str) -> str:
    """Return what a word looks like: X for capitals, x for small letters, 9 for digits, runs once."""
    kinds = "".join("X" if c.isupper() else "x" if c.isalpha() else "9" if c.isdigit() else c for c in word)
    return re.sub(r"(.)\1+", r"\1+", kinds)
