"""What prompts share: which of them come from one wording, and the constant text around what varies in it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from smallfirst.traffic.task_source import values_between
from smallfirst.traffic.wire import Prompt, Turn

MIN_CONSTANT_CHARACTERS = 20
"""Fewest characters that prompts must share for these to be a template."""
MIN_SHARE = 0.8
"""Least share of prompts that must follow a template."""
_SAMPLE = 120
_TOKEN = re.compile(r"[^\W_]+|\n+|[^\S\n]+|[\W_]")
_DAYS = "monday tuesday wednesday thursday friday saturday sunday mon tue wed thu fri sat sun"
_MONTHS = "january february march april may june july august september october november december"
_SHORT_MONTHS = "jan feb mar apr jun jul aug sep sept oct nov dec"
_CALENDAR = frozenset(f"{_DAYS} {_MONTHS} {_SHORT_MONTHS}".split())
_FOLDED = "\0"
_NEARLY_ALL = 0.99
_LEAST_CHARACTERS = 8
_MARKS = re.escape('\n"`<>[](){}#=|„“”«»')
_MARK = re.compile(f"[:{_MARKS}]")
_AFTER_MARK = re.compile(rf".*[:{_MARKS}]\s*", re.DOTALL)
_CASE_END = re.compile(rf"[\w \t.?!,;']*(?=[{_MARKS}]|->|$)")
_JOINTS = frozenset("-/.,: ")
_LOOKED_AT = 50
_MOST_WORDS_OF_A_CASE = 2
"""Words that all cases may begin with; more are the prompt's."""

Wanted = Callable[[str], bool]


def tokens(text: str) -> list[str]:
    """Return words, runs of white space and single other characters, which together are the text."""
    return _TOKEN.findall(text)


def varies_by_nature(token: str) -> bool:
    """True for what dates, times, numbers and ids are made of: anything with a digit, names of days and months."""
    return token.lower() in _CALENDAR if token.isalpha() else any(map(str.isdigit, token))


def has_mark(text: str) -> bool:
    """True if something in a text sets parts of it apart, such as a colon, a line break, quotes or brackets."""
    return _MARK.search(text) is not None


def find_template(prompts: Sequence[str]) -> tuple[str, ...] | None:
    """Return the constant pieces around the case that most prompts follow; None if they share no constant text."""
    different = list(dict.fromkeys(prompts))
    if len(different) < 3:
        return None
    step = max(1, len(different) // _SAMPLE)
    for share in (1.0, MIN_SHARE):  # the second is for prompts of which a few follow no template
        pieces = constant_pieces(different[::step][:_SAMPLE], share)
        n_followed = sum(values_between(pieces, prompt) is not None for prompt in prompts)
        n_constant = sum(len(piece.strip()) for piece in pieces)
        if n_constant >= MIN_CONSTANT_CHARACTERS and n_followed >= MIN_SHARE * len(prompts):
            return pieces
    return None


def constant_pieces(texts: Sequence[str], share: float = _NEARLY_ALL) -> tuple[str, ...]:
    """Return the constant text around what varies, as pieces with a slot between each two; equal texts are one piece.

    At least `share` of the texts should follow. The outer pieces may be empty.
    """
    folded = [_fold(text) for text in texts]
    pieces = _unfolded(_pieces([text for text, _ in folded], 0, share), folded)
    return _joined(pieces, texts) if len(pieces) > 1 else tuple(pieces)


def _fold(text: str) -> tuple[str, list[str]]:
    """Return the text with one mark in place of each date's or number's part, and these parts."""
    words = tokens(text)
    varying = [word for word in words if word == _FOLDED or varies_by_nature(word)]
    return "".join(_FOLDED if word == _FOLDED or varies_by_nature(word) else word for word in words), varying


def _unfolded(pieces: Sequence[str], folded: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Return the pieces with the parts of dates and numbers that are the same in nearly all texts; others are slots."""
    found: list[list[list[str]]] = []  # per text, per piece, the parts that stand in it
    for text, varying in folded:
        values = values_between(pieces, text)
        if values is None:
            continue
        at, parts = 0, []
        for piece, value in zip(pieces, (*values, ""), strict=True):
            n = piece.count(_FOLDED)
            parts.append(varying[at : at + n])
            at += n + value.count(_FOLDED)
        found.append(parts)
    unfolded: list[str] = []
    for i, piece in enumerate(pieces):
        first, *rest = piece.split(_FOLDED)
        unfolded.append(first)
        for k, after in enumerate(rest):
            part, n = Counter(parts[i][k] for parts in found).most_common(1)[0] if found else ("", 0)
            if found and n >= _NEARLY_ALL * len(found):
                unfolded[-1] += part + after
            else:
                unfolded.append(after)
    return unfolded


# Three passes: long runs of words, short ones with a mark such as a colon, paragraph breaks.
_PASSES: tuple[tuple[int, Wanted], ...] = (
    (5, lambda run: len(run.replace(_FOLDED, "0000").strip()) >= _LEAST_CHARACTERS and any(map(str.isalpha, run))),
    (3, lambda run: has_mark(run) and any(map(str.isalpha, run))),
    (1, lambda run: run.count("\n") >= 2),
)


def _pieces(texts: list[str], level: int, share: float = _NEARLY_ALL) -> list[str]:
    """Return constant pieces with a slot between each two of them; the first and the last may be empty."""
    common, n = Counter(texts).most_common(1)[0]
    if n >= share * len(texts):
        return [common]
    first = _beginning(texts, share)
    texts = [text[len(first) :] for text in texts if text.startswith(first)]
    last = _beginning([text[::-1] for text in texts], share)[::-1]
    texts = [text[: len(text) - len(last)] for text in texts if text.endswith(last)]
    inner: list[str] = []
    while level < len(_PASSES) and not inner:
        inner = _anchors(texts, share, *_PASSES[level])
        level += not inner
    gaps = [gap for text in texts if (gap := values_between(["", *inner, ""], text))] if inner else []
    if not gaps:
        return [first, last]
    found = [first]
    for between, after in zip(zip(*gaps, strict=True), (*inner, last), strict=True):
        pieces = _pieces(list(between), level)
        found[-1] += pieces[0]
        found += pieces[1:]
        found[-1] += after
    return found


def _beginning(texts: Sequence[str], share: float) -> str:
    """Return what `share` of the texts begin with, up to the end of a token."""
    ordered = sorted(texts)
    n = math.ceil(share * len(ordered))
    ends = [(ordered[i], ordered[i + n - 1]) for i in range(len(ordered) - n + 1)]
    low, high = max(ends, key=lambda pair: _n_common(*pair))
    common = low[: _n_common(low, high)]
    if len(common) < max(len(low), len(high)):
        cut = tokens(common)
        whole = tokens(low)[: len(cut)] == cut and tokens(high)[: len(cut)] == cut
        common = "".join(cut if whole else cut[:-1])
    return common


def _n_common(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _anchors(texts: Sequence[str], share: float, size: int, wanted: Wanted) -> list[str]:
    """Return pieces that stand in nearly all texts in this order, made of runs that each text has equally often."""
    split = [tokens(text) for text in texts]
    texts_by_count: Counter[tuple[str, int]] = Counter()
    for words in split:
        texts_by_count.update(Counter(_runs(words, size)).items())
    least = share * len(texts)
    common = {run for (run, _), n in texts_by_count.items() if n >= least and wanted(run)}
    if not common:
        return []
    words = max(split, key=lambda words: sum(run in common for run in _runs(words, size)))
    return _in_order(_stretches(words, size, common), texts, least)


def _runs(words: Sequence[str], size: int) -> list[str]:
    return ["".join(words[i : i + size]) for i in range(len(words) - size + 1)]


def _stretches(words: Sequence[str], size: int, common: set[str]) -> list[str]:
    """Return the stretches of `words` that are made of common runs."""
    stretches: list[str] = []
    end = -1
    for i, run in enumerate(_runs(words, size)):
        if run not in common:
            continue
        if i < end:
            stretches[-1] += "".join(words[end : i + size])
        else:
            stretches.append(run)
        end = i + size
    return stretches


def _in_order(pieces: list[str], texts: Sequence[str], least: float) -> list[str]:
    """Return the pieces without those that are not found after the one before; of two in conflict the shorter goes."""
    while pieces:
        missed: Counter[int] = Counter()
        for text in texts:
            at = 0
            for i, piece in enumerate(pieces):
                found = text.find(piece, at)
                if found < 0:
                    missed[i] += 1
                    break
                at = found + len(piece)
        if len(texts) - missed.total() >= least:
            break
        i = missed.most_common(1)[0][0]
        del pieces[i - 1 if i and len(pieces[i - 1]) < len(pieces[i]) else i]
    return pieces


# Where a slot begins and ends


def _joined(pieces: list[str], texts: Sequence[str]) -> tuple[str, ...]:
    """Return the pieces with slots widened to whole cases and dates, and without pieces that say nothing."""
    pieces = _without_silent(pieces)
    values = [found for text in texts[:_LOOKED_AT] if (found := values_between(pieces, text))]
    is_number = [_are_numbers(slot) for slot in zip(*values, strict=True)]
    last = len(pieces) - 1
    trimmed = []
    for i, piece in enumerate(pieces):
        if i > 0:
            piece = _without_number(piece) if is_number[i - 1] else _without_case_before(piece)
        if i < last:
            piece = _without_number(piece[::-1])[::-1] if is_number[i] else _without_case_after(piece)
        trimmed.append(piece)
    return tuple(_without_silent(trimmed))


def _without_silent(pieces: Sequence[str]) -> list[str]:
    """Return the pieces without inner ones that only join the parts of a date or number."""
    inner = [piece for piece in pieces[1:-1] if ": " in piece or not _JOINTS.issuperset(piece)]
    return [pieces[0], *inner, pieces[-1]]


def _are_numbers(values: Sequence[str]) -> bool:
    """True if (nearly) all values are dates, times, numbers or ids."""
    found = [all(varies_by_nature(t) or t in _JOINTS for t in tokens(v)) for v in values if 0 < len(v) < 40]
    return sum(found) >= 0.9 * len(values)


def _without_number(piece: str) -> str:
    """Return a piece without the rest of a number or date at its beginning."""
    words = tokens(piece)
    at = 0
    for i, word in enumerate(words):
        if varies_by_nature(word) or varies_by_nature(word[::-1]):
            at = i + 1
        elif word not in _JOINTS:
            break
    return "".join(words[at:])


def _without_case_after(piece: str) -> str:
    """Return a piece before a slot without words that all cases begin with."""
    marked = _AFTER_MARK.match(piece)
    rest = piece[marked.end() :] if marked else piece
    return piece[: len(piece) - len(rest)] if 0 < len(rest.split()) <= _MOST_WORDS_OF_A_CASE else piece


def _without_case_before(piece: str) -> str:
    """Return a piece after a slot without the words and the full stop that all cases end with."""
    found = _CASE_END.match(piece)
    end = found.group() if found else ""
    return piece[len(end.rstrip()) :] if 0 < len(end.split()) <= _MOST_WORDS_OF_A_CASE else piece


# Prompts of one wording: those that share long runs of tokens which exactly they share

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
