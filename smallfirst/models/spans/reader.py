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

from smallfirst.base.files import write_atomically
from smallfirst.models.batching import length_batches, run_in_compute_thread
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.manifest import Manifest
from smallfirst.models.spans.model import SpanAnswer
from smallfirst.models.spans.values import CharSpan
from smallfirst.tasks.answer import Answer, split_context
from smallfirst.tasks.scorers import normalize_answer

ENCODER_FOLDER = "encoder"
HEADS_FILE = "heads.safetensors"
OVERLAP_SHARE = 0.25
"""Of a window's tokens, shared with the next window, so that an answer cut by one stands whole in the other."""
N_BEST = 20
"""Spans of a window that can become the answer."""
MAX_QUESTION_SHARE = 0.5
"""Of a window's tokens; the rest of a longer question is not read."""


class Window(NamedTuple):
    """A question with a part of its context, in tokens."""

    ids: tuple[int, ...]
    first: int
    """Position of the first token of the context."""
    places: tuple[CharSpan, ...]
    """Characters of each token of the context; empty if there is none."""


class Reading(NamedTuple):
    """The best answer to one text."""

    text: str
    """Words of the context, or the task's `not_answerable`; empty where neither exists."""
    log_probability: float
    """In nats, among the best spans and `not_answerable`; not calibrated."""
    n_tokens: int


class Reader:
    """A fine-tuned encoder with the two vectors of a pointer head."""

    batch_rows = 32

    def __init__(self, encoder: SentenceEncoder, heads: np.ndarray, manifest: Manifest) -> None:
        """`heads` (2, width + 1) hold the weights and, last, the bias of the start and the end logit."""
        assert isinstance(manifest.task, Answer)
        self.encoder, self.heads, self.manifest, self.task = encoder, heads, manifest, manifest.task

    def answer(self, texts: Sequence[str]) -> list[SpanAnswer]:
        """Return one answer per text, in order, with the calibrated probability that it is right."""
        began = time.perf_counter()
        readings = run_in_compute_thread(lambda: self.read(texts))
        busy_s = (time.perf_counter() - began) / max(1, len(texts))
        calibration = self.manifest.calibration
        return [
            SpanAnswer(one.text, calibration.confidence([one.log_probability]), {}, one.n_tokens, busy_s)
            for one in readings
        ]

    def read(self, texts: Sequence[str]) -> list[Reading]:
        """Return the best answer to each text, in order."""
        split = [split_context(text) for text in texts]
        windows = [
            (i, window)
            for i, (context, question) in enumerate(split)
            for window in windows_of(question, context, self.encoder.tokenizer, self.manifest.max_tokens)
        ]
        best: dict[int, dict[CharSpan, float]] = defaultdict(dict)
        heads = torch.from_numpy(self.heads)
        for chosen in length_batches([len(window.ids) for _, window in windows], max_rows=self.batch_rows):
            batch = [windows[k][1] for k in chosen]
            with torch.inference_mode():
                odds = span_log_odds(self.encoder, heads, batch, self.task.max_answer_tokens)
            for k, scores in zip(chosen, odds, strict=True):
                found = best[windows[k][0]]
                for span, score in _best_spans(windows[k][1], scores):
                    found[span] = max(score, found.get(span, -np.inf))
        n_tokens = [0] * len(texts)
        for i, window in windows:
            n_tokens[i] += len(window.ids)
        return [self._choose(context, best[i], n_tokens[i]) for i, (context, _) in enumerate(split)]

    @classmethod
    def load(cls, folder: Path, manifest: Manifest) -> Reader:
        from safetensors.numpy import load_file

        encoder = SentenceEncoder.for_inference(folder / ENCODER_FOLDER)
        return cls(encoder, load_file(folder / HEADS_FILE)["span"], manifest)

    def _choose(self, context: str, spans: dict[CharSpan, float], n_tokens: int) -> Reading:
        answers: dict[str, list[tuple[float, str]]] = defaultdict(list)
        for span, score in spans.items():
            words = context[span.start : span.end].strip()
            answers[normalize_answer(words)].append((score, words))
        if self.task.not_answerable:
            answers[normalize_answer(self.task.not_answerable)].append((0.0, self.task.not_answerable))
        if not answers:
            return Reading("", -np.inf, n_tokens)
        totals = {key: float(np.logaddexp.reduce([score for score, _ in same])) for key, same in answers.items()}
        chosen = max(totals, key=totals.__getitem__)
        everything = float(np.logaddexp.reduce(list(totals.values())))
        return Reading(max(answers[chosen])[1], totals[chosen] - everything, n_tokens)


def save_weights(encoder: SentenceEncoder, heads: np.ndarray, folder: Path) -> None:
    """Write encoder, tokenizer and head into `folder`; the manifest is written last, by the caller."""
    from safetensors.numpy import save

    encoder.model.save_pretrained(folder / ENCODER_FOLDER)
    encoder.tokenizer.save_pretrained(folder / ENCODER_FOLDER)
    write_atomically(folder / HEADS_FILE, save({"span": heads}))


def windows_of(question: str, context: str, tokenizer: Any, max_tokens: int) -> list[Window]:
    """Return the pair in windows of at most `max_tokens` tokens that together hold the whole context."""
    limit = int(max_tokens * MAX_QUESTION_SHARE)
    places = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if len(places) > limit:
        question = question[: places[limit - 1][1]]
    found = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=max_tokens,
        stride=int(max_tokens * OVERLAP_SHARE),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    windows = []
    for i, ids in enumerate(found["input_ids"]):
        own = [at for at, sequence in enumerate(found.sequence_ids(i)) if sequence == 1]
        offsets = found["offset_mapping"][i]
        windows.append(Window(tuple(ids), own[0] if own else 0, tuple(CharSpan(*offsets[at]) for at in own)))
    return windows


def span_log_odds(encoder: SentenceEncoder, heads: Any, windows: Sequence[Window], max_span_tokens: int) -> Any:
    """Return the log-odds (windows, tokens, tokens) of each span, by first and last token, against the window's null.

    In nats, float32; minus infinity outside the context, for ends before their starts and for spans that are longer.
    """
    states, _ = encoder.hidden_states([window.ids for window in windows])  # (windows, tokens, width)
    start, end = (states @ heads[:, :-1].T + heads[:, -1]).unbind(-1)  # (windows, tokens) each
    at = torch.arange(states.shape[1])
    first = torch.tensor([window.first for window in windows])[:, None]
    n_context = torch.tensor([len(window.places) for window in windows])[:, None]
    inside = (at >= first) & (at < first + n_context)  # (windows, tokens)
    length = at[None, :] - at[:, None]
    allowed = inside[:, :, None] & inside[:, None, :] & (length >= 0) & (length < max_span_tokens)
    odds = start[:, :, None] + end[:, None, :] - (start[:, :1] + end[:, :1])[:, :, None]
    return odds.masked_fill(~allowed, -torch.inf)


def _best_spans(window: Window, odds: Any) -> list[tuple[CharSpan, float]]:
    """Return at most N_BEST spans of a window with their log-odds (tokens, tokens), as characters of the context."""
    scores, at = odds.flatten().topk(min(N_BEST, odds.numel()))
    found = []
    for score, place in zip(scores.tolist(), at.tolist(), strict=True):
        if score > -np.inf:
            first, last = divmod(place, odds.shape[1])
            places = window.places
            found.append((CharSpan(places[first - window.first].start, places[last - window.first].end), score))
    return found
