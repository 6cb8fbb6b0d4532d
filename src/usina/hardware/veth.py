"""Cards of runs on this machine: veth pairs, one end on a network of the host, the other for the run.

What is made is written down before, and until nothing is left of it: so a start that was cut short anywhere is found
again. The near end is plugged in, filter and all, by the driver that has the networks; the far end is put into the
run's network namespace by whoever makes that, with `inside` for `ip -batch`. It goes with the namespace, and the near
end with it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

from usina.core.machine import Card, InterfacePlan, NetworkPlan
from usina.ports.driver import Beside, DriverError

NAME: Final = "eth0"  # of a card inside
_PATIENCE: Final = 10.0  # seconds of one command


def possible() -> bool:
    """Whether this process may make veth pairs."""
    return os.geteuid() == 0 and shutil.which("ip") is not None and shutil.which("nsenter") is not None


class Cards:
    """Those of one driver's runs."""

    def __init__(self, folder: Path, factory: str, beside: Beside | None) -> None:
        self._folder, self._factory, self._beside = folder, factory, beside

    def handles(self) -> list[str]:
        """Runs that have a card, or had one that is not wholly gone."""
        found = os.listdir(self._folder) if self._folder.is_dir() else []
        return sorted(name for name in found if not name.startswith("."))

    def address(self, handle: str) -> str:
        """Of a run's card; "" where it has none."""
        card = self._kept(handle)
        return card.interface.address if card is not None else ""

    async def make(self, handle: str, card: Card) -> str:
        """A pair whose near end is on the network; the name of the far one. What an earlier try left goes first."""
        if self._beside is None or not possible():
            raise DriverError("tasks on a project's network need root, ip and nsenter", lasting=True)
        await self.drop(handle)
        self._keep(handle, card)
        near, far = self._ends(handle)
        lines = (
            f"link add dev {near} type veth peer name {far} address {card.interface.mac}",
            f"link set dev {near} addrgenmode none",  # IPv6 has no business on the host's side
        )
        await command("ip", "-batch", "-", told="\n".join(lines) + "\n")
        await self._beside.plug(handle, near, card)
        return far

    async def drop(self, handle: str) -> None:
        """Leave nothing of a run's card; nothing happens where it has none."""
        card = self._kept(handle)
        if card is None or self._beside is None:
            return
        near, _ = self._ends(handle)
        await self._beside.unplug(handle, near, card)
        if os.path.exists(f"/sys/class/net/{near}"):
            try:
                await command("ip", "link", "delete", "dev", near)
            except DriverError:
                if os.path.exists(f"/sys/class/net/{near}"):  # else it has gone with its other end
                    raise
        (self._folder / handle).unlink(missing_ok=True)

    def _ends(self, handle: str) -> tuple[str, str]:
        """Linux allows 15 characters, so the handle is hashed."""
        word = hashlib.sha256(f"{self._factory}/{handle}".encode()).hexdigest()[:10]
        return f"ut-{word}", f"uf-{word}"

    def _keep(self, handle: str, card: Card) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = {"mac": card.interface.mac, "address": card.interface.address, "network": card.network.handle}
        scratch = self._folder / f".{handle}"
        scratch.write_text(json.dumps(known))
        os.replace(scratch, self._folder / handle)

    def _kept(self, handle: str) -> Card | None:
        """Enough of a card to take it away."""
        try:
            known = json.loads((self._folder / handle).read_bytes())
        except FileNotFoundError:
            return None
        interface = InterfacePlan(known["mac"], known["address"], known["network"], ())
        return Card(interface, NetworkPlan(known["network"], "", "", ""))


def inside(card: Card) -> str:
    """Lines for `ip -batch` in the network namespace that the far end is in, called `NAME`."""
    width = IPv4Network(card.network.cidr).prefixlen
    return "\n".join(
        [
            "link set dev lo up",
            f"addr add {card.interface.address}/{width} dev {NAME}",
            f"link set dev {NAME} addrgenmode none up",
            f"route add default via {card.network.gateway}",
            "",
        ]
    )


def hostname(card: Card) -> str:
    return next((name for mac, _, name in card.network.hosts if mac == card.interface.mac), "task")


def resolver(card: Card) -> str:
    """/etc/resolv.conf: the network's own DNS."""
    return f"nameserver {card.network.gateway}\nsearch {card.network.domain}\n"


def hosts(card: Card) -> str:
    """/etc/hosts: a run's own name means its address, for what advertises itself by name."""
    name = hostname(card)
    return f"127.0.0.1 localhost\n::1 localhost\n{card.interface.address} {name}.{card.network.domain} {name}\n"


async def enter(pid: int, far: str, card: Card) -> None:
    """Put the far end into the network namespace of a process, and give it what belongs to it."""
    await command("ip", "link", "set", "dev", far, "netns", str(pid), "name", NAME)
    await command("nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-batch", "-", told=inside(card))


async def command(*words: str, told: str = "") -> None:
    """Raises `DriverError` with the command's own words as the detail."""
    process = await asyncio.create_subprocess_exec(
        *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(_PATIENCE):
            said, _ = await process.communicate(told.encode())
    except TimeoutError:
        process.kill()
        await process.wait()
        raise DriverError(f"{words[0]} does not come to an end") from None
    if process.returncode:
        detail = said.decode(errors="replace").strip()[:500]
        raise DriverError("the task's network card could not be made", detail=f"{' '.join(words)}: {detail}")
