"""Options of a Slurm cluster, checked once. Pure.

Paths, names and numbers from here reach command lines, scripts and tokens, so only plain characters pass.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from usina.core.errors import Invalid
from usina.core.units import TiB
from usina.ports.driver import HostSettings

OPTIONS: Final = {
    "url": "slurmrestd: http://host:6820, https://host or unix:///path of its socket; without it, sbatch and squeue",
    "jwt_key": "path of the cluster's HS256 key, which tokens for slurmrestd are signed with; needed with url",
    "conf": "path of slurm.conf for Slurm's commands (default: theirs); with url, says that the commands are here, too",
    "partition": "the partition that this provider is; without it, every partition becomes one",
    "workdir": "folder for runs on the cluster, %u being the member's Unix name (default: ~/.usina)",
    "shared": "whether this machine sees the same files as the nodes, under the same paths: true (default) or false",
    "service_account": "Unix name that runs the tasks of members who have none of their own",
    "min_uid": "the lowest Unix uid that tasks may have (1000)",
    "account": "account of tasks that name none",
    "qos": "QoS of tasks that name none",
    "shared_limit": "bytes of weights and alike that are kept for a member in a project, beside what runs use (1 TiB)",
    "reader": "Slurm user that jobs and nodes are listed as, over url: root (default) or an operator",
}

USER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}\Z", re.ASCII)
WORD: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+:@%/-]{0,127}\Z", re.ASCII)
_PATH: Final = re.compile(r"/[\w./+-]+\Z", re.ASCII)
_FOLDER: Final = re.compile(r"/[\w./+%-]+\Z", re.ASCII)
_TRUTH: Final = {True: True, False: False, "true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Settings:
    """A cluster's options with their defaults filled in."""

    factory: str
    state_dir: Path
    url: str = ""
    jwt_key: str = ""
    conf: str = ""
    partition: str = ""
    workdir: str = ""
    shared: bool = True
    service_account: str = ""
    min_uid: int = 1000
    account: str = ""
    qos: str = ""
    reader: str = "root"
    shared_limit: int = TiB

    @property
    def has_commands(self) -> bool:
        return not self.url or bool(self.conf)


def check(options: Mapping[str, Any]) -> None:
    """Refuse anything that `OPTIONS` does not describe. Raises `Invalid` naming the option."""
    for name, value in options.items():
        if name not in OPTIONS:
            raise Invalid(f"{name}: a Slurm cluster has no such option; it has {', '.join(OPTIONS)}", field=name)
        _check_one(name, value)
    if options.get("url") and not options.get("jwt_key"):
        raise Invalid("jwt_key: must be given with url, to sign tokens with", field="jwt_key")
    if options.get("jwt_key") and not options.get("url"):
        raise Invalid("url: must be given with jwt_key", field="url")


def read(host: HostSettings) -> Settings:
    """The settings of a cluster whose options passed `check`."""
    check(host.options)
    given = {name: value for name, value in host.options.items() if name not in ("shared", "min_uid", "shared_limit")}
    return Settings(
        factory=host.factory,
        state_dir=host.state_dir,
        shared=_TRUTH[host.options.get("shared", True)],
        min_uid=int(host.options.get("min_uid", 1000)),
        shared_limit=int(host.options.get("shared_limit", TiB)),
        **given,
    )


def _check_one(name: str, value: Any) -> None:
    if name == "shared":
        if not isinstance(value, bool | str) or value not in _TRUTH:
            raise Invalid("shared: must be true or false", field=name)
        return
    if name == "shared_limit":
        if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,18}", str(value)):
            raise Invalid("shared_limit: must be a whole number of bytes", field=name)
        return
    if name == "min_uid":
        if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,9}", str(value)) or int(value) < 1:
            raise Invalid("min_uid: must be a whole number of at least 1", field=name)
        return
    if not isinstance(value, str):
        raise Invalid(f"{name}: must be text", field=name)
    _check_text(name, value)


def _check_text(name: str, value: str) -> None:
    if name == "url":
        _check_url(value)
    elif name in ("jwt_key", "conf", "workdir"):
        if not (_FOLDER if name == "workdir" else _PATH).match(value) or ".." in value.split("/"):
            raise Invalid(f"{name}: must be an absolute path in plain characters", field=name)
        if "%" in value.replace("%u", ""):
            raise Invalid("workdir: only %u may stand in it, for the member's Unix name", field=name)
    elif name in ("service_account", "reader"):
        if not USER.match(value) or (value == "root" and name == "service_account"):
            raise Invalid(f"{name}: must be a Unix name{', not root' if name == 'service_account' else ''}", field=name)
    elif not WORD.match(value):
        raise Invalid(f"{name}: must be a name in plain characters", field=name)


def _check_url(value: str) -> None:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise Invalid("url: not a URL", field="url") from None
    if parts.scheme == "unix" and not parts.netloc and _PATH.match(parts.path):
        return
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.query
        or parts.fragment
        or "@" in parts.netloc
    ):
        raise Invalid("url: must be http://host:port, https://host or unix:///path", field="url")
