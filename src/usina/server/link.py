"""A link between two processes of one factory: messages and, with them, open sockets, over a pair of Unix sockets.

A frame is the length of its message (4 bytes), whether a descriptor comes with it (1 byte), and the message in
MessagePack. The kernel hands a descriptor over no later than the first byte that it was sent with, so those that came,
in order, belong to the frames that tell of one.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

_HEAD = 5
_AT_ONCE = 1 << 18
FULL = 32 << 20  # bytes that wait for the other side, beyond which nothing more is taken
_encode = msgspec.msgpack.Encoder().encode


class Link:
    """One end. `received` is called with each message and its descriptor (-1: none), which is then the receiver's to
    close; `ended`, once, when the other side has gone."""

    def __init__(
        self, end: socket.socket, messages: Any, received: Callable[[Any, int], None], ended: Callable[[], None]
    ) -> None:
        self._socket, self._received, self._ended = end, received, ended
        self._decode = msgspec.msgpack.Decoder(messages).decode
        self._loop = asyncio.get_running_loop()
        self._out: deque[tuple[memoryview, int]] = deque()
        self._waiting = 0  # bytes in `_out`
        self._in = bytearray()
        self._descriptors: deque[int] = deque()
        self._closed = False
        end.setblocking(False)
        self._loop.add_reader(end.fileno(), self._read)

    def send(self, message: msgspec.Struct, descriptor: int = -1) -> bool:
        """Send, and close the descriptor here. False where the other side takes no more: then it is closed only."""
        data = _encode(message)
        if self._closed or self._waiting > FULL:
            _close(descriptor)
            return False
        frame = len(data).to_bytes(4, "big") + bytes([descriptor >= 0]) + data
        self._out.append((memoryview(frame), descriptor))
        self._waiting += len(frame)
        if len(self._out) == 1:
            self._write()
        return True

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        for descriptor in [*self._descriptors, *(descriptor for _, descriptor in self._out)]:
            _close(descriptor)
        self._out.clear()
        self._socket.close()

    # --- from the loop

    def _write(self) -> None:
        while self._out:
            data, descriptor = self._out[0]
            with_it = (
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))] if descriptor >= 0 else []
            )
            try:
                sent = self._socket.sendmsg([data], with_it)
            except BlockingIOError:
                self._loop.add_writer(self._socket.fileno(), self._write)
                return
            except OSError:
                self._end()
                return
            _close(descriptor)
            self._waiting -= sent
            if sent == len(data):
                self._out.popleft()
            else:
                self._out[0] = (data[sent:], -1)
        self._loop.remove_writer(self._socket.fileno())

    def _read(self) -> None:
        try:
            data, with_it, _, _ = self._socket.recvmsg(
                _AT_ONCE, socket.CMSG_SPACE(16 * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            data, with_it = b"", []
        for level, kind, content in with_it:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found = array.array("i")
                found.frombytes(content[: len(content) - len(content) % found.itemsize])
                self._descriptors.extend(found)
        if not data:
            self._end()
            return
        self._in += data
        self._take()

    def _take(self) -> None:
        """The frames that are whole."""
        while not self._closed and len(self._in) >= _HEAD:
            size = int.from_bytes(self._in[:4], "big")
            if len(self._in) < _HEAD + size:
                return
            has_one = self._in[4]
            message = self._decode(self._in[_HEAD : _HEAD + size])
            del self._in[: _HEAD + size]
            self._received(message, self._descriptors.popleft() if has_one else -1)

    def _end(self) -> None:
        if not self._closed:
            self.close()
            self._ended()


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        with suppress(OSError):
            os.close(descriptor)
