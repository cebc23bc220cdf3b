"""Rows that a step writes anew, with a record beside them: never over an input, nor over what somebody has changed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from smallfirst.base.errors import ConfigError
from smallfirst.base.files import write_atomically
from smallfirst.base.records import Record, fingerprint
from smallfirst.path.project.project import Project


class RowsRecord(Record):
    """A record of how rows were made."""

    written: str = ""
    """Fingerprint of the file of rows."""


R = TypeVar("R", bound=RowsRecord)


def refuse_to_overwrite(
    project: Project, out: Path, earlier: RowsRecord | None, *, inputs: Iterable[Path | None] = ()
) -> None:
    """Raise ConfigError if `out` is an input of the task or among `inputs`, no JSON Lines, or not as `earlier` says."""
    data = project.file.data
    own = [data.train, data.validation, data.test, data.open_ended, data.relabels]
    read = [*(project.file.path(path) for path in own if path), *filter(None, inputs)]
    if out.resolve() in {path.resolve() for path in read}:
        raise ConfigError(f"{out} is an input, so it cannot be the output", hint="name another file: --out FILE.jsonl")
    if out.suffix != ".jsonl":
        raise ConfigError(f"{out}: rows are written as JSON Lines", hint=f"--out {out.with_suffix('.jsonl')}")
    if out.exists() and (earlier is None or earlier.written != fingerprint(out.read_text(encoding="utf-8"))):
        raise ConfigError(
            f"{out} exists and was changed since an earlier run wrote it",
            hint="name another file, or move this one away",
        )


def write_rows(out: Path, content: str, record: R, record_path: Path) -> R:
    """Write rows as JSON Lines and then their record; return that, with the fingerprint of the rows."""
    write_atomically(out, content.encode())
    record = record.model_copy(update={"written": fingerprint(content)})
    record.save(record_path)
    return record
