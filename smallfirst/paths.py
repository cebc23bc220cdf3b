"""Paths of the state folder and of the MLflow store in it.

Runs, registered models and the ledger are in `.smallfirst` beside `task.yaml`, so a project is moved or deleted as one
folder. Projects share models only if SMALLFIRST_HOME or MLFLOW_TRACKING_URI points them to one place.
"""

from __future__ import annotations

import os
from pathlib import Path

from smallfirst.errors import ConfigError

PROJECT_MARKS = ("task.yaml", "pyproject.toml", ".git")


def home() -> Path:
    """Return the state folder; create it if missing, readable by its owner only and ignored by git.

    It is `SMALLFIRST_HOME` if set, else `.smallfirst` in the project folder. Raise ConfigError if it cannot be written.
    """
    chosen = os.environ.get("SMALLFIRST_HOME", "").strip()
    folder = Path(chosen).expanduser().absolute() if chosen else project_folder() / ".smallfirst"
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
    for folder in (here, *here.parents):
        if any((folder / mark).exists() for mark in PROJECT_MARKS):
            return folder
    return here


def tracking_uri() -> str:
    """Return MLflow's tracking URI: `MLFLOW_TRACKING_URI`, else a SQLite file in the state folder."""
    chosen = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if chosen:
        return chosen
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
        hint="set SMALLFIRST_HOME to a folder you can write, or mend the permissions",
    )
