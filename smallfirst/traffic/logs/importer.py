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
from smallfirst.traffic.logs.formats import PAIRS, holds_messages, is_batch
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
        for row in rows:
            if isinstance(row.values, dict) and (is_batch(row.values) or reader.format_of(row.values)):
                found += reader.read(row)
            else:
                found.append(Problem(row.path, row.line, "no request and answer in it"))
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
        return _as_table(asked, [one for one in (*found, *left) if isinstance(one, Problem)])


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
    return AskedText(system, len(turns) > 1, turns[-1].text, answer.text, one.model)


_SHARED = 0.95
"""Least share of rows with one system prompt that makes it the job in words."""
_REPEATED, _NAMED = 0.9, 0.7
_MIN_ROWS = 20


class AskedText(NamedTuple):
    """What one row asked, and the answer."""

    system: str
    earlier: bool
    """True if there are turns between the system message and the last question."""
    asked: str
    answer: str
    model: str = ""
    """The model that gave the answer; empty where the row does not say that one did."""


def _as_table(found: Sequence[tuple[RawRow, AskedText | str]], unused: Sequence[Problem]) -> Converted:
    """Return what the rows ask and answer, or why not, as a table; `unused` are rows that could not be read."""
    unused = [*unused, *(Problem(row.path, row.line, why) for row, why in found if isinstance(why, str))]
    asked = [(row, one) for row, one in found if isinstance(one, AskedText)]
    notes: list[str] = []
    about = _system_prompt([one.system for _, one in asked])
    if about:
        notes.append("the system prompt that the rows share is kept as `about`")
    if n := sum(one.earlier for _, one in asked):
        notes.append(f"{n:,} rows have earlier turns, which are left out: the last question alone is the text")
    kept: list[tuple[RawRow, AskedText, str]] = []
    for (row, one), case in zip(asked, _cases([one.asked for _, one in asked], notes), strict=True):
        if case:
            kept.append((row, one, case))
        else:
            unused.append(Problem(row.path, row.line, "the prompt follows another template than the others"))
    told = about + "".join(f"\n{one.asked.removesuffix(case)}" for _, one, case in kept[:1])
    table: list[dict[str, Any]] = []
    for (row, one, case), answer in zip(kept, _answers([one.answer for _, one, _ in kept], told), strict=True):
        if answer is None:
            why = f"none of the answers that the others repeat, or the instructions name: {one.answer[:60]!r}"
            unused.append(Problem(row.path, row.line, why))
        else:
            table.append({"text": case, "answer": answer})
    model = ", ".join(dict.fromkeys(one.model for _, one in asked if one.model))
    if model:
        notes.append(f"the answers are those of {model}: what is measured and certified is agreement with it")
    return Converted(Table(table, ("text",), ("answer",)), tuple(unused), tuple(notes), about, model)


def _system_prompt(given: Sequence[str]) -> str:
    """Return the system prompt that nearly all rows share; empty if there is none."""
    counts = Counter(text.strip() for text in given)
    most, n = counts.most_common(1)[0] if counts else ("", 0)
    return most if n >= _SHARED * len(given) else ""


def _cases(prompts: Sequence[str], notes: list[str]) -> list[str]:
    """Return what varies from prompt to prompt; empty for a row that does not follow the others' template."""
    template = find_template(prompts)
    if template is None:
        return [prompt.strip() for prompt in prompts]
    values = [values_between(template, prompt) for prompt in prompts]
    slots = list(zip(*(value for value in values if value is not None), strict=True))
    distinct = [len(set(slot)) / len(slot) for slot in slots]
    chosen = [i for i, share in enumerate(distinct) if share > 0.5] or [distinct.index(max(distinct))]
    text = " … ".join(" ".join(piece.split()) for piece in template if piece.strip())
    notes.append(f'only the case is kept of each prompt, not its constant text "{text[:160]}"; send the case alone')
    return ["\n\n".join(value[i].strip() for i in chosen if value[i].strip()) if value else "" for value in values]


def _answers(given: Sequence[str], told: str) -> list[Any]:
    """Return the answers, spellings of one label made one; None for one that is none of the few that repeat.

    `told` are the instructions: a label is spelled as it stands in them, else as it is most often.
    """
    objects = [as_object(answer) for answer in given]
    if sum(value is not None for value in objects) >= _REPEATED * len(given):
        return objects
    folded = [fold_text(answer) for answer in given]
    counts = Counter(folded)
    repeated = sum(n for n in counts.values() if n > 1)
    if len(given) < _MIN_ROWS or repeated < _REPEATED * len(given) or len(counts) > len(given) / 2:
        return [answer.strip() for answer in given]
    most_often = Counter(answer.strip() for answer in given).most_common()
    spelling = {fold_text(answer): answer for answer, _ in reversed(most_often)}
    listed = {key: found for key in counts if (found := _listed(key, told))}
    closed = len(listed) > 1 and sum(counts[key] for key in listed) >= _NAMED * len(given)
    kept = listed if closed else {key: listed.get(key, spelling[key]) for key, n in counts.items() if n > 1}
    return [kept.get(key) for key in folded]


def _listed(key: str, told: str) -> str:
    """Return the folded answer as the instructions spell it; empty if they do not name it."""
    pattern = r"(?<!\w)" + r"[\W_]+".join(map(re.escape, key.split())) + r"(?!\w)"
    found = re.search(pattern, told, re.IGNORECASE) if key else None
    return found.group() if found else ""
