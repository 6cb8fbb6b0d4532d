"""The pretended host's disk. Guests are lines of a journal, the last one of each counts; a kill never halves one.

Several processes may have the same world open, as control planes that share a host do: each appends whole lines, and
reads what others have appended before it looks. The journal only grows; a pretended host is not kept for years.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from usina.core.machine import Power


class Guest(msgspec.Struct, omit_defaults=True):
    """A guest as the pretended host keeps it."""

    handle: str
    cores: int = 0
    memory: int = 0
    image: str = ""
    power: Power = Power.OFF
    crashed: bool = False
    volumes: list[str] = []
    macs: list[str] = []
    snapshots: list[str] = []
    marks: dict[str, int] = {}
    starts: int = 0
    rules: dict[str, int] = {}
    log: str = ""
    gone: bool = False


_DECODER = msgspec.json.Decoder(Guest)


class World:
    """Guests, volumes, networks and images of one pretended host, as files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for kind in ("volumes", "networks", "images", "cards"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        self._journal = os.open(root / "guests.jsonl", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._read = 0  # bytes of the journal
        self._lines: dict[str, bytes] = {}
        self._decoded: dict[str, tuple[bytes, Guest]] = {}
        self._all: Mapping[str, Guest] | None = None

    def close(self) -> None:
        os.close(self._journal)

    @property
    def answers(self) -> bool:
        """A test makes the host vanish by putting a file named ``down`` into its folder."""
        return not os.path.exists(f"{self.root}/down")

    def load(self, handle: str) -> Guest | None:
        """A copy of one guest, to be changed at will and saved."""
        self._catch_up()
        line = self._lines.get(handle)
        return _DECODER.decode(line) if line is not None else None

    def save(self, guest: Guest) -> None:
        line = msgspec.json.encode(guest) + b"\n"
        os.write(self._journal, line)
        if os.fstat(self._journal).st_size == self._read + len(line):  # nobody else wrote meanwhile
            self._read += len(line)
            self._take(guest, line)

    def remove(self, handle: str) -> None:
        if self.load(handle) is not None:
            self.save(Guest(handle, gone=True))

    def all(self) -> Mapping[str, Guest]:
        """Every guest by handle, to be looked at only: the same mapping as before while nothing has changed, and in
        it the same object for a guest that has not."""
        self._catch_up()
        if self._all is None:
            known = self._decoded
            self._decoded = {
                handle: known[handle] if handle in known and known[handle][0] is line else (line, _DECODER.decode(line))
                for handle, line in self._lines.items()
            }
            self._all = {handle: guest for handle, (_, guest) in self._decoded.items()}
        return self._all

    def note(self, kind: str, name: str, text: str = "") -> None:
        """Keep a volume, network, image or card, which have no life of their own here."""
        path = f"{self.root}/{kind}/{name}"
        if not text and os.path.exists(path):
            return
        scratch = f"{path}.{os.getpid()}"
        with open(scratch, "wb") as file:
            file.write(text.encode())
        os.replace(scratch, path)

    def drop(self, kind: str, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(f"{self.root}/{kind}/{name}")

    def read(self, kind: str, name: str) -> str | None:
        try:
            return (self.root / kind / name).read_text()
        except FileNotFoundError:
            return None

    def _catch_up(self) -> None:
        missing = os.fstat(self._journal).st_size - self._read
        if missing <= 0:
            return
        news = os.pread(self._journal, missing, self._read)
        whole = news[: news.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines(keepends=True):
            self._take(_DECODER.decode(line), line)

    def _take(self, guest: Guest, line: bytes) -> None:
        self._all = None
        if guest.gone:
            self._lines.pop(guest.handle, None)
        else:
            self._lines[guest.handle] = line
