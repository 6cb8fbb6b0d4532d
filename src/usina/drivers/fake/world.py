"""The pretended host's disk: one small JSON file per guest, written whole and renamed, so a kill never halves one."""

from __future__ import annotations

import os
from collections.abc import Iterator
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

    def all(self) -> Iterator[Guest]:
        """Every guest; a file that did not change since the last call is not read again."""
        fresh: dict[str, tuple[int, Guest]] = {}
        with os.scandir(self._guests) as entries:
            for entry in entries:
                if not entry.name.endswith(".json"):
                    continue
                handle = entry.name[:-5]
                try:
                    stamp = entry.stat().st_mtime_ns
                except FileNotFoundError:
                    continue
                known = self._seen.get(handle)
                guest = known[1] if known and known[0] == stamp else self.load(handle)
                if guest is not None:
                    fresh[handle] = (stamp, guest)
                    yield guest
        self._seen = fresh


def _write(path: str, content: bytes) -> None:
    scratch = f"{path}.{os.getpid()}"
    with open(scratch, "wb") as file:
        file.write(content)
    os.replace(scratch, path)
