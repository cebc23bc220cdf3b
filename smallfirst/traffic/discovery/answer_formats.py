"""Find the format that recorded answers have: a frame around labels, JSON or text, and how the JSON is written."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from smallfirst.data.conversations import NO_CALL
from smallfirst.traffic.task_source import AnswerFormat, FormatCheck, JsonWriting, child_path
from smallfirst.traffic.wire import ModelAnswer

MIN_READ = 0.9
"""Share of the answers that must have the common format for there to be one."""
MAX_LABELS = 300
"""Most labels of a closed set."""
MAX_LABEL_CHARACTERS = 80
MIN_PER_LABEL = 3
"""Fewest times that an answer must have been given to count as a label."""
MIN_LABELLED = 0.95
"""Share of the answers that must be such labels."""
_FRAME_SHARE, _FRAME_DISTINCT = 0.95, 0.6
_CONNECTS = re.compile(r"""[:"'`*({\[<>=|\-\n]\s*$""")


class FoundFormat(NamedTuple):
    """A format with its check."""

    format: AnswerFormat
    labels: tuple[str, ...]
    """The labels, most frequent first, where the answers are a closed set; else empty."""
    check: FormatCheck


def find_format(answers: Sequence[ModelAnswer], asked: str = "") -> FoundFormat | None:
    """Return the format that at least MIN_READ of the finished answers have; None if they have none in common.

    An answer that stands in `asked`, the constant text of the prompts, counts as a label even if it is rare.
    """
    finished = [answer for answer in answers if answer.finish_reason in ("stop", "tool_calls")]
    if not finished:
        return None
    if called := _called_format(finished):
        return called
    tool = Counter(_tool(answer) for answer in finished).most_common(1)[0][0]
    if tool is None:
        return None
    own = (answer for answer in finished if _tool(answer) == tool)
    texts = [answer.tool_calls[0].arguments if tool else answer.text for answer in own]
    kept = [text for text in texts if text.strip()]
    if len(kept) < MIN_READ * len(finished):
        return None
    framed = _text_format(kept)
    labels = _labels_in(framed, kept, asked)
    found = framed.model_copy(update={"kind": "label"}) if labels else _json_format(kept) or framed
    answer_format = found.model_copy(update={"tool": tool})
    return FoundFormat(answer_format, labels, check_format(answer_format, finished))


def check_format(answer_format: AnswerFormat, answers: Sequence[ModelAnswer]) -> FormatCheck:
    """Return how faithfully the format gives these answers back."""
    finished = [answer for answer in answers if answer.finish_reason in ("stop", "tool_calls")]
    read = [(answer, value) for answer in finished if (value := answer_format.parse(answer)) is not None]
    differ = [(answer, value) for answer, value in read if not answer_format.reproduces(answer)]
    check = FormatCheck(n_answers=len(finished), n_read=len(read), n_exact=len(read) - len(differ))
    if not differ:
        return check
    answer, value = differ[0]
    texts = {"recorded": _shown(answer), "rendered": _shown(answer_format.render(value))}
    return check.model_copy(update=texts)


def _tool(answer: ModelAnswer) -> str | None:
    """Return the one function that an answer calls; empty if it calls none, None if it also writes or calls several."""
    if not answer.tool_calls:
        return ""
    return answer.tool_calls[0].name if len(answer.tool_calls) == 1 and not answer.text.strip() else None


def _called_format(finished: Sequence[ModelAnswer]) -> FoundFormat | None:
    """Return the format of answers that call one of several functions, all with the same arguments; None for others."""
    calls = [answer.tool_calls[0] for answer in finished if _tool(answer)]
    arguments = Counter(call.arguments for call in calls).most_common(1)[0][0] if calls else ""
    names = [call.name for call in calls if call.arguments == arguments]
    labels = frequent_labels(names)
    if len(labels) < 2 or len(names) < MIN_READ * len(finished):
        return None
    found = AnswerFormat(kind="label", calls=True, prefix=arguments)
    return FoundFormat(found, labels, check_format(found, finished))


def find_call_format(answers: Sequence[ModelAnswer]) -> FoundFormat:
    """Return how the calls among an assistant's answers are written; the check counts these alone."""
    plain = AnswerFormat(kind="call")
    made = [answer for answer in answers if plain.parse(answer) not in (None, NO_CALL)]
    calls = [answer.tool_calls[0] for answer in made]
    try:
        found = find_writing([call.arguments or "{}" for call in calls], [call.name for call in calls])
    except ValueError:  # a number that no float holds
        found = plain.writing
    answer_format = plain.model_copy(update={"writing": found})
    return FoundFormat(answer_format, (), check_format(answer_format, made))


def _shown(answer: ModelAnswer) -> str:
    return "".join(f"{call.name}({call.arguments})" for call in answer.tool_calls) or answer.text


def _labels_in(framed: AnswerFormat, texts: Sequence[str], asked: str) -> tuple[str, ...]:
    """Return the labels inside the frame of answers; empty if they are no closed set, or JSON of several fields."""
    values = [value for text in texts if (value := framed.parse(ModelAnswer(text))) is not None]
    labels = frequent_labels(values, asked) if len(values) >= MIN_READ * len(texts) else ()
    in_json = _starts_json(framed.prefix.lstrip("`json\n ")) or any(_starts_json(label) for label in labels)
    return () if len(labels) < 2 or (in_json and any(set(label) & set('"{[') for label in labels)) else labels


def _json_format(texts: Sequence[str]) -> AnswerFormat | None:
    """Return the frame around JSON and how it is written; None if the answers are no JSON."""
    found = [split for text in texts if (split := _split_json(text))]
    if len(found) < MIN_READ * len(texts):
        return None
    (prefix, suffix), _ = Counter((before, after) for before, _, after in found).most_common(1)[0]
    one = AnswerFormat(kind="json", prefix=prefix, suffix=suffix)
    bodies = [body for before, body, after in found if (before, after) == (prefix, suffix)]
    valid = [body for body in bodies if one.parse(ModelAnswer(prefix + body + suffix)) is not None]
    if len(valid) < MIN_READ * len(texts):
        return None
    return one.model_copy(update={"writing": find_writing(valid)})


def frequent_labels(values: Sequence[str], asked: str = "") -> tuple[str, ...]:
    """Return the values of a closed set, most frequent first; empty if the values are no closed set.

    Values seen fewer than MIN_PER_LABEL times are no labels, unless they are listed in what is `asked`: a model that
    cannot answer says so in its own words.
    """
    counts = Counter(values)
    labels = [
        value
        for value, n in counts.most_common()
        if len(value) <= MAX_LABEL_CHARACTERS
        and (n >= MIN_PER_LABEL or re.search(rf"(?<!\w){re.escape(value)}(?!\w)", asked))
    ]
    labelled = sum(counts[label] for label in labels)
    closed = len(labels) <= min(MAX_LABELS, len(values) / 2) and labelled >= MIN_LABELLED * max(1, len(values))
    return tuple(labels) if closed else ()


def _text_format(texts: Sequence[str]) -> AnswerFormat:
    """Return the constant text before and after the values: almost all answers have it, and it is no part of them."""
    counts = Counter(texts)
    prefix = _common(counts)
    while prefix and not _is_frame(prefix):
        prefix = prefix[:-1]
    rest = Counter({text[len(prefix) :][::-1]: n for text, n in counts.items() if text.startswith(prefix)})
    suffix = _common(rest)[::-1]
    suffix = suffix[len(re.match(r"[\w ]*", suffix)[0]) :]  # type: ignore[index]  # it matches nothing too
    return AnswerFormat(kind="text", prefix=prefix, suffix=suffix)


def _is_frame(prefix: str) -> bool:
    """Return True if text ends as a frame does: at a mark such as a colon or quote, or after three words."""
    if _CONNECTS.search(prefix):
        return not re.search(r"\w-$", prefix)  # the hyphen of a word
    return prefix[-1].isspace() and len(prefix.split()) >= 3 and prefix[0].isupper()


def _common(counts: Counter[str]) -> str:
    """Return the longest beginning that almost all answers and most different ones have."""
    total, distinct, common = counts.total(), len(counts), ""
    if distinct < 2:
        return ""
    while counts:
        at = len(common)
        following: Counter[str] = Counter()
        for text, n in counts.items():
            if len(text) > at:
                following[text[at]] += n
        if not following:
            break
        character, n = following.most_common(1)[0]
        counts = Counter({text: m for text, m in counts.items() if len(text) > at and text[at] == character})
        if n < _FRAME_SHARE * total or len(counts) < max(2, _FRAME_DISTINCT * distinct):
            break
        common += character
    return common


def _split_json(text: str) -> tuple[str, str, str] | None:
    """Return what stands before, in and after the outermost brackets of a text; None if there are none."""
    start = min((at for mark in "{[" if (at := text.find(mark)) >= 0), default=-1)
    end = max(text.rfind("}"), text.rfind("]")) + 1
    return (text[:start], text[start:end], text[end:]) if 0 <= start < end else None


def _starts_json(text: str) -> bool:
    return text[:1] in ("{", "[")


# How JSON is written

_FIRST, _SAMPLE, _KEPT = 10, 300, 3
"""Answers on which all writings are compared, and those on which the best few are."""
_INDENTS = ("", " ", "  ", "   ", "    ", "\t")


def find_writing(texts: Sequence[str], paths: Sequence[str] = ()) -> JsonWriting:
    """Return the writing that gives most of these JSON texts, each at a path, back byte for byte.

    Raise ValueError if one is no JSON.
    """
    values, paths = [json.loads(text, parse_float=_Written) for text in texts], paths or [""] * len(texts)
    orders: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
    numbers: dict[str, Counter[int]] = defaultdict(Counter)
    for path, value in (found for one, at in zip(values, paths, strict=True) for found in _walk(one, at)):
        if isinstance(value, dict):
            orders[path][tuple(value)] += 1
        else:
            numbers[path][value.n_decimals if isinstance(value, _Written) else 0] += 1
    common = {path: counts.most_common(1)[0] for path, counts in numbers.items()}
    found = JsonWriting(
        keys={path: _merged(counts) for path, counts in orders.items()},
        # Numbers whose last decimal may be any digit end in 0 one time in ten, where a shortest form drops it.
        decimals={path: n for path, (n, times) in common.items() if n > 0 and times > 0.95 * numbers[path].total()},
    )
    pairs = list(zip(texts, values, paths, strict=True))

    def n_exact(writing: JsonWriting, sample: Sequence[tuple[str, Any, str]]) -> int:
        return sum(writing.write(value, path) == text for text, value, path in sample)

    best = sorted(_writings(found), key=lambda one: -n_exact(one, pairs[:_FIRST]))[:_KEPT]
    return max(best, key=lambda one: n_exact(one, pairs[:_SAMPLE]))


def _writings(found: JsonWriting) -> Iterator[JsonWriting]:
    layouts = [(indent, ", ", ": ") for indent in _INDENTS[1:]]
    numbers = ({}, found.decimals) if found.decimals else ({},)
    layouts += [("", item, key) for item, key in itertools.product((", ", ","), (": ", ":"))]
    for decimals, ascii_only, (indent, item, key) in itertools.product(numbers, (False, True), layouts):
        yield found.model_copy(
            update={
                "decimals": decimals,
                "ascii_only": ascii_only,
                "indent": indent,
                "item_separator": item,
                "key_separator": key,
            }
        )


class _Written(float):
    """A number that remembers how many decimals it was written with; -1 with an exponent."""

    n_decimals: int

    def __new__(cls, text: str) -> _Written:
        number = super().__new__(cls, text)
        if not math.isfinite(number):
            raise ValueError(f"{text} is too large")
        number.n_decimals = -1 if "e" in text.lower() else len(text.partition(".")[2])
        return number


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every object and number in a value with its path."""
    if isinstance(value, dict):
        yield path, value
        for key, held in value.items():
            yield from _walk(held, child_path(path, key))
    elif isinstance(value, list):
        for held in value:
            yield from _walk(held, f"{path}[]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def _merged(orders: Counter[tuple[str, ...]]) -> tuple[str, ...]:
    """Return all keys in the most frequent order; a key that it lacks stands behind the one that precedes it."""
    merged: list[str] = []
    for order, _ in orders.most_common():
        place = 0
        for key in order:
            if key not in merged:
                merged.insert(place, key)
            place = merged.index(key) + 1
    return tuple(merged)
