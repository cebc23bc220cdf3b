"""Models that write on this machine: a fine-tuned one that knows its task, and a chat model as it came.

Requests are written together as they come and go. A schema is a grammar for the writer, so that every answer is valid;
the answer's confidence is read from its tokens, and each field's from the tokens of its value.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from smallfirst.data.dataset import Message
from smallfirst.errors import ConfigError, RequestRefused
from smallfirst.models.generation.engine import Engine, field_confidence
from smallfirst.models.generation.generator import Generator
from smallfirst.models.generation.scheduler import ContinuousBatchScheduler
from smallfirst.models.generation.sequence import GenerationRequest
from smallfirst.models.local.chat_template import encode_chat, end_of_turn_token
from smallfirst.models.local.tokenizer import encode_prompt
from smallfirst.models.local.weights import load_causal
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import Capability, Chunk, Completion, Embeddings, Request
from smallfirst.models.response_format import ResponseGrammars
from smallfirst.pricing import MachinePrice

__all__ = ["ChatModel", "GenerativeTaskModel", "field_confidence"]


class GenerativeTaskModel:
    """A fine-tuned model that writes its task's answers."""

    capabilities: frozenset[Capability] = frozenset({Capability.STREAM, Capability.EMBEDDINGS, Capability.READINESS})
    """What it can do beyond answering."""

    def __init__(
        self,
        writer: Generator | ContinuousBatchScheduler,
        manifest: Manifest,
        *,
        name: str = "",
        price: MachinePrice | None = None,
        adapter: str = "",
    ) -> None:
        """A LiveWriter may be shared with other models, each with its `adapter`.

        Raises ConfigError if the task's schema makes no grammar.
        """
        self.manifest = manifest
        name = name or manifest.task.name
        self._grammars = ResponseGrammars(manifest.task.answer_schema(), writer.tokenizer, name=name)
        live = ContinuousBatchScheduler(writer, name=name) if isinstance(writer, Generator) else writer
        self._engine = Engine(live, name=name, price=price, adapter=adapter, calibration=manifest.calibration)
        self._fixed = _shared_beginning(*(self._ids(text) for text in ("a", "Z")))

    @classmethod
    def load(
        cls, folder: Path, manifest: Manifest, *, name: str = "", price: MachinePrice | None = None
    ) -> GenerativeTaskModel:
        """From a folder written by training."""
        return cls(Generator(*load_causal(folder)), manifest, name=name, price=price)

    @property
    def name(self) -> str:
        """Name shown in results, headers and the ledger."""
        return self._engine.name

    async def complete(self, request: Request) -> Completion:
        """The written answer, its calibrated confidence, and each field's where it is JSON.

        Raises RequestRefused if the request asks for a form that this task's answers have not.
        """
        began = time.perf_counter()
        return await self._engine.complete(await self._ask(request), began)

    async def stream(self, request: Request) -> AsyncGenerator[Chunk]:
        """The answer as it is written. Raises RequestRefused as `complete` does."""
        began = time.perf_counter()
        async with aclosing(self._engine.stream(await self._ask(request), began)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def ready(self) -> None:
        """Nothing if it would answer, shown by one token read. Raises ModelError."""
        await self._engine.ready()

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """The mean of the last hidden states of each text's tokens, at length 1. Raises ModelError."""
        return await self._engine.embed(texts, self.manifest.max_tokens)

    async def aclose(self) -> None:
        """Stop the writer's thread once it has answered what waits. Safe to call twice."""
        self._grammars.close()
        await self._engine.aclose()

    def _ids(self, text: str) -> list[int]:
        return encode_prompt(self._engine.tokenizer, self.manifest.task.prompt(text), self.manifest.max_tokens)

    async def _ask(self, request: Request) -> GenerationRequest:
        ids = self._ids(request.text)
        return GenerationRequest(
            ids,
            min(request.max_tokens, self.manifest.task.max_answer_tokens),
            request.temperature,
            request.seed,
            request.stop,
            await self._grammars.grammar_for(request.response_format),
            request.logprobs,
            self._engine.prefix_of(ids, self._fixed),
        )


class ChatModel:
    """A chat model as it came, asked through its own template; under a schema if one is given."""

    capabilities: frozenset[Capability] = frozenset({Capability.STREAM, Capability.EMBEDDINGS, Capability.READINESS})
    """What it can do beyond answering."""

    max_prompt_tokens = 4096

    def __init__(
        self,
        writer: Generator | ContinuousBatchScheduler,
        *,
        name: str,
        price: MachinePrice | None = None,
        schema: Mapping[str, Any] | None = None,
        declared: Sequence[Message] = (),
        adapter: str = "",
    ) -> None:
        """`declared` is what the operator puts at the beginning of conversations: it is read once and remembered.

        A LiveWriter may be shared with other models, each with its `adapter`. Raises ConfigError if the schema makes no
        grammar.
        """
        self._grammars = ResponseGrammars(schema, writer.tokenizer, name=name)
        live = ContinuousBatchScheduler(writer, name=name) if isinstance(writer, Generator) else writer
        end = end_of_turn_token(writer.tokenizer) if live is writer else None
        self._engine = Engine(live, name=name, price=price, adapter=adapter, end=end)
        self._fixed: tuple[int, ...] = ()
        if declared:
            ends = [Message(role="user", content=text) for text in ("a", "Z")]
            self._fixed = _shared_beginning(*(self._ids([*declared, end]) for end in ends))

    @classmethod
    def load(
        cls, folder: Path, *, name: str, price: MachinePrice | None = None, schema: Mapping[str, Any] | None = None
    ) -> ChatModel:
        """From a folder of weights."""
        model, tokenizer = load_causal(folder)
        return cls(Generator(model, tokenizer, end=end_of_turn_token(tokenizer)), name=name, price=price, schema=schema)

    @property
    def name(self) -> str:
        """Name shown in results, headers and the ledger."""
        return self._engine.name

    async def complete(self, request: Request) -> Completion:
        """The answer to the conversation. Raises RequestRefused if it is too long, or its form cannot be written."""
        began = time.perf_counter()
        return await self._engine.complete(await self._ask(request), began)

    async def stream(self, request: Request) -> AsyncGenerator[Chunk]:
        """The answer as it is written. Raises RequestRefused as `complete` does."""
        began = time.perf_counter()
        async with aclosing(self._engine.stream(await self._ask(request), began)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def ready(self) -> None:
        """Nothing if it would answer, shown by one token read. Raises ModelError."""
        await self._engine.ready()

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """The mean of the last hidden states of each text's tokens, at length 1. Raises ModelError."""
        return await self._engine.embed(texts, self.max_prompt_tokens)

    async def aclose(self) -> None:
        """Stop the writer's thread once it has answered what waits. Safe to call twice."""
        self._grammars.close()
        await self._engine.aclose()

    def _ids(self, messages: Sequence[Message]) -> list[int]:
        tokenizer = self._engine.tokenizer
        if tokenizer.chat_template:
            return encode_chat(tokenizer, messages, max_tokens=self.max_prompt_tokens)
        text = "\n\n".join(message.content for message in messages)
        return encode_prompt(tokenizer, text, self.max_prompt_tokens)

    async def _ask(self, request: Request) -> GenerationRequest:
        try:
            ids = self._ids(request.messages)
        except ConfigError as error:
            raise RequestRefused(f"messages: {error.args[0]}", code="context_length_exceeded") from None
        return GenerationRequest(
            ids,
            request.max_tokens,
            request.temperature,
            request.seed,
            request.stop,
            await self._grammars.grammar_for(request.response_format),
            request.logprobs,
            self._engine.prefix_of(ids, self._fixed),
        )


def _shared_beginning(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    """The tokens with which both begin."""
    n = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return tuple(one[:n])
