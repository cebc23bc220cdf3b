"""Chats, batch files and logs of any known format as rows to learn from, for `smallfirst init --from`."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from smallfirst.base.errors import ConfigError, Problem
from smallfirst.data.dataset import fold_text
from smallfirst.data.importers.table import Converted, Table, as_object
from smallfirst.data.sources.text_files import RawRow
from smallfirst.traffic.discovery.templates import find_template
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.logs.formats import PAIRS, LogRecord, holds_messages, is_batch
from smallfirst.traffic.logs.read import LogReader
from smallfirst.traffic.task_source import values_between
from smallfirst.traffic.wire import read_answer, read_prompt

_CUT_OFF = ("length", "content_filter", "refusal")


class LogImporter:
    """Rows that the reader of logs knows; a table of two columns of text is none of them."""

    def __init__(self, title: str, recognizes: Callable[[dict[str, Any]], bool]) -> None:
        self.title, self.recognizes = title, recognizes

    def convert(self, rows: Sequence[RawRow]) -> Converted:
        """Return the rows as a table. Raise ConfigError if only the requests or the responses of a batch are there."""
        reader, found = LogReader(tables=False), list[Exchange | Problem]()
        for path, line, values in rows:
            if isinstance(values, dict) and (is_batch(values) or reader.format_of(values)):
                found += reader.read(LogRecord(path, line, values))
            else:
                found.append(Problem(path, line, "no request and answer in it"))
        left = reader.left()
        if left and len(left) == len(rows):
            there = "requests" if "no response" in str(left[0]) else "responses"
            raise ConfigError(
                f"{rows[0].path}: a batch file of {there} alone",
                hint="put the batch's other file beside it in a folder and give --from FOLDER",
            )
        of_row: dict[str, list[Exchange]] = defaultdict(list)
        for one in found:
            if isinstance(one, Exchange):
                of_row[one.source].append(one)
        asked = [(row, _asked(one)) for row in rows for one in of_row[f"{row.path}:{row.line}"]]
        return as_table(asked, [one for one in (*found, *left) if isinstance(one, Problem)])


def _is_log(row: dict[str, Any]) -> bool:
    found = LogReader(tables=False).format_of(row)
    return found is not None and (found is not PAIRS or holds_messages(row))


BATCHES = LogImporter("batch requests and responses", is_batch)
LOGS = LogImporter("chats or logs of requests", _is_log)


def _asked(one: Exchange) -> AskedText | str:
    """Return what was asked and answered in words, or why there is none to learn from."""
    error = one.response.get("error")
    if error:
        return f"it failed: {error.get('code') or error.get('message') if isinstance(error, dict) else error}"[:200]
    prompt, answer = read_prompt(one.route, one.request), read_answer(one.route, one.response)
    if prompt is None or prompt.has_media:
        return "no messages of text"
    if answer is not None and answer.tool_calls:
        return "the answer calls a tool"
    if answer is not None and answer.finish_reason in _CUT_OFF:
        return f"the answer was cut off: {answer.finish_reason}"
    if answer is None or not answer.text.strip():
        return "no answer of text"
    system = prompt.turns[0].text if prompt.turns[0].role == "system" else ""
    turns = prompt.turns[1:] if prompt.turns[0].role == "system" else prompt.turns
    if not turns or turns[-1].role != "user" or not turns[-1].text.strip():
        return "the answer follows no question of a user"
    return AskedText(system, tuple(turn.text for turn in turns[:-1]), turns[-1].text, answer.text, one.model)


_TEXT, _ANSWER = "text", "answer"
"""Columns of the table."""
_CONSTANT = 0.95
_REPEATED, _NAMED = 0.9, 0.7
_MIN_ROWS = 20


class AskedText(NamedTuple):
    """What one row asked, and the answer."""

    system: str
    earlier: tuple[str, ...]
    """Turns between the system message and the last question."""
    asked: str
    answer: str
    model: str = ""
    """The model that gave the answer; empty where the row does not say that one did."""


def as_table(found: Sequence[tuple[RawRow, AskedText | str]], unused: Sequence[Problem] = ()) -> Converted:
    """Return what the rows ask and answer, or why not, as a table; `unused` are rows that could not be read."""
    unused = [*unused, *(Problem(row.path, row.line, why) for row, why in found if isinstance(why, str))]
    exchanges = [(row, one) for row, one in found if isinstance(one, AskedText)]
    notes: list[str] = []
    about = _system_prompt([one for _, one in exchanges], notes)
    cases = _cases([one for _, one in exchanges], notes)
    for (row, _), case in zip(exchanges, cases, strict=True):
        if case is None:
            unused.append(Problem(row.path, row.line, "the prompt follows another template than the others"))
    kept = [(row, one, case) for (row, one), case in zip(exchanges, cases, strict=True) if case]
    told = "\n".join((about, *dict.fromkeys(one.asked.removesuffix(case) for _, one, case in kept[:1])))
    answers = _answers([one.answer for _, one, _ in kept], told, notes)
    for (row, one, _), answer in zip(kept, answers, strict=True):
        if answer is None:
            why = f"none of the answers that the others repeat, or the instructions name: {one.answer[:60]!r}"
            unused.append(Problem(row.path, row.line, why))
    table = [{_TEXT: case, _ANSWER: a} for (_, _, case), a in zip(kept, answers, strict=True) if a is not None]
    model = ", ".join(dict.fromkeys(one.model for _, one in exchanges if one.model))
    if model:
        notes.append(f"the answers are those of {model}: what is measured and certified is agreement with it")
    return Converted(Table(table, (_TEXT,), (_ANSWER,)), tuple(unused), tuple(notes), about, model)


def _system_prompt(exchanges: Sequence[AskedText], notes: list[str]) -> str:
    """Return the system prompt that nearly all rows share; empty if there is none."""
    counts = Counter(one.system.strip() for one in exchanges)
    most, n = counts.most_common(1)[0] if counts else ("", 0)
    if not most or n < _CONSTANT * len(exchanges):
        return ""
    others = len(exchanges) - n
    notes.append(
        "the system prompt that all rows share is kept as `about`" + (f"; {others:,} rows have another" * bool(others))
    )
    return most


def _cases(exchanges: Sequence[AskedText], notes: list[str]) -> list[str | None]:
    """Return what varies from prompt to prompt; None for a row that does not follow the others' template."""
    users = [one.asked for one in exchanges]
    prompts = users
    if len(set(users)) == 1 and len({one.system for one in exchanges}) > 1:  # the case stands in the system message
        prompts = [one.system for one in exchanges]
    n_earlier = sum(bool(one.earlier) for one in exchanges)
    if n_earlier and len({one.earlier for one in exchanges}) > 1:
        notes.append(f"{n_earlier:,} rows have earlier turns, which are left out: the last question alone is the text")
    template = find_template(prompts)
    if template is None:
        return [prompt.strip() or None for prompt in prompts]
    found = [values_between(template, prompt) for prompt in prompts]
    values = [value and tuple(slot.strip() for slot in value) for value in found]
    followed = [value for value in values if value is not None]
    slots = list(zip(*followed, strict=True))
    distinct = [len(set(slot)) / len(slot) for slot in slots]
    chosen = [i for i, share in enumerate(distinct) if share > 0.5] or [distinct.index(max(distinct))]
    notes.append(f'the constant text around each case is left out: "{_shortened(template)}"; send the case alone')
    for i, slot in enumerate(slots):
        if i not in chosen and any(slot):
            notes.append(f'what varies little is left out as well, such as "{slot[0][:60]}" ({len(set(slot))} values)')
    return [(value and "\n\n".join(value[i] for i in chosen if value[i])) or None for value in values]


def _shortened(template: Sequence[str]) -> str:
    text = " … ".join(" ".join(piece.split()) for piece in template if piece.strip())
    return text if len(text) <= 160 else f"{text[:80]} [...] {text[-70:]}"


def _answers(given: Sequence[str], told: str, notes: list[str]) -> list[Any]:
    """Return the answers, spellings of one label made one; None for one that is none of the few that repeat.

    `told` are the instructions: a label is spelled as it stands in them, if it does.
    """
    objects = [as_object(answer) for answer in given]
    if sum(value is not None for value in objects) >= _REPEATED * len(given):
        return objects
    folded = [fold_text(answer) for answer in given]
    counts = Counter(folded)
    repeated = sum(n for n in counts.values() if n > 1)
    if len(given) < _MIN_ROWS or repeated < _REPEATED * len(given) or len(counts) > len(given) / 2:
        return [answer.strip() for answer in given]
    listed = {key: found for key in counts if (found := _listed(key, told))}
    closed = len(listed) > 1 and sum(counts[key] for key in listed) >= _NAMED * len(given)
    spelling = _spellings(given, folded) | listed
    kept = [(key in listed) if closed else counts[key] > 1 for key in folded]
    changed = sum(k and answer.strip() != spelling[key] for answer, key, k in zip(given, folded, kept, strict=True))
    if changed:
        notes.append(f"{changed:,} answers were other spellings of a label, such as another case, and are taken for it")
    if closed:
        notes.append(f"the labels are the {len(listed)} answers that the instructions name")
    return [spelling[key] if k else None for key, k in zip(folded, kept, strict=True)]


def _listed(key: str, told: str) -> str:
    """Return the folded answer as the instructions spell it; empty if they do not name it."""
    pattern = r"(?<!\w)" + r"[\W_]+".join(map(re.escape, key.split())) + r"(?!\w)"
    found = re.search(pattern, told, re.IGNORECASE) if key else None
    return found.group() if found else ""


def _spellings(given: Sequence[str], folded: Sequence[str]) -> dict[str, str]:
    """Return the most frequent spelling of each folded answer."""
    counts: dict[str, Counter[str]] = {}
    for answer, key in zip(given, folded, strict=True):
        counts.setdefault(key, Counter())[answer.strip()] += 1
    return {key: spelled.most_common(1)[0][0] for key, spelled in counts.items()}
