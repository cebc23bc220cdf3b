"""Write down a model's answers, so that measuring again is free and a demo needs no network.

Every answer is written as soon as it comes: a run that is killed loses none, and the next run asks
only what is missing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from smallfirst.errors import BadAnswer, DataError, SmallfirstError
from smallfirst.files import write_atomically
from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.models.recorded.replay import RecordedAnswer, RecordingHeader, read_recording, request_key
from smallfirst.records import parse_record

ProgressCallback = Callable[[int, int], None]


async def record(
    model: Model,
    requests: Sequence[Request],
    path: Path,
    *,
    header: dict[str, Any],
    concurrency: int = 2,
    progress: ProgressCallback | None = None,
) -> int:
    """Number of new answers written to `path`; equal requests are asked once.

    `header` holds the fields of Recorded; `model` and `n` are filled in here. `progress` is told
    (answers there, answers wanted). A BadAnswer is skipped and raised at the end, any other error
    ends the run at once; what was answered by then is kept. Raises DataError if `path` holds
    answers of another model, or of the same one asked differently.
    """
    wanted = {request_key(request): request for request in requests}
    known = _prepare(path, model, header, set(wanted))
    missing = [(key, request) for key, request in wanted.items() if key not in known]
    with path.open("a", encoding="utf-8") as file:
        writer = _Writer(model, file, n_there=len(wanted) - len(missing), n_wanted=len(wanted))
        writer.progress = progress
        todo = iter(missing)
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(writer.work(todo))
    if writer.fatal is not None:
        raise writer.fatal
    if writer.bad:
        raise BadAnswer(
            f"{len(writer.bad)} of {len(wanted)} requests got no answer; the others are in {path}. "
            f"The first: {writer.bad[0]}",
            hint="run the same command again to ask only those",
        )
    return writer.n_new


class _Writer:
    """Asks and writes; several `work` calls share one."""

    progress: ProgressCallback | None = None
    fatal: SmallfirstError | None = None

    def __init__(self, model: Model, file: TextIO, *, n_there: int, n_wanted: int) -> None:
        self.model = model
        self.file = file
        self.n_there = n_there
        self.n_wanted = n_wanted
        self.n_new = 0
        self.bad: list[BadAnswer] = []

    async def work(self, todo: Iterator[tuple[str, Request]]) -> None:
        """Ask one request after the other until there are no more, or an error ends the run."""
        for key, request in todo:
            if self.fatal is not None:
                return
            try:
                completion = await self.model.complete(request)
            except BadAnswer as error:
                self.bad.append(error)
                continue
            except SmallfirstError as error:
                self.fatal = self.fatal or error
                return
            self.file.write(_line(_row(key, request, completion).model_dump()))
            self.file.flush()
            self.n_new += 1
            if self.progress is not None:
                self.progress(self.n_there + self.n_new, self.n_wanted)


def _prepare(path: Path, model: Model, header: dict[str, Any], wanted: set[str]) -> set[str]:
    """Keys that are recorded already; leaves `path` with a header and whole rows only."""
    values = {**header, "model": model.name, "n": len(wanted)}
    new = parse_record(RecordingHeader, values, where="header of the recording")
    rows: tuple[RecordedAnswer, ...] = ()
    if path.exists() and path.stat().st_size:
        _drop_half_row(path)
        old, rows = read_recording(path)
        _refuse_other(path, old, new)
        everything = wanted | {row.key for row in rows}
        new = old.model_copy(update={"n": len(everything)})
    lines = [_line({"recorded": new.model_dump(mode="json")})]
    lines += [_line(row.model_dump()) for row in rows]
    write_atomically(path, "".join(lines).encode())
    return {row.key for row in rows}


def _drop_half_row(path: Path) -> None:
    """Cut off what follows the last line end: the row that a killed run was writing."""
    content = path.read_bytes()
    if not content.endswith(b"\n") and b"\n" in content:
        write_atomically(path, content[: content.rindex(b"\n") + 1])


def _refuse_other(path: Path, old: RecordingHeader, new: RecordingHeader) -> None:
    was, now = old.model_dump(mode="json"), new.model_dump(mode="json")
    for field in ("model", "settings", "prompt"):
        if was[field] != now[field]:
            how = f'"{was[field]}", not "{now[field]}"' if field == "model" else "another one"
            raise DataError(
                f"{path} was recorded with {how} as {field}; one file must not mix answers of both",
                hint="record into another file, or delete this one",
            )


def _row(key: str, request: Request, completion: Completion) -> RecordedAnswer:
    return RecordedAnswer(
        key=key,
        text=request.text,
        answer=completion.text,
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        latency_ms=round(completion.latency_ms, 1),
        cost_usd=completion.cost_usd,
        finish_reason=completion.finish_reason,
    )


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"
