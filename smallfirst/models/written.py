"""Models that write on this machine: a fine-tuned one that knows its task, and a chat model as it came.

Requests that wait at the same moment are written together. A schema is a grammar for the writer, so that every answer
is valid; the answer's confidence is read from its tokens, and each field's from the tokens of its value.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from smallfirst.models.confidence import Calibration
from smallfirst.models.grammar import Grammar
from smallfirst.models.local import encode_prompt, load_causal
from smallfirst.models.manifest import Manifest
from smallfirst.models.model import Chunk, Completion, Request, stream_whole
from smallfirst.models.turns import chat_tokens, end_of_turn
from smallfirst.models.worker import Worker
from smallfirst.models.writing import Ask, TextWriter, Written
from smallfirst.pricing import MachinePrice
from smallfirst.tasks.fields import spans

MOST_AT_ONCE = 128
"""Answers written together at most."""


class WrittenModel:
    """A fine-tuned model that writes its task's answers."""

    def __init__(
        self,
        writer: TextWriter,
        manifest: Manifest,
        *,
        name: str = "",
        price: MachinePrice | None = None,
    ) -> None:
        """Raises ConfigError if the task's schema makes no grammar."""
        self.manifest = manifest
        self._writer, self._name, self._price = writer, name or manifest.task.name, price or MachinePrice()
        schema = manifest.task.answer_schema()
        self._grammar = Grammar.compile(schema, writer.tokenizer) if schema is not None else None
        self._worker: Worker[Ask, Written] = Worker(self._write, name=self._name, most_at_once=MOST_AT_ONCE)

    @classmethod
    def load(
        cls, folder: Path, manifest: Manifest, *, name: str = "", price: MachinePrice | None = None
    ) -> WrittenModel:
        """From a folder written by training."""
        return cls(TextWriter(*load_causal(folder)), manifest, name=name, price=price)

    @property
    def name(self) -> str:
        """Name shown in results, headers and the ledger."""
        return self._name

    async def complete(self, request: Request) -> Completion:
        """The written answer, its calibrated confidence, and each field's where it is JSON."""
        began = time.perf_counter()
        task = self.manifest.task
        ids = encode_prompt(self._writer.tokenizer, task.prompt(request.text), self.manifest.max_tokens)
        limit = min(request.max_tokens, task.max_answer_tokens)
        written = await self._worker.ask(Ask(ids, limit, request.temperature, request.seed, request.stop))
        return completion(
            written,
            name=self._name,
            began=began,
            price=self._price,
            calibration=self.manifest.calibration,
            grammar=self._grammar,
        )

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The answer in one piece."""
        return stream_whole(self, request)

    async def aclose(self) -> None:
        """Stop the worker thread once it has answered what waits."""
        await self._worker.aclose()

    def _write(self, asks: Sequence[Ask]) -> list[Written]:
        return self._writer.write(asks, self._grammar)


class LocalChat:
    """A chat model as it came, asked through its own template; under a schema if one is given."""

    max_prompt_tokens = 4096

    def __init__(
        self,
        writer: TextWriter,
        *,
        name: str,
        price: MachinePrice | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises ConfigError if the schema makes no grammar."""
        self._writer, self._name, self._price = writer, name, price or MachinePrice()
        self._grammar = Grammar.compile(schema, writer.tokenizer) if schema is not None else None
        self._worker: Worker[Ask, Written] = Worker(self._write, name=name, most_at_once=MOST_AT_ONCE)

    @classmethod
    def load(
        cls, folder: Path, *, name: str, price: MachinePrice | None = None, schema: Mapping[str, Any] | None = None
    ) -> LocalChat:
        """From a folder of weights."""
        model, tokenizer = load_causal(folder)
        return cls(TextWriter(model, tokenizer, end=end_of_turn(tokenizer)), name=name, price=price, schema=schema)

    @property
    def name(self) -> str:
        """Name shown in results, headers and the ledger."""
        return self._name

    async def complete(self, request: Request) -> Completion:
        """The answer to the conversation. Raises ConfigError if it is too long."""
        began = time.perf_counter()
        tokenizer = self._writer.tokenizer
        if tokenizer.chat_template:
            ids = chat_tokens(tokenizer, request.messages, max_tokens=self.max_prompt_tokens)
        else:
            text = "\n\n".join(message.content for message in request.messages)
            ids = encode_prompt(tokenizer, text, self.max_prompt_tokens)
        written = await self._worker.ask(Ask(ids, request.max_tokens, request.temperature, request.seed, request.stop))
        return completion(written, name=self._name, began=began, price=self._price, grammar=self._grammar)

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The answer in one piece."""
        return stream_whole(self, request)

    async def aclose(self) -> None:
        """Stop the worker thread once it has answered what waits."""
        await self._worker.aclose()

    def _write(self, asks: Sequence[Ask]) -> list[Written]:
        return self._writer.write(asks, self._grammar)


def completion(
    written: Written,
    *,
    name: str,
    began: float,
    price: MachinePrice,
    calibration: Calibration | None = None,
    grammar: Grammar | None = None,
) -> Completion:
    """The Completion of what was written, in time counted from `began`, the clock at the request.

    Without a calibration the confidence is the answer's own probability.
    """
    return Completion(
        text=written.text.strip(),
        answered_by=name,
        latency_ms=(time.perf_counter() - began) * 1000,
        cost_usd=price.cost_usd(written.busy_s),
        prompt_tokens=written.n_prompt_tokens,
        completion_tokens=len(written.token_ids),
        confidence=(calibration or Calibration()).confidence(written.log_probabilities),
        field_confidence=field_confidence(written, grammar) if grammar else {},
        finish_reason=written.finish_reason,
    )


def field_confidence(written: Written, grammar: Grammar) -> dict[str, float]:
    """By field, the probability in [0, 1] of the tokens that any of its values touches; forced tokens are certain.

    The quotes around a string are its own: they say that there is a value, and where it ends.
    """
    ends, at = [], 0
    for piece in grammar.pieces(written.token_ids):
        ends.append((at, at := at + len(piece)))
    found: dict[str, float] = {}
    text = written.text
    for path, places in spans(text).items():
        total = 0.0
        for start, end in places:
            quotes = int(text[start - 1 : start] == '"')
            first, last = len(text[: start - quotes].encode()), len(text[: end + quotes].encode())
            touching = (i for i, (left, right) in enumerate(ends) if left < last and right > first)
            total += math.fsum(written.log_probabilities[i] for i in touching)
        found[path] = min(1.0, math.exp(total))
    return found
