"""Every recipe, built for real and booted under plain QEMU: the contract between an image and the drivers.

A machine of it takes its name and key from a NoCloud seed on a CD drive, gets an address by DHCP, answers SSH
as the recipe's user, has a serial console, grows its root disk and obeys the power button.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from usina.core.ids import Ids
from usina.core.machine import ImageFiles
from usina.core.units import GiB, MiB
from usina.services.images import RECIPES, ImageLibrary, default_cache

pytestmark = pytest.mark.real
HOSTNAME = "probe-one"


@dataclass
class Guest:
    """A machine under QEMU, its SSH port forwarded to this one."""

    folder: Path
    user: str
    port: int
    qemu: asyncio.subprocess.Process

    async def ssh(self, command: str, limit: float = 60) -> str | None:
        """What `command` prints in the guest; ``None`` when it fails or SSH does not answer."""
        process = await asyncio.create_subprocess_exec(
            *("ssh", "-q", "-i", str(self.folder / "key"), "-p", str(self.port)),
            *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
            *("-o", "BatchMode=yes", "-o", "ConnectTimeout=5", f"{self.user}@127.0.0.1", command),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(limit):
                out, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            return None
        return out.decode() if process.returncode == 0 else None

    async def answers(self, limit: float) -> float:
        """Seconds until SSH answers."""
        begun = time.monotonic()
        while time.monotonic() - begun < limit and self.qemu.returncode is None:
            if await self.ssh("true") is not None:
                return time.monotonic() - begun
            await asyncio.sleep(0.2)
        told = f"no SSH after {time.monotonic() - begun:.0f} s; the console said:\n{self.console()[-2000:]}"
        raise AssertionError(f"{told}\nits machine: {self.state()}")

    def console(self) -> str:
        return (self.folder / "console.log").read_text(errors="replace")

    async def says(self, words: str, limit: float) -> None:
        """Wait until the serial console showed `words`."""
        async with asyncio.timeout(limit):
            while words not in self.console():
                await asyncio.sleep(0.2)

    def state(self) -> str:
        """What becomes of a guest that does not answer: its machine's end, or where its processors are."""
        if self.qemu.returncode is not None:
            return f"ended with {self.qemu.returncode}"
        return "\n".join(self.monitor(command) for command in ("info status", "info registers -a"))

    def press_power(self) -> None:
        self.monitor("system_powerdown")

    def monitor(self, command: str) -> str:
        """What QEMU's monitor answers to a command."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self.folder / "monitor"))
            monitor.settimeout(10)
            for said in ("", f"{command}\n"):
                monitor.sendall(said.encode())
                heard = b""
                while not heard.endswith(b"(qemu) "):
                    heard += monitor.recv(10000)
            return heard.decode(errors="replace")


def seed(path: Path, key: str) -> Path:
    """A NoCloud seed: https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html"""
    pycdlib = pytest.importorskip("pycdlib")
    texts = {
        "meta-data": json.dumps({"instance-id": "i-1", "local-hostname": HOSTNAME, "public-keys": [key]}),
        "user-data": "#cloud-config\n{}\n",
        "network-config": json.dumps({"version": 2, "ethernets": {"eth0": {"match": {"name": "e*"}, "dhcp4": True}}}),
    }
    disc = pycdlib.PyCdlib()
    disc.new(interchange_level=3, vol_ident="cidata", joliet=3, rock_ridge="1.09")
    for number, (name, text) in enumerate(texts.items()):
        data = text.encode()
        disc.add_fp(io.BytesIO(data), len(data), f"/F{number}.;1", rr_name=name, joliet_path=f"/{name}")
    disc.write(str(path))
    disc.close()
    return path


async def done(*argv: str | Path) -> None:
    process = await asyncio.create_subprocess_exec(*map(str, argv))
    assert await process.wait() == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def booted(files: ImageFiles, user: str, memory: int, folder: Path) -> AsyncIterator[Guest]:
    await done("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key")
    disc = seed(folder / "seed.iso", (folder / "key.pub").read_text().strip())
    port = free_port()
    disk: list[str] = []
    if files.disk:
        overlay = folder / "root.qcow2"
        await done(*("qemu-img", "create", "-q", "-f", "qcow2", "-b", files.disk, "-F", files.format, overlay, "5G"))
        disk = ["-drive", f"file={overlay},if=virtio,format=qcow2"]
    process = await asyncio.create_subprocess_exec(
        *("qemu-system-x86_64", "-accel", "tcg", "-machine", "q35", "-m", str(memory // MiB), "-smp", "2"),
        *("-display", "none", "-no-reboot", "-serial", f"file:{folder}/console.log"),
        *("-monitor", f"unix:{folder}/monitor,server,nowait"),
        # The kernel's words only matter when a boot stops half way, and then they do.
        *("-kernel", files.kernel, "-initrd", files.initrd, "-append", f"{files.cmdline} loglevel=7"),
        *disk,
        *("-device", "virtio-scsi-pci", "-device", "scsi-cd,drive=seed"),
        *("-drive", f"if=none,id=seed,file={disc},format=raw,readonly=on"),
        *(
            "-netdev",
            f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22",
            "-device",
            "virtio-net-pci,netdev=net",
        ),
        *("-device", "virtio-rng-pci"),
    )
    try:
        yield Guest(folder, user, port, process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def powered_off(guest: Guest, limit: float) -> None:
    guest.press_power()
    async with asyncio.timeout(limit):
        assert await guest.qemu.wait() == 0


def library(tmp_path: Path) -> ImageLibrary:
    return ImageLibrary(tmp_path / "images", default_cache())


@pytest.mark.timeout(180)
async def test_tiny(tmp_path: Path) -> None:
    image = Ids(time.time).new("image")
    files = await library(tmp_path).build(image, "tiny")
    assert not files.disk
    async with booted(files, RECIPES["tiny"].user, RECIPES["tiny"].memory, tmp_path) as guest:
        print(f"tiny: SSH after {await guest.answers(90):.1f} s")
        assert await guest.ssh("hostname") == f"{HOSTNAME}\n"
        await guest.says("usina-tiny ready", 20)
        assert "default via" in (await guest.ssh("ip route") or "")
        await powered_off(guest, 30)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(os.geteuid() != 0, reason="building debian-12 wants root")
async def test_debian_12(tmp_path: Path) -> None:
    recipe = RECIPES["debian-12"]
    files = await library(tmp_path).build(Ids(time.time).new("image"), "debian-12")
    assert files.virtual_size == recipe.disk
    async with booted(files, recipe.user, recipe.memory, tmp_path) as guest:
        print(f"debian-12: SSH after {await guest.answers(240):.1f} s")
        assert "done" in (await guest.ssh("cloud-init status --wait", limit=180) or "")
        assert await guest.ssh("hostname") == f"{HOSTNAME}\n"
        size = await guest.ssh("sudo df --output=size -B1 / | tail -n 1")
        assert size is not None
        assert int(size) > 4.5 * GiB
        assert await guest.ssh("systemctl is-failed --quiet '*' || echo fine") == "fine\n"
        assert "deb.debian.org" in (await guest.ssh("cat /etc/apt/sources.list") or "")
        assert await guest.ssh("resolvectl dns eth0 | grep -c 10.0.2.3") == "1\n"
        await guest.says("login:", 60)
        await powered_off(guest, 90)
