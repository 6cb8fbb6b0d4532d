"""Bytes to and from the inside of a machine or task, over a WebSocket: a console, a port, a command beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlencode

from usina.client.errors import ApiError
from usina.client.wire import API, Wire

if TYPE_CHECKING:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import ClientConnection

REFUSED = 4000  # a refusal closes with this plus the HTTP status
LARGEST = 1 << 20


class Stream:
    """A two-way stream of bytes. `read` and `write` may be called from two threads."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    def read(self, timeout: float | None = None) -> bytes:
        """The next bytes; ``b""`` at the end. Raises `ApiError` when refused, `TimeoutError`."""
        data = self.receive(timeout)
        return data.encode() if isinstance(data, str) else data

    def receive(self, timeout: float | None = None) -> bytes | str:
        """As `read`, with text frames as text."""
        from websockets.exceptions import ConnectionClosed

        try:
            return self._socket.recv(timeout)
        except ConnectionClosed as closed:
            _raise_refusal(closed)
            return b""

    def write(self, data: bytes | str) -> None:
        """Raises `EOFError` when the other side has closed."""
        from websockets.exceptions import ConnectionClosed

        try:
            self._socket.send(data)
        except ConnectionClosed as closed:
            raise EOFError from closed

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Command:
    """A command beside a running task. `read` and `write` may be called from two threads."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.code: int | None = None  # once it has ended

    def read(self, timeout: float | None = None) -> bytes:
        """The next bytes it says; ``b""`` when it has ended. Raises `ApiError` when refused, `TimeoutError`."""
        data = self._stream.receive(timeout)
        if isinstance(data, bytes):
            return data
        self.code = int(json.loads(data)["exit"])
        return b""

    def write(self, data: bytes) -> None:
        """Bytes for its standard input; ``b""`` ends it. Raises `EOFError` when it has ended."""
        self._stream.write(data if data else '{"eof": true}')

    def resize(self, rows: int, columns: int) -> None:
        self._stream.write(json.dumps({"resize": [rows, columns]}))

    def close(self) -> None:
        """Ends it, if it still runs."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_stream(wire: Wire, path: str, project: str | None, query: Mapping[str, Any] | None = None) -> Stream:
    """Open a WebSocket of the API. Raises `CannotConnect`; refusals come with the first `read`."""
    # Imported here, for most commands never open a stream and this takes a tenth of a second.
    from websockets.exceptions import InvalidHandshake, InvalidURI
    from websockets.sync.client import connect

    asked = {**(query or {}), **({} if project is None else {"project": project})}
    address = "ws" + wire.endpoint.removeprefix("http") + API + path
    if asked:
        address += "?" + urlencode(asked, doseq=True)
    try:
        socket = connect(
            address,
            additional_headers={"Authorization": f"Bearer {wire.token}"},
            compression=None,  # what passes is encrypted or short
            max_size=LARGEST,
            open_timeout=10,
            close_timeout=2,
            proxy=None if wire.local else True,
        )
    except (OSError, InvalidHandshake, InvalidURI) as error:
        raise wire.unanswered(error) from error
    return Stream(socket)


def _raise_refusal(closed: ConnectionClosed) -> None:
    frame = closed.rcvd
    if frame is not None and REFUSED < frame.code < REFUSED + 1000:
        raise ApiError(frame.code - REFUSED, frame.reason or "refused", code="refused") from closed
