"""WebSockets at the native door: the serial console of a machine, commands beside a task, tunnels to ports of both.

Binary frames carry bytes as they are, both ways. Refusals close with 4000 + the HTTP status, and a reason.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from usina.app import access, task_access
from usina.app.context import Context
from usina.core import errors
from usina.facades.native.door import authenticate, house_of
from usina.ports.driver import Console, DriverError
from usina.ports.tasks import Terminal

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
    house = house_of(socket)
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
        port = _number(socket, "port")
        context = await _context(socket)
        stream = await access.tunnel(context, ref, 22 if port is None else port, socket.query_params.get("project"))
    except errors.UsinaError as error:
        await _refuse(socket, error)
        return
    await _carry(socket, *stream)


@router.websocket("/tasks/{ref}/tunnel")
async def task_tunnel(socket: WebSocket, ref: str) -> None:
    """A TCP stream to a port (``?port=8080``) of a running task; of a part of an array with ``&index=3``."""
    await socket.accept()
    try:
        port, index = _number(socket, "port"), _number(socket, "index")
        if port is None:
            raise errors.Invalid("port: say which", field="port")
        context = await _context(socket)
        stream = await task_access.tunnel(context, ref, port, index, socket.query_params.get("project"))
    except errors.UsinaError as error:
        await _refuse(socket, error)
        return
    await _carry(socket, *stream)


async def _carry(socket: WebSocket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes both ways, until either end is done."""
    try:
        await _both(_tcp_out(socket, reader), _tcp_in(socket, writer))
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        await _goodbye(socket)


@router.websocket("/tasks/{ref}/exec")
async def task_exec(socket: WebSocket, ref: str) -> None:
    """A command beside a running task: ``?command=sh&command=-c&…``, with ``terminal=1`` on a terminal.

    Binary frames carry its bytes, both ways. Text frames are JSON: the client sends ``{"resize": [rows, columns]}`` and
    ``{"eof": true}``; the last one from here is ``{"exit": code}``.
    """
    await socket.accept()
    query = socket.query_params
    try:
        command = tuple(query.getlist("command"))
        if not command or len(command) > 4096 or any("\0" in word for word in command):
            raise errors.Invalid("command: say what to run", field="command")
        context, index = await _context(socket), _number(socket, "index")
        line = await task_access.exec(
            context, ref, command, terminal=query.get("terminal") == "1", index=index, project=query.get("project")
        )
    except errors.UsinaError as error:
        await _refuse(socket, error)
        return
    try:
        listening = asyncio.create_task(_exec_in(socket, line))
        try:
            await _exec_out(socket, line)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
    finally:
        await line.close()
        await _goodbye(socket)


async def _exec_out(socket: WebSocket, line: Terminal) -> None:
    with suppress(DriverError, RuntimeError, OSError, WebSocketDisconnect):
        while data := await line.read():
            await socket.send_bytes(data)
        await socket.send_text(json.dumps({"exit": await line.wait()}))


async def _exec_in(socket: WebSocket, line: Terminal) -> None:
    """What the client types, until it goes; then the command is ended."""
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                break
            if message.get("bytes") is not None:
                await line.write(message["bytes"])
            else:
                await _told(line, message.get("text") or "")
    except DriverError:
        return
    await line.close()


async def _told(line: Terminal, text: str) -> None:
    """A word of the client about the line; what is not understood is left."""
    with suppress(ValueError, TypeError):
        word = json.loads(text)
        if "eof" in word:
            await line.write(b"")
        elif "resize" in word:
            rows, columns = (min(1000, max(1, int(number))) for number in word["resize"])
            await line.resize(rows, columns)


def _number(socket: WebSocket, name: str) -> int | None:
    text = socket.query_params.get(name)
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 9:
        raise errors.Invalid(f"{name}: must be a number", field=name)
    return int(text)


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
