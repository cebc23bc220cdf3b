"""Local models that generate text: a fine-tuned one with its task's prompt, or a chat model with its own template."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple

from smallfirst.base.errors import ConfigError, ModelError, RequestRefused
from smallfirst.data.dataset import Message
from smallfirst.models.confidence import Calibration
from smallfirst.models.generation.generator import (
    GeneratedSequence,
    GenerationRequest,
    GenerationResult,
    GenerationWorker,
    Generator,
)
from smallfirst.models.generation.grammar import Grammar
from smallfirst.models.local.tokenizer import encode_chat, encode_prompt
from smallfirst.models.manifest import Manifest
from smallfirst.models.pricing import MachinePrice, tokens_of
from smallfirst.models.protocol import Bill, CallableModel, Capability, Chunk, Completion, Request, paid, unfinished
from smallfirst.models.response_format import ResponseGrammars
from smallfirst.tasks.json.fields import field_path, omission_spans, value_spans

MAX_PROMPT_TOKENS = 4096
"""Longest conversation of a chat model."""


class PromptFormat(NamedTuple):
    """How requests become tokens."""

    encode: Callable[[Request], list[int]]
    """Return the prompt of a request. Raise RequestRefused if it is too long."""
    max_answer_tokens: int | None = None
    schema: Mapping[str, Any] | None = None
    writes_json: bool = True
    """False refuses a `json_object`: the model has learnt to write something else."""
    keeps_spaces: bool = False
    """Spaces around an answer stay: it continues a text."""


class GenerativeModel(CallableModel):
    """A causal model that generates its answers."""

    def __init__(
        self,
        generator: Generator | GenerationWorker,
        prompt: PromptFormat,
        *,
        name: str,
        price: MachinePrice | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        """Generate with `generator`, or with a worker over one. Raise ConfigError if the schema has no grammar."""
        self.name, self.prompt = name, prompt
        self._grammars = ResponseGrammars(prompt.schema, generator.tokenizer, name=name, writes_json=prompt.writes_json)
        self._price, self._calibration = price or MachinePrice(), calibration or Calibration()
        self.worker = GenerationWorker(generator, name=name) if isinstance(generator, Generator) else generator

    @classmethod
    def published(
        cls,
        generator: Generator,
        *,
        name: str,
        price: MachinePrice | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> GenerativeModel:
        """Return a chat model as it was published; with a schema every answer follows it."""
        return cls(generator, chat_prompt(generator.tokenizer, schema=schema), name=name, price=price)

    @classmethod
    def fine_tuned(
        cls,
        generator: Generator | GenerationWorker,
        manifest: Manifest,
        *,
        name: str = "",
        price: MachinePrice | None = None,
    ) -> GenerativeModel:
        tokenizer, max_tokens = generator.tokenizer, manifest.max_tokens
        if manifest.kind == "chat":
            prompt = chat_prompt(tokenizer, manifest.system, max_tokens=max_tokens, writes_json=manifest.writes_json)
        else:
            prompt = text_prompt(tokenizer, max_tokens) if manifest.kind == "text" else task_prompt(tokenizer, manifest)
        return cls(generator, prompt, name=name or manifest.task.name, price=price, calibration=manifest.calibration)

    @property
    def capabilities(self) -> frozenset[Capability]:
        """All but labels; no JSON where answers follow the task's schema, whatever a request asks for."""
        able = {Capability.STREAM, Capability.READINESS}
        return frozenset(able if self.prompt.schema is not None else {*able, Capability.JSON})

    @property
    def max_answer_tokens(self) -> int | None:
        return self.prompt.max_answer_tokens

    async def complete(self, request: Request) -> Completion:
        """Raise RequestRefused if the conversation is too long, or the answer cannot have the format asked for."""
        began = time.perf_counter()
        generation = await self._generation(request)
        return self._completion(generation, await self.worker.generate(generation, self._cut_off(request.bill)), began)

    async def stream(self, request: Request) -> AsyncGenerator[Chunk]:
        began = time.perf_counter()
        generation = await self._generation(request)
        async with aclosing(self.worker.stream(generation, self._cut_off(request.bill))) as events:
            async for event in events:
                if isinstance(event, GenerationResult):
                    yield Chunk(completion=self._completion(generation, event, began))
                else:
                    yield Chunk(text=event)

    async def ready(self) -> None:
        """Return if answers are being generated, or once one token was. Raise ModelError."""
        if self.worker.n_waiting:
            return
        found = await self.worker.generate(GenerationRequest([self.worker.tokenizer.bos_token_id or 0], max_tokens=1))
        if not all(map(math.isfinite, found.log_probabilities)):
            raise ModelError(f"{self.name} computes no numbers")

    async def aclose(self) -> None:
        self._grammars.close()
        await self.worker.aclose()

    async def _generation(self, request: Request) -> GenerationRequest:
        ids = self.prompt.encode(request)
        context = self.worker.context_tokens
        limits = [request.max_tokens, self.prompt.max_answer_tokens, context and max(1, context - len(ids))]
        return GenerationRequest(
            ids,
            max_tokens=min(limit for limit in limits if limit is not None),
            temperature=request.temperature,
            seed=request.seed,
            stop=request.stop,
            grammar=await self._grammars.grammar_for(request.response_format),
            tenant=request.tenant,
        )

    def _cut_off(self, bill: Bill | None) -> Callable[[GeneratedSequence], None] | None:
        if bill is None:
            return None

        def add(sequence: GeneratedSequence) -> None:
            tokens = tokens_of(len(sequence.request.ids), len(sequence.ids))
            bill.add(unfinished(self._price.charge(self.name, sequence.busy_s, tokens)))

        return add

    def _completion(self, generation: GenerationRequest, result: GenerationResult, began: float) -> Completion:
        tokens = tokens_of(result.n_prompt_tokens, len(result.token_ids))
        grammar = generation.grammar
        is_cut = grammar is not None and result.finish_reason == "length"  # no value of the schema
        return Completion(
            text=result.text if self.prompt.keeps_spaces else result.text.strip(),
            answered_by=self.name,
            latency_ms=(time.perf_counter() - began) * 1000,
            **paid(self._price.charge(self.name, result.busy_s, tokens)),
            confidence=0.0 if is_cut else self._calibration.confidence(result.log_probabilities),
            field_confidence={} if grammar is None or is_cut else field_confidence(result, grammar),
            finish_reason=result.finish_reason,
            stopped=result.stopped,
        )


def task_prompt(tokenizer: Any, manifest: Manifest) -> PromptFormat:
    """Return the prompt of a task, as in training."""
    task = manifest.task
    return PromptFormat(
        lambda request: encode_prompt(tokenizer, task.prompt(request.text), manifest.max_tokens),
        max_answer_tokens=task.max_answer_tokens,
        schema=task.answer_schema(),
        writes_json=manifest.writes_json,
    )


def text_prompt(tokenizer: Any, max_tokens: int) -> PromptFormat:
    """Return a request's text as it stands, to be continued: no template, no cue, spaces kept."""
    return PromptFormat(
        lambda request: encode_prompt(tokenizer, "\n\n".join(m.content for m in request.messages), max_tokens),
        writes_json=False,
        keeps_spaces=True,
    )


def chat_prompt(
    tokenizer: Any,
    system: str = "",
    *,
    max_tokens: int = MAX_PROMPT_TOKENS,
    schema: Mapping[str, Any] | None = None,
    writes_json: bool = True,
) -> PromptFormat:
    """Return whole conversations through the model's own template; `system` stands for a missing system message."""

    def encode(request: Request) -> list[int]:
        messages = request.messages
        if system and not any(message.role == "system" for message in messages):
            messages = (Message(role="system", content=system), *messages)
        if not tokenizer.chat_template:
            return encode_prompt(tokenizer, "\n\n".join(m.content for m in messages), max_tokens)
        try:
            return encode_chat(tokenizer, messages, max_tokens=max_tokens)
        except ConfigError as error:
            raise RequestRefused(f"messages: {error.args[0]}", code="context_length_exceeded") from None

    return PromptFormat(encode, schema=schema, writes_json=writes_json)


def field_confidence(result: GenerationResult, grammar: Grammar) -> dict[str, float]:
    """Return by field path the probability in [0, 1] of the tokens that overlap its values, quotes included.

    A field at the top level that is left out has the probability of what was written in its place.
    """
    ends, at = [], 0
    for piece in grammar.pieces(result.token_ids):
        ends.append((at, at := at + len(piece)))
    found: dict[str, float] = {}
    text = result.text
    omitted = {field_path("", name): [span] for name, span in omission_spans(text, grammar.names).items()}
    for path, places in (value_spans(text) | omitted).items():
        total = 0.0
        for start, end in places:
            quotes = int(text[start - 1 : start] == '"')
            first, last = len(text[: start - quotes].encode()), len(text[: end + quotes].encode())
            overlapping = (i for i, (left, right) in enumerate(ends) if left < last and right > first)
            total += math.fsum(result.log_probabilities[i] for i in overlapping)
        found[path] = min(1.0, math.exp(total))
    return found
