"""Parts of an initial RAM disk, from unpacked Debian packages: busybox with its names, modules in order."""

from __future__ import annotations

import re
from pathlib import Path

from usina.core.errors import Unavailable
from usina.services.images.cpio import Archive

_APPLETS = re.compile(rb"\0\[\0\[\[\0((?:[a-z0-9_.-]+\0){100,})")
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def busybox(archive: Archive, tree: Path) -> None:
    """Put busybox into `archive` under every name it answers to."""
    program = one(tree, "**/busybox").read_bytes()
    archive.file("/bin/busybox", program, 0o755)
    for name in _names(program):
        archive.link(f"/bin/{name}", "busybox")
    for name in ("init", "reboot", "poweroff"):
        archive.link(f"/sbin/{name}", "/bin/busybox")


def modules(archive: Archive, tree: Path, wanted: tuple[str, ...]) -> None:
    """Put the kernel modules `wanted` and all they need into ``/lib/modules``, and their order into
    ``/etc/modules``.

    What the kernel has built in is left out.
    """
    order = _in_order(tree, wanted)
    for path in order:
        archive.file(f"/lib/modules/{path.name}", path.read_bytes())
    archive.file("/etc/modules", "".join(f"{path.name}\n" for path in order).encode())


def one(place: Path, pattern: str) -> Path:
    """The first file under `place` that fits `pattern`. Raises `Unavailable` when the packages hold none."""
    for path in sorted(place.glob(pattern)):
        if path.is_file():
            return path
    raise Unavailable(f"the packages hold no {pattern}")


def _names(program: bytes) -> list[str]:
    """Read from busybox's own table: NUL-separated, sorted, starting with ``[``."""
    table = _APPLETS.search(program)
    if not table:
        raise Unavailable("this busybox has no table of applets that can be read")
    return ["[", "[[", *(name.decode() for name in table[1].split(b"\0") if name not in (b"", b"busybox"))]


def _in_order(tree: Path, wanted: tuple[str, ...]) -> list[Path]:
    """Each module after what it needs, by the ``depends=`` that modules carry."""
    found = {_plain(path.stem): path for path in tree.glob("lib/modules/*/kernel/**/*.ko")}
    order: list[Path] = []

    def visit(name: str) -> None:
        path = found.get(_plain(name))
        if path is None or path in order:
            return
        needs = _DEPENDS.search(path.read_bytes())
        for need in needs[1].decode().split(",") if needs else []:
            visit(need)
        order.append(path)

    for name in wanted:
        visit(name)
    return order


def _plain(name: str) -> str:
    return name.replace("-", "_")
