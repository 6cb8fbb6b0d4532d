"""A guest without us: plain QEMU with the very options that libvirt gave the same guest, on user-mode networking.

What is left out is what belongs to libvirt alone: its monitor, its secrets, its file descriptors. IPv6 is off, as it is
on our networks.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

from usina.testing.inside import banner, ssh
from usina.testing.postgres import free_port
from usina.testing.waiting import until

POLL = 0.25  # seconds between two looks at a guest that boots; looking takes its processor, too
PATIENCE = 5.0  # seconds for a greeting, as `ssh` has: each that is given up costs an emulated guest another sshd
_LEFT_OUT = {"-name", "-uuid", "-mon", "-add-fd", "-msg"}
_ALONE = {"-S"}


class PlainGuest:
    """Learns from a running domain; boots the same with a fresh disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._arguments: list[str] = []
        self._backing: tuple[str, str] | None = None
        self._size = 0
        self._port = free_port()

    def learn(self, domain: str) -> None:
        """Take the options, a copy of the seed and the shape of the root disk from a guest that runs now."""
        pid = int(Path(f"/run/libvirt/qemu/{domain}.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
        text = "\0".join(command)
        root, seed = (re.search(rf'[^"]*/{kind}-{domain}\.\w+', text) for kind in ("root", "seed"))
        assert root and seed, "its disks were not found"
        shutil.copy(seed.group(), self._folder / "seed.iso")
        self._look_at(root.group())
        text = text.replace(root.group(), str(self._disk)).replace(seed.group(), str(self._folder / "seed.iso"))
        self._arguments = list(self._without_libvirt(text.split("\0")))

    @property
    def _disk(self) -> Path:
        return self._folder / "root.qcow2"

    def _look_at(self, root: str) -> None:
        answer = subprocess.run(
            ["qemu-img", "info", "-U", "--output=json", root], capture_output=True, check=True, text=True
        )
        told = json.loads(answer.stdout)
        self._size = told["virtual-size"]
        self._backing = None
        if "backing-filename" in told:
            self._backing = told["backing-filename"], told["backing-filename-format"]

    def _without_libvirt(self, command: list[str]) -> list[str]:
        kept, words = [command[0]], iter(command[1:])
        for word in words:
            if word in _ALONE:
                continue
            if not word.startswith("-"):
                kept.append(word)
                continue
            value = next(words, "") if word not in ("-no-user-config", "-nodefaults", "-no-shutdown") else None
            if word in _LEFT_OUT or (value and ("charmonitor" in value or '"secret"' in value)):
                continue
            if word == "-netdev":
                value = f"user,id=hostnet0,ipv6=off,hostfwd=tcp:127.0.0.1:{self._port}-:22"
            if word == "-chardev" and value and "charserial0" in value:
                value = f"file,id=charserial0,path={self._folder / 'console.log'}"
            kept += [word] if value is None else [word, value]
        return kept

    def seconds_to_login(self, user: str, key: Path) -> float:
        """Make the disk, launch, log in; the guest is gone afterwards."""
        begun = time.monotonic()
        backing = ["-b", self._backing[0], "-F", self._backing[1]] if self._backing else []
        self._disk.unlink(missing_ok=True)
        command = ["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(self._disk), str(self._size)]
        subprocess.run(command, check=True)
        with (self._folder / "qemu.log").open("w") as log:
            guest = subprocess.Popen(self._arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            until(lambda: self._greets(guest), limit=300, pause=POLL)
            until(lambda: ssh(self._port, key, "true", user=user).returncode, lambda code: code == 0, 300)
            return time.monotonic() - begun
        finally:
            guest.kill()
            guest.wait()

    def _greets(self, guest: subprocess.Popen[bytes]) -> bytes:
        assert guest.poll() is None, (self._folder / "qemu.log").read_text()
        return banner(self._port, PATIENCE)
