"""A machine for tests of what happens inside one: the system of the recipe `debian-12`, its own systemd and sshd, in
namespaces of this machine instead of under QEMU. It is up in seconds, and as fast as this machine. Wants root.

Its control groups are of version 2, as in a guest. Where this machine has those of version 1 too, they lack the
controllers, so nothing in it is held to its memory.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from usina.core.ids import Ids
from usina.drivers.podman import netns
from usina.services.images.cache import default_cache
from usina.services.images.library import ImageLibrary
from usina.testing.inside import ssh_key
from usina.testing.waiting import until

USER = "debian"
SSH = 22
_GROUPS = Path("/sys/fs/cgroup")
# What takes part in the world outside stays off.
_MASKED = (
    "cloud-init", "cloud-init-local", "cloud-config", "cloud-final", "systemd-networkd", "systemd-resolved",
    "systemd-timesyncd", "systemd-udevd",
)  # fmt: skip

_PREPARE = """
set -e
useradd --create-home --shell /bin/bash "$1"
install -d -o "$1" -g "$1" -m 700 "/home/$1/.ssh"
cat >"/home/$1/.ssh/authorized_keys"; chown "$1:" "/home/$1/.ssh/authorized_keys"
echo "$1 ALL=(ALL) NOPASSWD:ALL" >/etc/sudoers.d/90-usina
ssh-keygen -q -A 2>/dev/null
echo "127.0.0.1 localhost $(cat /etc/hostname)" >/etc/hosts
shift
for unit; do ln -sf /dev/null "/etc/systemd/system/$unit.service"; done
"""

_BOOT = """
set -e
root=$1
mount --make-rprivate /
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
for place in run tmp dev; do mount -t tmpfs -o mode=755 tmpfs "$root/$place"; done
chmod 1777 "$root/tmp"
for node in null zero full random urandom tty; do
  touch "$root/dev/$node"; mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"; ln -s /proc/self/fd "$root/dev/fd"
for n in 0:stdin 1:stdout 2:stderr; do ln -s "fd/${n%:*}" "$root/dev/${n#*:}"; done
ip link set lo up
hostname box
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" /sbin/init --log-target=console \\
  --show-status=0
"""


@dataclass
class Box:
    """A machine that has been started."""

    key: Path
    pid: int  # of its init
    limits_memory: bool

    def sh(self, script: str) -> str:
        """Run something in it as root, beside SSH."""
        command = ["nsenter", "--target", str(self.pid), "--all", "--root", "--wd", "--", "/bin/sh", "-c", script]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout

    async def dial(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        taken = await asyncio.to_thread(netns.connect, self.pid, port)
        taken.setblocking(False)
        return await asyncio.open_connection(sock=taken)


@contextmanager
def box(folder: Path) -> Iterator[Box]:
    """One that lets in the key beside it; nothing of it is left."""
    key = ssh_key(folder)
    with _system(folder) as root, _group(folder) as group:
        names = [USER, *_MASKED]
        with key.with_suffix(".pub").open() as public:
            subprocess.run(["chroot", root, "/bin/sh", "-c", _PREPARE, "sh", *names], check=True, stdin=public)
        enter = (
            'echo $$ >"$0/cgroup.procs"; exec unshare --pid --mount --uts --ipc --net --cgroup --fork --kill-child "$@"'
        )
        words = ["/bin/sh", "-c", enter, str(group), "/bin/sh", "-c", _BOOT, "sh", str(root)]
        with (folder / "console.log").open("wb") as log:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            pid = int(until(lambda: children.read_text().strip(), limit=20))
            until(lambda: _answers(pid), limit=60)
            yield Box(key, pid, "memory" in (group / "cgroup.controllers").read_text())
        finally:
            process.kill()
            process.wait(20)


@contextmanager
def _system(folder: Path) -> Iterator[Path]:
    """The recipe's system, to be written to as one likes."""
    library = ImageLibrary(folder / "images", default_cache())
    files = asyncio.run(library.build(Ids(time.time).new("image"), "debian-12"))
    raw, below, over = folder / "disk.raw", folder / "below", folder / "over"
    for place in (below, over / "upper", over / "work", over / "root"):
        place.mkdir(parents=True)
    subprocess.run(["qemu-img", "convert", "-O", "raw", files.disk, raw], check=True)
    layers = f"lowerdir={below},upperdir={over / 'upper'},workdir={over / 'work'}"
    subprocess.run(["mount", "-o", "loop,ro", raw, below], check=True)
    try:
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, over / "root"], check=True)
        try:
            yield over / "root"
        finally:
            subprocess.run(["umount", "--lazy", over / "root"], check=True)
    finally:
        subprocess.run(["umount", "--lazy", below], check=True)
        raw.unlink()


@contextmanager
def _group(folder: Path) -> Iterator[Path]:
    """A control group of version 2."""
    unified = _GROUPS / "unified"
    group = (unified if unified.is_dir() else _GROUPS) / f"usina-box-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        (group / "cgroup.kill").write_text("1")
        until(lambda: "populated 0" in (group / "cgroup.events").read_text(), limit=20)
        for inner, _, _ in os.walk(group, topdown=False):
            os.rmdir(inner)


def _answers(pid: int) -> bool:
    try:
        with netns.connect(pid, SSH) as taken:
            taken.settimeout(5)
            return taken.recv(4) == b"SSH-"
    except OSError:
        return False
