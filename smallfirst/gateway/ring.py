"""A bounded queue of byte strings in memory that two processes share: one puts, one takes, and either may die.

What was put stays until it is taken: if the writer is killed, the reader still gets all of it, and if the reader is
killed, the next one goes on where it stopped. `put` never waits: what does not fit is refused and counted.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Sequence

_HEAD_BYTES = 64
_PUT, _TAKEN, _REFUSED, _STORED, _UNREADABLE = range(5)
_LENGTH = struct.Struct("<I")


class Ring:
    """The queue. The writer wakes the reader through a pipe of its own, which orders their accesses to memory."""

    def __init__(self, fd: int, size: int) -> None:
        """Map the shared memory of `size` bytes behind `fd` (see `shared_memory`)."""
        self.fd, self._size = fd, size - _HEAD_BYTES
        self._map = mmap.mmap(fd, size)
        self._numbers = memoryview(self._map)[:_HEAD_BYTES].cast("Q")

    def put(self, parts: Sequence[bytes]) -> bool:
        """Append one entry, given in parts; return False if there is no room for it."""
        length = sum(map(len, parts))
        at = self._numbers[_PUT]
        if at + length + _LENGTH.size - self._numbers[_TAKEN] > self._size:
            self._numbers[_REFUSED] += 1
            return False
        for part in (_LENGTH.pack(length), *parts):
            at = self._write(at, part)
        self._numbers[_PUT] = at  # last, so that an entry is there as a whole or not at all
        return True

    def entries(self, most: int) -> tuple[list[bytes], int]:
        """Return up to `most` waiting entries, oldest first, and the place behind them, for `take`."""
        found: list[bytes] = []
        at, end = self._numbers[_TAKEN], self._numbers[_PUT]
        while at < end and len(found) < most:
            (length,) = _LENGTH.unpack(self._read(at, _LENGTH.size))
            found.append(self._read(at + _LENGTH.size, length))
            at += _LENGTH.size + length
        return found, at

    def take(self, until: int, *, stored: int, unreadable: int) -> None:
        """Give the room of the entries before `until` free, and count what became of them."""
        self._numbers[_STORED] += stored
        self._numbers[_UNREADABLE] += unreadable
        self._numbers[_TAKEN] = until

    @property
    def counts(self) -> dict[str, int]:
        """What became of the entries: `no_room` did not fit, `unreadable` could not be stored, whatever the room."""
        put, taken, refused, stored, unreadable = self._numbers[: _UNREADABLE + 1]
        return {"stored": stored, "waiting_bytes": put - taken, "no_room": refused, "unreadable": unreadable}

    def _write(self, at: int, part: bytes) -> int:
        start = at % self._size
        first = min(len(part), self._size - start)
        self._map[_HEAD_BYTES + start : _HEAD_BYTES + start + first] = part[:first]
        if first < len(part):
            self._map[_HEAD_BYTES : _HEAD_BYTES + len(part) - first] = part[first:]
        return at + len(part)

    def _read(self, at: int, length: int) -> bytes:
        start = at % self._size
        first = self._map[_HEAD_BYTES + start : _HEAD_BYTES + min(start + length, self._size)]
        return first + self._map[_HEAD_BYTES : _HEAD_BYTES + length - len(first)]


def shared_memory(size: int) -> int:
    """Return the descriptor of new memory that a child process can map as well; it has no name in the file system."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("smallfirst-capture")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd
