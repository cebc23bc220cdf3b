"""Keys in files: JSON that their owner alone may read, replaced under a lock."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from smallfirst.errors import ConfigError
from smallfirst.files import locked, write_atomically
from smallfirst.serving.ledger.shared_state import Change, R


class FileState:
    """Values that are read and replaced as those of a `SharedState`, each in a file of its own."""

    def __init__(self, path: Path) -> None:
        """`path` is the file of the value `keys`; any other value is beside it."""
        self._path, self.place = path, str(path)

    def version(self, name: str) -> object:
        """Return what changes with a value; "" if there is none."""
        try:
            stat = os.stat(self._file(name))
        except OSError:
            return ""
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def get(self, name: str) -> Any:
        """Return a value; None if there is none. Raise ConfigError."""
        file = self._file(name)
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
        except ValueError:
            raise ConfigError(f"{file} is no key store: not JSON", hint="move it away, or repair it") from None

    def replace(self, name: str, change: Change[R]) -> R:
        """Replace a value by what `change` makes of it, while nobody else does, and return the result."""
        file = self._file(name)
        with locked(file.with_name(f".{file.name}.lock")):
            value, result = change(self.get(name), time.time())
            write_atomically(file, json.dumps(value, indent=2).encode(), mode=0o600)
        return result

    def _file(self, name: str) -> Path:
        return self._path if name == "keys" else self._path.with_name(f"{self._path.stem}-used.json")
