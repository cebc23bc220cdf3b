"""One answer being generated: its request, the tokens so far, and which may come next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from smallfirst.errors import ModelError
from smallfirst.models.generation.detokenizer import IncrementalDetokenizer
from smallfirst.models.generation.grammar import MAX_CLOSING_TOKENS, Grammar

TopLogProbs = tuple[tuple[int, float], ...]
"""Token ids with their log-probabilities in nats, likeliest first."""


class GenerationRequest(NamedTuple):
    """One answer to be generated."""

    ids: Sequence[int]
    """Tokens of the prompt, at least one."""
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    grammar: Grammar | None = None
    """Format of the answer; with one, stop texts are ignored."""
    top: int | None = None
    """Likeliest tokens to report beside each generated one; None: report no tokens at all."""
    prefix: tuple[int, ...] = ()
    """Beginning of `ids` written by the operator: read once and cached. Never a client's text."""
    tenant: str = ""
    """Whose prompt it is; what a server caches of it is never shared with another tenant."""


class GenerationResult(NamedTuple):
    """One finished answer."""

    text: str
    token_ids: tuple[int, ...]
    """Generated tokens, end token not included."""
    log_probabilities: tuple[float, ...]
    """Of each generated token among the allowed ones, in nats, and of the end token where it was chosen."""
    n_prompt_tokens: int
    finish_reason: Literal["stop", "length"]
    """`length` if the tokens ran out, also where a grammar then closed the answer."""
    busy_s: float
    """Share of the machine's time that this answer took, in seconds."""
    top: tuple[TopLogProbs, ...] = ()
    n_in_text: int = 0
    """Tokens that lie wholly in the text; those of a stop text do not."""
    stopped: bool = False
    """True if a stop text ended the answer."""


class TextDelta(NamedTuple):
    """New text of an answer that is still being generated."""

    text: str
    """All deltas together are the answer without the white space around it."""
    token_ids: tuple[int, ...]
    """Tokens that lie wholly in the text so far and were in no earlier delta."""
    log_probabilities: tuple[float, ...]
    top: tuple[TopLogProbs, ...]


class GeneratedSequence:
    """One answer while it is generated."""

    def __init__(self, request: GenerationRequest, tokenizer: Any, *, streams: bool = False) -> None:
        """Start the answer; `streams` if deltas are wanted. Raise ModelError if the grammar cannot begin."""
        self.request, self.tokenizer = request, tokenizer
        self.grammar = request.grammar.start() if request.grammar else None
        self.ids: list[int] = []
        self.log_probabilities: list[float] = []
        self.top: list[TopLogProbs] = []
        self.n_fed = 0
        """Tokens of prompt and answer that the model has read."""
        self.busy_s = 0.0
        self.finish_reason: Literal["stop", "length"] = "stop"
        self.finished = False
        self.error: ModelError | None = None
        self._random = torch.Generator().manual_seed(request.seed or 0) if request.temperature > 0 else None
        stop = () if request.grammar else request.stop
        self._detokenizer = IncrementalDetokenizer(tokenizer, stop) if streams or stop else None
        self._n_emitted = 0
        if self.grammar:
            self._append(self.grammar.begin())
            self.finished = self.grammar.finished
        self._detokenize()

    @property
    def reading(self) -> bool:
        return not self.finished and self.n_fed < len(self.request.ids)

    @property
    def ready(self) -> bool:
        return not self.finished and self.n_fed == len(self.request.ids) + len(self.ids)

    def feed(self, width: int) -> list[int]:
        """Return the next tokens for the model to read, at most `width`; a dummy one if the sequence is finished."""
        if self.finished:
            return [0]
        start = self.n_fed - len(self.request.ids)
        if start >= 0:
            unread = self.ids[start : start + width]
        else:
            unread = [*self.request.ids[self.n_fed : self.n_fed + width], *self.ids[: max(0, width + start)]]
        self.n_fed += len(unread)
        return unread

    def allowed(self) -> np.ndarray | None:
        """Return which tokens may come next (vocabulary,), or None if all may or the sequence has failed."""
        try:
            return self.grammar.allowed() if self.grammar else None
        except ModelError as error:
            self._fail(error)
            return None

    def choose(self, log_probabilities: torch.Tensor, likeliest: int, allowed: np.ndarray | None) -> int:
        """Return the next token: the likeliest, a sampled one, or one that closes the answer where tokens run out."""
        left, grammar = self.request.max_tokens - len(self.ids), self.request.grammar
        if grammar and self.grammar and allowed is not None and left <= grammar.closing_tokens:
            self.finish_reason = "length"
            return self.grammar.closing(allowed)
        if self._random is None:
            return likeliest
        weights = (log_probabilities / self.request.temperature).softmax(dim=-1)
        return int(torch.multinomial(weights, 1, generator=self._random))

    def append(self, token: int, log_probabilities: torch.Tensor, end: int) -> None:
        """Append the token and the tokens that it forces. A token that is not allowed fails the sequence."""
        log_probability = float(log_probabilities[token])
        if token == (self.grammar.end if self.grammar else end):
            self.log_probabilities.append(log_probability)
            self.finished = True
        else:
            self._append([token], log_probability, self._top(log_probabilities))
            if not self.grammar and len(self.ids) >= self.request.max_tokens:
                self.finished, self.finish_reason = True, "length"
        self._follow(token)
        self._detokenize()

    def delta(self) -> TextDelta | None:
        """Return the text that may be shown and was not; None if there is none, or no deltas are wanted."""
        if self._detokenizer is None:
            return None
        text = self._detokenizer.take_text(last=self.finished)
        new = slice(self._n_emitted, self._detokenizer.n_emitted(last=self.finished))
        self._n_emitted = new.stop
        ids = tuple(self.ids[new])
        return TextDelta(text, ids, tuple(self.log_probabilities[new]), tuple(self.top[new])) if text or ids else None

    def result(self) -> GenerationResult:
        if self.error:
            raise self.error
        if self._detokenizer:
            text, n_in_text = self._detokenizer.text, self._detokenizer.n_emitted(last=True)
        else:
            text, n_in_text = self.tokenizer.decode(self.ids, skip_special_tokens=True), len(self.ids)
        return GenerationResult(
            text,
            tuple(self.ids),
            tuple(self.log_probabilities),
            len(self.request.ids),
            self.finish_reason,
            self.busy_s,
            tuple(self.top),
            n_in_text,
            self._detokenizer is not None and self._detokenizer.stopped,
        )

    def _follow(self, token: int) -> None:
        if self.grammar is None:
            return
        try:
            self._append(self.grammar.take(token))
            self.finished = self.grammar.finished
            if not self.finished and len(self.ids) > self.request.max_tokens + MAX_CLOSING_TOKENS:
                raise ModelError("the answer did not end under its schema")
        except ModelError as error:
            self._fail(error)

    def _fail(self, error: ModelError) -> None:
        self.finished, self.error = True, error  # the other sequences of the batch go on

    def _detokenize(self) -> None:
        if self._detokenizer is None:
            return
        self._detokenizer.add(self.ids[self._detokenizer.n_received :])
        if self._detokenizer.stopped:
            self.finished, self.finish_reason = True, "stop"
        elif self.finished:
            self._detokenizer.finish()

    def _append(self, tokens: list[int], log_probability: float = 0.0, top: TopLogProbs | None = None) -> None:
        self.ids += tokens
        self.log_probabilities += [log_probability] * len(tokens)
        if self.request.top is not None:
            self.top += [((token, 0.0),)[: self.request.top] if top is None else top for token in tokens]

    def _top(self, log_probabilities: torch.Tensor) -> TopLogProbs:
        if not self.request.top:
            return ()
        best = log_probabilities.topk(min(self.request.top, len(log_probabilities)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return tuple((token, value) for token, value in pairs if value > -torch.inf)
