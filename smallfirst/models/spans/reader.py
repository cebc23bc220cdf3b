"""The answer to a question as words of its context: a pointer head on an encoder.

Question and context are read as a pair, a long context in overlapping windows. In each window a span scores the sum of
a start and an end logit; the first token's sum stands for "not in this window" (Devlin et al. 2019, for SQuAD 2.0). A
span's log-odds against that compare between windows. Places that hold the same words share their probability.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from smallfirst.data.pages import Span
from smallfirst.models.batching import length_batches, run_in_compute_thread
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import ValuePlace
from smallfirst.models.spans.model import ENCODER_FOLDER, MarkingNetwork, SpanAnswer, windows
from smallfirst.models.spans.passages import Excerpt
from smallfirst.tasks.answer import Answer, split_context
from smallfirst.tasks.scorers import normalize_answer

N_BEST = 20
"""Spans of a window that can become the answer."""
MAX_QUESTION_SHARE = 0.5
"""Of a window's tokens; the rest of a longer question is not read."""


class ContextWindow(NamedTuple):
    """A question with a part of its context, in tokens."""

    ids: tuple[int, ...]
    first: int
    """Position of the first token of the context."""
    places: tuple[Span, ...]


def windows_of(question: str, context: str, tokenizer: Any, max_tokens: int) -> list[ContextWindow]:
    """Return the pair in windows of at most `max_tokens` tokens that together hold the whole context."""
    limit = int(max_tokens * MAX_QUESTION_SHARE)
    places = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if len(places) > limit:
        question = question[: places[limit - 1][1]]
    found = tokenizer(question, context, return_offsets_mapping=True, truncation=False, verbose=False)
    ids, own = found["input_ids"], [at for at, part in enumerate(found.sequence_ids()) if part == 1]
    if not own:
        return [ContextWindow(tuple(ids), 0, ())]
    first, behind = own[0], ids[own[-1] + 1 :]
    return [
        ContextWindow(
            (*ids[:first], *(ids[own[i]] for i in part), *behind),
            first,
            tuple(Span(*found["offset_mapping"][own[i]]) for i in part),
        )
        for part in windows(len(own), max_tokens - first - len(behind))
    ]


class PointerNetwork(MarkingNetwork):
    """An encoder and the pointer head."""

    def __init__(self, encoder: SentenceEncoder, max_span_tokens: int) -> None:
        super().__init__(encoder)
        self.max_span_tokens = max_span_tokens
        self.heads = torch.nn.Parameter(torch.zeros(2, encoder.width + 1))
        """Weights and, last, the bias of the start and the end logit (2, width + 1)."""

    def forward(self, rows: Sequence[ContextWindow]) -> torch.Tensor:
        """Return the log-odds (windows, tokens, tokens) of each span, by first and last token, against the null.

        In nats, float32; minus infinity outside the context, for ends before their starts and for longer spans.
        """
        states, _ = self.encoder.hidden_states([row.ids for row in rows])  # (windows, tokens, width)
        start, end = (states @ self.heads[:, :-1].T + self.heads[:, -1]).unbind(-1)  # (windows, tokens) each
        at = torch.arange(states.shape[1])
        first = torch.tensor([row.first for row in rows])[:, None]
        n_context = torch.tensor([len(row.places) for row in rows])[:, None]
        inside = (at >= first) & (at < first + n_context)  # (windows, tokens)
        length = at[None, :] - at[:, None]
        allowed = inside[:, :, None] & inside[:, None, :] & (length >= 0) & (length < self.max_span_tokens)
        odds = start[:, :, None] + end[:, None, :] - (start[:, :1] + end[:, :1])[:, :, None]
        masked: torch.Tensor = odds.masked_fill(~allowed, -torch.inf)
        return masked


class ReadContext(NamedTuple):
    """The likeliest answer to a question."""

    text: str
    """Words of the context, or the task's `not_answerable`; empty where neither exists."""
    nats: float
    """Log-probability among the best spans and `not_answerable`, not calibrated."""
    span: Span | None
    """Where it stands in the context as `split_context` returns it."""
    n_tokens: int
    """Tokens read."""

    def read(self, text: str) -> dict[str, ValuePlace | None]:
        """Return where the answer stands in the text that was asked, under `answer`; nothing of what stands nowhere."""
        if self.span is None:
            return {}
        kept: Sequence[int] = range(len(text))
        if "\r\n" in text:  # one character for `split_context`
            kept = [at for at in kept if text[at : at + 2] != "\r\n"]
        first = next(i for i, at in enumerate(kept) if not text[at].isspace())
        start, end = (kept[first + at] for at in (self.span.start, self.span.end - 1))
        return {"answer": Excerpt(text, text).place(start, end + 1)}


class Reader:
    """A SpanScorer: the likeliest span over all windows of a context, or that there is none."""

    batch_rows = 32

    def __init__(self, network: PointerNetwork, manifest: Manifest) -> None:
        assert isinstance(manifest.task, Answer)
        self.network, self.manifest, self.task = network, manifest, manifest.task

    @classmethod
    def load(cls, folder: Path, manifest: Manifest) -> Reader:
        encoder = SentenceEncoder.for_inference(folder / ENCODER_FOLDER)
        network = PointerNetwork(encoder, manifest.task.max_answer_tokens or 1).eval()
        network.load_heads(folder)
        return cls(network, manifest)

    def answer(self, texts: Sequence[str]) -> list[SpanAnswer]:
        """Return one answer per text, in order, with the calibrated probability that it is right."""
        began = time.perf_counter()
        found = run_in_compute_thread(lambda: self.read(texts))
        busy_s = (time.perf_counter() - began) / max(1, len(texts))
        calibration = self.manifest.calibration
        return [
            SpanAnswer(one.text, calibration.confidence([one.nats]), {}, one.n_tokens, busy_s, one.read(text))
            for one, text in zip(found, texts, strict=True)
        ]

    def read(self, texts: Sequence[str]) -> list[ReadContext]:
        """Return the best answer to each text."""
        split = [split_context(text) for text in texts]
        rows = [
            (i, window)
            for i, (context, question) in enumerate(split)
            for window in windows_of(question, context, self.network.encoder.tokenizer, self.manifest.max_tokens)
        ]
        best: dict[int, dict[Span, float]] = defaultdict(dict)
        for chosen in length_batches([len(window.ids) for _, window in rows], max_rows=self.batch_rows):
            with torch.inference_mode():
                odds = self.network([rows[k][1] for k in chosen])
            for (i, window), scores in zip((rows[k] for k in chosen), odds, strict=True):
                for span, score in _best_spans(window, scores):
                    best[i][span] = max(score, best[i].get(span, -np.inf))
        n_tokens = [0] * len(texts)
        for i, window in rows:
            n_tokens[i] += len(window.ids)
        return [self._choose(context, best[i], n_tokens[i]) for i, (context, _) in enumerate(split)]

    def _choose(self, context: str, spans: dict[Span, float], n_tokens: int) -> ReadContext:
        answers: dict[str, list[tuple[float, str, Span | None]]] = defaultdict(list)
        for span, score in spans.items():
            words = context[span.start : span.end].strip()
            answers[normalize_answer(words)].append((score, words, span))
        if self.task.not_answerable:
            answers[normalize_answer(self.task.not_answerable)].append((0.0, self.task.not_answerable, None))
        if not answers:
            return ReadContext("", -np.inf, None, n_tokens)
        totals = {key: float(np.logaddexp.reduce([one[0] for one in same])) for key, same in answers.items()}
        chosen = max(totals, key=totals.__getitem__)
        _, words, place = max(answers[chosen], key=lambda one: one[:2])
        nats = totals[chosen] - float(np.logaddexp.reduce(list(totals.values())))
        return ReadContext(words, nats, place, n_tokens)


def _best_spans(window: ContextWindow, odds: torch.Tensor) -> list[tuple[Span, float]]:
    """Return at most N_BEST spans of a window with their log-odds (tokens, tokens), as characters of the context."""
    scores, at = odds.flatten().topk(min(N_BEST, odds.numel()))
    found = []
    for score, place in zip(scores.tolist(), at.tolist(), strict=True):
        if score > -np.inf:
            first, last = (window.places[token - window.first] for token in divmod(place, odds.shape[1]))
            found.append((Span(first.start, last.end), score))
    return found
