"""Chats, batch files and logs of any known format as rows to learn from, for `smallfirst init --from`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from smallfirst.data.importers.exchanges import Asked, as_table
from smallfirst.data.importers.table import Converted
from smallfirst.data.sources.reader import RawRow
from smallfirst.errors import ConfigError, Problem
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.logs.entry import LogReader
from smallfirst.traffic.logs.pairs import PairReader, holds_messages
from smallfirst.traffic.logs.read import READERS
from smallfirst.traffic.logs.records import LogRecord
from smallfirst.traffic.messages import read_answer, read_prompt

_CUT_OFF = ("length", "content_filter", "refusal")


class LogImporter:
    """Rows that one of some log readers knows; a table of two columns of text is none of them."""

    def __init__(self, title: str, names: Collection[str] | None = None, *, without: Collection[str] = ()) -> None:
        """Take the readers of these names; None: all but those `without`."""
        self.title, self._names, self._without = title, names, without

    def recognizes(self, row: dict[str, Any]) -> bool:
        reader = _reader_of(row, self._readers())
        return reader is not None and (not isinstance(reader, PairReader) or holds_messages(row))

    def convert(self, rows: Sequence[RawRow]) -> Converted:
        """Return the rows as a table. Raise ConfigError if only the requests or the responses of a batch are there."""
        readers = self._readers()
        found: list[Exchange | Problem] = []
        for path, line, values in rows:
            reader = _reader_of(values, readers) if isinstance(values, dict) else None
            if reader is None or isinstance(values, str):
                found.append(Problem(path, line, "no request and answer in it"))
            else:
                found += reader.read(LogRecord(path, line, values))
        left = [one for reader in readers for one in reader.finish()]
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

    def _readers(self) -> list[LogReader]:
        names = self._names or [name for name in READERS.names() if name not in self._without]
        return [READERS.get(name)() for name in names]


BATCHES = LogImporter("batch requests and responses", ["batch"])
LOGS = LogImporter("chats or logs of requests", without=["batch", "table"])


def _reader_of(row: dict[str, Any], readers: Sequence[LogReader]) -> LogReader | None:
    return next((reader for reader in readers if reader.recognizes(row)), None)


def _asked(one: Exchange) -> Asked | str:
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
    return Asked(system, tuple(turn.text for turn in turns[:-1]), turns[-1].text, answer.text, one.model)
