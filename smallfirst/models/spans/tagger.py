"""The tagger: an encoder with a label for each token, which marks the fields of a JSON answer in the text.

A text longer than one pass of the encoder reads is read in windows; a token's state comes from the window in which it
stands farther from an edge. Labels are O, then B and I of each field; an I stands behind its own field's B or I alone.
"""

from __future__ import annotations

import functools
import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file

from smallfirst.base.files import write_atomically
from smallfirst.data.pages import Span, has_scanned_page
from smallfirst.models.batching import length_batches, run_in_compute_thread
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.manifest import Manifest
from smallfirst.models.spans.model import ENCODER_FOLDER, HEADS_FILE, MarkingNetwork, SpanAnswer, windows
from smallfirst.models.spans.passages import Excerpt, PassageRanker
from smallfirst.models.spans.plan import AnswerPlan, FieldPlan, FoundValue, assemble, is_allowed, node_at
from smallfirst.models.spans.values import NUMBER_FORMS, read_value, spelled_places, whole_number
from smallfirst.tasks.json.fields import numbered
from smallfirst.tasks.json.schema import LIST
from smallfirst.tasks.value_matching import CURRENCIES

PLAN_FILE = "tagger.json"
_SIGN = re.compile(r"[^\W\d]+|[$€£¥₹₩₽₺₫₪₴฿]")
BATCH_TOKENS = 4096
"""Tokens that are read together, padding included."""
GAIN = 8.0
"""Logits are so many times what the heads' weights say, so heads learn so many times as fast as the encoder. After four
epochs on 2,000 rows 63 % of 140 selection rows were right with 8, 36 % with 1."""
N_FORCED = 3
"""Places tried for a value that must be there and was not marked."""


class TokenizedText(NamedTuple):
    """One text as the encoder reads it, special tokens included."""

    ids: tuple[int, ...]
    places: tuple[tuple[int, int], ...]
    """Start and end (excluded) of each token in the text; equal for special tokens."""


class TaggerNetwork(MarkingNetwork):
    """An encoder, a linear layer over its token states, and attentions over them for what the whole text says.

    A closed field has one attention, and one for each label where there may be several (Mullenbach et al. 2018).
    """

    passages: torch.Tensor
    """Weights of the ranker of passages, where there is one."""

    def __init__(
        self, encoder: SentenceEncoder, plan: AnswerPlan, max_tokens: int, passages: np.ndarray | None = None
    ) -> None:
        """Read `max_tokens` tokens at once, special tokens included, or as many as the encoder has positions for."""
        super().__init__(encoder)
        if passages is not None:
            self.register_buffer("passages", torch.from_numpy(passages))
        self.ranker = None if passages is None else PassageRanker(passages)
        self.plan, self.max_tokens = plan, min(max_tokens, encoder.max_positions - 2)
        width, query_of = encoder.width, list[int]()
        for field in plan.closed:
            n, next_one = len(field.values), 1 + max(query_of, default=-1)
            query_of += range(next_one, next_one + n) if field.how == "several" else [next_one] * n
        self._query_of, self._sizes = query_of, [len(field.values) for field in plan.closed]
        spread = width**-0.5 / GAIN
        self.tokens = torch.nn.Linear(width, 1 + 2 * len(plan.spans))
        for weights in self.tokens.parameters():
            torch.nn.init.uniform_(weights, -spread, spread)
        self.queries = torch.nn.Parameter(torch.zeros(len(set(query_of)), width))
        self.closed = torch.nn.Parameter(torch.empty(len(query_of), width + 1).uniform_(-spread, spread))
        """Of each value weights and, last, its bias (values, width + 1)."""

    def tokenize(self, text: str) -> TokenizedText:
        found = self.encoder.tokenizer(text, return_offsets_mapping=True, truncation=False, verbose=False)
        return TokenizedText(tuple(found["input_ids"]), tuple(map(tuple, found["offset_mapping"])))

    def excerpt(self, text: str) -> Excerpt:
        """Return what of the text is read."""
        return self.ranker.excerpt(text) if self.ranker else Excerpt(text, text)

    def query_of(self, number: int, value: int) -> int:
        """Return which attention a value of the closed field of that number has."""
        return self._query_of[sum(self._sizes[:number]) + value]

    def forward(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Return label logits (rows, tokens, labels), and logits (rows, values) of each field of the whole text.

        Last how much each attention looks at each token (rows, queries, tokens).
        """
        states, mask = self.states(rows)  # (rows, tokens, width), (rows, tokens)
        likeness = (GAIN * self.queries @ states.transpose(1, 2)).masked_fill(mask[:, None] == 0, -torch.inf)
        looks = likeness.softmax(-1)
        pooled = looks @ states  # (rows, queries, width)
        logits = (pooled[:, self._query_of] * self.closed[:, :-1]).sum(-1) + self.closed[:, -1]  # (rows, values)
        logits, labels = GAIN * logits, GAIN * self.tokens(states)
        return labels, list(torch.split(logits, self._sizes, dim=1)), looks

    def states(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states (texts, tokens, width), float32, and the mask (texts, tokens), 1 for a token."""
        cut = [list(self.cut(row)) for row in rows]
        states, mask = self.encoder.hidden_states([ids for row in cut for ids, _ in row])
        if all(len(row) == 1 for row in cut):
            return states, mask
        of_window = iter(states)
        parts = [torch.cat([next(of_window)[kept] for _, kept in row]) for row in cut]
        masks = [torch.ones(len(part), dtype=mask.dtype) for part in parts]
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(parts, batch_first=True), pad(masks, batch_first=True)

    def cut(self, ids: Sequence[int]) -> Iterator[tuple[list[int], slice]]:
        """Yield the tokens of each window of a text, and those whose states are used."""
        if len(ids) <= self.max_tokens:
            yield list(ids), slice(0, len(ids))
            return
        before, behind = self._special
        end, kept_to = len(ids) - behind, 0
        parts = windows(end - before, self.max_tokens - before - behind)
        for n, part in enumerate(parts):
            own = ids[before + part.start : before + part.stop]
            until = (part.stop + parts[n + 1].start) // 2 + before if n + 1 < len(parts) else len(ids)
            yield [*ids[:before], *own, *ids[end:]], slice(kept_to - part.start, until - part.start)
            kept_to = until

    @cached_property
    def _special(self) -> tuple[int, int]:
        mask = self.encoder.tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
        before = mask.index(0)
        return before, len(mask) - before - mask.count(0)

    def save(self, folder: Path) -> None:
        super().save(folder)
        write_atomically(folder / PLAN_FILE, self.plan.model_dump_json(indent=2).encode())


class ReadText(NamedTuple):
    """What was read in one text."""

    found: dict[str, list[FoundValue]]
    """Values by path, in the order of the text."""
    logs: dict[str, float]
    """Log-probability in nats by path."""
    odds: dict[str, np.ndarray]
    """Log-odds (values,) in nats by path, of the labels of which any number may hold."""
    n_tokens: int
    excerpt: Excerpt
    """What of the text was read; places in `found` are places in it."""
    tokenized: TokenizedText
    looks: np.ndarray
    """Attentions (queries, tokens) of the fields that are judged from the whole text."""


class Tagger:
    """A SpanScorer: marks fields, reads their values and writes them as JSON under the schema."""

    def __init__(self, network: TaggerNetwork, manifest: Manifest) -> None:
        self.network, self.plan, self.manifest = network, network.plan, manifest
        schema = manifest.task.answer_schema() or {}
        self._schema, self._nodes = schema, {field.path: node_at(schema, field.way) for field in self.plan.fields}

    @classmethod
    def load(cls, folder: Path, manifest: Manifest) -> Tagger:
        encoder = SentenceEncoder.for_inference(folder / ENCODER_FOLDER)
        heads = load_file(folder / HEADS_FILE)
        passages = heads["passages"].numpy() if "passages" in heads else None
        network = TaggerNetwork(encoder, AnswerPlan.load(folder / PLAN_FILE), manifest.max_tokens, passages).eval()
        network.load_state_dict(heads, strict=False)
        return cls(network, manifest)

    def answer(self, texts: Sequence[str]) -> list[SpanAnswer]:
        began = time.perf_counter()
        read = self.read(texts)
        busy_s = (time.perf_counter() - began) / max(1, len(texts))
        return [self.written(one, busy_s) for one in read]

    def read(self, texts: Sequence[str]) -> list[ReadText]:
        excerpts = [self.network.excerpt(text) for text in texts]
        tokenized = [self.network.tokenize(one.text) for one in excerpts]
        found: dict[int, ReadText] = {}
        for chosen in length_batches([len(one.ids) for one in tokenized], max_tokens=BATCH_TOKENS):
            rows = [tokenized[i].ids for i in chosen]
            labels, closed, looks = run_in_compute_thread(functools.partial(self._probabilities, rows))
            for n, i in enumerate(chosen):
                n_tokens = len(tokenized[i].ids)
                read = ReadText({}, {}, {}, n_tokens, excerpts[i], tokenized[i], looks[n, :, :n_tokens])
                self._judge(read, [own[n] for own in closed])
                self._mark(read, labels[n, :n_tokens])
                found[i] = read
        return [found[i] for i in range(len(texts))]

    def log_probabilities(self, answer: SpanAnswer) -> list[float]:
        """Return the fields' log-probabilities in nats, from which the answer's confidence is calibrated."""
        return [math.log(max(p, 1e-40)) for p in answer.field_confidence.values()]

    @torch.inference_mode()
    def _probabilities(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """Return what the network does, the labels in nats."""
        labels, closed, looks = self.network(rows)
        return labels.log_softmax(-1).double().numpy(), [one.double().numpy() for one in closed], looks.numpy()

    def _judge(self, read: ReadText, closed: Sequence[np.ndarray]) -> None:
        """Add what the logits (values,) of each field of the whole text say."""
        for number, (field, logits) in enumerate(zip(self.plan.closed, closed, strict=True)):
            if field.how == "several":
                read.odds[field.path] = logits
                continue
            best = int(logits.argmax())
            read.logs[field.path] = float(logits[best] - np.logaddexp.reduce(logits))
            if field.values[best]:
                read.found[field.path] = [self._looked_at(read, number, best)]

    def _looked_at(self, read: ReadText, number: int, at: int) -> FoundValue:
        """Return a value of the closed field of that number, with the words from which it was judged."""
        value = json.loads(self.plan.closed[number].values[at])
        span = looked_at(read.excerpt.text, read.tokenized, read.looks[self.network.query_of(number, at)], value)
        return FoundValue(span.start, value, span.end)

    def _mark(self, read: ReadText, log_probs: np.ndarray) -> None:
        """Add the values of the words that the labels (tokens, labels), in nats, mark."""
        marked, absent = marks(log_probs, best_labels(log_probs)), absence(log_probs)
        for number, field in enumerate(self.plan.spans):
            own = self._values(read, field, [mark for mark in marked if mark.field == number])
            if not own and field.must:
                own = self._values(read, field, likeliest_marks(log_probs, number, N_FORCED))[:1]
            if not field.is_list and field.group is None:
                own = _surest(own)
            if own:
                read.found[field.path] = [one for one, _ in own]
            read.logs[field.path] = math.fsum(log for _, log in own) if own else float(absent[number])

    def written(self, read: ReadText, busy_s: float = 0.0) -> SpanAnswer:
        """Return the answer: what was read as JSON, with the labels above the manifest's threshold."""
        found, logs = dict(read.found), dict(read.logs)
        least = math.log(self.manifest.label_threshold / (1 - self.manifest.label_threshold))
        for number, field in enumerate(self.plan.closed):
            if (odds := read.odds.get(field.path)) is not None:
                chosen = chosen_labels(field, odds, least)
                found[field.path] = [self._looked_at(read, number, at) for at in np.flatnonzero(chosen).tolist()]
                logs[field.path] = -float(np.logaddexp(0, np.where(chosen, -odds, odds)).sum())
        read_fields = (field.path for field in self.plan.fields if field.how != "written")
        confidence = {path: min(1.0, math.exp(logs[path])) for path in read_fields}
        answer = self.manifest.task.parse(said := assemble(self.plan, self._schema, found))
        lists = {field.path for field in self.plan.fields if LIST in field.way}
        places = {
            numbered(path, n) if path in lists else path: read.excerpt.place(one.place, one.end)
            for path, held in found.items()
            for n, one in enumerate(held)
        }
        answered = SpanAnswer(said, 0.0, confidence, read.n_tokens, busy_s, places)
        if answer is None:  # the schema demands a value that was not found
            return answered
        sure = self.manifest.calibration.confidence(self.log_probabilities(answered))
        if has_scanned_page(read.excerpt.source):
            sure, answered = 0.0, answered._replace(field_confidence=dict.fromkeys(confidence, 0.0))
        return answered._replace(text=answer, confidence=sure)

    def _values(self, read: ReadText, field: FieldPlan, own: Sequence[Mark]) -> list[tuple[FoundValue, float]]:
        """Return the values of marked words that the schema allows, each with its log-probability.

        A value without a place in the source, such as words of two pages, is none.
        """
        found, nodes, text, places = [], self._nodes[field.path], read.excerpt.text, read.tokenized.places
        for mark in own:
            start, end = places[mark.start][0], places[mark.end - 1][1]
            if set(field.forms) & set(NUMBER_FORMS):
                start, end = whole_number(text, start, end)
            values = (read_value(text[start:end], form) for form in field.forms)
            value = next((v for v in values if v is not None and is_allowed(self._schema, nodes, v)), None)
            if value is not None and read.excerpt.place(start, end):
                found.append((FoundValue(start, value, end), mark.log_probability))
        return found


def looked_at(text: str, tokenized: TokenizedText, looks: np.ndarray, value: Any) -> Span:
    """Return the words that an attention (tokens,) looks at most: of those that spell the value, if any do."""
    spelled = [Span(*place) for place in spelled_places(text, value)] if isinstance(value, str) else []
    if isinstance(value, str) and not spelled:
        spelled = [Span(*m.span()) for m in _SIGN.finditer(text) if CURRENCIES.get(m[0].lower()) == value]
    starts, ends = np.array(tokenized.places).T
    if spelled:
        return max(spelled, key=lambda own: float(looks[(starts < own.end) & (ends > own.start)].sum()))
    first = int(starts[np.where(ends > starts, looks, -1.0).argmax()])
    word = next((m for m in re.finditer(r"\S+", text) if m.start() <= first < m.end()), None)
    return Span(*word.span()) if word else Span(first, first)


def chosen_labels(field: FieldPlan, odds: np.ndarray, least: float) -> np.ndarray:
    """Return which labels (values,) have log-odds of at least `least` nats; the likeliest if there must be one."""
    chosen: np.ndarray = odds >= least
    if field.must and not chosen.any():
        chosen[odds.argmax()] = True
    return chosen


def _surest(read: Sequence[tuple[FoundValue, float]]) -> list[tuple[FoundValue, float]]:
    """Return the likeliest value alone, less likely by its rivals of other values."""
    if not read:
        return []
    best, log = max(read, key=lambda pair: pair[1])
    rivals: dict[Any, float] = {}
    for one, other in read:
        rivals[one.value] = max(rivals.get(one.value, -math.inf), other)
    return [(best, log - math.log(math.fsum(math.exp(other - log) for other in rivals.values())))]


class Mark(NamedTuple):
    """Tokens marked for a field."""

    field: int
    start: int
    end: int
    log_probability: float
    """Of these labels and of the end there, in nats."""


def best_labels(log_probs: np.ndarray) -> np.ndarray:
    """Return the likeliest allowed labels (tokens,) for (tokens, labels) nats: Viterbi over what may follow what."""
    likeliest: np.ndarray = log_probs.argmax(axis=1)
    if _is_allowed(likeliest):
        return likeliest
    n_tokens, n_labels = log_probs.shape
    begin, inside = np.arange(1, n_labels, 2), np.arange(2, n_labels, 2)
    score, back = log_probs[0].copy(), np.zeros((n_tokens, n_labels), dtype=np.int64)
    score[inside] = -np.inf
    for t in range(1, n_tokens):
        back[t] = score.argmax()
        back[t, inside] = np.where(score[begin] >= score[inside], begin, inside)
        score = score[back[t]] + log_probs[t]
    labels = np.empty(n_tokens, dtype=np.int64)
    labels[-1] = score.argmax()
    for t in range(n_tokens - 1, 0, -1):
        labels[t - 1] = back[t, labels[t]]
    return labels


def marks(log_probs: np.ndarray, labels: np.ndarray) -> list[Mark]:
    """Return what the labels (tokens,) mark, in order."""
    found = []
    starts = np.flatnonzero(labels % 2 == 1)
    for start in starts.tolist():
        end = start + 1
        while end < len(labels) and labels[end] == labels[start] + 1:
            end += 1
        found.append(_mark(log_probs, int(labels[start] - 1) // 2, start, end))
    return found


def likeliest_marks(log_probs: np.ndarray, field: int, n: int) -> list[Mark]:
    """Return the `n` places at which the field most likely begins, each as long as it goes on more likely than not."""
    found = []
    for start in np.argsort(-log_probs[:, 1 + 2 * field])[:n].tolist():
        end = start + 1
        while end < len(log_probs) and log_probs[end, 2 + 2 * field] > log_probs[end, 0]:
            end += 1
        found.append(_mark(log_probs, field, start, end))
    return found


def absence(log_probs: np.ndarray) -> np.ndarray:
    """Return for each field the log-probability (fields,) that no token begins it."""
    begins = np.minimum(log_probs[:, 1::2], -1e-9)
    absent: np.ndarray = np.log1p(-np.exp(begins)).sum(axis=0)
    return absent


def _mark(log_probs: np.ndarray, field: int, start: int, end: int) -> Mark:
    begin, inside = 1 + 2 * field, 2 + 2 * field
    total = float(log_probs[start, begin] + log_probs[start + 1 : end, inside].sum())
    if end < len(log_probs):
        total += math.log1p(-math.exp(min(float(log_probs[end, inside]), -1e-9)))
    return Mark(field, start, end, total)


def _is_allowed(labels: np.ndarray) -> bool:
    before = np.concatenate([[0], labels[:-1]])
    inside = (labels > 0) & (labels % 2 == 0)
    return bool((~inside | (before == labels) | (before == labels - 1)).all())
