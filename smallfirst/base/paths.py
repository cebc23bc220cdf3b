"""Paths of the state folder, of the MLflow store in it and of weights, and the environment of child processes.

Runs, registered models and the ledger are in `.smallfirst` beside `task.yaml`, wherever the process stands, so a
project is moved or deleted as one folder. It is created when something is written. Projects share models only if
SMALLFIRST_HOME or MLFLOW_TRACKING_URI points them to one place. Base weights are the user's: they are fetched once for
all projects.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from smallfirst.base.errors import ConfigError

ROOT_MARKS = ("pyproject.toml", ".git")
PROJECT_MARKS = ("task.yaml", *ROOT_MARKS)
STATE = ".smallfirst"

_project: ContextVar[Path | None] = ContextVar("project of the state folder", default=None)
_ledger: ContextVar[Path | str | None] = ContextVar("place of the ledger", default=None)


@contextmanager
def state_of(folder: Path) -> Iterator[None]:
    """Within the block the state folder is that of the task in `folder`, not that of the current folder.

    A thread does not inherit it; a task of asyncio and `asyncio.to_thread` do.
    """
    token = _project.set(folder.absolute())
    try:
        yield
    finally:
        _project.reset(token)


@contextmanager
def ledger_at(place: Path | str) -> Iterator[None]:
    """Within the block the ledger is at this path or URL, not in the state folder; for threads as in `state_of`."""
    token = _ledger.set(place)
    try:
        yield
    finally:
        _ledger.reset(token)


def ledger_place(*, create: bool = False) -> Path | str:
    """Return the path or URL of the ledger: that of `ledger_at`, else `SMALLFIRST_LEDGER`, else in the state folder.

    With `create` the state folder is made where it is missing.
    """
    chosen = _ledger.get() or os.environ.get("SMALLFIRST_LEDGER", "").strip()
    if isinstance(chosen, str) and "://" in chosen:
        return chosen
    return Path(chosen).expanduser() if chosen else (home() if create else state_folder()) / "ledger.db"


def state_folder(start: Path | None = None) -> Path:
    """Return the path of the state folder, which may not exist yet; for a reader that creates nothing.

    It is `SMALLFIRST_HOME` if set; else the nearest existing `.smallfirst` from `start` (default: the task's folder in
    `state_of`, else the current folder) up to the root of its repository; else that beside the nearest project mark.
    """
    chosen = os.environ.get("SMALLFIRST_HOME", "").strip()
    if chosen:
        return Path(chosen).expanduser().absolute()
    here = (start or _project.get() or Path.cwd()).absolute()
    above = (here, *here.parents)
    project = project_folder(here)
    root = next((folder for folder in above if _has(folder, ROOT_MARKS)), project)
    within = above[: above.index(root) + 1]
    return next((folder / STATE for folder in within if (folder / STATE).is_dir()), project / STATE)


def weights_folders() -> list[Path]:
    """Return the folders of downloaded weights: first the one to fetch into, then older ones that may hold some.

    It is in `SMALLFIRST_HOME` if set, else in the user's caches (`platformdirs.user_cache_dir`). Weights were in the
    state folder before, or in one of this user's above the task or the current folder.
    """
    found = [state_folder()]
    if not os.environ.get("SMALLFIRST_HOME", "").strip():
        caches = "~/Library/Caches" if sys.platform == "darwin" else os.environ.get("XDG_CACHE_HOME", "").strip()
        found.insert(0, Path(caches or "~/.cache").expanduser() / "smallfirst")
        for start in filter(None, (_project.get(), Path.cwd())):
            found += [place for above in (start, *start.parents) if _is_own(place := above / STATE)]
    return [folder / "weights" for folder in dict.fromkeys(found)]


def home() -> Path:
    """Return the state folder; create it if missing, readable by its owner only and ignored by git.

    Raise ConfigError if it cannot be written.
    """
    folder = state_folder()
    if not folder.exists():
        _create(folder)
    if not folder.is_dir():
        raise _unusable(folder, "it is a file, not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _unusable(folder, "no permission to write in it")
    return folder


def project_folder(start: Path | None = None) -> Path:
    """Return the nearest project at or above `start` (default: the current folder), else `start`."""
    here = (start or Path.cwd()).absolute()
    return next((folder for folder in (here, *here.parents) if _has(folder, PROJECT_MARKS)), here)


def tracking_uri(*, create: bool = True) -> str:
    """Return MLflow's tracking URI: `MLFLOW_TRACKING_URI`, else a SQLite file in the state folder.

    With `create=False`, for a reader, it is empty if there is no such file yet.
    """
    chosen = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if chosen:
        return chosen
    if not create and not (state_folder() / "mlflow.db").exists():
        return ""
    file = (home() / "mlflow.db").as_posix()
    # MLflow takes these as escapes in one place and as they are in another.
    if "%" in file or "?" in file:
        raise _unusable(home(), "MLflow's store cannot be in a path with % or ?")
    return f"sqlite:///{file}"


def artifact_folder() -> Path:
    """Return the folder of run artifacts in the state folder; create it if missing."""
    folder = home() / "artifacts"
    folder.mkdir(exist_ok=True)
    return folder


def _is_own(folder: Path) -> bool:
    return folder.is_dir() and folder.stat().st_uid == os.geteuid()


def _has(folder: Path, marks: tuple[str, ...]) -> bool:
    return any((folder / mark).exists() for mark in marks)


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, mode=0o700)
        # The ledger holds customers' texts: it must never be committed by accident.
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    except FileExistsError:
        return  # another process made it at the same moment
    except OSError as error:
        raise _unusable(folder, error.strerror or str(error)) from None


def _unusable(folder: Path, why: str) -> ConfigError:
    return ConfigError(
        f"the state folder {folder} cannot be used: {why}",
        hint="set SMALLFIRST_HOME to a folder you can write, or mend its permissions or its disk",
    )


# Child processes

_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")


def child_environment(**more: str) -> dict[str, str]:
    """Return the environment of a child that needs no secret of this process, with `more`; it finds this package."""
    passed = {name: value for name, value in os.environ.items() if not any(word in name.upper() for word in _SECRET)}
    return passed | {"PYTHONPATH": python_path()} | more


def python_path() -> str:
    """Return PYTHONPATH for a child, with the folder of this package in front unless the package is installed."""
    package = Path(__file__).parents[2]
    installed = package.name in ("site-packages", "dist-packages")
    return os.pathsep.join(filter(None, ["" if installed else str(package), os.environ.get("PYTHONPATH", "")]))
