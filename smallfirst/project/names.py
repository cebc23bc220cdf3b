"""The names that a task takes from its folder where its file gives none, so two tasks never share one."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What the name of a task may be."""


def task_name(folder: Path) -> str:
    """Return the folder's name made valid, in lower case: `My Tickets` becomes `my-tickets`.

    A name without a Latin letter or digit gives `task-` and 6 hex digits of its hash.
    """
    given = folder.absolute().resolve().name
    plain = unicodedata.normalize("NFKD", given).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9._-]+", "-", plain).strip("._-")[:64].rstrip("._-")
    return name or f"task-{hashlib.sha256(given.encode()).hexdigest()[:6]}"


def registry_name(name: str) -> str:
    """Return the three-level model name of a task that names none."""
    return f"main.default.{re.sub(r'[^A-Za-z0-9_-]', '_', name)}"
