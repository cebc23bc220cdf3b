"""Find the format that recorded answers have in common, and how many of them it gives back byte for byte."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from smallfirst.records import Record
from smallfirst.traffic.answers.answer_format import AnswerFormat
from smallfirst.traffic.answers.json_writing import find_writing
from smallfirst.traffic.messages import Answer

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


class FormatCheck(Record):
    """How faithfully a format gives recorded answers back."""

    n_answers: int
    """Recorded answers that were finished: neither cut off nor refused."""
    n_read: int
    """Of these, the ones that have the format."""
    n_exact: int
    """Of these, the ones that come back byte for byte."""
    recorded: str = ""
    """The first answer that has the format and does not come back; empty if all do."""
    rendered: str = ""
    """What comes back instead."""

    @property
    def is_exact(self) -> bool:
        """True if every answer that has the format comes back byte for byte."""
        return self.n_exact == self.n_read


class FoundFormat(NamedTuple):
    """A format with its check."""

    format: AnswerFormat
    labels: tuple[str, ...]
    """The labels, most frequent first, where the answers are a closed set; else empty."""
    check: FormatCheck


def find_format(answers: Sequence[Answer], asked: str = "") -> FoundFormat | None:
    """Return the format that at least MIN_READ of the finished answers have; None if they have none in common.

    An answer that stands in `asked`, the constant text of the prompts, counts as a label even if it is rare.
    """
    finished = [answer for answer in answers if answer.finish_reason in ("stop", "tool_calls")]
    if not finished:
        return None
    tool = Counter(_tool(answer) for answer in finished).most_common(1)[0][0]
    if tool is None:
        return None
    texts = [_text(answer, tool) for answer in finished if _tool(answer) == tool]
    kept = [text for text in texts if text.strip()]
    if len(kept) < MIN_READ * len(finished):
        return None
    framed = _text_format(kept)
    labels = _labels_in(framed, kept, asked)
    found = framed.model_copy(update={"kind": "label"}) if labels else _json_format(kept) or framed
    answer_format = found.model_copy(update={"tool": tool})
    return FoundFormat(answer_format, labels, check_format(answer_format, finished))


def check_format(answer_format: AnswerFormat, answers: Sequence[Answer]) -> FormatCheck:
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


def _tool(answer: Answer) -> str | None:
    """Return the one function that an answer calls; empty if it calls none, None if it also writes or calls several."""
    if not answer.tool_calls:
        return ""
    return answer.tool_calls[0].name if len(answer.tool_calls) == 1 and not answer.text.strip() else None


def _text(answer: Answer, tool: str) -> str:
    return answer.tool_calls[0].arguments if tool else answer.text


def _shown(answer: Answer) -> str:
    return "".join(f"{call.name}({call.arguments})" for call in answer.tool_calls) or answer.text


def _labels_in(framed: AnswerFormat, texts: Sequence[str], asked: str) -> tuple[str, ...]:
    """Return the labels inside the frame of answers; empty if they are no closed set, or JSON of several fields."""
    values = [value for text in texts if (value := framed.parse(Answer(text))) is not None]
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
    valid = [body for body in bodies if one.parse(Answer(prefix + body + suffix)) is not None]
    if len(valid) < MIN_READ * len(texts):
        return None
    return one.model_copy(update={"writing": find_writing(valid)})


def _text_format(texts: Sequence[str]) -> AnswerFormat:
    prefix, suffix = _frame(texts)
    return AnswerFormat(kind="text", prefix=prefix, suffix=suffix)


def frequent_labels(values: Sequence[str], asked: str = "") -> tuple[str, ...]:
    """Return the values of a closed set, most frequent first; empty if the values are no closed set.

    Values seen fewer than MIN_PER_LABEL times are no labels, unless they are listed in what is `asked`: a model that
    cannot answer says so in its own words.
    """
    counts = Counter(values)
    labels = [
        value
        for value, n in counts.most_common()
        if len(value) <= MAX_LABEL_CHARACTERS and (n >= MIN_PER_LABEL or _is_listed(value, asked))
    ]
    labelled = sum(counts[label] for label in labels)
    closed = len(labels) <= min(MAX_LABELS, len(values) / 2) and labelled >= MIN_LABELLED * max(1, len(values))
    return tuple(labels) if closed else ()


def _is_listed(value: str, asked: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", asked) is not None


def _frame(texts: Sequence[str]) -> tuple[str, str]:
    """Return the constant text before and after the values: almost all answers have it, and it is no part of them."""
    counts = Counter(texts)
    prefix = _common(counts)
    while prefix and not _is_frame(prefix):
        prefix = prefix[:-1]
    rest = Counter({text[len(prefix) :][::-1]: n for text, n in counts.items() if text.startswith(prefix)})
    suffix = _common(rest)[::-1]
    suffix = suffix[len(re.match(r"[\w ]*", suffix)[0]) :]  # type: ignore[index]  # it matches nothing too
    return prefix, suffix


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
