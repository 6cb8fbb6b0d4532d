"""What the main process and its gateway workers say to each other over their link."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from usina.server.figures import Family
from usina.server.settings import Settings

# --- to a worker


class Begin(msgspec.Struct, tag=True):
    """With the memory that rates are shared in."""

    settings: bytes  # as `packed`
    number: int  # of this worker, from 1
    lanes: list[str]  # facades to serve


class Dialled(msgspec.Struct, tag=True):
    """The answer to a `Dial`: with a connection, or with an error."""

    id: int
    error: str = ""


class Count(msgspec.Struct, tag=True):
    """Asks for figures."""

    id: int


class Look(msgspec.Struct, tag=True):
    """Something in the directory has changed."""


# --- to the main process


class Ready(msgspec.Struct, tag=True):
    """It serves."""


class TakeOver(msgspec.Struct, tag=True):
    """With a client's connection that asks for a door that only the main process has, and what was read of it."""

    data: bytes


class Dial(msgspec.Struct, tag=True):
    """Asks for a connection to a replica."""

    id: int
    provider: str
    stack: str
    handle: str
    port: int


class Figures(msgspec.Struct, tag=True):
    """The answer to a `Count`."""

    id: int
    families: list[Family]


ToWorker = Begin | Dialled | Count | Look
ToMain = Ready | TakeOver | Dial | Figures


def packed(settings: Settings) -> bytes:
    return msgspec.msgpack.encode(settings, enc_hook=str)


def unpacked(data: bytes) -> Settings:
    def made(kind: type, value: Any) -> Any:
        return Path(value) if kind is Path else value

    return msgspec.msgpack.decode(data, type=Settings, dec_hook=made)
