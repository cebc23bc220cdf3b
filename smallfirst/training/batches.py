"""Rows to batches: tokens with a target mask, filled to a token budget from length buckets."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from smallfirst.base.errors import DataError, Problem
from smallfirst.data.dataset import Dataset, Example
from smallfirst.models.local.tokenizer import encode_prompt
from smallfirst.tasks.task import Task

LOSS_TARGETS = 1024
"""Targets whose logits are in memory at once; those of more are computed again in the backward pass."""


class HasTokens(Protocol):
    """A row in tokens, of any kind of model."""

    @property
    def ids(self) -> tuple[int, ...]: ...


R = TypeVar("R", bound=HasTokens)


class TokenizedRow(NamedTuple):
    """A row in tokens: the first `n_prompt` are the prompt, the rest are targets."""

    ids: tuple[int, ...]
    n_prompt: int


def encode_rows(
    data: Dataset, encode: Callable[[Example], R | str], *, max_tokens: int
) -> tuple[list[R], list[Problem]]:
    """Return the rows that `encode` makes, and a Problem for each rule it returns or row over the limit."""
    rows: list[R] = []
    problems: list[Problem] = []
    for example in data.examples:
        row = encode(example)
        if not isinstance(row, str) and len(row.ids) > max_tokens:
            row = f"{len(row.ids)} tokens; the limit is {max_tokens} (max_seq_tokens)"
        if isinstance(row, str):
            problems.append(Problem(example.path, example.line, row))
        else:
            rows.append(row)
    return rows, problems


def encode_all_rows(data: Dataset, encode: Callable[[Example], R | str], *, max_tokens: int) -> list[R]:
    """Return the rows of all examples. Raise DataError naming every example that `encode_rows` refuses."""
    rows, problems = encode_rows(data, encode, max_tokens=max_tokens)
    if problems:
        raise DataError(
            f"{len(problems)} of {len(data)} rows cannot be trained on:",
            problems,
            hint="fix or remove these lines; for long ones raise max_seq_tokens (context_length)",
        )
    return rows


def encode_label_rows(
    data: Dataset, task: Task, *, codes: Sequence[int], tokenizer: Any, max_tokens: int
) -> list[TokenizedRow]:
    """Return prompt and code token, the only target, of each example. Raise DataError as `encode_all_rows` does."""
    code_of = dict(zip(task.closed, codes, strict=True))

    def encode(example: Example) -> TokenizedRow | str:
        prompt = encode_prompt(tokenizer, task.prompt(example.text), 1 << 30)
        code = code_of.get(example.answer)
        return f'unknown label "{example.answer}"' if code is None else TokenizedRow((*prompt, code), len(prompt))

    return encode_all_rows(data, encode, max_tokens=max_tokens)


def encode_text_rows(data: Dataset, task: Task, *, tokenizer: Any, max_tokens: int) -> list[TokenizedRow]:
    """Return prompt, target text and end token of each example; the last two are targets. Raise DataError likewise."""

    def encode(example: Example) -> TokenizedRow:
        prompt = encode_prompt(tokenizer, task.prompt(example.text), 1 << 30)
        target = tokenizer.encode(task.target(example.answer), add_special_tokens=False)
        return TokenizedRow((*prompt, *target, tokenizer.eos_token_id), len(prompt))

    return encode_all_rows(data, encode, max_tokens=max_tokens)


def epoch_batches(rows: Sequence[R], *, batch_tokens: int, seed: int) -> list[list[R]]:
    """Return all rows in batches of at most `batch_tokens` tokens, padding included, in an order drawn from `seed`."""
    draw = random.Random(seed)
    noisy = sorted(rows, key=lambda row: len(row.ids) * draw.uniform(0.9, 1.1))
    batches = micro_batches(noisy, batch_tokens)
    draw.shuffle(batches)
    return batches


def micro_batches(rows: Sequence[R], max_tokens: int) -> list[list[R]]:
    """The rows, in order, in parts of at most `max_tokens` tokens, padding included; a longer row stands alone."""
    parts: list[list[R]] = []
    width = 0
    for row in rows:
        wider = max(width, len(row.ids) - 1)
        if parts and wider * (len(parts[-1]) + 1) <= max_tokens:
            parts[-1].append(row)
            width = wider
        else:
            parts.append([row])
            width = len(row.ids) - 1
    return parts
