"""Port forwards: TCP ports of this control plane that lead into machines. Every control plane listens alike."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from usina.core.goods import Forward
from usina.core.resource import Kind, Phase
from usina.engine.fleet import Fleet
from usina.ports.driver import DriverError
from usina.store.store import Store

log = structlog.get_logger()

EVERY = 1.0
CHUNK = 64 * 1024
CONNECTIONS = 200  # at once, per forward


class Forwards:
    """Keeps one listener per forward that is ready."""

    def __init__(self, store: Store, fleet: Fleet, bind: str) -> None:
        self._store, self._fleet, self._bind = store, fleet, bind
        self._open: dict[str, asyncio.Server] = {}
        self._busy: dict[str, set[asyncio.Task[None]]] = {}
        self._blocked: set[str] = set()

    async def run(self) -> None:
        seen = -1
        try:
            while True:
                pulse = self._store.database.pulse
                last = await self._last()
                if last != seen:
                    await self._match()
                    seen = last
                with suppress(TimeoutError):
                    async with asyncio.timeout(EVERY * 5):
                        await pulse.wait()
                await asyncio.sleep(EVERY)
        finally:
            for id in list(self._open):
                await self._shut(id)

    async def _last(self) -> int:
        """Moves whenever a forward may have changed: the number of the newest event about any."""
        try:
            return await self._store.events.last_of("forward.")
        except Exception:
            log.exception("forwards were not read")
            return -1

    async def _match(self) -> None:
        wanted = {f.id: f for f in await self._store.resources.every(Kind.FORWARD) if _wanted(f)}
        for id in set(self._open) - set(wanted):
            await self._shut(id)
        for id, forward in wanted.items():
            if id not in self._open:
                await self._listen(forward)

    async def _listen(self, forward: Forward) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks = self._busy.setdefault(forward.id, set())
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                if len(tasks) <= CONNECTIONS:
                    await self._carry(forward, reader, writer)
            finally:
                tasks.discard(task)
                writer.close()

        try:
            self._open[forward.id] = await asyncio.start_server(serve, self._bind, forward.spec.listen)
            self._blocked.discard(forward.id)
        except OSError as error:
            if forward.id not in self._blocked:
                log.warning("port forward cannot listen", port=forward.spec.listen, reason=str(error))
                self._blocked.add(forward.id)

    async def _carry(self, forward: Forward, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        machine = await self._store.resources.get(forward.spec.machine)
        if machine is None or machine.provider is None or not machine.spec.interfaces:
            return
        try:
            driver = await self._fleet.driver(machine.provider)
            inner, outer = await driver.dial(machine.id, machine.spec.interfaces[0].address, forward.spec.port)
        except (DriverError, OSError):
            return
        try:
            await asyncio.gather(_pipe(reader, outer), _pipe(inner, writer))
        finally:
            outer.close()

    async def _shut(self, id: str) -> None:
        self._open.pop(id).close()
        for task in self._busy.pop(id, set()):
            task.cancel()


def _wanted(forward: Forward) -> bool:
    return forward.phase is Phase.READY and not forward.deleting


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes one way until they end, then half-close."""
    with suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
