"""What this machine has and lacks to run guests itself: the libvirt lines of `usina doctor`."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import libvirt

from usina.drivers.libvirt import daemon
from usina.drivers.libvirt.inventory import show_version
from usina.drivers.libvirt.probe import probe_local
from usina.ports.driver import Check

_OVMF: Final = ("/usr/share/OVMF", "/usr/share/edk2/ovmf", "/usr/share/qemu/ovmf-x86_64.bin")
_PROGRAMS: Final = (  # program, what it is for, what brings it, needed
    (("qemu-system-x86_64", "/usr/libexec/qemu-kvm"), "QEMU", "apt install qemu-system-x86", True),
    (("qemu-img",), "disk images", "apt install qemu-utils", True),
    (("dnsmasq",), "DHCP and DNS of project networks", "apt install dnsmasq-base", True),
    (("ip",), "project networks for tasks", "apt install iproute2", False),
    (("mmdebstrap",), "building Debian images", "apt install mmdebstrap", False),
)


async def diagnose() -> list[Check]:
    """One line for each thing, with the command that mends it."""
    return await asyncio.to_thread(_diagnose)


def _diagnose() -> list[Check]:
    looks: list[Callable[[], Check]] = [_kvm, _daemon, _filters, _uefi, _iommu, _huge_pages]
    programs = [_program(*program) for program in _PROGRAMS]
    return [*programs, *(look() for look in looks)]


def _program(names: tuple[str, ...], purpose: str, mend: str, needed: bool) -> Check:
    found = next((path for path in map(_which, names) if path), None)
    return Check(names[0], found is not None, f"{found or 'not found'} ({purpose})", mend, needed)


def _which(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def _kvm() -> Check:
    accelerator = probe_local()
    return Check(
        "kvm",
        accelerator.name == "kvm",
        accelerator.reason,
        "enable virtualisation in the firmware (nesting, in a virtual machine); modprobe kvm_intel || modprobe kvm_amd",
        needed=False,  # emulation works, an order of magnitude slower
    )


def _daemon() -> Check:
    daemon.ensure_local_daemon()
    version = _ask(lambda conn: show_version(conn.getLibVersion()))
    found = f"libvirt {version}" if version else "qemu:///system does not answer"
    mend = "apt install libvirt-daemon-system && systemctl enable --now libvirtd"
    if version is None and os.geteuid() != 0:
        mend = "usermod -aG libvirt $USER, and log in again"
    return Check("libvirtd", version is not None, found, mend)


def _filters() -> Check:
    count = _ask(lambda conn: str(len(conn.listAllNWFilters())))
    found = f"{count} packet filters" if count else "libvirt's packet filters do not answer"
    mend = "apt install libvirt-daemon-config-nwfilter libvirt-daemon-system ebtables iptables"
    return Check("nwfilter", bool(count) and count != "0", found, mend)


def _uefi() -> Check:
    found = next((place for place in _OVMF if Path(place).exists()), None)
    return Check("uefi", found is not None, found or "no OVMF firmware", "apt install ovmf", needed=False)


def _iommu() -> Check:
    groups = Path("/sys/kernel/iommu_groups")
    count = len(list(groups.iterdir())) if groups.is_dir() else 0
    mend = "start the kernel with intel_iommu=on iommu=pt (or amd_iommu=on); needed to give devices to guests"
    return Check("iommu", count > 0, f"{count} groups", mend, needed=False)


def _huge_pages() -> Check:
    pools: dict[str, int] = {}
    for folder in Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB"):
        with suppress(OSError, ValueError):
            pools[folder.name.removeprefix("hugepages-")] = int((folder / "nr_hugepages").read_text())
    found = ", ".join(f"{count} × {size}" for size, count in sorted(pools.items()) if count)
    return Check("hugepages", bool(found), found or "none reserved", "sysctl vm.nr_hugepages=1024", needed=False)


def _ask(question: Callable[[libvirt.virConnect], str]) -> str | None:
    """An answer of the local libvirt; None when it does not answer."""
    try:
        conn = libvirt.openReadOnly("qemu:///system")
    except libvirt.libvirtError:
        return None
    try:
        return question(conn)
    except libvirt.libvirtError:
        return None
    finally:
        conn.close()
