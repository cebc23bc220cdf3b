"""API keys: made with 256 random bits, kept only as SHA-256, compared without an early exit.

A plain SHA-256 is enough because the keys are random and long; the price is that keys a person made
up do not belong here (a short word could be guessed from its hash). Keys of a keyring look like
`sf-ID-SECRET`: the ID names the entry to compare with, is shown in lists and logs, and opens nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence

_SHA256_HEX = re.compile(r"[0-9a-f]{64}")
_WITH_ID = re.compile(r"sf-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")


def new_id() -> str:
    """A fresh prefix id: 12 hex digits."""
    return secrets.token_hex(6)


def new_key(id: str | None = None) -> str:
    """A fresh random key to hand to a client, with `id` in it. Show it once and keep only its `hash_key`."""
    return f"sf-{id or new_id()}-{secrets.token_urlsafe(32)}"


def key_id(key: str) -> str:
    """The prefix id inside a key; empty if it has none."""
    found = _WITH_ID.fullmatch(key)
    return found[1] if found else ""


def hash_key(key: str) -> str:
    """SHA-256 of a key in hex, as `ServeSettings.api_keys_sha256` takes it."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def is_key_hash(text: str) -> bool:
    """True if `text` can be a `hash_key`; false for a key that was put in by mistake."""
    return _SHA256_HEX.fullmatch(text) is not None


def key_matches(presented: str, hashes: Sequence[str]) -> bool:
    """True if the presented key is one of those kept; the time taken does not tell which."""
    digest = hash_key(presented)
    found = False
    for known in hashes:
        found |= hmac.compare_digest(digest, known)
    return found
