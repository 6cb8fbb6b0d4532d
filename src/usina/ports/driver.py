"""Driver: does things on one kind of provider. A new driver is one folder that exports `PLUGIN`.

Contract (held by `usina.testing.driver_contract`):
- Every call is idempotent on the handle, which Usina chose beforehand: making what is there, or removing what is not,
  succeeds. A call cut short may be repeated and must then finish the work.
- `remove_*` leaves nothing behind on the host: no domain, disk, seed, snapshot, network, filter or NVRAM.
- A host that does not answer is `Unreachable` from `observe`, and raises `HostUnreachable` from everything else.
- Nothing here knows tenants, quotas or the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from usina.core.capacity import Inventory
from usina.core.machine import Card, ImageFiles, MachinePlan, NetworkPlan, Rule, Seen, VolumePlan
from usina.ports.tasks import TaskDriver


class DriverError(Exception):
    """A driver call failed. `public` is shown in the story; the rest is for the operator's log.

    `lasting` says that trying again without a change cannot help (for example, a device that is gone).
    """

    def __init__(self, public: str, *, lasting: bool = False, detail: str = "") -> None:
        super().__init__(public)
        self.public = public
        self.lasting = lasting
        self.detail = detail


class HostUnreachable(DriverError):
    """The host does not answer now."""


class Console(Protocol):
    """A guest's serial line, both ways."""

    async def read(self) -> bytes:
        """The next bytes; ``b""`` when the line is closed."""
        ...

    async def write(self, data: bytes) -> None: ...

    async def close(self) -> None: ...


class Driver(Protocol):
    """One open host. Made by `Plugin.open`; closed by `close`."""

    async def inventory(self) -> Inventory:
        """What the host has now. Probes for real (a KVM that hangs a guest is not KVM)."""
        ...

    async def survey(self) -> Mapping[str, Seen]:
        """Every guest of this factory on this host, in one cheap call: handle → `Present`."""
        ...

    def watch(self) -> AsyncIterator[str]:
        """Handles of guests that may have changed, as it happens; ``""`` means "look at all of them"."""
        ...

    async def observe(self, handle: str) -> Seen: ...

    # --- images, networks, volumes
    async def ensure_image(self, image: ImageFiles) -> None: ...
    async def remove_image(self, digest: str) -> None: ...
    async def ensure_network(self, plan: NetworkPlan) -> None:
        """Make the network, or bring it to the plan. ``plan.hosts`` are the entries that matter now, not all of them:
        they are added or changed, what shares a MAC, address or name with them goes, and all others stay."""
        ...

    async def remove_network(self, handle: str) -> None: ...
    async def ensure_volume(self, plan: VolumePlan) -> None:
        """Make the volume, or grow it to ``plan.size``; never shrinks."""
        ...

    async def remove_volume(self, handle: str) -> None: ...

    # --- machines
    async def define(self, plan: MachinePlan) -> None:
        """Make disks, seed and guest definition, switched off. Brings an existing, switched-off guest to the plan
        (cores, memory, devices, filters) without touching its root disk, except to grow it."""
        ...

    async def start(self, handle: str) -> None: ...
    async def stop(self, handle: str, *, grace: float) -> None:
        """Ask the guest to power off; pull the plug after `grace` seconds (0 = at once)."""
        ...

    async def suspend(self, handle: str) -> None: ...
    async def resume(self, handle: str) -> None: ...
    async def reboot(self, handle: str, token: int) -> None:
        """Restart the guest, unless its mark "reboots" is already at `token`."""
        ...

    async def rebuild(self, plan: MachinePlan, token: int) -> None:
        """Replace the root disk by a fresh overlay of ``plan.image`` and leave the guest off, unless the mark
        "rebuilds" is already at `token`."""
        ...

    async def snapshot(self, handle: str, name: str) -> None: ...
    async def restore(self, handle: str, name: str, token: int) -> None:
        """Bring the disk (and power state) back to snapshot `name`, unless mark "restore" is at `token`."""
        ...

    async def drop_snapshot(self, handle: str, name: str) -> None: ...
    async def attach_volume(self, handle: str, volume: str) -> None: ...
    async def detach_volume(self, handle: str, volume: str) -> None: ...
    async def attach_interface(self, plan: MachinePlan, mac: str) -> None:
        """Attach the interface of `plan` that has `mac`, live when the guest runs."""
        ...

    async def detach_interface(self, handle: str, mac: str) -> None: ...
    async def set_rules(self, handle: str, mac: str, rules: tuple[Rule, ...]) -> None:
        """Replace the packet filter of one interface, live: of a guest, or of what is plugged in under `handle`. Where
        neither is there, there is nothing to replace."""
        ...

    async def remove(self, handle: str) -> None:
        """Switch off and remove the guest with everything it alone owns, its DHCP/DNS entries included (not volumes,
        networks or images)."""
        ...

    # --- what is no guest of ours, on hosts with the trait ``task:network``
    async def plug(self, handle: str, device: str, card: Card) -> None:
        """Put a network device of the host, the near end of a veth pair, on a network: known there by name, and behind
        the same packet filter as a guest's interface, before anything passes. Makes the network if it is not there."""
        ...

    async def unplug(self, handle: str, device: str, card: Card) -> None:
        """Take what was plugged in off its network, filter and name included, whether or not the device still is there.
        The rules in `card` do not matter. The device itself is its maker's."""
        ...

    # --- to the guest
    async def console_log(self, handle: str) -> bytes:
        """What the guest wrote to its serial console, the newest MiB at most."""
        ...

    async def console(self, handle: str) -> Console: ...
    async def dial(self, handle: str, address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A TCP stream to a port of the guest, from wherever the host can reach it."""
        ...

    async def close(self) -> None: ...


class Beside(Protocol):
    """What the driver that makes machines on a host does for those that run tasks there. Raises `HostUnreachable`
    where the host has none."""

    async def observe(self, handle: str) -> Seen:
        """As `Driver.observe`."""
        ...

    def login_key(self, project: str) -> str:
        """The private key, in OpenSSH's format, that the machines of a project let in."""
        ...

    async def dial(self, handle: str, address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As `Driver.dial`."""
        ...

    async def plug(self, handle: str, device: str, card: Card) -> None:
        """As `Driver.plug`."""
        ...

    async def unplug(self, handle: str, device: str, card: Card) -> None:
        """As `Driver.unplug`."""
        ...


@dataclass(frozen=True, slots=True)
class Tool:
    """A program of this installation that runs on this machine can be given, read-only."""

    command: tuple[str, ...]  # the words that it begins with, as a run sees them
    folders: Mapping[str, str] = field(default_factory=dict)  # place in a run -> folder of this machine


@dataclass(frozen=True, slots=True)
class HostSettings:
    """Where a host is. `options` were checked by the plugin's `check`."""

    id: str
    name: str
    factory: str  # this factory's short id; marks what is ours on a shared host, for example in domain metadata
    state_dir: Path  # a folder of this host's own on the control plane
    options: Mapping[str, Any] = field(default_factory=dict)
    beside: Beside | None = None  # for tasks; None while a host is only being probed
    tools: Mapping[str, Tool] = field(default_factory=dict)  # programs of this installation, for runs on this machine


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `usina doctor`: what was looked for, what was found, and the command that mends it."""

    name: str
    ok: bool
    found: str
    mend: str = ""
    needed: bool = True  # False: things work without it, only slower or with less


@dataclass(frozen=True, slots=True)
class DriverPlugin:
    """What a driver folder exports as `PLUGIN`. It can make machines (`open`), run tasks (`tasks`), or both."""

    name: str
    summary: str
    options: Mapping[str, str]  # option -> one sentence; anything else is refused
    check: Callable[[Mapping[str, Any]], None]  # raises core.errors.Invalid naming the option
    diagnose: Callable[[], Awaitable[list[Check]]]  # what this machine has and lacks to use the driver locally
    open: Callable[[HostSettings], Driver] | None = None
    tasks: Callable[[HostSettings], TaskDriver] | None = None
    stack: str = ""  # the word that tasks ask for it with: "local", "container", "slurm"
    queues: bool = False  # the stack has a queue of its own, and runs arrays and gangs as a whole
    people: bool = False  # tasks run as the member's own Unix identity there
    inside: bool = False  # tasks name a machine to run in, which another driver of the same host makes
    networks: bool = False  # tasks can be on networks of their projects, where the host's machines' driver helps
    volumes: bool = False  # tasks can be given volumes, where the host has the trait ``task:volumes``
    parts: Callable[[HostSettings], Awaitable[list[Part]]] | None = None  # providers behind one connection
    here: Callable[[], Mapping[str, Any]] | None = None  # options to try it with on this machine when a site is founded
    routes: frozenset[str] = frozenset()  # words of its dialect that choose a provider, by the trait ``word:value``
    realm: Callable[[Mapping[str, Any]], str] | None = None  # what shares one set of accounts, of the options

    def realm_of(self, options: Mapping[str, Any]) -> str:
        """The set of accounts that a member is looked up in."""
        return f"{self.name}:{self.realm(options)}" if self.realm is not None else self.name


@dataclass(frozen=True, slots=True)
class Part:
    """One of several providers behind one connection, such as a partition of a cluster."""

    name: str  # "main"; its host is called <name of the connection>-main
    options: Mapping[str, Any]  # all that is needed to open it
