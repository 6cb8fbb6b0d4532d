"""`tiny`: Debian's cloud kernel, busybox and dropbear in an initial RAM disk. Boots in seconds, has no disk
at all.

What it does: takes hostname and SSH keys from a NoCloud seed (a filesystem labelled ``cidata``), DHCP on
every network card (also on one plugged in later), SSH for root by key, a root shell on the serial line,
runs user data that starts with ``#!``, and obeys the power button. Everything written is gone after a
reboot, host keys included.

Devices: virtio for disk, network and SCSI; CD drives on virtio-scsi or IDE. Debian's cloud kernel has no
AHCI, so a seed on a SATA drive is not seen.
"""

from __future__ import annotations

from pathlib import Path

from usina.core.machine import ImageFiles
from usina.core.units import MiB
from usina.services.images import manifest
from usina.services.images.appliance import busybox, modules, one
from usina.services.images.cpio import Archive
from usina.services.images.debian import Packages
from usina.services.images.recipe import Recipe
from usina.services.images.workshop import Workshop

_HERE = Path(__file__).parent
_CMDLINE = "console=ttyS0,115200 quiet no_timer_check tsc=reliable panic=5 net.ifnames=0"
_MODULES = (
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_scsi",
    "sr_mod",
    "sd_mod",
    "isofs",
    "virtio-rng",
    "virtio_balloon",
    "button",
    "evdev",
    "ata_piix",
)
_PACKAGES = (
    "busybox-static",
    "dropbear-bin",
    "libc6",
    "libcrypt1",
    "libgmp10",
    "libtomcrypt1",
    "libtommath1",
    "zlib1g",
)
_LOADER = "/lib64/ld-linux-x86-64.so.2"
_LIBRARIES = (
    "libtomcrypt.so.1",
    "libtommath.so.1",
    "libz.so.1",
    "libcrypt.so.1",
    "libgmp.so.10",
    "libc.so.6",
)
_FOLDERS = ("/proc", "/sys", "/run", "/tmp", "/mnt", "/var/log", "/usr/bin", "/usr/sbin")  # noqa: S108
_SCRIPTS = {
    "/etc/rc": "rc.sh",
    "/etc/network": "network.sh",
    "/etc/udhcpc": "udhcpc.sh",
    "/etc/acpi/PWRF/00000080": "poweroff.sh",
}
_TEXTS = {
    "/etc/inittab": "::sysinit:/etc/rc\nttyS0::respawn:-/bin/sh\n::ctrlaltdel:/sbin/reboot -f\n",
    "/etc/passwd": "root:*:0:0:root:/root:/bin/sh\n",
    "/etc/group": "root:x:0:\ntty:x:5:\n",
    "/etc/shells": "/bin/sh\n",
    "/etc/profile": "export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root PS1='\\h:\\w# '\ncd\n",
    "/etc/os-release": 'ID=usina-tiny\nNAME="Usina tiny"\nPRETTY_NAME="Usina tiny"\n',
}


async def _cook(folder: Path, shop: Workshop) -> ImageFiles:
    shop.progress(0.05, "reading package lists")
    packages = Packages(shop)
    await packages.refresh()
    shop.progress(0.3, "fetching kernel, busybox and dropbear")
    kernel = (await packages.depends("linux-image-cloud-amd64"))[0]
    tree = shop.place / "tree"
    tree.mkdir()
    await packages.unpack([kernel, *_PACKAGES], tree)
    shop.progress(0.9, "packing the initial RAM disk")
    (folder / "kernel").write_bytes(one(tree / "boot", "vmlinuz-*").read_bytes())
    (folder / "initrd").write_bytes(_initrd(tree))
    return ImageFiles(
        digest=manifest.digest([folder / "kernel", folder / "initrd"]),
        disk="",
        format="raw",
        kernel="kernel",
        initrd="initrd",
        cmdline=_CMDLINE,
    )


def _initrd(tree: Path) -> bytes:
    archive = Archive()
    for path in _FOLDERS:
        archive.folder(path)
    archive.folder("/root", 0o700)
    archive.device("/dev/console", 5, 1)
    archive.device("/dev/null", 1, 3, 0o666)
    busybox(archive, tree)
    archive.link("/init", "/bin/busybox")
    archive.file("/usr/sbin/dropbear", (tree / "usr/sbin/dropbear").read_bytes(), 0o755)
    archive.file(_LOADER, one(tree, f"**/{Path(_LOADER).name}").read_bytes(), 0o755)
    for name in _LIBRARIES:
        archive.file(f"/lib/x86_64-linux-gnu/{name}", one(tree, f"**/{name}").read_bytes(), 0o755)
    modules(archive, tree, _MODULES)
    for path, name in _SCRIPTS.items():
        archive.file(path, (_HERE / name).read_bytes(), 0o755)
    for path, text in _TEXTS.items():
        archive.file(path, text.encode())
    return archive.closed()


RECIPE = Recipe(
    name="tiny",
    summary="busybox and SSH in memory; boots in seconds, keeps nothing",
    user="root",
    memory=128 * MiB,
    disk=0,
    tools={"apt-get": "apt", "apt-cache": "apt", "dpkg-deb": "dpkg"},
    sources=_HERE,
    cook=_cook,
)
