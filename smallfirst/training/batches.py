"""Rows to batches: tokens with a target mask, filled to a token budget from length buckets, padded on the right.

Right padding needs no attention mask under causal attention: a real token never looks to its right. Sorting by
length with a little noise keeps padding near 5 % while every epoch still sees other batches.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from smallfirst.data.dataset import Dataset
from smallfirst.errors import DataError, Problem
from smallfirst.models.local.tokenizer import encode_prompt
from smallfirst.tasks.task import Task


class TokenizedRow(NamedTuple):
    """One tokenised row: the first `n_prompt` tokens are read, the rest are targets."""

    ids: tuple[int, ...]
    n_prompt: int


class Batch(NamedTuple):
    """Rows side by side.

    ids (rows, width) int64, right-padded with 0; targets (n, 3): row, position, token to predict there.
    """

    ids: Any
    targets: Any
    n_tokens: int


def encode_label_rows(
    data: Dataset, task: Task, *, codes: Sequence[int], tokenizer: Any, max_tokens: int
) -> list[TokenizedRow]:
    """Prompt and code token for each example; the code token is the target.

    There is no end-of-turn target here: the answer is read at one position and nothing is ever written after it.

    Raises DataError naming every row that is too long or whose label the task does not know.
    """
    code_of = dict(zip(task.closed, codes, strict=True))
    rows, problems = [], []
    for example in data.examples:
        prompt = encode_prompt(tokenizer, task.prompt(example.text), 1 << 30)
        code = code_of.get(example.answer)
        if code is None:
            problems.append(Problem(example.path, example.line, f'unknown label "{example.answer}"'))
        elif len(prompt) + 1 > max_tokens:
            rule = f"{len(prompt) + 1} tokens; the limit is {max_tokens} (max_seq_tokens)"
            problems.append(Problem(example.path, example.line, rule))
        else:
            rows.append(TokenizedRow((*prompt, code), len(prompt)))
    if problems:
        raise DataError(f"{len(problems)} of {len(data)} rows cannot be trained on:", problems)
    return rows


def encode_text_rows(data: Dataset, task: Task, *, tokenizer: Any, max_tokens: int) -> list[TokenizedRow]:
    """Prompt, target text and end token for each example; target text and end token are the targets.

    The end token is always there: a model that never saw one does not know when to stop. Raises DataError naming every
    row that is too long.
    """
    end = tokenizer.eos_token_id
    rows, problems = [], []
    for example in data.examples:
        prompt = encode_prompt(tokenizer, task.prompt(example.text), 1 << 30)
        target = tokenizer.encode(task.target(example.answer), add_special_tokens=False)
        n_tokens = len(prompt) + len(target) + 1
        if n_tokens > max_tokens:
            rule = f"{n_tokens} tokens; the limit is {max_tokens} (max_seq_tokens)"
            problems.append(Problem(example.path, example.line, rule))
        else:
            rows.append(TokenizedRow((*prompt, *target, end), len(prompt)))
    if problems:
        raise DataError(
            f"{len(problems)} of {len(data)} rows cannot be trained on:",
            problems,
            hint="raise small.training.max_seq_tokens in task.yaml, or shorten the rows",
        )
    return rows


def epoch_batches(rows: Sequence[TokenizedRow], *, batch_tokens: int, seed: int) -> list[list[TokenizedRow]]:
    """All rows in batches of at most `batch_tokens` tokens (padding included), in an order drawn from `seed`."""
    draw = random.Random(seed)
    noisy = sorted(rows, key=lambda row: len(row.ids) * draw.uniform(0.9, 1.1))
    batches: list[list[TokenizedRow]] = []
    current: list[TokenizedRow] = []
    width = 0
    for row in noisy:
        wider = max(width, len(row.ids) - 1)
        if current and wider * (len(current) + 1) > batch_tokens:
            batches.append(current)
            current, wider = [], len(row.ids) - 1
        current.append(row)
        width = wider
    if current:
        batches.append(current)
    draw.shuffle(batches)
    return batches


def micro_batches(rows: Sequence[TokenizedRow], most_tokens: int) -> list[list[TokenizedRow]]:
    """The rows, in order, in parts of at most `max_tokens` tokens, padding included; a longer row stands alone."""
    parts: list[list[TokenizedRow]] = []
    width = 0
    for row in rows:
        wider = max(width, len(row.ids) - 1)
        if parts and wider * (len(parts[-1]) + 1) <= most_tokens:
            parts[-1].append(row)
            width = wider
        else:
            parts.append([row])
            width = len(row.ids) - 1
    return parts


def collate(rows: Sequence[TokenizedRow]) -> Batch:
    """Tensors of one batch. The last token of a row is only a target, so it is not fed."""
    import torch

    width = max(len(row.ids) - 1 for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    targets = []
    for i, row in enumerate(rows):
        ids[i, : len(row.ids) - 1] = torch.tensor(row.ids[:-1])
        targets += [(i, at - 1, row.ids[at]) for at in range(row.n_prompt, len(row.ids))]
    return Batch(ids, torch.tensor(targets), sum(len(row.ids) - 1 for row in rows))
