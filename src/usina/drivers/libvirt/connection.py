"""One libvirt connection per host: blocking calls in a few threads, events handed to the asyncio loop.

libvirt's event loop runs in one daemon thread for the whole process. A lost connection is opened again on the next
call, not more often than a doubling pause allows; watchers then hear ``""``, because what happened between is unknown.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Final, TypeVar

import libvirt

from usina.drivers.libvirt import daemon
from usina.drivers.libvirt.faults import as_driver_error
from usina.drivers.libvirt.settings import Settings
from usina.ports.driver import HostUnreachable

Result = TypeVar("Result")
Listener = Callable[[str, str], None]  # (domain name, domain uuid), ("", "") after a reconnect; from any thread

_WORKERS: Final = 8
_KEEPALIVE: Final = (5, 3)  # seconds between probes, unanswered probes that mean dead
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0
_OPENING_PATIENCE: Final = 10.0  # seconds a call waits for another thread that is opening

_loop_lock = threading.Lock()
_loop_thread: threading.Thread | None = None


def _run_event_loop() -> None:
    while True:
        with suppress(libvirt.libvirtError):
            libvirt.virEventRunDefaultImpl()


def _ensure_event_loop() -> None:
    """libvirt wants its event loop registered before the first connection of the process."""
    global _loop_thread
    with _loop_lock:
        if _loop_thread is None:
            libvirt.virEventRegisterDefaultImpl()
            libvirt.registerErrorHandler(lambda _context, _error: None, None)  # errors are raised, not printed
            _loop_thread = threading.Thread(target=_run_event_loop, name="libvirt-events", daemon=True)
            _loop_thread.start()


class Connection:
    """The way to one host."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(_WORKERS, thread_name_prefix="libvirt")
        self._lock = threading.Lock()
        self._live: libvirt.virConnect | None = None
        self._listeners: list[Listener] = []
        self._pause = _FIRST_PAUSE
        self._next_try = 0.0
        self._last_error = ""
        self._closed = False

    async def call(self, deed: str, verb: Callable[[libvirt.virConnect], Result]) -> Result:
        """Run `verb` with the connection in a thread. `deed` completes "the host could not …".

        Raises `HostUnreachable` when there is no connection, `DriverError` for any other libvirt error.
        """

        def work() -> Result:
            try:
                return verb(self._connected())
            except libvirt.libvirtError as error:
                raise as_driver_error(error, deed) from error

        if self._closed:
            raise HostUnreachable("the host was closed")
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._drop)
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- in a thread

    def _connected(self) -> libvirt.virConnect:
        if not self._lock.acquire(timeout=_OPENING_PATIENCE):
            raise HostUnreachable("the host does not answer", detail="still connecting")
        try:
            if self._live is not None and self._live.isAlive():
                return self._live
            return self._open()
        finally:
            self._lock.release()

    def _open(self) -> libvirt.virConnect:
        if time.monotonic() < self._next_try:
            raise HostUnreachable("the host does not answer", detail=self._last_error)
        try:
            self._live = self._dial()
        except libvirt.libvirtError as error:
            self._next_try = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            self._last_error = str(error)
            raise HostUnreachable("the host does not answer", detail=str(error)) from error
        self._pause, self._next_try = _FIRST_PAUSE, 0.0
        self._tell("", "")
        return self._live

    def _dial(self) -> libvirt.virConnect:
        _ensure_event_loop()
        if self._settings.uri == "qemu:///system":
            daemon.ensure_local_daemon()
        live = libvirt.open(self._settings.uri)
        live.setKeepAlive(*_KEEPALIVE)
        for event in (
            libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            libvirt.VIR_DOMAIN_EVENT_ID_REBOOT,
            libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
            libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
        ):
            live.domainEventRegisterAny(None, event, self._on_event, None)
        return live

    def _on_event(self, _conn: libvirt.virConnect, domain: libvirt.virDomain, *_: object) -> None:
        self._tell(domain.name(), domain.UUIDString())

    def _tell(self, name: str, uuid: str) -> None:
        for listener in list(self._listeners):
            with suppress(RuntimeError):  # a watcher whose asyncio loop has just ended
                listener(name, uuid)

    def _drop(self) -> None:
        with self._lock:
            live, self._live = self._live, None
        if live is not None:
            with suppress(libvirt.libvirtError):
                live.close()
