"""API keys: made with 256 random bits, kept only as SHA-256, compared without an early exit.

A plain SHA-256 is enough because the keys are random and long; the price is that keys a person made
up do not belong here (a short word could be guessed from its hash).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence

_SHA256_HEX = re.compile(r"[0-9a-f]{64}")


def new_key() -> str:
    """A fresh random key to hand to a client. Show it once and keep only its `hash_key`."""
    return f"sf-{secrets.token_urlsafe(32)}"


def hash_key(key: str) -> str:
    """SHA-256 of a key in hex, as `ServeSettings.api_keys_sha256` takes it."""
    return hashlib.sha256(key.encode()).hexdigest()


def is_key_hash(text: str) -> bool:
    """True if `text` can be a `hash_key`; false for a key that was put in by mistake."""
    return _SHA256_HEX.fullmatch(text) is not None


def key_matches(presented: str, hashes: Sequence[str]) -> bool:
    """True if the presented key is one of those kept; the time taken does not tell which."""
    digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).hexdigest()
    found = False
    for known in hashes:
        found |= hmac.compare_digest(digest, known)
    return found
