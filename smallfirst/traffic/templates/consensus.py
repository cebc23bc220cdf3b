"""The constant pieces of texts that one program wrote, in order: what stands in nearly all of them, once in each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from smallfirst.traffic.templates.template import TextPattern
from smallfirst.traffic.templates.tokens import tokens, varies_by_nature

_NEARLY_ALL = 0.99
_LEAST_CHARACTERS = 8
_MARK = re.compile(r'[:\n"`<>\[\](){}#=|]')
_AFTER_MARK = re.compile(r'.*[:\n"`<>\[\](){}#=|]\s*', re.DOTALL)
_BEFORE_MARK = re.compile(r'[^\n"`<>\[\](){}#=|]*(?=[\n"`<>\[\](){}#=|])')
_JOINTS = frozenset("-/.,: ")
_LOOKED_AT = 50
_MOST_WORDS_OF_A_CASE = 2
"""Words that all cases may begin with; more are the prompt's."""

Wanted = Callable[[str], bool]


def consensus(texts: Sequence[str]) -> TextPattern:
    """Return the pattern that nearly all texts follow; equal texts are a pattern without a slot."""
    pieces = _pieces(list(texts), 0)
    return TextPattern(pieces=_joined(pieces, texts) if len(pieces) > 1 else tuple(pieces))


# Three passes: long runs of words, short ones with a mark such as a colon, paragraph breaks.
_PASSES: tuple[tuple[int, Wanted], ...] = (
    (5, lambda run: len(run.strip()) >= _LEAST_CHARACTERS),
    (3, lambda run: bool(_MARK.search(run)) and any(map(str.isalpha, run))),
    (1, lambda run: run.count("\n") >= 2),
)


def _pieces(texts: list[str], level: int) -> list[str]:
    """Return constant pieces with a slot between each two of them; the first and the last may be empty."""
    common, n = Counter(texts).most_common(1)[0]
    if n >= _NEARLY_ALL * len(texts):
        return [common]
    first = _beginning(texts)
    texts = [text[len(first) :] for text in texts if text.startswith(first)]
    last = _beginning([text[::-1] for text in texts])[::-1]
    texts = [text[: len(text) - len(last)] for text in texts if text.endswith(last)]
    inner: list[str] = []
    while level < len(_PASSES) and not inner:
        inner = _anchors(texts, *_PASSES[level])
        level += not inner
    gaps = [gap for text in texts if (gap := _gaps(text, inner))] if inner else []
    if not gaps:
        return [first, last]
    found = [first]
    for between, after in zip(zip(*gaps, strict=True), (*inner, last), strict=True):
        pieces = _pieces(list(between), level)
        found[-1] += pieces[0]
        found += pieces[1:]
        found[-1] += after
    return found


def _beginning(texts: Sequence[str]) -> str:
    """Return what nearly all texts begin with, up to the end of a token."""
    ordered = sorted(texts)
    spare = int((1 - _NEARLY_ALL) * len(ordered) / 2)
    low, high = ordered[spare], ordered[-1 - spare]
    n = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    common = low[:n]
    if len(common) < max(len(low), len(high)):
        cut = tokens(common)
        whole = tokens(low)[: len(cut)] == cut and tokens(high)[: len(cut)] == cut
        common = "".join(cut if whole else cut[:-1])
    return common


def _anchors(texts: Sequence[str], size: int, wanted: Wanted) -> list[str]:
    """Return pieces that stand in nearly all texts in this order, made of runs that each text has equally often."""
    split = [tokens(text) for text in texts]
    numbers: dict[str, Counter[int]] = {}
    for words in split:
        for run, n in Counter(_runs(words, size)).items():
            numbers.setdefault(run, Counter())[n] += 1
    least = _NEARLY_ALL * len(texts)
    common = {run for run, counts in numbers.items() if max(counts.values()) >= least and wanted(run)}
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


def _gaps(text: str, pieces: Sequence[str]) -> list[str] | None:
    gaps, at = [], 0
    for piece in pieces:
        found = text.find(piece, at)
        if found < 0:
            return None
        gaps.append(text[at:found])
        at = found + len(piece)
    return [*gaps, text[at:]]


# Where a slot begins and ends


def _joined(pieces: list[str], texts: Sequence[str]) -> tuple[str, ...]:
    """Return the pieces with slots widened to whole cases and dates, and without pieces that say nothing."""
    pieces = _without_silent(pieces)
    values = [found for text in texts[:_LOOKED_AT] if (found := TextPattern(pieces=tuple(pieces)).values(text))]
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
    """Return the pieces that have a word or end a paragraph; the outer ones are kept."""
    inner = [piece for piece in pieces[1:-1] if any(map(str.isalnum, piece)) or piece.count("\n") > 1]
    return [pieces[0], *inner, pieces[-1]]


def _are_numbers(values: Sequence[str]) -> bool:
    """True if (nearly) all values are dates, times, numbers or ids."""
    n = sum(bool(value) and all(map(_is_of_number, tokens(value))) and len(value) < 40 for value in values)
    return n >= 0.9 * len(values)


def _is_of_number(token: str) -> bool:
    return varies_by_nature(token) or token in _JOINTS


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
    before = _BEFORE_MARK.match(piece)
    end = before.group() if before else piece
    if 0 < len(end.split()) <= _MOST_WORDS_OF_A_CASE and ":" not in end:
        return piece[len(end.rstrip()) :] if before else ""
    return piece
