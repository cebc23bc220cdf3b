"""Read an uploaded file in a process of its own, so that the server never holds its rows.

The process (`python -m`, with FILE ID COPY MAX_ROWS) keeps the rows at COPY and prints an UploadedRows as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from smallfirst import Dataset
from smallfirst.base.errors import DataError
from smallfirst.base.records import Record
from smallfirst.interfaces.jobs.job_folder import read_rows
from smallfirst.interfaces.jobs.run_module import run_module

MAX_LINES_SHOWN = 20
_BYTES_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 5
_ROW_FORMATS = ("chat", "prompt")
_EXPECTED_ROW = "a row is {messages: […]}, or {prompt, completion}"


class UploadedRows(Record):
    """What the server needs to know of the rows of a file."""

    n_rows: int = 0
    n_tokens: float = 0
    """Estimate of all tokens, at four bytes per token."""
    error: str = ""
    """Why the file cannot be used, in words for its uploader; empty if it can."""


async def read_upload(file: Path, id: str, copy: Path, *, max_rows: int, timeout_s: float) -> UploadedRows:
    """Read a file and keep its rows, named by `id`, as a Dataset at `copy`. Raise ProcessFailed."""
    printed = await run_module(__name__, str(file), id, str(copy), str(max_rows), timeout_s=timeout_s)
    return UploadedRows.model_validate(json.loads(printed))


def estimate_tokens(data: Dataset) -> float:
    """Return about how many tokens the rows have."""
    return sum(
        len(text.encode()) / _BYTES_PER_TOKEN + _TOKENS_PER_MESSAGE
        for example in data.examples
        for text in (example.answer, *(message.content for message in example.messages))
    )


def _read(file: Path, id: str, copy: Path, max_rows: int) -> UploadedRows:
    try:
        data = read_rows(str(file), "chat", max_rows=max_rows)
    except DataError as error:
        lines = [f"line {problem.line}: {problem.rule}" for problem in error.problems]
        shown = "; ".join(lines[:MAX_LINES_SHOWN]) or str(error.args[0]).replace(str(file), id)
        more = f"; and {len(lines) - MAX_LINES_SHOWN} more" if len(lines) > MAX_LINES_SHOWN else ""
        return UploadedRows(error=f"{shown}{more}; {_EXPECTED_ROW}")
    if wrong := next((e for e in data.examples if e.shape not in _ROW_FORMATS), None):
        return UploadedRows(error=f"line {wrong.line}: {_EXPECTED_ROW}")
    # Later messages name the file by its id: paths of this server are not for clients.
    data.subset(id, tuple(e.model_copy(update={"path": id}) for e in data.examples)).save(copy)
    return UploadedRows(n_rows=len(data), n_tokens=estimate_tokens(data))


def main(arguments: Sequence[str]) -> None:
    """Read FILE and print the result."""
    file, id, copy, max_rows = arguments
    print(json.dumps(_read(Path(file), id, Path(copy), int(max_rows)).model_dump()))


if __name__ == "__main__":
    main(sys.argv[1:])
