"""Options of a process host, checked once. Pure, but for the look whether the users for runs are free."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from usina.core.errors import Invalid
from usina.core.units import GiB, KiB, MiB
from usina.ports.driver import HostSettings

OPTIONS: Final = {
    "dir": "Folder for runs and their files; absolute. Default: inside the factory's data folder.",
    "uids": "Users that runs are when Usina is root, each its own; first-last (1879048192-1879113727).",
    "pids": "Processes that one run may have (4096).",
    "log_limit": "Bytes of its log that are kept of each run (8 MiB).",
    "unpack_limit": "Bytes of files that a task without a disk size may be given (16 GiB).",
    "host_network": "true: tasks may ask for the host's own network (false).",
    "read_only": "Folders of the host that every run sees, as it sees /usr; a list of absolute paths (none).",
    "control_groups": "false: hold runs to no limits of memory, cores and processes, even where it is possible (true).",
    "idle": "Seconds after which the warden ends that nobody needs (300).",
}
_NUMBERS: Final = {  # least, most
    "pids": (16, 4_000_000),
    "log_limit": (64 * KiB, 64 * GiB),
    "unpack_limit": (MiB, 1 << 50),
    "idle": (1, 1 << 30),
}
_UIDS: Final = (1_879_048_192, 65_536)  # 0x70000000: above what systemd and subuid tools hand out
_MOST_UID: Final = (1 << 31) - 2
_HIDDEN: Final = ("/proc", "/dev", "/sys", "/etc", "/root", "/run", "/tmp", "/work")  # noqa: S108


@dataclass(frozen=True, slots=True)
class Options:
    """With defaults filled in."""

    folder: Path
    uids: tuple[int, int] = _UIDS  # first, how many
    pids: int = 4096
    log_limit: int = 8 * MiB
    unpack_limit: int = 16 * GiB
    host_network: bool = False
    read_only: tuple[str, ...] = ()
    control_groups: bool = True
    idle: float = 300.0


def check(options: Mapping[str, Any]) -> None:
    """Raises `Invalid` naming the option."""
    for name, value in options.items():
        if name not in OPTIONS:
            raise Invalid(f"{name}: a process host has no such option; it has {', '.join(OPTIONS)}", field=name)
        if name in _NUMBERS:
            _check_number(name, value)
        elif name in ("host_network", "control_groups") and not isinstance(value, bool):
            raise Invalid(f"{name}: must be true or false", field=name)
    if "dir" in options:
        _check_folder("dir", options["dir"])
    if "uids" in options:
        _check_free(*parse_uids(options["uids"]))
    folders = options.get("read_only", ())
    if not isinstance(folders, list | tuple) or len(folders) > 50:
        raise Invalid("read_only: must be a list of at most 50 paths", field="read_only")
    for folder in folders:
        _check_folder("read_only", folder)
        if any(folder == hidden or folder.startswith(f"{hidden}/") for hidden in _HIDDEN):
            raise Invalid(f"read_only: {folder} is not shown to runs", field="read_only")


def read(host: HostSettings) -> Options:
    """The options of a host, which passed `check`."""
    check(host.options)
    given = dict(host.options)
    folder = Path(given.pop("dir", host.state_dir / "process"))
    if "uids" in given:
        given["uids"] = parse_uids(given["uids"])
    if "read_only" in given:
        given["read_only"] = tuple(given["read_only"])
    return Options(folder, **given)


def parse_uids(text: object) -> tuple[int, int]:
    """``first-last`` → first, how many. Raises `Invalid`."""
    first, dash, last = text.partition("-") if isinstance(text, str) else ("", "", "")
    if not dash or not first.isdecimal() or not last.isdecimal() or len(text) > 25:  # type: ignore[arg-type]
        raise Invalid("uids: must be two numbers as first-last", field="uids")
    low, high = int(first), int(last)
    if not 1000 <= low <= high <= _MOST_UID:
        raise Invalid(f"uids: must lie between 1000 and {_MOST_UID}, the first not above the last", field="uids")
    return low, high - low + 1


def uids_taken(first: int, count: int, root: str = "") -> str:
    """Who has users of this range already; "" if nobody."""
    for line in _lines(f"{root}/etc/passwd"):
        fields = line.split(":")
        if len(fields) > 2 and fields[2].isdecimal() and first <= int(fields[2]) < first + count:
            return f"the user {fields[0]}"
    for line in [*_lines(f"{root}/etc/subuid"), *_lines(f"{root}/etc/subgid")]:
        fields = line.split(":")
        if len(fields) == 3 and fields[1].isdecimal() and fields[2].isdecimal():
            begin, length = int(fields[1]), int(fields[2])
            if begin < first + count and first < begin + length:
                return f"{fields[0]}, for containers (/etc/subuid)"
    return ""


def _check_free(first: int, count: int) -> None:
    if taken := uids_taken(first, count):
        raise Invalid(f"uids: some of them belong to {taken}", field="uids")


def _check_number(name: str, value: object) -> None:
    least, most = _NUMBERS[name]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Invalid(f"{name}: must be a whole number between {least} and {most}", field=name)


def _check_folder(name: str, path: object) -> None:
    if not isinstance(path, str) or not os.path.isabs(path) or len(path) > 1000 or "\0" in path:
        raise Invalid(f"{name}: must be an absolute path", field=name)
    if os.path.normpath(path) != path or path == "/":
        raise Invalid(f"{name}: must be a plain path of a folder, without .. or a slash at its end", field=name)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
