"""Write files atomically, digest them, and lock them between processes.

The kernel releases a `flock` when its holder dies, so a lock never goes stale, and a child process inherits it with the
open file. `flock` does not exist on Windows.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import secrets
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, content: bytes, *, mode: int = 0o666) -> Path:
    """Write `content` beside `path`, flush it to disk and rename it over `path`; return `path`.

    A reader sees the old file or the new one, never half. Each call uses a temporary file of its own, so concurrent
    writers do not mix; the last one wins. The new file gets the permission bits `mode` less the umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:  # a write that fails names no file
            error.filename = str(path)
        raise
    return path


def sha256(path: Path) -> str:
    """Return the SHA-256 of the file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(folder: Path, paths: Iterable[Path]) -> str:
    """Return the SHA-256 of the lines of `sha256sum` on the files in `folder`, sorted by name; empty without any.

    In one process a file is read again only if its size or time changed.
    """
    named = sorted((path.relative_to(folder).as_posix(), path, path.stat()) for path in paths)
    lines = [f"{_known_sha256(path, stat.st_size, stat.st_mtime_ns)}  {name}\n" for name, path, stat in named]
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else ""


@functools.lru_cache(maxsize=1024)
def _known_sha256(path: Path, n_bytes: int, mtime_ns: int) -> str:
    return sha256(path)


def try_lock(path: Path) -> int | None:
    """Return an open file descriptor that holds the exclusive lock at `path`, or None if another process holds it.

    The lock lasts until every process that inherited the descriptor has closed it.
    """
    return _open_locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(path: Path) -> bool:
    """Return True if a living process holds the lock at `path`. Concurrent calls do not disturb each other."""
    descriptor = _open_locked(path, fcntl.LOCK_SH | fcntl.LOCK_NB)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


class SharedLock:
    """A share of the lock at `path`: others may hold one too, and nobody the lock alone, until `release` or its end."""

    def __init__(self, path: Path) -> None:
        """Raise BlockingIOError if a process holds the lock alone."""
        descriptor = _open_locked(path, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if descriptor is None:
            raise BlockingIOError(f"{path} is held alone")
        self.release = weakref.finalize(self, os.close, descriptor)


@contextmanager
def locked(path: Path, *, otherwise: Exception | None = None) -> Iterator[None]:
    """Hold the exclusive lock at `path`; wait for it if another process holds it, or raise `otherwise`."""
    descriptor = try_lock(path) if otherwise else _open_locked(path, fcntl.LOCK_EX)
    if descriptor is None:
        raise otherwise or AssertionError("a lock that is waited for is held")
    try:
        yield
    finally:
        os.close(descriptor)


def _open_locked(path: Path, operation: int) -> int | None:
    # O_NOFOLLOW: a symbolic link must not lead to another file.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
