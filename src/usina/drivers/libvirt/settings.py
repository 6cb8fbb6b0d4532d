"""Options of a libvirt host, checked once. Pure.

A URI reaches libvirt's own parser, which can run commands on our machine (`command=`, `netcat=`) and can switch off
host verification (`no_verify=`). So only four forms and a handful of harmless parameters pass; all else is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from usina.core.errors import Invalid
from usina.ports.driver import HostSettings

OPTIONS: Final = {
    "uri": "qemu:///system (default), qemu:///session, qemu+ssh://user@host/system or qemu+tls://host/system.",
    "pool": "Folder on the host for disks, seeds and console logs; absolute. Default: under /var/lib/usina.",
    "accelerator": "auto (default: KVM where a probe guest boots, else TCG), kvm or tcg.",
}
ACCELERATORS: Final = ("auto", "kvm", "tcg")

_LOCAL: Final = ("qemu:///system", "qemu:///session")
_REMOTE_SCHEMES: Final = ("qemu+ssh", "qemu+tls")
_PARAMETERS: Final = {"qemu+ssh": {"keyfile", "known_hosts"}, "qemu+tls": {"pkipath"}}
_AUTHORITY: Final = re.compile(
    r"(?:[A-Za-z_][\w.-]*@)?(?:[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?\Z", re.ASCII
)
_PATH: Final = re.compile(r"/[\w./+-]*\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Settings:
    """A host's options with their defaults filled in, and the names that follow from them."""

    uri: str
    pool_name: str
    pool_path: str
    accelerator: str
    factory: str

    @property
    def local(self) -> bool:
        return self.uri in _LOCAL

    @property
    def session(self) -> bool:
        return urlsplit(self.uri).path == "/session"

    @property
    def ssh_host(self) -> str | None:
        """``user@host`` and port of a qemu+ssh host, as `ssh` takes them; None for the others."""
        parts = urlsplit(self.uri)
        return parts.netloc if parts.scheme == "qemu+ssh" else None

    @property
    def ssh_key(self) -> str | None:
        return dict(parse_qsl(urlsplit(self.uri).query)).get("keyfile")


def check(options: Mapping[str, Any]) -> None:
    """Refuse anything that `OPTIONS` does not describe. Raises `Invalid` naming the option."""
    for name, value in options.items():
        if name not in OPTIONS:
            raise Invalid(f"{name}: a libvirt host has no such option; it has {', '.join(OPTIONS)}", field=name)
        if not isinstance(value, str):
            raise Invalid(f"{name}: must be text", field=name)
    _check_uri(options.get("uri", _LOCAL[0]))
    _check_pool(options.get("pool"))
    if options.get("accelerator", "auto") not in ACCELERATORS:
        raise Invalid(f"accelerator: must be one of {', '.join(ACCELERATORS)}", field="accelerator")


def read(host: HostSettings) -> Settings:
    """The settings of a host whose options passed `check`."""
    check(host.options)
    uri = _without_terminal(host.options.get("uri", _LOCAL[0]))
    suffix = host.id[-12:]
    session = urlsplit(uri).path == "/session"
    default = host.state_dir / "pool" if session else f"/var/lib/usina/{host.factory}-{host.id}"
    return Settings(
        uri=uri,
        pool_name=f"usina-{host.factory}-{suffix}",
        pool_path=str(host.options.get("pool") or default),
        accelerator=host.options.get("accelerator", "auto"),
        factory=host.factory,
    )


def _check_uri(uri: str) -> None:
    if uri in _LOCAL:
        return
    try:
        parts = urlsplit(uri)
        parameters = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise Invalid("uri: not a URI", field="uri") from None
    if parts.scheme not in _REMOTE_SCHEMES or parts.path not in ("/system", "/session") or parts.fragment:
        raise Invalid(f"uri: must be {OPTIONS['uri']}", field="uri")
    if not _AUTHORITY.match(parts.netloc):
        raise Invalid("uri: the host part must be [user@]host[:port] in plain characters", field="uri")
    for name, value in parameters:
        if name not in _PARAMETERS[parts.scheme]:
            raise Invalid(f"uri: the parameter {name!r} is not allowed", field="uri")
        if not _PATH.match(value):
            raise Invalid(f"uri: the parameter {name!r} must be an absolute path in plain characters", field="uri")


def _check_pool(path: str | None) -> None:
    if path is None:
        return
    if not _PATH.match(path) or ".." in path.split("/") or len(path.strip("/").split("/")) < 2:
        raise Invalid("pool: must be an absolute path at least two folders deep, in plain characters", field="pool")


def _without_terminal(uri: str) -> str:
    """Keep ssh from asking a question nobody would answer."""
    parts = urlsplit(uri)
    if parts.scheme != "qemu+ssh":
        return uri
    return parts._replace(query=urlencode([*parse_qsl(parts.query), ("no_tty", "1")], safe="/")).geturl()
