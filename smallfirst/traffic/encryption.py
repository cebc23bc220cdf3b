"""Encryption of what is kept: AES-256-GCM under a key that scrypt derives from any text."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from smallfirst.errors import ConfigError, as_missing_extra

_NONCE = 12


class Cipher:
    """Encrypts and decrypts under one key. Each content is bound to its id: it is not readable under another one."""

    def __init__(self, key: str, salt: bytes) -> None:
        """Derive the key, which takes about 50 ms. Raise MissingExtra."""
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ModuleNotFoundError as error:
            raise as_missing_extra(error) from None
        self._key = hashlib.scrypt(key.encode(), salt=salt, n=2**14, r=8, p=1, dklen=64)
        self._aead = AESGCM(self._key[:32])

    def encrypt(self, content: bytes, id: str) -> bytes:
        """Return a random nonce of 12 bytes, the encrypted content, and a tag of 16."""
        nonce = secrets.token_bytes(_NONCE)
        return nonce + self._aead.encrypt(nonce, content, id.encode())

    def decrypt(self, content: bytes, id: str) -> bytes:
        """Return the content. Raise ConfigError if it was changed or belongs to another id."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._aead.decrypt(content[:_NONCE], content[_NONCE:], id.encode())
        except InvalidTag:
            raise ConfigError(f"exchange {id} cannot be decrypted: its content was changed") from None

    def check(self) -> bytes:
        """Return what tells one key from another without saying it."""
        return hmac.digest(self._key[32:], b"smallfirst capture", "sha256")


def new_salt() -> bytes:
    """Return 16 random bytes."""
    return secrets.token_bytes(16)
