"""WebSockets at the native door: the serial console of a machine, and a tunnel to one of its ports.

Binary frames carry bytes as they are, both ways. Refusals close with 4000 + the HTTP status, and a reason.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from usina.app import access
from usina.app.context import Context, House
from usina.core import errors
from usina.facades.native.door import authenticate
from usina.ports.driver import Console, DriverError

router = APIRouter()

CHUNK = 64 * 1024
_CODES = {
    errors.Unauthenticated: 4401,
    errors.Forbidden: 4403,
    errors.NotFound: 4404,
    errors.Conflict: 4409,
    errors.Invalid: 4422,
}


async def _context(socket: WebSocket) -> Context:
    house: House = socket.app.state.house
    return Context(house, await authenticate(house, socket))


async def _refuse(socket: WebSocket, error: errors.UsinaError) -> None:
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), 4503)
    with suppress(RuntimeError, OSError, WebSocketDisconnect):  # the client may have gone already
        await socket.close(code, error.message[:120])


@router.websocket("/machines/{ref}/console")
async def console(socket: WebSocket, ref: str) -> None:
    """The guest's serial line."""
    await socket.accept()
    try:
        line = await access.console(await _context(socket), ref, socket.query_params.get("project"))
    except errors.UsinaError as error:
        await _refuse(socket, error)
        return
    try:
        await _both(_console_out(socket, line), _console_in(socket, line))
    finally:
        await line.close()
        await _goodbye(socket)


async def _console_out(socket: WebSocket, line: Console) -> None:
    with suppress(DriverError):
        while data := await line.read():
            await socket.send_bytes(data)


async def _console_in(socket: WebSocket, line: Console) -> None:
    with suppress(DriverError):
        while True:
            await line.write(await _receive(socket))


@router.websocket("/machines/{ref}/tunnel")
async def tunnel(socket: WebSocket, ref: str) -> None:
    """A TCP stream to a port (``?port=22``) of the guest."""
    await socket.accept()
    try:
        text = socket.query_params.get("port", "22")
        if not text.isdecimal() or len(text) > 5:
            raise errors.Invalid("port: must be a number", field="port")
        context = await _context(socket)
        reader, writer = await access.tunnel(context, ref, int(text), socket.query_params.get("project"))
    except errors.UsinaError as error:
        await _refuse(socket, error)
        return
    try:
        await _both(_tcp_out(socket, reader), _tcp_in(socket, writer))
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        await _goodbye(socket)


async def _tcp_out(socket: WebSocket, reader: asyncio.StreamReader) -> None:
    with suppress(OSError):
        while data := await reader.read(CHUNK):
            await socket.send_bytes(data)


async def _tcp_in(socket: WebSocket, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while True:
            writer.write(await _receive(socket))
            await writer.drain()


async def _receive(socket: WebSocket) -> bytes:
    """The next bytes of either kind of frame. Raises `WebSocketDisconnect`."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000))
    return message.get("bytes") or (message.get("text") or "").encode()


async def _both(*ways: object) -> None:
    """Run both directions until either ends."""
    tasks = [asyncio.ensure_future(way) for way in ways]  # type: ignore[call-overload]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _goodbye(socket: WebSocket) -> None:
    with suppress(RuntimeError, OSError):
        await socket.close()
