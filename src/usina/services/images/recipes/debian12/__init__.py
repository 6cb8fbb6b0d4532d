"""`debian-12`: Debian 12 with systemd, cloud-init and OpenSSH on a qcow2 disk, started by direct kernel boot.

The disk is one ext4 filesystem without a partition table, which cloud-init grows to the size of the disk.
It is made from packages by the mirror this host uses, and carries Debian's standard sources. Times, UUIDs
and hash seeds are fixed; machine id and SSH host keys are left out and made at first boot. The kernel comes
with the image files, not with the disk, so `apt` inside the guest does not change it; its modules are on
the disk.

Devices: virtio for disk, network and SCSI. Debian's cloud kernel has no AHCI, so a seed on a SATA drive is
not seen.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from usina.core.machine import ImageFiles
from usina.core.units import GiB, MiB
from usina.services.images import manifest
from usina.services.images.appliance import busybox, modules, one
from usina.services.images.cpio import Archive
from usina.services.images.debian import STANDARD_SOURCES, SUITE, Packages, acquire_settings, sources
from usina.services.images.recipe import Recipe
from usina.services.images.workshop import Workshop

_HERE = Path(__file__).parent
_EPOCH = 1735689600  # 2025-01-01: the age of what a build itself writes
_UUID = "75736e61-6465-4269-a12d-000000000012"
_SIZE = 2 * GiB
# Without "tsc=reliable" an emulated guest reads its clock from the HPET, at a fifth of its boot time.
_CMDLINE = "root=LABEL=usina-root rw console=ttyS0,115200 quiet no_timer_check tsc=reliable net.ifnames=0"
_MODULES = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "virtio-rng")
_PACKAGES = (
    "bash-completion",
    "ca-certificates",
    "cloud-init",
    "curl",
    "dbus",
    "e2fsprogs",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "netbase",
    "openssh-server",
    "procps",
    "sudo",
    "systemd-resolved",
    "systemd-sysv",
    "systemd-timesyncd",
    "udev",
    "vim-tiny",
)
_LEFT_OUT = (
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
)
_MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "cloud-init-hotplugd.socket",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-pstore.service",
)
_ENABLED = ("systemd-networkd.service", "systemd-resolved.service", "ssh.service", "fstrim.timer")
_LEAN = "[Service]\nEnvironment=PYTHONPATH=/usr/lib/usina/lean\n"
_FILES = {
    "etc/hostname": "debian\n",
    "etc/apt/sources.list": STANDARD_SOURCES + "\n",
    "etc/default/locale": "LANG=C.UTF-8\n",
    "etc/machine-id": "",
    # One card with an address is enough to go on; a card without DHCP must not hold up the boot.
    "etc/systemd/system/systemd-networkd-wait-online.service.d/usina.conf": (
        "[Service]\nExecStart=\nExecStart=/lib/systemd/systemd-networkd-wait-online --any -o routable --timeout=20\n"
    ),
    # cloud-init starts Python four times; each is a second shorter without its check of user data.
    "usr/lib/usina/lean/jsonschema.py": 'raise ImportError("left out to start faster")\n',
} | {
    f"etc/systemd/system/{unit}.service.d/usina.conf": _LEAN
    for unit in ("cloud-init-local", "cloud-init", "cloud-config", "cloud-final")
}
_LINKS = {
    "etc/resolv.conf": "../run/systemd/resolve/stub-resolv.conf",
    # The place of the seed is known, so the search for a cloud is left out and cloud-init is always on.
    "etc/systemd/system/multi-user.target.wants/cloud-init.target": "/lib/systemd/system/cloud-init.target",
} | {
    f"etc/systemd/system-generators/{name}": "/dev/null"
    for name in (
        "cloud-init-generator",
        "systemd-cryptsetup-generator",
        "systemd-gpt-auto-generator",
        "systemd-hibernate-resume-generator",
        "systemd-integritysetup-generator",
        "systemd-veritysetup-generator",
    )
}
_REMOVED = (
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "etc/cloud/cloud.cfg.d/90_dpkg.cfg",
)
_STEP = re.compile(r"^I: (.+?)\.\.\.")


async def _cook(folder: Path, shop: Workshop) -> ImageFiles:
    tree = shop.place / "tree"
    await _bootstrap(tree, shop)
    shop.progress(0.6, "fetching the kernel")
    await _kernel(tree, folder, shop)
    shop.progress(0.7, "settling the system")
    _settle(tree)
    shop.progress(0.75, "making the disk")
    await _disk(tree, folder, shop)
    return ImageFiles(
        digest=manifest.digest([folder / "disk.qcow2"]),
        disk="disk.qcow2",
        format="qcow2",
        virtual_size=_SIZE,
        kernel="kernel",
        initrd="initrd",
        cmdline=_CMDLINE,
    )


async def _bootstrap(tree: Path, shop: Workshop) -> None:
    """The base system, by mmdebstrap; its stages are shown as the first half of the progress."""
    done = 0.0

    def told(line: str) -> None:
        nonlocal done
        if step := _STEP.match(line):
            done = min(0.55, done + 0.05)
            shop.progress(done, step[1])

    settings = shop.place / "apt.conf"
    settings.write_text(await acquire_settings(shop))
    await shop.run(
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--architectures=amd64",
        f"--include={','.join(_PACKAGES)}",
        f"--aptopt={settings}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT),
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        "--dpkgopt=force-unsafe-io",
        f'--customize-hook=chroot "$1" systemctl --quiet enable {" ".join(_ENABLED)}',
        f'--customize-hook=chroot "$1" systemctl --quiet mask {" ".join(_MASKED)}',
        SUITE,
        tree,
        *sources(),
        on_line=told,
    )


async def _kernel(tree: Path, folder: Path, shop: Workshop) -> None:
    """Kernel and initial RAM disk into `folder`; the kernel's modules into the system in `tree`."""
    packages = Packages(shop)
    await packages.refresh()
    kernel = (await packages.depends("linux-image-cloud-amd64"))[0]
    parts = shop.place / "kernel"
    await packages.unpack([kernel, "busybox-static"], parts)
    shutil.copyfile(one(parts / "boot", "vmlinuz-*"), folder / "kernel")
    archive = Archive()
    for path in ("/proc", "/sys", "/dev"):
        archive.folder(path)
    archive.device("/dev/console", 5, 1)
    busybox(archive, parts)
    modules(archive, parts, _MODULES)
    archive.file("/init", (_HERE / "init.sh").read_bytes(), 0o755)
    (folder / "initrd").write_bytes(archive.closed())
    version = next((parts / "lib/modules").iterdir())
    shutil.copytree(version, tree / "usr/lib/modules" / version.name)
    await shop.run("chroot", tree, "depmod", version.name)


def _settle(tree: Path) -> None:
    """Everything that a machine must make for itself goes; Usina's settings come; what this build dated
    gets `_EPOCH`.

    Python sources keep the time of their package: compiled files name it, and would be compiled again at
    every start.
    """
    for name in _REMOVED:
        (tree / name).unlink(missing_ok=True)
    for pattern in (
        "etc/ssh/ssh_host_*",
        "var/cache/apt/*.bin",
        "var/log/*.log",
        "var/lib/apt/lists/*_*",
        "tmp/*",
    ):
        for path in tree.glob(pattern):
            path.unlink()
    for name, text in _FILES.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
    shutil.copyfile(_HERE / "cloud.cfg", tree / "etc/cloud/cloud.cfg")
    for name, target in _LINKS.items():
        link = tree / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    for where, folders, names in os.walk(tree):
        for name in (*folders, *names):
            path = Path(where, name)
            if path.suffix != ".py" and path.lstat().st_mtime > _EPOCH:
                os.utime(path, (_EPOCH, _EPOCH), follow_symlinks=False)


async def _disk(tree: Path, folder: Path, shop: Workshop) -> None:
    raw = shop.place / "disk.raw"
    with raw.open("wb") as stream:
        stream.truncate(_SIZE)
    shop.env = {"E2FSPROGS_FAKE_TIME": str(_EPOCH), "SOURCE_DATE_EPOCH": str(_EPOCH)}
    options = f"hash_seed={_UUID},root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1"
    await shop.run("mkfs.ext4", "-q", "-F", "-L", "usina-root", "-U", _UUID, "-m", "1", "-E", options, "-d", tree, raw)
    shop.progress(0.9, "writing the qcow2 file")
    await shop.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, folder / "disk.qcow2")


RECIPE = Recipe(
    name="debian-12",
    summary="Debian 12 with cloud-init, SSH and sudo",
    user="debian",
    memory=384 * MiB,
    disk=_SIZE,
    tools={
        "apt-cache": "apt",
        "apt-get": "apt",
        "chroot": "coreutils",
        "dpkg-deb": "dpkg",
        "mkfs.ext4": "e2fsprogs",
        "mmdebstrap": "mmdebstrap",
        "qemu-img": "qemu-utils",
    },
    sources=_HERE,
    cook=_cook,
    needs_root=True,
)
