"""Tables with a column of prompts and one of answers, told by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from smallfirst.errors import Problem
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.logs.entry import Entry, exchange_of
from smallfirst.traffic.logs.pairs import TIMES
from smallfirst.traffic.logs.records import LogRecord
from smallfirst.traffic.logs.shapes import CHAT, first

_COLUMNS = {
    "prompt": "prompt user_prompt question query instruction message user text utterance ask input request input_text "
    "user_message content",
    "answer": "answer response completion output reply output_text assistant generated_text label model_output "
    "llm_response assistant_message result",
    "system": "system system_prompt system_message instructions",
}
_PROMPTS, _ANSWERS, _SYSTEM = (names.split() for names in _COLUMNS.values())
"""The likeliest name comes first."""


class TableReader:
    """Rows of CSV, Parquet or flat JSON."""

    title = "a table of prompts and answers"

    def recognizes(self, values: dict[str, Any]) -> bool:
        row = _lowered(values)
        return any(name in row for name in _PROMPTS) and any(name in row for name in _ANSWERS)

    def read(self, record: LogRecord) -> Iterable[Exchange | Problem]:
        row = _lowered(record.values)
        asked, system = first(row, *_PROMPTS), first(row, *_SYSTEM)
        if isinstance(system, str) and isinstance(asked, str):
            asked = [{"role": "system", "content": system}, {"role": "user", "content": asked}]
        entry = Entry(
            asked,
            first(row, *_ANSWERS),
            id=first(row, "id", "request_id", "trace_id", "uuid"),
            at=first(row, *map(str.lower, TIMES)),
            latency_ms=first(row, "latency_ms", "duration_ms"),
            route=CHAT,
            model=first(row, "model", "model_name", "deployment"),
            prompt_tokens=first(row, "prompt_tokens", "input_tokens"),
            completion_tokens=first(row, "completion_tokens", "output_tokens"),
            cost_usd=first(row, "cost_usd", "cost", "total_cost"),
            tenant=first(row, "tenant", "client_id", "user_id"),
        )
        return [exchange_of(entry, record)]

    def finish(self) -> Iterable[Exchange | Problem]:
        return ()


def _lowered(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row with its names as `_PROMPTS` spells them: "User prompt" is user_prompt."""
    return {str(name).strip().lower().replace(" ", "_").replace("-", "_"): value for name, value in values.items()}
