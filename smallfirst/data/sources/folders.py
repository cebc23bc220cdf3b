"""Folders of files, volumes, and text files as rows, one a file: to continue, or labelled by their sub-folder.

Files and folders whose names begin with a dot or an underscore are left out; every other file is read or named.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from smallfirst.base.errors import ConfigError, DataError
from smallfirst.data.row_formats import Columns
from smallfirst.data.sources.documents import DOCUMENTS, PLAIN, DocumentReader
from smallfirst.data.sources.text_files import RawRow, ReadBudget, to_utf8

TEXT_SUFFIXES = DOCUMENTS
"""Suffixes of files that are text to continue."""
MAX_TEXT_BYTES = 10_000_000
"""A longer text file is refused: books have a tenth of it, and a row is held in memory several times."""
VOLUMES_VARIABLE = "SMALLFIRST_VOLUMES"
"""Environment variable: the folder that stands in for /Volumes of Databricks."""


class FoundFile(NamedTuple):
    """One file in a folder."""

    path: Path
    rule: str | None
    """Why it may not be read, if it may not."""


def list_files(folder: Path) -> list[FoundFile]:
    """Return the files below the folder, sorted by path. Raise DataError if a folder cannot be listed."""
    found: list[FoundFile] = []
    for here, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        linked = [Path(here, name) for name in folders if Path(here, name).is_symlink()]
        found += [FoundFile(path, "a link to a folder; put the folder itself here") for path in linked]
        files = [Path(here, name) for name in names if not name.startswith((".", "_"))]
        found += [FoundFile(path, _file_rule(path, folder)) for path in files]
    return sorted(found, key=lambda one: one.path.relative_to(folder).parts)


def is_volume(address: str) -> bool:
    """Return True if the address is of a volume; `dbfs:` always is, to be refused if it names no volume."""
    return address.startswith(("dbfs:", "/Volumes/"))


def volume_path(address: str) -> Path:
    """Return the file or folder of `[dbfs:]/Volumes/catalog/schema/volume/path`: below SMALLFIRST_VOLUMES, or mounted.

    Raise DataError if the address is malformed or not there.
    """
    parts = PurePosixPath(address.removeprefix("dbfs:")).parts
    if parts[:2] != ("/", "Volumes") or len(parts) < 5 or ".." in parts:
        raise DataError(f"{address}: expected [dbfs:]/Volumes/catalog/schema/volume/path, without ..")
    path = safe_join(folder_from_variable(VOLUMES_VARIABLE) or Path("/Volumes"), parts[2:])
    if not path.exists():
        hint = f"copy it here, or set {VOLUMES_VARIABLE} to the folder that holds catalog/schema/volume"
        raise DataError(f"{address}: no such file or folder ({path})", hint=hint)
    return path


def folder_from_variable(variable: str) -> Path | None:
    """Return the folder that an environment variable names; None if it is not set. Raise ConfigError if it is none."""
    chosen = os.environ.get(variable, "").strip()
    folder = Path(chosen).expanduser().absolute()
    if chosen and not folder.is_dir():
        raise ConfigError(f"{variable}: {folder}: no such folder", hint=f"make it, or set {variable} to another")
    return folder if chosen else None


def safe_join(root: Path, parts: Iterable[str]) -> Path:
    """Return the path of these parts below `root`. Raise DataError if it leads out of it, by `..` or by a link."""
    parts = tuple(parts)
    if any(part in ("", ".", "..") or "/" in part or "\0" in part for part in parts):
        raise DataError(f"{'/'.join(parts)!r}: a path below {root} is plain names, without .. and empty parts")
    path = root.joinpath(*parts)
    if _leads_out(path, root):
        raise DataError(f"{path}: a link that leads out of {root}", hint="put the file itself there")
    return path


def label_folders(folder: Path, files: Sequence[FoundFile]) -> bool:
    """Return True if every file is in a sub-folder and there are several of these, which are then the labels."""
    parts = [file.path.relative_to(folder).parts for file in files]
    return all(len(part) == 2 for part in parts) and len({part[0] for part in parts}) > 1


def read_texts(
    files: Sequence[FoundFile],
    columns: Columns | None,
    budget: ReadBudget,
    *,
    answered: bool = False,
    labelled: bool = False,
) -> Iterator[RawRow]:
    """Yield each file as one row of text, with the name of its folder as label if asked for, or its rule."""
    columns = columns or Columns()
    if labelled:
        where = display_path(files[0].path.parent.parent)
        budget.note(where, "its texts are labelled by the names of their folders")
    with DocumentReader() as reader:
        for path, rule in files:
            text = rule or _text(path, columns.text, budget, reader)
            if labelled and isinstance(text, dict):  # the line end after a text that is read as a whole is the editor's
                text = {columns.text: text[columns.text].rstrip("\r\n"), columns.label: path.parent.name}
            yield RawRow(display_path(path), 1, text)


def display_path(path: Path) -> str:
    """Return the path as text; bytes of its name that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _text(path: Path, column: str, budget: ReadBudget, reader: DocumentReader) -> dict[str, Any] | str:
    if path.suffix.lower() not in TEXT_SUFFIXES:
        return f"none of {', '.join(TEXT_SUFFIXES)}: a folder of text holds nothing else; move it out"
    if path.suffix.lower() not in PLAIN:
        found = reader.read_file(path, path.parent)
        budget.take(len(found.text), 1)
        return found.rule or {column: found.text}
    try:
        n_bytes = path.stat().st_size
        if n_bytes > MAX_TEXT_BYTES:
            return f"file of {n_bytes:,} bytes; at most {MAX_TEXT_BYTES:,} are read: split it"
        budget.take(n_bytes, 1)
        utf8, encoding = to_utf8(path.read_bytes(), display_path(path))
        if encoding != "utf-8":
            budget.note(display_path(path), f"read as {encoding}, told from its bytes")
        return {column: utf8.decode("utf-8-sig")}
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        return f"not UTF-8: byte 0x{error.object[error.start]:02x}"


def _file_rule(path: Path, root: Path) -> str | None:
    if path.is_symlink() and _leads_out(path, root):
        return "a link that leads out of the folder; put the file itself here"
    if not path.exists():
        return "a link to nothing"
    return None if path.is_file() else "not a regular file"


def _leads_out(path: Path, root: Path) -> bool:
    try:
        return not path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return True


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename}: {error.strerror}")
