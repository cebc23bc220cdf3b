"""One answer under way: what was asked, what is written so far, what may come next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from smallfirst.errors import ModelError
from smallfirst.models.generation.detokenizer import IncrementalDetokenizer
from smallfirst.models.generation.grammar import MAX_CLOSING_TOKENS, Grammar, GrammarState

TopLogProbs = tuple[tuple[int, float], ...]
"""Token ids with their log-probabilities in nats, likeliest first."""


class GenerationRequest(NamedTuple):
    """One answer to be written."""

    ids: Sequence[int]
    """Tokens of the prompt, at least one."""
    max_tokens: int = 256
    """Most tokens to write."""
    temperature: float = 0.0
    """0 = the likeliest token each time."""
    seed: int | None = None
    """For drawn tokens."""
    stop: tuple[str, ...] = ()
    """Texts before which the answer ends."""
    grammar: Grammar | None = None
    """Form of the answer; with one, no stop text counts."""
    top: int | None = None
    """Likeliest tokens to be told beside each written one; None: none, and no token is told on its own."""
    prefix: tuple[int, ...] = ()
    """Beginning of `ids` that the operator has written: read once and remembered. Never what a client sent."""
    adapter: str = ""
    """Adapter over the base model; empty for the model as it is."""
    end: int | None = None
    """Token after which nothing follows; None: the writer's own."""


class GenerationResult(NamedTuple):
    """One written answer."""

    text: str
    """Without the end token."""
    token_ids: tuple[int, ...]
    """Written tokens, end token not included."""
    log_probabilities: tuple[float, ...]
    """Of each written token among the allowed ones, in nats, and of the end token where it was chosen."""
    n_prompt_tokens: int
    """Tokens read."""
    finish_reason: Literal["stop", "length"]
    """`length` if the room ran out, also where a grammar then closed the answer."""
    busy_s: float
    """Share of the machine's time this answer took, in seconds."""
    top: tuple[TopLogProbs, ...] = ()
    """The likeliest tokens beside each written one, if they were asked for."""
    n_in_text: int | None = None
    """How many of the tokens stand whole in the text; None: all. Those of a stop text do not."""


class TextDelta(NamedTuple):
    """A part of an answer while it is written."""

    text: str
    """New text; all pieces together are the answer without white space around it."""
    token_ids: tuple[int, ...]
    """Tokens that stand whole in the text shown so far and were in no piece before."""
    log_probabilities: tuple[float, ...]
    """Of each of them, in nats."""
    top: tuple[TopLogProbs, ...]
    """Likewise, if asked for."""


class GeneratedSequence:
    """One answer under way."""

    def __init__(self, ask: GenerationRequest, tokenizer: Any, *, speaks: bool = False) -> None:
        """`speaks`: pieces are wanted. Raises ModelError if the grammar's beginning cannot be written."""
        self.ask, self.tokenizer = ask, tokenizer
        self.follower = ask.grammar.follow() if ask.grammar else None
        self.ids: list[int] = []
        self.log_probabilities: list[float] = []
        self.top: list[TopLogProbs] = []
        self.fed = 0
        self.busy_s = 0.0
        self.finish_reason: Literal["stop", "length"] = "stop"
        self.finished = False
        self.failed: ModelError | None = None
        self.generator = torch.Generator().manual_seed(ask.seed or 0) if ask.temperature > 0 else None
        stop = () if ask.grammar else ask.stop
        self.speech = IncrementalDetokenizer(tokenizer, stop) if speaks or stop else None
        self._told = 0
        if self.follower:
            self._add(self.follower.begin())
            self.finished = self.follower.finished
        if self.speech:
            self._listen(self.speech)

    @property
    def reading(self) -> bool:
        """True while some of the prompt is not fed."""
        return not self.finished and self.fed < len(self.ask.ids)

    @property
    def waits(self) -> bool:
        """True if all it has is fed, so that the next token can be chosen."""
        return not self.finished and self.fed == len(self.ask.ids) + len(self.ids)

    def feed(self, width: int) -> list[int]:
        """The next tokens for the model, at most `width`; one that means nothing if the line is finished."""
        if self.finished:
            return [0]
        start = self.fed - len(self.ask.ids)
        if start >= 0:
            waiting = self.ids[start : start + width]
        else:
            waiting = [*self.ask.ids[self.fed : self.fed + width], *self.ids[: max(0, width + start)]]
        self.fed += len(waiting)
        return waiting

    def allowed(self) -> np.ndarray | None:
        """Which tokens may come next; None if all may, or if the line has failed."""
        try:
            return self.follower.allowed() if self.follower else None
        except ModelError as error:  # the other rows of the batch go on
            self.finished, self.failed = True, error
            return None

    def pick(self, log_probabilities: torch.Tensor, likeliest: int, allowed: np.ndarray | None) -> int:
        """The next token: likeliest or drawn, or the one that closes the answer if room runs out."""
        left = self.ask.max_tokens - len(self.ids)
        if self.follower and self.ask.grammar and allowed is not None and left <= self.ask.grammar.closing_tokens:
            self.finish_reason = "length"
            return self.follower.closing(allowed)
        if self.generator is None:
            return likeliest
        weights = (log_probabilities / self.ask.temperature).softmax(dim=-1)
        return int(torch.multinomial(weights, 1, generator=self.generator))

    def take(self, token: int, log_probabilities: torch.Tensor, end: int) -> None:
        """Nothing back; the token and what it forces are the line's own. If it is not allowed, the line has failed."""
        log_probability = float(log_probabilities[token])
        if token == (self.follower.end if self.follower else end):
            self.log_probabilities.append(log_probability)
            self.finished = True
            if self.follower:
                self._follow(self.follower, token)
        else:
            self._add([token], log_probability, self._alternatives(log_probabilities))
            if self.follower:
                self._follow(self.follower, token)
            elif len(self.ids) >= self.ask.max_tokens:
                self.finished, self.finish_reason = True, "length"
        if self.speech:
            self._listen(self.speech)

    def piece(self) -> TextDelta | None:
        """What may be shown and was not; None if there is nothing, or nobody listens."""
        if self.speech is None:
            return None
        text = self.speech.show(last=self.finished)
        told = slice(self._told, self.speech.n_told(last=self.finished))
        self._told = told.stop
        ids, tops = tuple(self.ids[told]), tuple(self.top[told])
        return TextDelta(text, ids, tuple(self.log_probabilities[told]), tops) if text or ids else None

    def written(self) -> GenerationResult:
        """The finished answer. Raises ModelError if its grammar was left."""
        if self.failed:
            raise self.failed
        if self.speech:
            text, n_in_text = self.speech.text, self.speech.n_told(last=True)
        else:
            text, n_in_text = self.tokenizer.decode(self.ids, skip_special_tokens=True), len(self.ids)
        values, n_read = tuple(self.log_probabilities), len(self.ask.ids)
        return GenerationResult(
            text, tuple(self.ids), values, n_read, self.finish_reason, self.busy_s, tuple(self.top), n_in_text
        )

    def _follow(self, follower: GrammarState, token: int) -> None:
        try:
            self._add(follower.take(token))
            self.finished = follower.finished
            if not self.finished and len(self.ids) > self.ask.max_tokens + MAX_CLOSING_TOKENS:
                raise ModelError("the answer found no end under its schema")
        except ModelError as error:  # the other rows of the batch go on
            self.finished, self.failed = True, error

    def _listen(self, speech: IncrementalDetokenizer) -> None:
        speech.add(self.ids[speech.n_heard :])
        if speech.stopped:
            self.finished, self.finish_reason = True, "stop"
        elif self.finished:
            speech.finish()

    def _add(self, tokens: list[int], log_probability: float = 0.0, top: TopLogProbs | None = None) -> None:
        """Nothing back; forced tokens are certain among the allowed ones."""
        self.ids += tokens
        self.log_probabilities += [log_probability] * len(tokens)
        if self.ask.top is not None:
            self.top += [((token, 0.0),)[: self.ask.top] if top is None else top for token in tokens]

    def _alternatives(self, log_probabilities: torch.Tensor) -> TopLogProbs:
        if not self.ask.top:
            return ()
        best = log_probabilities.topk(min(self.ask.top, len(log_probabilities)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return tuple((token, value) for token, value in pairs if value > -torch.inf)
