"""Token-by-token generation by a causal model, many answers in one batch that do not depend on each other.

A worker generates the answers to all requests that wait in one batch; those that come meanwhile are the next one.
Prompts are padded on the right and read together. Logits are computed in bf16, then again in fp32 for the best few.
They must be the last hidden state times the output matrix, as in Llama, Qwen and SmolLM.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from smallfirst.base.errors import ModelError
from smallfirst.models.batching import BatchWorker, length_batches
from smallfirst.models.generation.grammar import Grammar
from smallfirst.models.local.packed_rows import SHAPE_STEP, pad_right, rounded_tokens
from smallfirst.models.local.tokenizer import end_of_turn_token
from smallfirst.models.local.weights import load_merged

REPLACEMENT = "\ufffd"
"""Decoded where bytes are not a whole character."""
MAX_PENDING_TOKENS = 12
"""Tokens that wait for a character to become whole; more are taken for bytes that are not a character."""
MAX_CHARACTER_BYTES = 4
"""Bytes of a character in UTF-8; so many tokens may still become one."""


class GenerationRequest(NamedTuple):
    """One answer to be generated."""

    ids: Sequence[int]
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
    """`length` if the tokens ran out."""
    busy_s: float
    """Share of the machine's time that this answer took, in seconds."""
    stopped: bool = False


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
        self.busy_s = 0.0
        self.finish_reason: Literal["stop", "length"] = "stop"
        self.finished = False
        self.error: ModelError | None = None
        self._random = torch.Generator().manual_seed(request.seed or 0) if request.temperature > 0 else None
        stop = () if request.grammar else request.stop
        self._text = AnswerText(tokenizer, stop) if streams or stop else None
        if self.grammar:
            self._append(self.grammar.forced())
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
            self.finished, self.error = True, error  # the other sequences of the batch go on
            return None

    def choose(self, log_probabilities: torch.Tensor, likeliest: int) -> int:
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
        try:
            if self.grammar is not None:
                self._append(self.grammar.take(token))
                self.finished = self.grammar.finished
        except ModelError as error:
            self.finished, self.error = True, error
        if not self.finished and len(self.ids) >= self.request.max_tokens:
            self.finished, self.finish_reason = True, "length"
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

    def _follow_text(self) -> None:
        if self._text is None:
            return
        self._text.follow(self.ids)
        if self._text.stopped:
            self.finished, self.finish_reason = True, "stop"
        elif self.finished:
            self._text.finish()


STEP_TOKENS = 64
"""Forced tokens are fed together, up to about this many a step over all rows; more would delay the other rows."""
REFINED_TOKENS = 64
"""Best tokens whose logits are computed again in fp32."""
DROP_BELOW = 0.75
"""Share of unfinished rows below which the finished ones are dropped from the batch."""

CutOff = Callable[[GeneratedSequence], None]
"""Called with an answer that has begun and is not returned."""


class Generator:
    """Weights and tokenizer of a causal model that generates text. Not thread-safe."""

    batch_rows = 64
    batch_tokens = 32_768
    """Tokens of keys and values, padding and room for the answers included; one answer alone may need more."""

    def __init__(self, model: Any, tokenizer: Any, *, end: int | None = None) -> None:
        """Generate until `end`, by default the tokenizer's."""
        self.model, self.tokenizer = model, tokenizer
        self.end = tokenizer.eos_token_id if end is None else end

    @classmethod
    def load(cls, folder: Path, *, chat: bool = False) -> Generator:
        """Return the generator of a folder of weights; an adapter is merged into its base."""
        model, tokenizer = load_merged(folder)
        return cls(model, tokenizer, end=end_of_turn_token(tokenizer) if chat else None)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        sequences = [GeneratedSequence(request, self.tokenizer) for request in requests]
        self.run(sequences)
        return [sequence.result() for sequence in sequences]

    def run(self, sequences: Sequence[GeneratedSequence], after_step: Callable[[], None] = lambda: None) -> None:
        """Generate answers to their ends; `after_step` is called after each token of a batch."""
        widths = [len(sequence.request.ids) + sequence.request.max_tokens for sequence in sequences]
        for chosen in length_batches(widths, max_rows=self.batch_rows, max_tokens=self.batch_tokens):
            batch = Batch(self, [sequences[i] for i in chosen])
            while batch.n_active:
                batch.step()
                after_step()
                batch.drop_finished()

    @torch.inference_mode()
    def log_probabilities(self, states: torch.Tensor, allowed: Sequence[np.ndarray | None]) -> torch.Tensor:
        """Return log-probabilities (rows, vocabulary) among the allowed tokens, fp32, on the CPU."""
        head = self.model.get_output_embeddings().weight
        logits = (states @ head.T).float()
        for i, mask in enumerate(allowed):
            if mask is not None:
                logits[i, : len(mask)].masked_fill_(torch.from_numpy(~mask).to(logits.device), -torch.inf)
                logits[i, len(mask) :] = -torch.inf
        best = logits.topk(min(REFINED_TOKENS, logits.shape[1]), dim=-1)
        exact = torch.einsum("rh,rbh->rb", states.float(), head[best.indices].float())
        logits.scatter_(1, best.indices, exact.masked_fill(best.values.isinf(), -torch.inf))
        normalised: torch.Tensor = logits.log_softmax(dim=-1).cpu()
        return normalised


class KVCache:
    """Keys and values of rows, each of its own length; blocks are padded on the right, padding is never seen."""

    def __init__(self, model: Any, n_rows: int) -> None:
        from transformers import DynamicCache

        self.model, names = model, inspect.signature(type(model.model).forward).parameters
        self._argument = "cache" if "cache" in names else "past_key_values"  # by the release of transformers
        self._cache: Any = DynamicCache()
        self.seen = torch.zeros(n_rows, 0, dtype=torch.bool)
        """Which of the kept keys are a row's own (rows, columns)."""
        self.lengths = torch.zeros(n_rows, dtype=torch.long)

    @property
    def columns(self) -> int:
        return int(self.seen.shape[1])

    def read(self, blocks: Sequence[Sequence[int]]) -> torch.Tensor:
        """Read one block of tokens a row, none empty; return the state after each block's last token (rows, hidden)."""
        counts, longest = torch.tensor([len(block) for block in blocks]), max(map(len, blocks))
        width = rounded_tokens(longest) if longest > SHAPE_STEP else longest  # the few tokens of a step stay few
        ids = F.pad(pad_right(blocks), (0, width - longest))
        own = torch.arange(width) < counts[:, None]  # (rows, width)
        among = own[:, None] & torch.ones(width, width, dtype=torch.bool).tril()
        # Until something is read, plain causal attention does the same without a mask.
        hidden = self._forward(ids, self.lengths[:, None] + torch.arange(width), among if self.columns else None)
        self.seen = torch.cat([self.seen, own[:, :longest]], dim=1)
        for layer in self._cache.layers if width > longest else ():
            layer.keys, layer.values = layer.keys[:, :, : self.columns], layer.values[:, :, : self.columns]
        self.lengths += counts
        return hidden[torch.arange(len(blocks)), counts - 1]

    def select_rows(self, rows: Sequence[int]) -> None:
        chosen = torch.tensor(rows)
        self._cache.batch_select_indices(chosen.to(self.model.device))
        self.seen, self.lengths = self.seen[chosen], self.lengths[chosen]

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, among: torch.Tensor | None) -> torch.Tensor:
        """Return states (rows, width, hidden); `among` (rows, width, width) says which of `ids` see each other."""
        device, dtype, mask = self.model.device, self.model.dtype, None
        if among is not None:
            visible = torch.cat([self.seen[:, None].expand(-1, ids.shape[1], -1), among], dim=-1)
            mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
        states: torch.Tensor = self.model.model(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            attention_mask=None if mask is None else mask.to(device),  # (rows, 1, width, keys)
            use_cache=True,
            **{self._argument: self._cache},
        ).last_hidden_state
        return states


class Batch:
    """Answers that are generated together, with the keys and values of what they have read."""

    def __init__(self, generator: Generator, sequences: Sequence[GeneratedSequence]) -> None:
        self._generator, self.sequences = generator, list(sequences)
        self.cache = KVCache(generator.model, len(self.sequences))

    @property
    def n_active(self) -> int:
        return sum(not sequence.finished for sequence in self.sequences)

    @torch.inference_mode()
    def step(self) -> None:
        """Feed each row its prompt, or forced tokens, and choose the next token of every row that has read all."""
        began = time.perf_counter()
        active = [sequence for sequence in self.sequences if not sequence.finished]
        width = max(1, STEP_TOKENS // max(1, len(active)))
        states = self.cache.read([sequence.feed(width) for sequence in self.sequences])
        ready = [i for i, sequence in enumerate(self.sequences) if sequence.ready]
        if ready:
            self._choose([self.sequences[i] for i in ready], states[ready])
        share_s = (time.perf_counter() - began) / max(1, len(active))
        for sequence in active:
            sequence.busy_s += share_s

    @torch.inference_mode()
    def drop_finished(self) -> None:
        active = [i for i, sequence in enumerate(self.sequences) if not sequence.finished]
        if active and len(active) < DROP_BELOW * len(self.sequences):
            self.sequences = [self.sequences[i] for i in active]
            self.cache.select_rows(active)

    def _choose(self, sequences: list[GeneratedSequence], states: torch.Tensor) -> None:
        allowed = [sequence.allowed() for sequence in sequences]
        log_probabilities = self._generator.log_probabilities(states, allowed)
        likeliest = log_probabilities.argmax(dim=-1).tolist()
        for i, sequence in enumerate(sequences):
            if sequence.error:
                continue
            token = sequence.choose(log_probabilities[i], likeliest[i])
            sequence.append(token, float(log_probabilities[i, token]), self._generator.end)


class _WaitingRequest:
    """A request that waits for its answer, and the queue of its text."""

    def __init__(self, sequence: GeneratedSequence) -> None:
        self.sequence = sequence
        self.texts: asyncio.Queue[str | None] = asyncio.Queue()
        self.cancelled = False
        self._loop = asyncio.get_running_loop()

    def send(self, text: str) -> None:
        """Send new text to whoever waits, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self.texts.put_nowait, text)
        except RuntimeError:  # the loop is closed, so nobody waits
            self.cancelled = True


class GenerationWorker:
    """Generates the answers to concurrent requests in a thread of its own."""

    def __init__(self, generator: Generator, *, name: str) -> None:
        """Take over `generator`, which nobody else may use from now on; errors mention `name`."""
        self.generator, self.tokenizer, self.n_waiting = generator, generator.tokenizer, 0
        self.context_tokens: int | None = getattr(generator.model.config, "max_position_embeddings", None)
        self._name, self._closed = name, False
        self._worker: BatchWorker[_WaitingRequest, GenerationResult | ModelError] = BatchWorker(
            self._compute, name=name, max_batch_size=generator.batch_rows
        )

    async def generate(self, request: GenerationRequest, cut_off: CutOff | None = None) -> GenerationResult:
        """Return the whole answer. Raise ModelError. Cancelled, it is generated no further."""
        async with aclosing(self.stream(request, cut_off, in_parts=False)) as events:
            return [event async for event in events if isinstance(event, GenerationResult)][-1]

    async def stream(
        self, request: GenerationRequest, cut_off: CutOff | None = None, *, in_parts: bool = True
    ) -> AsyncGenerator[str | GenerationResult]:
        """Yield the answer's new text, then the whole, as `generate` does. Closed early, it is generated no further."""
        try:
            asked = _WaitingRequest(GeneratedSequence(request, self.tokenizer, streams=in_parts))
        except (RuntimeError, ValueError, OverflowError) as error:  # such as a seed that no generator takes
            raise ModelError(f"{self._name} could not answer: {error}") from None
        found: GenerationResult | ModelError | None = None
        answer = asyncio.ensure_future(self._worker.submit(asked))
        answer.add_done_callback(lambda _: asked.texts.put_nowait(None))
        self.n_waiting += 1
        try:
            while (text := await asked.texts.get()) is not None:
                yield text
            found = await answer
            if isinstance(found, ModelError):
                raise found
            yield found
        finally:
            self.n_waiting -= 1
            asked.cancelled = True
            answer.cancel()
            if cut_off and asked.sequence.n_fed and not isinstance(found, GenerationResult):
                cut_off(asked.sequence)

    async def aclose(self) -> None:
        """Stop the thread once it has answered what waits; abort what takes it more than ten seconds."""
        await self._worker.aclose()
        self._closed = True

    def _compute(self, asked: Sequence[_WaitingRequest]) -> list[GenerationResult | ModelError]:
        def after_step() -> None:
            for one in asked:
                if one.cancelled or self._closed:
                    one.sequence.finished = True
                elif delta := one.sequence.delta():
                    one.send(delta)

        try:
            self.generator.run([one.sequence for one in asked], after_step)
        except Exception as error:
            failed = ModelError(f"{self._name} could not answer: {error}")
            return [failed] * len(asked)
        return [one.sequence.error or one.sequence.result() for one in asked]
