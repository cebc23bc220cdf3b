"""MLflow's request formats: a chat, a prompt, texts to embed, or a table of rows. No sockets here.

    {"messages": […]}                    a chat, answered as /v1/chat/completions does
    {"prompt": …}                        a text completion, answered as /v1/completions does
    {"input": …}                         embeddings, answered as /v1/embeddings does
    {"dataframe_split": {columns, data}}, {"dataframe_records": […]}, {"inputs": …}, {"instances": …}
                                         rows, each asked as a chat of one message, answered {"predictions": […]}

Rows may come with `params`, which are those of a chat. A table is answered when its last row is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from smallfirst.errors import did_you_mean
from smallfirst.serving.openai.errors import ApiError

Shape = Literal["chat", "completion", "embeddings", "predictions"]

MAX_ROWS = 256
TEXT_COLUMNS = ("text", "prompt", "question", "query", "input", "content")
"""Columns that are read as text, in order of preference."""
_WHOLE: dict[str, Shape] = {"messages": "chat", "prompt": "completion", "input": "embeddings"}
_TABLES = ("dataframe_split", "dataframe_records", "inputs", "instances")
_KINDS = (*_WHOLE, *_TABLES)
_NOT_IN_PARAMS = ("model", "messages", "stream", "n")


class Invocation(NamedTuple):
    """A parsed body."""

    shape: Shape
    bodies: tuple[dict[str, Any], ...]
    """Without `model`: one body of the route that `shape` names; for `predictions` a chat body a row."""


def parse(body: Mapping[str, Any], *, max_rows: int = MAX_ROWS) -> Invocation:
    """Parse an MLflow body; the bodies in it are not checked yet. Raise ApiError 400."""
    found = [kind for kind in _KINDS if body.get(kind) is not None]
    if len(found) != 1:
        unknown = next((name[:64] for name in body if name not in _KINDS), "")
        near = did_you_mean(unknown, _KINDS) if not found else ""
        problem = f"{', '.join(found)} were sent together" if found else f"none was sent{near}"
        raise ApiError(400, f"Exactly one of {', '.join(_KINDS)} is needed; {problem}.", param=(*found, unknown)[0])
    kind = found[0]
    if kind in _WHOLE:
        return Invocation(_WHOLE[kind], (dict(body),))
    unknown_field = next((name[:64] for name in body if name not in (kind, "params", "client_request_id")), None)
    if unknown_field is not None:
        near = did_you_mean(unknown_field, ("params",)) or ": settings of a chat go into `params`"
        raise ApiError(400, f'Unknown field beside {kind}: "{unknown_field}"{near}.', param=unknown_field)
    params, rows = _params(body.get("params")), _rows(kind, body[kind])
    if not 1 <= len(rows) <= max_rows:
        raise ApiError(400, f"{len(rows)} rows; 1 to {max_rows} are allowed.", param=kind)
    chats = [{"messages": _messages(row, f"{kind}[{place}]"), **params} for place, row in enumerate(rows)]
    return Invocation("predictions", tuple(chats))


def answer(shape: Shape, completions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the response body: the only completion as it is, or the texts of a table's rows and their explanations.

    `completions` are bodies as /v1/chat/completions returns them, in the order of `Invocation.bodies`.
    """
    if shape != "predictions":
        return completions[0]
    return {
        "predictions": [one["choices"][0]["message"]["content"] for one in completions],
        "smallfirst": [one.get("smallfirst") for one in completions],
    }


def _params(given: object) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ApiError(400, "`params` must be an object of chat settings, such as max_tokens.", param="params")
    for name in _NOT_IN_PARAMS:
        if name in given:
            raise ApiError(400, f"`params` cannot contain `{name}`.", param=f"params.{name}")
    return given


def _rows(kind: str, table: object) -> list[Any]:
    if kind == "dataframe_split":
        return _split(table)
    if isinstance(table, str) and kind == "inputs":
        return [table]
    if isinstance(table, dict) and kind == "inputs":
        return _columns(table)
    if not isinstance(table, list):
        raise ApiError(400, f"`{kind}` must be a list of rows.", param=kind)
    # A matrix of one column is a list of texts.
    return [row[0] if isinstance(row, list) and len(row) == 1 else row for row in table]


def _split(table: object) -> list[Any]:
    columns, data = (table.get("columns"), table.get("data")) if isinstance(table, dict) else (None, None)
    if not isinstance(columns, list) or not isinstance(data, list) or not all(isinstance(c, str) for c in columns):
        what = '`dataframe_split` must be {"columns": [names], "data": [[values of a row], …]}.'
        raise ApiError(400, what, param="dataframe_split")
    for place, row in enumerate(data):
        if not isinstance(row, list) or len(row) != len(columns):
            what = f"A row must have {len(columns)} values, one for each column."
            raise ApiError(400, what, param=f"dataframe_split.data[{place}]")
    return [dict(zip(columns, row, strict=True)) for row in data]


def _columns(table: dict[str, Any]) -> list[Any]:
    """Return the rows of a mapping from column to values; a mapping to single values is one row."""
    if "messages" in table or not any(isinstance(values, list) for values in table.values()):
        return [table]
    if len({len(values) if isinstance(values, list) else -1 for values in table.values()}) != 1:
        raise ApiError(400, "All columns of `inputs` must be lists of equal length.", param="inputs")
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def _messages(row: object, place: str) -> list[Any]:
    if isinstance(row, dict):
        if isinstance(row.get("messages"), list):
            return list(row["messages"])
        name = next(iter(row)) if len(row) == 1 else next((c for c in TEXT_COLUMNS if c in row), None)
        if name is None:
            shown = ", ".join(column[:64] for column in list(row)[:10]) or "no column"
            what = f"No text column: found {shown}; one of {', '.join(TEXT_COLUMNS)} is read."
            raise ApiError(400, what, param=place)
        row, place = row[name], f"{place}.{name[:64]}"
    if not isinstance(row, str):
        raise ApiError(400, "A row must be a text, or an object with one.", param=place)
    return [{"role": "user", "content": row}]
