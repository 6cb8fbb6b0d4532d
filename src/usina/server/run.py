"""Runs a control-plane process until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import structlog
import uvicorn
import uvloop

from usina.core.errors import Unavailable
from usina.placement import Policies
from usina.server import discovery
from usina.server.factory import Factory, open_factory
from usina.server.founding import found_site
from usina.server.front import protocol
from usina.server.guards import placed
from usina.server.process import GRACE, alone, check_port, listeners, prepare
from usina.server.settings import Settings, check_workers
from usina.server.traced import Traced
from usina.server.web import make_app
from usina.server.workers import Workers

Announce = Callable[[Settings, dict[str, str] | None], None]
"""Called when the doors are open; with the first key, if the site was founded just now."""

START = 60.0  # seconds that gateway workers have to begin to serve


def run(settings: Settings, announce: Announce) -> None:
    """Serve until SIGTERM or SIGINT. Raises `Unavailable` when the folder or the port is taken."""
    check_workers(settings)
    Policies.of(settings.policies)  # one that is unknown is refused before anything is made
    discovery.check_runtimes(settings.runtimes)
    placed(settings)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    prepare()
    with alone(settings.data_dir):
        uvloop.run(_serve(settings, announce))


async def _serve(settings: Settings, announce: Announce) -> None:
    shelf = discovery.drivers()
    for name, reason in (shelf.missing | discovery.runtimes().missing | discovery.guards().missing).items():
        structlog.get_logger().info("plugin left out", plugin=name, reason=reason)
    async with open_factory(settings, shelf.plugins) as factory:
        await factory.leases.inherit()  # we hold the folder's lock, so they are all dead
        admin = await found_site(factory.house, settings)
        async with factory.at_work() as tasks:
            await _until_told(factory, settings, lambda: announce(settings, admin), tasks)


async def _until_told(
    factory: Factory, settings: Settings, ready: Callable[[], None], tasks: list[asyncio.Task[None]]
) -> None:
    """Serve HTTP (if that is a role) until a signal; a standing task that ends is a fault and ends the process."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    until: list[asyncio.Task[Any]] = [asyncio.create_task(stop.wait()), *tasks]
    async with AsyncExitStack() as doors:
        if "api" in settings.roles:
            workers, open_doors = await doors.enter_async_context(_open_doors(factory, settings))
            until += open_doors
            if workers is not None:
                await _all_ready(workers, until)
        if not stop.is_set():
            ready()
        done, _ = await asyncio.wait(until, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


@asynccontextmanager
async def _open_doors(
    factory: Factory, settings: Settings
) -> AsyncIterator[tuple[Workers | None, list[asyncio.Task[Any]]]]:
    """HTTP, and what gateway workers there shall be; both are closed together, with a grace for what is under way."""
    server, workers = _server(factory, settings)
    check_port(settings)
    sockets = listeners(settings) if workers is not None else None
    serving = asyncio.create_task(server.serve(sockets), name="http")
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if not server.started:
        raise Unavailable(f"port {settings.port} cannot be used")
    tasks = [serving]
    if workers is not None:
        tasks.append(asyncio.create_task(workers.run(), name="workers"))
    try:
        yield workers, tasks
    finally:
        server.should_exit = True
        if workers is not None:
            workers.stop()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _all_ready(workers: Workers, until: list[asyncio.Task[Any]]) -> None:
    """Or something has ended before. Raises `Unavailable`."""
    ready = asyncio.create_task(workers.all_ready.wait())
    done, _ = await asyncio.wait([ready, *until], timeout=START, return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    if not done:
        raise Unavailable(f"the gateway workers did not begin to serve within {START:g} s")


class _Server(uvicorn.Server):
    """Signals are ours to handle."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def take_on(self, client: socket.socket, data: bytes) -> None:
        """Go on with a connection that another process has accepted."""
        protocol_class: Any = self.config.http_protocol_class
        make: Any = partial(
            protocol_class, config=self.config, server_state=self.server_state,
            app_state=self.lifespan.state, first=data,
        )  # fmt: skip
        client.setblocking(False)
        task: Any = asyncio.create_task(asyncio.get_running_loop().connect_accepted_socket(make, client))
        self.server_state.tasks.add(task)
        task.add_done_callback(self.server_state.tasks.discard)


def _server(factory: Factory, settings: Settings) -> tuple[_Server, Workers | None]:
    facades = discovery.facades().plugins
    lanes = {name: one for name, one in facades.items() if one.lane is not None}
    server: _Server
    workers = None
    if factory.rates is not None:
        workers = Workers(settings, factory.rates, list(lanes), factory.dial, lambda *given: server.take_on(*given))
    app = make_app(factory.house, facades.values(), settings.endpoint, workers)
    if factory.traces is not None:
        app = Traced(app, factory.traces, [one.mount for one in lanes.values()])  # they tell more of theirs themselves
    config = uvicorn.Config(
        app,
        host=settings.bind,
        port=settings.port,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=GRACE,
        ws_max_size=1 << 20,
        ws="websockets-sansio",
        http=protocol({one.mount.encode(): one.lane(factory.gateway) for one in lanes.values() if one.lane}),
    )
    server = _Server(config)
    if workers is not None:
        factory.refreshed = workers.look
    return server, workers
