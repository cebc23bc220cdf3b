"""Where keys lie: in a JSON file, which is looked at before every request, or in the database of a ledger."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from smallfirst.errors import ConfigError, SmallfirstError
from smallfirst.files import locked, write_atomically
from smallfirst.serving.ledger.shared_state import SharedState

_log = logging.getLogger("smallfirst.serving")
_KEYS, _USED = "keys", "keys used"
R = TypeVar("R")


class FileStorage:
    """Keys in a file that its owner alone may read; the days of their last use are in a second one."""

    def __init__(self, path: Path) -> None:
        self.path, self.place = path, str(path)
        self._used_path = path.with_name(f"{path.stem}-used.json")

    def version(self) -> object:
        """Return what changes with the keys; "" if there are none."""
        try:
            stat = os.stat(self.path)
        except OSError:
            return ""
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def read(self) -> str | None:
        """Return the keys as JSON; None if there are none. Raise ConfigError."""
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.path} cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}"
            ) from None

    def replace(self, change: Callable[[str | None], tuple[str, R]]) -> R:
        """Replace the keys by what `change` makes of them, while nobody else does, and return its result."""
        with locked(_lock_path(self.path)):
            text, result = change(self.read())
            write_atomically(self.path, text.encode(), mode=0o600)
        return result

    def last_used(self) -> Mapping[str, str]:
        """Return days by id."""
        try:
            return _days(json.loads(self._used_path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    def note_use(self, id: str, today: str) -> None:
        """Note the day of a use."""
        try:
            with locked(_lock_path(self._used_path)):
                text = json.dumps({**self.last_used(), id: today}, indent=1)
                write_atomically(self._used_path, text.encode(), mode=0o600)
        except OSError as error:
            _log.warning("the last use of key %s was not noted: %s", id, error.strerror)


class TableStorage:
    """Keys as a value of a ledger's shared state, and the days of their last use as another."""

    def __init__(self, state: SharedState) -> None:
        self._state, self.place = state, state.place

    def version(self) -> object:
        """Return what changes with the keys; 0 if there are none. Raise LedgerAway."""
        return self._state.version(_KEYS)

    def read(self) -> str | None:
        """Return the keys as JSON; None if there are none. Raise LedgerAway."""
        found = self._state.get(_KEYS)
        return None if found is None else json.dumps(found)

    def replace(self, change: Callable[[str | None], tuple[str, R]]) -> R:
        """Replace the keys by what `change` makes of them, and return its result."""

        def of_value(value: Any, _: float) -> tuple[Any, R]:
            text, result = change(None if value is None else json.dumps(value))
            return json.loads(text), result

        return self._state.replace(_KEYS, of_value)

    def last_used(self) -> Mapping[str, str]:
        """Return days by id."""
        return _days(self._state.get(_USED))

    def note_use(self, id: str, today: str) -> None:
        """Note the day of a use, in a thread: no request waits for it."""

        def note() -> None:
            try:
                self._state.replace(_USED, lambda days, _: ({**_days(days), id: today}, None))
            except SmallfirstError as error:
                _log.warning("the last use of key %s was not noted: %s", id, error.args[0])

        threading.Thread(target=note, name="last use", daemon=True).start()


def _days(found: Any) -> dict[str, str]:
    return {str(id): str(day) for id, day in found.items()} if isinstance(found, dict) else {}


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")
