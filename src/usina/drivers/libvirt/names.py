"""Every name this driver gives to something on a host. Pure; one place, so that what is made is also found and removed.

UUIDs are derived from the factory and the handle. So a domain is ours exactly when its UUID is the one its name gives:
ownership is checked without reading any XML, and a stranger's domain of the same name is never touched.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import Final

_SPACE: Final = uuid.UUID("5b0f3c52-6f0a-4d7e-9d4c-2f7a1d5b8e61")

SERIAL_LENGTH: Final = 20  # a virtio disk's serial holds no more


def guest_uuid(factory: str, handle: str) -> str:
    return str(uuid.uuid5(_SPACE, f"{factory}/{handle}"))


def named_uuid(kind: str, name: str) -> str:
    """For pools, networks and filters, whose names are unique already."""
    return str(uuid.uuid5(_SPACE, f"{kind}/{name}"))


def mdev_uuid(handle: str, address: str) -> str:
    return str(uuid.uuid5(_SPACE, f"mdev/{handle}/{address}"))


def network(factory: str, handle: str) -> str:
    """A network and its bridge. A Linux interface name has 15 characters at most, so the handle is hashed."""
    return "un-" + hashlib.sha256(f"{factory}/{handle}".encode()).hexdigest()[:10]


def packet_filter(handle: str, mac: str) -> str:
    return f"{filter_prefix(handle)}{mac.replace(':', '').lower()}"


def filter_prefix(handle: str) -> str:
    return f"usina-{handle}-"


def shelter_filter(factory: str) -> str:
    """The filter that every guest of the factory on one host refers to: what no guest may reach."""
    return f"usina-{factory}-shelter"


def root_disk(handle: str) -> str:
    return f"root-{handle}.qcow2"


def seed(handle: str) -> str:
    return f"seed-{handle}.iso"


def console_log(handle: str) -> str:
    return f"console-{handle}.log"


def volume(handle: str) -> str:
    return f"volume-{handle}.qcow2"


def volume_handle(path: str) -> str | None:
    """The volume whose file this is; None for any other file."""
    name = path.rpartition("/")[2]
    if name.startswith("volume-") and name.endswith(".qcow2"):
        return name[len("volume-") : -len(".qcow2")]
    return None


def serial(volume: str) -> str:
    """What a guest finds below /dev/disk/by-id for a volume: the end of its handle, which is its random part."""
    return volume[-SERIAL_LENGTH:]
