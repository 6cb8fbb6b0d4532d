"""Options of a Podman host, checked once. Pure."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from usina.core.errors import Invalid
from usina.core.units import KiB, MiB
from usina.ports.driver import HostSettings

OPTIONS: Final = {
    "socket": "Podman's socket on this machine (default: the usual one; where none answers, one is started)",
    "runtime": "OCI runtime of the service that is started here, such as runc or crun (default: Podman's own)",
    "uids": "Host users that users of containers become, first-last, when Podman runs as root (1900000000-1900065535)",
    "pids": "processes that one container may have (4096)",
    "files": "files that one process may have open (65536)",
    "log_limit": "bytes of its log that are kept of each run (8 MiB)",
    "host_network": "true: tasks may ask for the host's own network (false)",
    "registries": "registries that images may come from, a list of names; absent: whatever Podman allows",
}
_NUMBERS: Final = {"pids": (16, 1 << 22), "files": (64, 1 << 20), "log_limit": (64 * KiB, 1 << 36)}
_UIDS: Final = re.compile(r"(\d{5,10})-(\d{5,10})\Z")
_REGISTRY: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,200}(:\d{1,5})?(/[a-z0-9._/-]{1,200})?\Z")


@dataclass(frozen=True, slots=True)
class Settings:
    """With defaults filled in."""

    folder: Path
    factory: str
    socket: str = ""
    runtime: str = ""
    uids: tuple[int, int] = (1_900_000_000, 65_536)  # first, how many
    pids: int = 4096
    files: int = 65_536
    log_limit: int = 8 * MiB
    host_network: bool = False
    registries: tuple[str, ...] | None = None


def check(options: Mapping[str, Any]) -> None:
    """Raises `Invalid` naming the option."""
    for name, value in options.items():
        if name not in OPTIONS:
            raise Invalid(f"{name}: a Podman host has no such option; it has {', '.join(OPTIONS)}", field=name)
        if name in _NUMBERS:
            low, high = _NUMBERS[name]
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise Invalid(f"{name}: must be a whole number between {low} and {high}", field=name)
        elif name == "host_network":
            if not isinstance(value, bool):
                raise Invalid(f"{name}: must be true or false", field=name)
        elif name == "registries":
            if not isinstance(value, list) or not all(isinstance(v, str) and _REGISTRY.match(v) for v in value):
                raise Invalid("registries: must be a list of names such as docker.io/library", field=name)
        elif not isinstance(value, str) or len(value) > 1000:
            raise Invalid(f"{name}: must be a text", field=name)
    if "socket" in options and not os.path.isabs(options["socket"]):
        raise Invalid("socket: must be an absolute path", field="socket")
    if not re.fullmatch(r"[A-Za-z0-9/_.-]*", options.get("runtime", "")):
        raise Invalid("runtime: must be the name or path of a program", field="runtime")
    if "uids" in options:
        _uids(options["uids"])


def _uids(text: str) -> tuple[int, int]:
    found = _UIDS.match(text)
    first, last = (int(found[1]), int(found[2])) if found else (0, 0)
    if not first >= 65_536 or not first + 65_535 <= last < 1 << 32:
        raise Invalid(
            "uids: must be a range of at least 65536 users above 65535, such as 1900000000-1900065535", field="uids"
        )
    return first, last - first + 1


def read(host: HostSettings) -> Settings:
    """The settings of a host whose options were checked."""
    options = dict(host.options)
    uids, registries = options.pop("uids", None), options.pop("registries", None)
    more: dict[str, Any] = {"uids": _uids(uids)} if uids else {}
    if registries is not None:
        more["registries"] = tuple(registries)
    # Podman cannot give more than it has itself, and the service that we start has what we have.
    options["files"] = _at_most(resource.RLIMIT_NOFILE, options.get("files", 65_536))
    options["pids"] = _at_most(resource.RLIMIT_NPROC, options.get("pids", 4096))
    return Settings(host.state_dir / "podman", host.factory, **options, **more)


def _at_most(limit: int, wanted: int) -> int:
    hard = resource.getrlimit(limit)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
