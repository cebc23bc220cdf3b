"""Local models that generate text: a fine-tuned one with its task's prompt, or a chat model with its own template."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple

import torch

from smallfirst.errors import ConfigError, ModelError, RequestRefused
from smallfirst.models.batching import length_batches
from smallfirst.models.confidence import Calibration
from smallfirst.models.generation.generator import Generator
from smallfirst.models.generation.grammar import Grammar, guidance_tokenizer
from smallfirst.models.generation.scheduler import ContinuousBatchScheduler
from smallfirst.models.generation.sequence import (
    GeneratedSequence,
    GenerationRequest,
    GenerationResult,
    TextDelta,
    TopLogProbs,
)
from smallfirst.models.local.kv_cache import KVCache
from smallfirst.models.local.token_batches import pad_right
from smallfirst.models.local.tokenizer import (
    common_prefix,
    encode_chat,
    encode_prompt,
    with_system_message,
)
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import Capability, Chunk, Completion, Embeddings, Request, Token
from smallfirst.models.response_format import ResponseGrammars
from smallfirst.models.usage import ReportUnfinished, paid, report_unfinished, unfinished
from smallfirst.models.wrappers import CallableModel
from smallfirst.pricing.machine import MachinePrice
from smallfirst.pricing.tokens import tokens_of
from smallfirst.tasks.json.paths import field_path, omission_spans, value_spans

MAX_PROMPT_TOKENS = 4096
"""Longest conversation of a chat model."""
MIN_PREFIX_TOKENS = 16
"""A shorter common prefix is not worth caching."""
EMBEDDING_BATCH_TOKENS = 2048
"""Tokens embedded together, padding included; one text alone may be longer."""


class PromptFormat(NamedTuple):
    """How requests become tokens."""

    encode: Callable[[Request], list[int]]
    """Return the prompt of a request. Raise RequestRefused if it is too long."""
    max_tokens: int
    max_answer_tokens: int | None = None
    prefix: tuple[int, ...] = ()
    """Tokens written by the operator with which prompts begin: read once and cached. Never a client's text."""
    schema: Mapping[str, Any] | None = None
    writes_json: bool = True
    """False refuses a `json_object`: the model has learnt to write something else."""
    keeps_spaces: bool = False
    """Spaces around an answer stay: it continues a text."""


class GenerativeModel(CallableModel):
    """A causal model that generates its answers."""

    def __init__(
        self,
        generator: Generator | ContinuousBatchScheduler,
        prompt: PromptFormat,
        *,
        name: str,
        price: MachinePrice | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        """Generate with `generator`, or with a scheduler over one. Raise ConfigError if the schema has no grammar."""
        self.name, self.prompt = name, prompt
        self._grammars = ResponseGrammars(prompt.schema, generator.tokenizer, name=name, writes_json=prompt.writes_json)
        self._price, self._calibration = price or MachinePrice(), calibration or Calibration()
        if isinstance(generator, Generator):
            generator = ContinuousBatchScheduler(generator, name=name)
        self.scheduler = generator
        self._open = True

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
        generator: Generator | ContinuousBatchScheduler,
        manifest: Manifest,
        *,
        name: str = "",
        price: MachinePrice | None = None,
    ) -> GenerativeModel:
        """Return the model that a manifest of a kind that generates describes."""
        tokenizer, max_tokens = generator.tokenizer, manifest.max_tokens
        if manifest.kind == "chat":
            prompt = chat_prompt(tokenizer, manifest.system, max_tokens=max_tokens, writes_json=manifest.writes_json)
        else:
            prompt = text_prompt(tokenizer, max_tokens) if manifest.kind == "text" else task_prompt(tokenizer, manifest)
        return cls(
            generator,
            prompt,
            name=name or manifest.task.name,
            price=price,
            calibration=manifest.calibration,
        )

    @property
    def capabilities(self) -> frozenset[Capability]:
        """All but labels; no JSON where answers follow the task's schema, whatever a request asks for."""
        able = {Capability.STREAM, Capability.LOGPROBS, Capability.EMBEDDINGS, Capability.READINESS}
        return frozenset(able if self.prompt.schema is not None else {*able, Capability.JSON})

    @property
    def max_answer_tokens(self) -> int | None:
        return self.prompt.max_answer_tokens

    async def complete(self, request: Request) -> Completion:
        """Raise RequestRefused if the conversation is too long, or the answer cannot have the format asked for."""
        began = time.perf_counter()
        generation = await self._generation(request)
        return await self._completion(generation, await self.scheduler.generate(generation, self._cut_off), began)

    async def stream(self, request: Request) -> AsyncGenerator[Chunk]:
        began = time.perf_counter()
        generation = await self._generation(request)
        async with aclosing(self.scheduler.stream(generation, self._cut_off)) as events:
            async for event in events:
                if isinstance(event, GenerationResult):
                    yield Chunk(completion=await self._completion(generation, event, began))
                else:
                    yield Chunk(text=event.text, tokens=await self._tokens(generation, event))

    async def ready(self) -> None:
        await self.scheduler.run(self._probe)

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Return the mean of each text's last hidden states, start token excepted, scaled to length 1, in order.

        Raise RequestRefused if a text has no token, ModelError if the model fails.
        """
        n_start = int(self._tokenizer.bos_token_id is not None)
        rows = [encode_prompt(self._tokenizer, text, self.prompt.max_tokens) for text in texts]
        if empty := [i for i, row in enumerate(rows) if not row]:
            raise RequestRefused(f"input {empty[0]} holds nothing to read")
        found: list[list[float]] = [[]] * len(rows)
        busy_s, n_tokens = 0.0, sum(map(len, rows))

        def used(_: BaseException) -> Completion:
            return unfinished(self._price.charge(self.name, busy_s, tokens_of(n_tokens)))

        with ReportUnfinished(used):
            for chosen in length_batches([len(row) for row in rows], max_tokens=EMBEDDING_BATCH_TOKENS):
                pooled = partial(self._mean_pooled, [rows[i] for i in chosen], n_start)
                took_s, vectors = await self.scheduler.run(pooled)
                busy_s += took_s
                for i, vector in zip(chosen, vectors, strict=True):
                    found[i] = vector
        charge = self._price.charge(self.name, busy_s, tokens_of(n_tokens))
        return Embeddings(found, n_tokens, charge.usd or 0.0, (charge,))

    async def aclose(self) -> None:
        """End the thread of its answers. Safe to call twice."""
        self._grammars.close()
        if self._open:
            self._open = False
            await self.scheduler.aclose()

    @property
    def _tokenizer(self) -> Any:
        return self.scheduler.tokenizer

    async def _generation(self, request: Request) -> GenerationRequest:
        ids = self.prompt.encode(request)
        context = getattr(self.scheduler.generator.model.config, "max_position_embeddings", None)
        limits = [request.max_tokens, self.prompt.max_answer_tokens, context and max(1, context - len(ids))]
        prefix = self.prompt.prefix
        n = len(prefix)
        return GenerationRequest(
            ids,
            max_tokens=min(limit for limit in limits if limit is not None),
            temperature=request.temperature,
            seed=request.seed,
            stop=request.stop,
            grammar=await self._grammars.grammar_for(request.response_format),
            top=request.logprobs,
            prefix=prefix if MIN_PREFIX_TOKENS <= n < len(ids) and tuple(ids[:n]) == prefix else (),
            tenant=request.tenant,
        )

    def _cut_off(self, sequence: GeneratedSequence) -> None:
        tokens = tokens_of(len(sequence.request.ids), len(sequence.ids))
        report_unfinished(unfinished(self._price.charge(self.name, sequence.busy_s, tokens)))

    @torch.inference_mode()
    def _probe(self) -> None:
        generator = self.scheduler.generator
        state = KVCache(generator.model, 1).read([[generator.tokenizer.bos_token_id or 0]])
        likeliest = float(generator.log_probabilities(state, [None]).max())
        if not math.isfinite(likeliest):
            raise ModelError(f"{self.name} computes no numbers")

    @torch.inference_mode()
    def _mean_pooled(self, rows: Sequence[Sequence[int]], n_start: int) -> tuple[float, list[list[float]]]:
        began = time.perf_counter()
        model = self.scheduler.generator.model
        lengths, ids = torch.tensor([len(row) for row in rows]), pad_right(rows)
        hidden = model.model(input_ids=ids.to(model.device), use_cache=False).last_hidden_state.float().cpu()
        places = torch.arange(ids.shape[1])
        averaged = (places < lengths[:, None]) & ((places >= n_start) | (lengths[:, None] <= n_start))
        mean = (hidden * averaged[:, :, None]).sum(dim=1) / averaged.sum(dim=1, keepdim=True)
        return time.perf_counter() - began, torch.nn.functional.normalize(mean, dim=-1).tolist()

    async def _completion(self, generation: GenerationRequest, result: GenerationResult, began: float) -> Completion:
        tokens = tokens_of(result.n_prompt_tokens, len(result.token_ids))
        return Completion(
            text=result.text if self.prompt.keeps_spaces else result.text.strip(),
            answered_by=self.name,
            latency_ms=(time.perf_counter() - began) * 1000,
            **paid(self._price.charge(self.name, result.busy_s, tokens)),
            confidence=self._calibration.confidence(result.log_probabilities),
            field_confidence=field_confidence(result, generation.grammar) if generation.grammar else {},
            finish_reason=result.finish_reason,
            stopped=result.stopped,
            tokens=await self._tokens(generation, result),
        )

    async def _tokens(self, generation: GenerationRequest, part: TextDelta | GenerationResult) -> tuple[Token, ...]:
        if generation.top is None:
            return ()
        words = await asyncio.to_thread(guidance_tokenizer, self._tokenizer)  # takes a second the first time
        n_tokens = part.n_in_text if isinstance(part, GenerationResult) else len(part.token_ids)
        rows = zip(part.token_ids[:n_tokens], part.log_probabilities, part.top, strict=False)
        return tuple(_token(words, *row) for row in rows)


def task_prompt(tokenizer: Any, manifest: Manifest) -> PromptFormat:
    """Return the prompt of a task, as in training."""
    task = manifest.task

    def encode(request: Request) -> list[int]:
        return encode_prompt(tokenizer, task.prompt(request.text), manifest.max_tokens)

    return PromptFormat(
        encode=encode,
        max_tokens=manifest.max_tokens,
        max_answer_tokens=task.max_answer_tokens,
        prefix=_common_beginning(encode),
        schema=task.answer_schema(),
        writes_json=manifest.writes_json,
    )


def text_prompt(tokenizer: Any, max_tokens: int) -> PromptFormat:
    """Return a request's text as it stands, to be continued: no template, no cue, spaces kept."""

    def encode(request: Request) -> list[int]:
        return encode_prompt(tokenizer, "\n\n".join(m.content for m in request.messages), max_tokens)

    return PromptFormat(encode, max_tokens, writes_json=False, keeps_spaces=True)


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
        messages = with_system_message(request.messages, system)
        if not tokenizer.chat_template:
            return encode_prompt(tokenizer, "\n\n".join(m.content for m in messages), max_tokens)
        try:
            return encode_chat(tokenizer, messages, max_tokens=max_tokens)
        except ConfigError as error:
            raise RequestRefused(f"messages: {error.args[0]}", code="context_length_exceeded") from None

    prefix = _common_beginning(encode) if system else ()
    return PromptFormat(encode, max_tokens, prefix=prefix, schema=schema, writes_json=writes_json)


def _common_beginning(encode: Callable[[Request], list[int]]) -> tuple[int, ...]:
    return tuple(common_prefix(*(encode(Request.ask(text)) for text in ("a", "Z"))))


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


def _token(words: Any, token: int, log_probability: float, top: TopLogProbs) -> Token:
    octets: bytes = words.decode_bytes([token])
    return Token(
        text=octets.decode("utf-8", "replace"),
        logprob=log_probability,
        octets=tuple(octets),
        top=tuple(
            (words.decode_bytes([other]).decode("utf-8", "replace"), value)
            for other, value in top
            if other < words.vocab_size
        ),
    )
