"""Runs a control-plane process until it is told to stop."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
from usina.server.settings import Settings
from usina.server.traced import Traced
from usina.server.web import make_app

Announce = Callable[[Settings, dict[str, str] | None], None]
"""Called when the doors are open; with the first key, if the site was founded just now."""

SWITCH = 0.0005  # seconds a thread may hold the interpreter while a database thread waits for it
GRACE = 5  # seconds that open requests have to end


def run(settings: Settings, announce: Announce) -> None:
    """Serve until SIGTERM or SIGINT. Raises `Unavailable` when the folder or the port is taken."""
    Policies.of(settings.policies)  # one that is unknown is refused before anything is made
    discovery.check_runtimes(settings.runtimes)
    placed(settings)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    _log_plainly()
    sys.setswitchinterval(SWITCH)
    # Nearly everything here dies young, by reference count; frequent full collections would only walk what lives on.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    with _alone(settings):
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
    waiting: list[asyncio.Task[object]] = [asyncio.create_task(stop.wait())]
    server: uvicorn.Server | None = None
    if "api" in settings.roles:
        server = _server(factory, settings)
        waiting.append(asyncio.create_task(server.serve(), name="http"))
        while not server.started and not waiting[-1].done():
            await asyncio.sleep(0.01)
        if not server.started:
            raise Unavailable(f"port {settings.port} cannot be used")
    ready()
    done, _ = await asyncio.wait([*waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    if server is not None:
        server.should_exit = True
        await asyncio.gather(waiting[1], return_exceptions=True)
    for task in done:
        task.result()


class _Server(uvicorn.Server):
    """Signals are ours to handle."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(factory: Factory, settings: Settings) -> _Server:
    facades = discovery.facades().plugins.values()
    app = make_app(factory.house, facades, settings.endpoint)
    if factory.traces is not None:
        untraced = [one.mount for one in facades if one.lane is not None]  # they tell more of their requests themselves
        app = Traced(app, factory.traces, untraced)
    lanes = {one.mount.encode(): one.lane(factory.house) for one in facades if one.lane is not None}
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
        http=protocol(lanes),
    )
    return _Server(config)


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """One process per data folder: an embedded database and the hosts' state have one owner."""
    fd = os.open(settings.data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise Unavailable(f"another factory runs on {settings.data_dir}") from None
    try:
        yield
    finally:
        os.close(fd)


def _log_plainly() -> None:
    """Structured lines on standard error; colours only for people."""
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(),
        exception_formatter=structlog.dev.plain_traceback,  # never the values of local variables
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
