"""A folder for the Unix socket of a server, which no other user of the machine can reach."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

MAX_PATH_BYTES = 100
"""The system's limit for a socket's path is 108 on Linux and 104 on macOS."""


class SocketFolder:
    """A folder that only this user may enter, for one socket."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="smallfirst-"))
        if len(str(self.path)) + 8 > MAX_PATH_BYTES:  # a deep TMPDIR
            self.path.rmdir()
            self.path = Path(tempfile.mkdtemp(prefix="smallfirst-", dir="/tmp"))

    @property
    def socket(self) -> Path:
        """Where the server listens; llama.cpp takes anything that does not end in .sock for a host name."""
        return self.path / "e.sock"

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
