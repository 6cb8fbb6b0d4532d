"""A key pair of each project, with which its tasks get into its machines: derived, so that none is kept anywhere."""

from __future__ import annotations

from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


class DerivedKeys:
    """See `ports.login_keys.LoginKeys`."""

    def __init__(self, master: bytes) -> None:
        self._master = master
        self.public = lru_cache(1024)(self._public)  # every plan of a machine has it

    def private(self, project: str) -> str:
        key = self._pair(project).private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        return key.decode()

    def _public(self, project: str) -> str:
        key = self._pair(project).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        return f"{key.decode()} usina-tasks-of-{project}"

    def _pair(self, project: str) -> Ed25519PrivateKey:
        info = b"usina login key of tasks 1 " + project.encode()
        return Ed25519PrivateKey.from_private_bytes(HKDF(SHA256(), 32, salt=None, info=info).derive(self._master))
