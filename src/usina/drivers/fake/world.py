"""The pretended host's disk: one small JSON file per guest, written whole and renamed, so a kill never halves one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from usina.core.machine import Power


class Guest(msgspec.Struct, omit_defaults=True):
    """A guest as the pretended host keeps it."""

    handle: str
    cores: int
    memory: int
    image: str
    power: Power = Power.OFF
    crashed: bool = False
    volumes: list[str] = []
    macs: list[str] = []
    snapshots: list[str] = []
    marks: dict[str, int] = {}
    starts: int = 0
    rules: dict[str, int] = {}
    log: str = ""


_DECODER = msgspec.json.Decoder(Guest)


class World:
    """Guests, volumes, networks and images of one pretended host, as files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for kind in ("guests", "volumes", "networks", "images"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        self._guests = f"{root}/guests"
        self._seen: dict[str, tuple[int, Guest]] = {}
        self._last: Mapping[str, Guest] = {}
        self._stamp = -1

    @property
    def answers(self) -> bool:
        """A test makes the host vanish by putting a file named ``down`` into its folder."""
        return not os.path.exists(f"{self.root}/down")

    def load(self, handle: str) -> Guest | None:
        try:
            with open(f"{self._guests}/{handle}.json", "rb") as file:
                return _DECODER.decode(file.read())
        except FileNotFoundError:
            return None

    def save(self, guest: Guest) -> None:
        _write(f"{self._guests}/{guest.handle}.json", msgspec.json.encode(guest))

    def drop(self, kind: str, name: str) -> None:
        try:
            os.unlink(f"{self.root}/{kind}/{name}.json" if kind == "guests" else f"{self.root}/{kind}/{name}")
        except FileNotFoundError:
            return

    def note(self, kind: str, name: str, text: str = "") -> None:
        """Keep a volume, network or image, which have no life of their own here."""
        path = f"{self.root}/{kind}/{name}"
        if not text and os.path.exists(path):
            return
        _write(path, text.encode())

    def read(self, kind: str, name: str) -> str | None:
        try:
            return (self.root / kind / name).read_text()
        except FileNotFoundError:
            return None

    def all(self) -> Mapping[str, Guest]:
        """Every guest by handle: the same mapping as before while the folder has not changed, and only the files that
        have changed are read. (Every change is a rename or a removal, and so moves the folder's own time.)"""
        stamp = os.stat(self._guests).st_mtime_ns
        if stamp == self._stamp:
            return self._last
        fresh: dict[str, tuple[int, Guest]] = {}
        with os.scandir(self._guests) as entries:
            for entry in entries:
                if entry.name.endswith(".json"):
                    self._take(entry, fresh)
        self._seen, self._stamp = fresh, stamp
        self._last = {handle: guest for handle, (_, guest) in fresh.items()}
        return self._last

    def _take(self, entry: os.DirEntry[str], fresh: dict[str, tuple[int, Guest]]) -> None:
        handle = entry.name[:-5]
        try:
            stamp = entry.stat().st_mtime_ns
        except FileNotFoundError:
            return
        known = self._seen.get(handle)
        guest = known[1] if known and known[0] == stamp else self.load(handle)
        if guest is not None:
            fresh[handle] = (stamp, guest)


def _write(path: str, content: bytes) -> None:
    scratch = f"{path}.{os.getpid()}"
    with open(scratch, "wb") as file:
        file.write(content)
    os.replace(scratch, path)
