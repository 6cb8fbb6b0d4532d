"""Bytes to and from the inside of a machine, over a WebSocket: its console, and a tunnel to one of its ports."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import urlencode

from usina.client.errors import ApiError
from usina.client.wire import API, Wire, segment

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
        from websockets.exceptions import ConnectionClosed

        try:
            data = self._socket.recv(timeout)
        except ConnectionClosed as closed:
            _raise_refusal(closed)
            return b""
        return data.encode() if isinstance(data, str) else data

    def write(self, data: bytes) -> None:
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


def open_stream(wire: Wire, machine: str, what: str, project: str | None, **query: str | int) -> Stream:
    """Open ``console`` or ``tunnel`` of a machine. Raises `CannotConnect`; refusals come with the first `read`."""
    # Imported here, for most commands never open a stream and this takes a tenth of a second.
    from websockets.exceptions import InvalidHandshake, InvalidURI
    from websockets.sync.client import connect

    asked = query if project is None else {**query, "project": project}
    path = f"{API}/machines/{segment(machine)}/{what}" + (f"?{urlencode(asked)}" if asked else "")
    address = "ws" + wire.endpoint.removeprefix("http") + path
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
