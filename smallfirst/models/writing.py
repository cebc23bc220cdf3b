"""Answers written token by token by a causal model on this machine, many at once.

Prompts of like length are read together, padded on the right; then every step feeds each row the tokens it has taken
(one, or a run of tokens that a grammar forces) and gives the next token's probabilities. Finished rows are dropped.
A row's place in the batch never changes what it says: padding is masked, positions are its own.

Output logits are computed in bf16, then again in fp32 for the best few: in bf16 alone, neighbours are often equal.
For models whose logits are the last hidden state times the output matrix (Llama, Qwen, SmolLM).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from smallfirst.models.grammar import Grammar
from smallfirst.models.kv import KeyValues

STEP_TOKENS = 64
"""Forced tokens are fed together up to about so many a step over all rows; more would make the others wait."""
REFINED = 64
"""Best tokens whose logits are computed again in fp32."""
DROP_BELOW = 0.75
"""Share of unfinished rows under which the finished ones are dropped from the batch."""


class Ask(NamedTuple):
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


class Written(NamedTuple):
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


class TextWriter:
    """Weights and tokenizer of a causal model that writes. Not thread-safe."""

    batch_rows = 64
    batch_tokens = 16_384

    def __init__(self, model: Any, tokenizer: Any, *, end: int | None = None) -> None:
        """`end` is the token after which nothing follows; None: the tokenizer's end token."""
        self.model, self.tokenizer = model, tokenizer
        self.end = tokenizer.eos_token_id if end is None else end

    @torch.inference_mode()
    def write(self, asks: Sequence[Ask], grammar: Grammar | None = None) -> list[Written]:
        """One answer each, in order; under `grammar` all of them are valid JSON of its schema."""
        results: dict[int, Written] = {}
        for chosen in self._batches(asks):
            began = time.perf_counter()
            lines = [_Line(asks[i], grammar) for i in chosen]
            self._write(lines)
            busy_s = (time.perf_counter() - began) / len(chosen)
            results |= {i: line.written(self.tokenizer, busy_s) for i, line in zip(chosen, lines, strict=True)}
        return [results[i] for i in range(len(asks))]

    def _batches(self, asks: Sequence[Ask]) -> Iterator[list[int]]:
        """Numbers of the asks of each batch, alike in length."""
        batch: list[int] = []
        for i in sorted(range(len(asks)), key=lambda i: len(asks[i].ids)):
            full = len(batch) == self.batch_rows or (len(batch) + 1) * len(asks[i].ids) > self.batch_tokens
            if batch and full:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _write(self, lines: list[_Line]) -> None:
        memory = KeyValues(self.model, len(lines))
        rows, width = lines, None  # the prompts are read whole
        while any(not line.finished for line in rows):
            blocks = [line.feed(width) for line in rows]
            states = memory.read(blocks)
            ready = [i for i, line in enumerate(rows) if line.waits]
            if ready:
                self._choose([rows[i] for i in ready], states[ready])
            alive = [i for i, line in enumerate(rows) if not line.finished]
            if len(alive) < DROP_BELOW * len(rows) and alive:
                rows = [rows[i] for i in alive]
                memory.keep(alive)
            width = max(1, STEP_TOKENS // max(1, len(alive)))

    def _choose(self, lines: list[_Line], states: torch.Tensor) -> None:
        """Nothing back; each line takes its next token. states (lines, hidden)."""
        allowed = [line.allowed() for line in lines]
        log_probabilities = self._log_probabilities(states, allowed)
        likeliest = log_probabilities.argmax(dim=-1).tolist()
        for i, line in enumerate(lines):
            token = line.pick(log_probabilities[i], likeliest[i], allowed[i])
            line.take(token, float(log_probabilities[i, token]), self.end, self.tokenizer)

    def _log_probabilities(self, states: torch.Tensor, allowed: list[np.ndarray | None]) -> torch.Tensor:
        """Log-probabilities (lines, vocabulary) among the allowed tokens, fp32, on the CPU."""
        head = self.model.get_output_embeddings().weight
        logits = (states @ head.T).float()
        for i, mask in enumerate(allowed):
            if mask is not None:
                logits[i, : len(mask)].masked_fill_(torch.from_numpy(~mask).to(logits.device), -torch.inf)
                logits[i, len(mask) :] = -torch.inf
        best = logits.topk(min(REFINED, logits.shape[1]), dim=-1)
        exact = torch.einsum("rh,rbh->rb", states.float(), head[best.indices].float())
        logits.scatter_(1, best.indices, exact.masked_fill(best.values.isinf(), -torch.inf))
        normalised: torch.Tensor = logits.log_softmax(dim=-1).cpu()
        return normalised


class _Line:
    """One answer under way."""

    def __init__(self, ask: Ask, grammar: Grammar | None) -> None:
        self.ask, self.grammar = ask, grammar
        self.follower = grammar.follow() if grammar else None
        self.ids: list[int] = []
        self.log_probabilities: list[float] = []
        self.fed = 0
        self.finish_reason: Literal["stop", "length"] = "stop"
        self.finished = False
        self.generator = torch.Generator().manual_seed(ask.seed or 0) if ask.temperature > 0 else None
        self.text: str | None = None
        if self.follower:
            self._add(self.follower.begin())

    def feed(self, width: int | None) -> list[int]:
        """The next tokens for the model, at most `width`; one that means nothing if the line is finished."""
        if self.finished:
            return [0]
        waiting = [*self.ask.ids, *self.ids][self.fed :] if width is None else self._waiting(width)
        self.fed += len(waiting)
        return waiting

    def _waiting(self, width: int) -> list[int]:
        start = self.fed - len(self.ask.ids)
        return self.ids[start : start + width]

    @property
    def waits(self) -> bool:
        """True if all it has is fed, so that the next token can be chosen."""
        return not self.finished and self.fed == len(self.ask.ids) + len(self.ids)

    def allowed(self) -> np.ndarray | None:
        """Which tokens may come next; None if all may."""
        return self.follower.allowed() if self.follower else None

    def pick(self, log_probabilities: torch.Tensor, likeliest: int, allowed: np.ndarray | None) -> int:
        """The next token: likeliest or drawn, or the one that closes the answer if room runs out."""
        left = self.ask.max_tokens - len(self.ids)
        if self.follower and self.grammar and allowed is not None and left <= self.grammar.closing_tokens:
            self.finish_reason = "length"
            return self.follower.closing(allowed)
        if self.generator is None:
            return likeliest
        weights = (log_probabilities / self.ask.temperature).softmax(dim=-1)
        return int(torch.multinomial(weights, 1, generator=self.generator))

    def take(self, token: int, log_probability: float, end: int, tokenizer: Any) -> None:
        """Nothing back; the token and what it forces are the line's own."""
        self.log_probabilities.append(log_probability)
        if token == end and not self.follower:
            self.finished = True
            return
        self._add([token], known=True)
        if self.follower:
            self._add(self.follower.take(token))
            self.finished = self.follower.finished
        elif len(self.ids) >= self.ask.max_tokens:
            self.finished, self.finish_reason = True, "length"
        if self.ask.stop and not self.follower:
            self._stop(tokenizer)

    def _add(self, tokens: list[int], *, known: bool = False) -> None:
        self.ids += tokens
        if not known:  # forced: certain among the allowed ones
            self.log_probabilities += [0.0] * len(tokens)

    def _stop(self, tokenizer: Any) -> None:
        text = tokenizer.decode(self.ids, skip_special_tokens=True)
        found = [at for stop in self.ask.stop if (at := text.find(stop)) >= 0]
        if found:
            self.text, self.finished, self.finish_reason = text[: min(found)], True, "stop"

    def written(self, tokenizer: Any, busy_s: float) -> Written:
        """The finished answer."""
        text = tokenizer.decode(self.ids, skip_special_tokens=True) if self.text is None else self.text
        return Written(
            text, tuple(self.ids), tuple(self.log_probabilities), len(self.ask.ids), self.finish_reason, busy_s
        )
