"""Files of a Databricks volume: `/Volumes/catalog/schema/volume/path`, with or without `dbfs:` before it.

Tried in this order: SMALLFIRST_VOLUMES, /Volumes where it is mounted, and the workspace's Files API, from which
everything is copied into the state folder each time anew.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from smallfirst.data.sources.folders import safe_join
from smallfirst.data.sources.reader import ReadBudget
from smallfirst.errors import ConfigError, DataError
from smallfirst.paths import home

VOLUMES_VARIABLE = "SMALLFIRST_VOLUMES"
"""Environment variable: the folder that stands in for /Volumes."""
_MOUNTED = Path("/Volumes")
_PIECE_BYTES = 1 << 20
_WAYS = (
    f"set {VOLUMES_VARIABLE} to a folder with catalog/schema/volume in it; or run where /Volumes is mounted; or set "
    "DATABRICKS_HOST and DATABRICKS_TOKEN, with the package databricks-sdk installed"
)


def is_volume(address: str) -> bool:
    """Return True if the address is of a volume; `dbfs:` always is, to be refused if it names no volume."""
    return address.startswith(("dbfs:", "/Volumes/"))


def volume_path(address: str) -> Path:
    """Return the file or folder that the address stands for. Raise DataError if it is malformed or not there."""
    parts = PurePosixPath(address.removeprefix("dbfs:")).parts
    if parts[:2] != ("/", "Volumes") or len(parts) < 5 or ".." in parts:
        raise DataError(f"{address}: expected [dbfs:]/Volumes/catalog/schema/volume/path, without ..")
    names = parts[2:]
    if chosen := os.environ.get(VOLUMES_VARIABLE, "").strip():
        return _existing(folder_from_variable(VOLUMES_VARIABLE, chosen), names, address)
    if safe_join(_MOUNTED, names[:1]).is_dir():
        return _existing(_MOUNTED, names, address)
    return _downloaded(address, names)


def folder_from_variable(variable: str, chosen: str) -> Path:
    """Return the folder that an environment variable names. Raise ConfigError if it does not exist."""
    folder = Path(chosen).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"{variable}: {folder}: no such folder", hint=f"make it, or set {variable} to another")
    return folder


def _existing(root: Path, names: tuple[str, ...], address: str) -> Path:
    path = safe_join(root, names)
    if not path.exists():
        raise DataError(f"{address}: no such file or folder ({path})")
    return path


def _downloaded(address: str, names: tuple[str, ...]) -> Path:
    """Return a fresh copy of the file or folder in the state folder, of at most MAX_SOURCE_BYTES."""
    files = _files_of_workspace(address)
    remote = str(PurePosixPath("/Volumes", *names))
    local = safe_join(home() / "downloads", names)
    with _telling(address):
        listed = _listed(files, remote)
        _clear(local)
        budget = ReadBudget(address)
        for path in [remote] if listed is None else listed:
            below = PurePosixPath(path).relative_to(remote).parts
            _download(files, path, safe_join(local, below) if below else local, budget)
    return local


def _files_of_workspace(address: str) -> Any:
    """Return the Files API of the workspace that environment or profile name. Raise DataError if there is none."""
    try:
        from databricks.sdk import WorkspaceClient
    except ImportError:
        raise DataError(f"{address}: no way to this volume", hint=_WAYS) from None
    try:
        return WorkspaceClient(product="smallfirst").files
    except ValueError:
        raise DataError(f"{address}: no way to this volume", hint=_WAYS) from None


def _listed(files: Any, remote: str) -> list[str] | None:
    """Return the files below a folder of the volume, sorted; None if it is not a folder."""
    from databricks.sdk.errors import NotFound

    try:
        files.get_directory_metadata(remote)
    except NotFound:
        return None
    found: list[str] = []
    folders = [remote]
    while folders:
        for entry in files.list_directory_contents(folders.pop()):
            (folders if entry.is_directory else found).append(str(entry.path))
    return sorted(found)


def _download(files: Any, remote: str, local: Path, budget: ReadBudget) -> None:
    """Copy one file; it appears under its name only when it is whole."""
    answer = files.download(remote)
    budget.claim(answer.content_length or 0)
    local.parent.mkdir(parents=True, exist_ok=True)
    draft = local.with_name(f".{local.name}.part")
    try:
        with answer.contents as source, draft.open("wb") as target:
            while piece := source.read(_PIECE_BYTES):
                budget.take(len(piece))
                target.write(piece)
        draft.replace(local)
    finally:
        draft.unlink(missing_ok=True)


def _clear(local: Path) -> None:
    """Remove an earlier copy: some of its files may no longer exist."""
    if local.is_dir():
        shutil.rmtree(local)
    else:
        local.unlink(missing_ok=True)


@contextmanager
def _telling(address: str) -> Iterator[None]:
    from databricks.sdk.errors import NotFound
    from databricks.sdk.errors.base import DatabricksError

    try:
        yield
    except NotFound:
        raise DataError(f"{address}: no such file or folder in the workspace") from None
    except DatabricksError as error:
        said = str(error).partition(". Config:")[0]  # what follows are settings
        raise DataError(f"{address}: the workspace refuses: {said[:300]}") from None
    except (OSError, TimeoutError, ValueError) as error:  # requests raises kinds of OSError
        raise DataError(f"{address}: not fetched: {str(error)[:300] or type(error).__name__}", hint=_WAYS) from None
