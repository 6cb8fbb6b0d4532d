"""A gateway worker: serves models on the factory's port beside the main process, and nothing else.

It reads the store and writes its ledger there as any gateway does. What only the main process has, it asks for over
their link: connections to replicas, which drivers make, and somebody to go on with connections for other doors. It ends
with the main process, however that ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
import uvloop

from usina.app.doors import Doors
from usina.core.clock import SystemClock
from usina.core.endpoint import Replica
from usina.engine.llm_feed import LlmFeed
from usina.engine.llm_ledger import CheckedOutside
from usina.ports.driver import DriverError
from usina.ports.llm import Gateway, Offered, Streams
from usina.server import discovery
from usina.server.figures import families
from usina.server.front import Front, Lanes, Leaving
from usina.server.gateways import journal_folder, make_gateway, prompt_folder, traces_of
from usina.server.guards import placed
from usina.server.link import Link
from usina.server.messages import Begin, Count, Dial, Dialled, Figures, Look, Ready, TakeOver, ToWorker, unpacked
from usina.server.process import BACKLOG, GRACE, listeners, prepare, soon_alone
from usina.server.settings import Settings, master_key
from usina.server.vault import MasterVault
from usina.services.llm.meters import ALL
from usina.services.llm.shared import Table
from usina.services.reach import Reach
from usina.store.store import Store

log = structlog.get_logger()

_PR_SET_PDEATHSIG = 1


class Main:
    """The main process, as a worker sees it."""

    def __init__(self, end: socket.socket) -> None:
        self._link = Link(end, ToWorker, self._received, _end_now)
        self._dials: dict[int, asyncio.Future[int]] = {}
        self._number = 0
        self.changed: Callable[[], None] = lambda: None  # called when the directory has
        self.begun: asyncio.Future[tuple[Begin, int]] = asyncio.get_running_loop().create_future()

    def _received(self, message: Any, descriptor: int) -> None:
        if isinstance(message, Begin):
            self.begun.set_result((message, descriptor))
        elif isinstance(message, Count):
            self._link.send(Figures(message.id, families(ALL)))
        elif isinstance(message, Look):
            self.changed()
        elif isinstance(message, Dialled):
            waiting = self._dials.pop(message.id, None)
            if waiting is None or waiting.done():  # it took too long
                if descriptor >= 0:
                    os.close(descriptor)
            elif descriptor >= 0:
                waiting.set_result(descriptor)
            else:
                waiting.set_exception(DriverError(message.error))

    async def dial(self, replica: Replica) -> Streams:
        """Raises `DriverError`."""
        self._number += 1
        number = self._number
        waiting = self._dials[number] = asyncio.get_running_loop().create_future()
        self._link.send(Dial(number, replica.provider, replica.stack, replica.handle, replica.port))
        try:
            await asyncio.wait([waiting])
        except asyncio.CancelledError:
            self._dials.pop(number, None)
            if waiting.done() and waiting.exception() is None:
                os.close(waiting.result())
            raise
        taken = socket.socket(fileno=waiting.result())
        taken.setblocking(False)
        if taken.family == socket.AF_UNIX:
            return await asyncio.open_unix_connection(sock=taken)
        return await asyncio.open_connection(sock=taken)

    def take_over(self, transport: Any, data: bytes) -> None:
        def go(descriptor: int, data: bytes) -> None:
            self._link.send(TakeOver(data), descriptor)

        Leaving(transport, data, go)

    def ready(self) -> None:
        self._link.send(Ready())


class LinkDial:
    """To a replica by way of the main process; to an external upstream by itself."""

    def __init__(self, main: Main, outside: CheckedOutside) -> None:
        self._main, self._outside = main, outside

    async def __call__(self, endpoint: Offered, replica: Replica) -> Streams:
        if endpoint.spec.url:
            return await self._outside(endpoint.spec.url)
        return await self._main.dial(replica)


async def _work(end: socket.socket) -> None:
    main = Main(end)
    begin, shared = await main.begun
    settings = unpacked(begin.settings)
    structlog.contextvars.bind_contextvars(worker=begin.number)
    table = Table(shared, settings.gateway_workers, begin.number)
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    async with soon_alone(journal_folder(settings, begin.number)):
        store = Store(settings.database_url)
        main.changed = store.database.beat
        await store.database.start()  # whose schema the main process has brought to this release
        try:
            await _gateway(settings, store, table, main, begin.lanes, stop)
        finally:
            await store.close()


async def _gateway(
    settings: Settings, store: Store, table: Table, main: Main, lanes: list[str], stop: asyncio.Event
) -> None:
    clock, master = SystemClock(), master_key(settings)
    dial = LinkDial(main, CheckedOutside(Reach(allow_private=settings.allow_private_urls).of_url))
    traces = traces_of(settings, table.mine)
    feed = LlmFeed(store, MasterVault(master), discovery.runtimes().plugins)
    gateway = make_gateway(
        settings,
        store,
        clock,
        Doors(store, clock, master).secret,
        dial,
        table,
        guards=placed(settings),
        prompts=prompt_folder(settings),
        traces=traces,
        look=feed.look,
    )
    await gateway.start()
    await feed.start(gateway.refresh)
    standing: list[asyncio.Task[Any]] = [asyncio.create_task(work) for work in (gateway.run(), feed.run())]
    try:
        await _serve(settings, gateway, main, lanes, [*standing, asyncio.create_task(stop.wait())])
    finally:
        for task in standing:
            task.cancel()
        await asyncio.gather(*standing, return_exceptions=True)
        await gateway.stop()
        if traces is not None:
            await asyncio.to_thread(traces.close)


async def _serve(
    settings: Settings, gateway: Gateway, main: Main, names: list[str], until: list[asyncio.Task[Any]]
) -> None:
    """Until one of these tasks ends; then requests under way have a while to end, too."""
    loop = asyncio.get_running_loop()
    plugins = discovery.facades(names).plugins.values()
    lanes: Lanes = {one.mount.encode(): one.lane(gateway) for one in plugins if one.lane is not None}
    connections: set[Front] = set()
    servers = [
        await loop.create_server(lambda: Front(lanes, main.take_over, connections), sock=one, backlog=BACKLOG)
        for one in listeners(settings)
    ]
    main.ready()
    done, _ = await asyncio.wait(until, return_when=asyncio.FIRST_COMPLETED)
    for server in servers:
        server.close()
    for connection in list(connections):
        connection.shutdown()
    with suppress(TimeoutError):
        async with asyncio.timeout(GRACE):
            while connections:
                await asyncio.sleep(0.05)
    for task in done:
        task.result()


def _end_now() -> None:
    """The main process has gone, and with it the lock of the folder: whoever starts next reads the journal."""
    os._exit(1)


def main(descriptor: int, parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    prepare()
    uvloop.run(_work(socket.socket(fileno=descriptor)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
