"""Secrets at rest: AES-256-GCM under a key derived from the site's master key, bound to the resource that owns them."""

from __future__ import annotations

import base64
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from usina.core.errors import Unavailable

_NONCE = 12  # bytes, as NIST SP 800-38D recommends; random, which is safe for 2**32 secrets under one key


class MasterVault:
    """See `ports.vault.Vault`."""

    def __init__(self, master: bytes) -> None:
        self._cipher = AESGCM(HKDF(SHA256(), 32, salt=None, info=b"usina secrets at rest 1").derive(master))

    def seal(self, secret: str, owner: str) -> str:
        nonce = os.urandom(_NONCE)
        return base64.b64encode(nonce + self._cipher.encrypt(nonce, secret.encode(), owner.encode())).decode()

    def open(self, sealed: str, owner: str) -> str:
        raw = base64.b64decode(sealed)
        try:
            return self._cipher.decrypt(raw[:_NONCE], raw[_NONCE:], owner.encode()).decode()
        except InvalidTag:
            raise Unavailable("a secret cannot be opened with this site's master key") from None
