"""Names and sizes that come in from outside: checked once, here, with the field named in the error."""

from __future__ import annotations

import re
from collections.abc import Sequence

from usina.core.errors import Invalid

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
_MEMBER = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?\Z")
_REF = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?\Z")
_KEY_TYPES = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}\Z")


def check_name(name: str, field: str = "name") -> str:
    """A DNS label (RFC 1123): a name that is safe as a host name. Raises `Invalid`."""
    if not _LABEL.match(name):
        raise Invalid(
            f"{field}: use 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit",
            field=field,
        )
    return name


def check_member_name(name: str, field: str = "name") -> str:
    """As a DNS label, with '.' and '_' allowed inside."""
    if not _MEMBER.match(name):
        raise Invalid(
            f"{field}: use 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit",
            field=field,
        )
    return name


def check_ref(name: str, field: str) -> str:
    """A name that an operator gives to what is outside: a rack, a device's trait. Raises `Invalid`."""
    if not _REF.match(name):
        raise Invalid(
            f"{field}: use 1 to 64 of letters, digits, '.', '_' and '-', beginning and ending with a letter or digit",
            field=field,
        )
    return name


def check_range(value: int, low: int, high: int, field: str) -> int:
    """`value` within [low, high]. Raises `Invalid`."""
    if not low <= value <= high:
        raise Invalid(f"{field}: must be between {low} and {high}", field=field)
    return value


def check_ssh_keys(keys: Sequence[str], field: str = "ssh_keys") -> tuple[str, ...]:
    """OpenSSH public keys, one line each, at most 20 of 8 KiB. Raises `Invalid` naming the one at fault."""
    if len(keys) > 20:
        raise Invalid(f"{field}: at most 20 keys", field=field)
    checked = []
    for number, key in enumerate(keys):
        line = key.strip()
        parts = line.split(None, 2)
        known = len(parts) >= 2 and parts[0] in _KEY_TYPES and bool(_BASE64.match(parts[1]))
        if not known or len(line) > 8192 or not line.isprintable():
            raise Invalid(
                f"{field}[{number}]: not an OpenSSH public key such as 'ssh-ed25519 AAAA… you@host'",
                field=f"{field}[{number}]",
            )
        checked.append(line)
    return tuple(dict.fromkeys(checked))


def check_labels(labels: dict[str, str], field: str = "labels") -> dict[str, str]:
    """At most 32 labels of short printable text. Raises `Invalid`."""
    if len(labels) > 32:
        raise Invalid(f"{field}: at most 32 labels", field=field)
    for name, value in labels.items():
        if not 1 <= len(name) <= 63 or len(value) > 255 or not (name + value).isprintable():
            raise Invalid(
                f"{field}.{name[:63]}: names of 1 to 63 and values of up to 255 printable characters",
                field=field,
            )
    return labels
