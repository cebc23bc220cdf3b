"""Which prompts come from one wording: those that share long runs of tokens which exactly they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from smallfirst.traffic.task_source import tokens, varies_by_nature
from smallfirst.traffic.wire.messages import Prompt, Turn

RUN = 5
"""Tokens in a run."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_LEAST_RUNS = 3
"""Fewest runs that prompts must share to be looked at together."""
_LEAST_RUNS_OF_A_WORDING = 3 * RUN
"""Fewest runs in which a wording of a program differs from another: a value of a slot is in fewer."""
_MOST_WORDINGS = 8
"""A program has few wordings of a prompt; more groups inside one are kinds of cases, such as layouts of mails."""
_COVERED, _CONSTANT = 0.9, 0.98
_LEAST_SHARE = 0.03
_MOST_DEPTH = 6


class Runs(NamedTuple):
    """Runs of tokens in some prompts as hashes, each once a prompt."""

    hashes: NDArray[np.uint64]
    prompts: NDArray[np.int64]
    """Index of the prompt that each stands in."""


class _Block(NamedTuple):
    """Runs that stand in exactly the same prompts."""

    prompts: NDArray[np.int64]
    n_runs: int

    @property
    def weight(self) -> int:
        return len(self.prompts) * self.n_runs


def wordings(prompts: Sequence[Prompt], least: int) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of prompts that share a wording, `least` or more each; prompts that share nothing are left out.

    Prompts are first put together by the most text that most of them share, then taken apart where a few groups cover
    (nearly) all of them and each has much constant text of its own: these are versions of a wording.
    """
    yield from _split(runs_of(prompts), np.arange(len(prompts)), least, 0)


def runs_of(prompts: Sequence[Prompt]) -> Runs:
    """Return the runs of all messages of each prompt, role by role, dates and numbers folded into one token."""
    numbers: dict[str, int] = {}
    read: dict[Turn, NDArray[np.uint64]] = {}  # messages come again and are read once

    def numbered(turn: Turn) -> NDArray[np.uint64]:
        if turn not in read:
            words = ("0" if varies_by_nature(token) else token for token in tokens(turn.text))
            ids = [numbers.setdefault(word, len(numbers) + 1) for word in (f"\0{turn.role}", *words)]
            read[turn] = np.array(ids, dtype=np.uint64)
        return read[turn]

    arrays = [_run_hashes(np.concatenate([numbered(turn) for turn in prompt.turns])) for prompt in prompts]
    which = np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])
    return Runs(np.concatenate(arrays), which)


def _run_hashes(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the distinct hashes of runs of RUN numbers."""
    n = max(len(values) - RUN + 1, 1)
    values = np.pad(values, (0, n + RUN - 1 - len(values)))
    hashes = np.zeros(n, np.uint64)
    for i in range(RUN):
        hashes = (hashes ^ values[i : i + n]) * _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes)


def _split(runs: Runs, members: NDArray[np.int64], least: int, depth: int) -> Iterator[NDArray[np.int64]]:
    """Yield groups of `members`, which `runs` number from 0."""
    n = len(members)
    if n < least:
        return
    blocks = [block for block in _blocks(runs, n, least) if not depth or len(block.prompts) < _CONSTANT * n]
    groups, rest = _disjoint(blocks, n, least if not depth else max(least, round(_LEAST_SHARE * n)), depth)
    if depth and (depth > _MOST_DEPTH or not _are_wordings(groups, rest, blocks, n)):
        yield members
        return
    for group in groups:
        yield from _split(_of(runs, group, n), members[group], least, depth + 1)
    if depth and len(rest) >= least:
        yield members[rest]


def _are_wordings(
    groups: Sequence[NDArray[np.int64]], rest: NDArray[np.int64], blocks: Sequence[_Block], n: int
) -> bool:
    """True if groups inside one wording are versions of it, not kinds of cases."""
    if not groups or len(groups) > _MOST_WORDINGS:
        return False
    if len(groups) > 1 and len(rest) <= (1 - _COVERED) * n:
        return True
    return any(len(block.prompts) == len(rest) and np.array_equal(block.prompts, rest) for block in blocks)


def _blocks(runs: Runs, n: int, least: int) -> list[_Block]:
    """Return runs in at least `least` prompts, those of the same prompts together, the heaviest first."""
    order = np.argsort(runs.hashes, kind="stable")
    hashes, prompts = runs.hashes[order], runs.prompts[order]
    starts = np.flatnonzero(np.concatenate(([True], hashes[1:] != hashes[:-1])))
    counts = np.diff(np.append(starts, len(hashes)))
    keys = np.random.default_rng(0).integers(1, 2**63, n, dtype=np.uint64)
    sums = np.add.reduceat(keys[prompts], starts)
    kept = counts >= least
    _, first, sizes = np.unique(sums[kept], return_index=True, return_counts=True)
    starts, counts = starts[kept][first], counts[kept][first]
    blocks = [
        _Block(prompts[start : start + count], int(size))
        for start, count, size in zip(starts, counts, sizes, strict=True)
        if size >= _LEAST_RUNS or count * 2 >= n
    ]
    return sorted(blocks, key=lambda block: -block.weight)


def _disjoint(
    blocks: Sequence[_Block], n: int, least: int, depth: int
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Return groups of prompts by their heaviest block, and the prompts in none."""
    free = np.ones(n, bool)
    groups = []
    for block in blocks:
        if block.n_runs < (_LEAST_RUNS_OF_A_WORDING if depth else _LEAST_RUNS):
            continue
        found = block.prompts[free[block.prompts]]
        if len(found) >= max(least, len(block.prompts) / 2):
            free[found] = False
            groups.append(np.sort(found))
    return groups, np.flatnonzero(free)


def _of(runs: Runs, group: NDArray[np.int64], n: int) -> Runs:
    """Return the runs of some prompts, numbered anew."""
    numbers = np.full(n, -1, np.int64)
    numbers[group] = np.arange(len(group))
    kept = numbers[runs.prompts] >= 0
    return Runs(runs.hashes[kept], numbers[runs.prompts[kept]])
