"""One answer being generated: its request, the tokens so far, which may come next, and the text that may be shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from smallfirst.base.errors import ModelError
from smallfirst.models.generation.grammar import MAX_CLOSING_TOKENS, Grammar

REPLACEMENT = "\ufffd"
"""Decoded where bytes are not a whole character."""
MAX_PENDING_TOKENS = 12
"""Tokens that wait for a character to become whole; more are taken for bytes that are not a character."""
MAX_CHARACTER_BYTES = 4
"""Bytes of a character in UTF-8; so many tokens may still become one."""


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
    stopped: bool = False
    """True if a stop text ended the answer."""


class AnswerText:
    """Text from the tokens of a growing answer: whole characters only, and nothing that may be part of a stop text."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, [text for text in stop if text]
        self._longest = max(map(len, self._stop), default=0)
        self._ids: list[int] = []
        self._from, self._to = 0, 0
        """The next tokens are decoded from `_from` on; those before `_to` are in the text already."""
        self._shown: int | None = None
        self.text = ""
        """Whole characters so far, up to the stop text if there was one."""
        self.stopped = False
        """True once a stop text was generated."""

    def follow(self, ids: Sequence[int]) -> None:
        """Read the tokens of the answer that were not read before; `ids` are all of them."""
        for token in ids[len(self._ids) :]:
            if self.stopped:
                return
            self._ids.append(token)
            if len(self._ids) - self._to > MAX_PENDING_TOKENS:
                self._extend(len(self._ids) - MAX_CHARACTER_BYTES)
            elif not self._decode(self._from, len(self._ids)).endswith(REPLACEMENT):
                self._extend(len(self._ids))

    def finish(self) -> None:
        if not self.stopped:
            self._extend(len(self._ids))

    def take(self, *, last: bool = False) -> str:
        """Return the new text that may be shown, without the white space around the answer; `last`: nothing follows."""
        safe = len(self.text) if last else len(self.text) - self._possible_stop()
        until = len(self.text[:safe].rstrip())
        if self._shown is None:
            if not until:
                return ""
            self._shown = len(self.text) - len(self.text.lstrip())
        delta = self.text[self._shown : until]
        self._shown = max(self._shown, until)
        return delta

    def _extend(self, until: int) -> None:
        before = self._decode(self._from, self._to)
        start = max(0, len(self.text) - self._longest + 1)
        self.text += self._decode(self._from, until)[len(before) :]
        self._from, self._to = self._to, until
        found = [at for stop in self._stop if (at := self.text.find(stop, start)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _possible_stop(self) -> int:
        """Return how many of the last characters may begin a stop text."""
        longest = 0 if self.stopped else min(self._longest - 1, len(self.text))
        begins = (n for n in range(longest, 0, -1) if any(stop.startswith(self.text[-n:]) for stop in self._stop))
        return next(begins, 0)

    def _decode(self, start: int, end: int) -> str:
        text: str = self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True)
        return text


class GeneratedSequence:
    """One answer while it is generated."""

    def __init__(self, request: GenerationRequest, tokenizer: Any, *, streams: bool = False) -> None:
        """Start the answer; `streams` if deltas are wanted. Raise ModelError if the grammar cannot begin."""
        self.request, self.tokenizer = request, tokenizer
        self.grammar = request.grammar.start() if request.grammar else None
        self.ids: list[int] = []
        self.log_probabilities: list[float] = []
        self.n_fed = 0
        """Tokens of prompt and answer that the model has read."""
        self.busy_s = 0.0
        self.finish_reason: Literal["stop", "length"] = "stop"
        self.finished = False
        self.error: ModelError | None = None
        self._random = torch.Generator().manual_seed(request.seed or 0) if request.temperature > 0 else None
        stop = () if request.grammar else request.stop
        self._text = AnswerText(tokenizer, stop) if streams or stop else None
        if self.grammar:
            self._append(self.grammar.begin())
            self.finished = self.grammar.finished
        self._follow_text()

    @property
    def ready(self) -> bool:
        """True if the model has read all there is, and the next token can be chosen."""
        return not self.finished and self.n_fed == len(self.request.ids) + len(self.ids)

    def feed(self, width: int) -> list[int]:
        """Return the next tokens for the model to read: the prompt with what is forced behind it, then at most `width`.

        A dummy one if the sequence is finished.
        """
        if self.finished:
            return [0]
        start = self.n_fed - len(self.request.ids)
        unread = self.ids[start : start + width] if self.n_fed else [*self.request.ids, *self.ids]
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

    def append(self, token: int, log_probability: float, end: int) -> None:
        """Append the token and the tokens that it forces. A token that is not allowed fails the sequence."""
        if token == (self.grammar.end if self.grammar else end):
            self.log_probabilities.append(log_probability)
            self.finished = True
        else:
            self._append([token], log_probability)
            if not self.grammar and len(self.ids) >= self.request.max_tokens:
                self.finished, self.finish_reason = True, "length"
        self._follow_grammar(token)
        self._follow_text()

    def delta(self) -> str:
        """Return the text that may be shown and was not."""
        return self._text.take(last=self.finished) if self._text else ""

    def result(self) -> GenerationResult:
        if self.error:
            raise self.error
        text = self._text.text if self._text else self.tokenizer.decode(self.ids, skip_special_tokens=True)
        return GenerationResult(
            text,
            tuple(self.ids),
            tuple(self.log_probabilities),
            len(self.request.ids),
            self.finish_reason,
            self.busy_s,
            stopped=self._text is not None and self._text.stopped,
        )

    def _append(self, tokens: list[int], log_probability: float = 0.0) -> None:
        self.ids += tokens
        self.log_probabilities += [log_probability] * len(tokens)

    def _follow_grammar(self, token: int) -> None:
        if self.grammar is None:
            return
        try:
            self._append(self.grammar.take(token))
            self.finished = self.grammar.finished
            if not self.finished and len(self.ids) > self.request.max_tokens + MAX_CLOSING_TOKENS:
                raise ModelError("the answer did not end under its schema")
        except ModelError as error:
            self._fail(error)

    def _follow_text(self) -> None:
        if self._text is None:
            return
        self._text.follow(self.ids)
        if self._text.stopped:
            self.finished, self.finish_reason = True, "stop"
        elif self.finished:
            self._text.finish()

    def _fail(self, error: ModelError) -> None:
        self.finished, self.error = True, error  # the other sequences of the batch go on
