"""Files on a host, through libvirt's storage pools, so that a far host is no different from this one. Blocking.

One folder pool per host holds everything: images, root disks, volumes, seeds and console logs. Root disks are qcow2
overlays on their image.

An image must never look whole while it is half there. libvirt cannot rename a volume, so each copy gets a name of its
own (`image-<digest>-<attempt>.disk`, `.kernel`, `.initrd`) and counts only from the moment that its `.ready` stamp,
made last, is there and no part is missing. A copy cut short is swept by the next one. Two control planes that copy the
same image at the same time leave a good copy or two: no lock is needed, and nobody waits for the dead.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final

import libvirt

from usina.core.machine import ImageFiles, MachinePlan, VolumePlan
from usina.drivers.libvirt import names
from usina.drivers.libvirt.faults import is_missing
from usina.drivers.libvirt.settings import Settings
from usina.drivers.libvirt.xml import add, render, root
from usina.ports.driver import DriverError

_READABLE: Final = "0644"  # images: read by every guest's process
_PRIVATE: Final = "0600"  # the rest: libvirt hands it to the guest's process when it starts
_STAMP_SIZE: Final = 512


@dataclass(frozen=True, slots=True)
class StoredImage:
    """Paths of a whole copy of an image on the host; ``""`` for parts it does not have."""

    disk: str
    kernel: str
    initrd: str


class Storage:
    """The pool of one host, seen through one connection."""

    def __init__(self, conn: libvirt.virConnect, settings: Settings) -> None:
        self._conn = conn
        self._settings = settings

    def path(self, name: str) -> str:
        return f"{self._settings.pool_path}/{name}"

    def pool(self) -> libvirt.virStoragePool:
        """The pool, made and running."""
        pool = self._find()
        if pool is None:
            pool = self._conn.storagePoolDefineXML(_pool_xml(self._settings), 0)
            pool.setAutostart(1)
        if not pool.isActive():
            _bring_up(pool)
        return pool

    def size(self) -> int:
        """Bytes of the file system that the pool is on."""
        return int(self.pool().info()[1])

    # --- images

    def find_image(self, image: ImageFiles) -> StoredImage | None:
        """A whole copy: stamped, and with every part that the image has.

        After each upload libvirt reads the folder anew, and what it then lists is not always all: what is not found is
        looked for once more.
        """
        found = self._listed_image(image)
        if found is None:
            with suppress(libvirt.libvirtError):  # another upload is under way
                self.pool().refresh(0)
            found = self._listed_image(image)
        return found

    def _listed_image(self, image: ImageFiles) -> StoredImage | None:
        present = set(self.pool().listVolumes())
        for stamp in sorted(name for name in present if _of_image(name, image.digest) and name.endswith(".ready")):
            copy = stamp.removesuffix(".ready")
            parts = {kind: f"{copy}.{kind}" for kind in _sources(image)}
            if present.issuperset(parts.values()):
                paths = {kind: self.path(name) for kind, name in parts.items()}
                return StoredImage(paths.get("disk", ""), paths.get("kernel", ""), paths.get("initrd", ""))
        return None

    def ensure_image(self, image: ImageFiles) -> None:
        if self.find_image(image) is not None:
            return
        copy = f"{_image_prefix(image.digest)}{secrets.token_hex(4)}"
        for kind, source in _sources(image).items():
            self._copy(Path(source), f"{copy}.{kind}")
        self._create(f"{copy}.ready", _STAMP_SIZE)
        self._sweep_half_copies(image.digest)

    def remove_image(self, digest: str) -> None:
        ours = [name for name in self._names() if _of_image(name, digest)]
        for name in sorted(ours, key=lambda name: not name.endswith(".ready")):  # the stamp first
            self.delete(name)

    def _sweep_half_copies(self, digest: str) -> None:
        """A copy that another control plane has on its way may be swept too: lacking parts, it does not count then."""
        ours = [name for name in self._names() if _of_image(name, digest)]
        whole = tuple(name.removesuffix("ready") for name in ours if name.endswith(".ready"))
        for name in ours:
            if not name.startswith(whole):
                self.delete(name)

    def _copy(self, source: Path, name: str) -> None:
        try:
            with source.open("rb") as file:
                self._upload(name, file, source.stat().st_size, _READABLE)
        except OSError as error:
            raise DriverError("the image's files cannot be read", lasting=True, detail=str(error)) from error

    # --- disks

    def ensure_root_disk(self, plan: MachinePlan) -> bool:
        """Make the guest's root disk as an overlay of its image, or grow it to the plan.

        False when only the guest's own process can grow it: snapshots lie in the disk, and where it takes more room
        than it offers libvirt takes growing for shrinking.
        """
        name, size = names.root_disk(plan.handle), max(plan.disk, plan.image.virtual_size)
        volume = self._find_volume(name)
        if volume is None:
            image = self.find_image(plan.image)
            if image is None:
                raise DriverError("the image is not on the host yet")
            self._create(name, size, format="qcow2", backing=(image.disk, plan.image.format))
        elif volume.info()[1] < size:
            if volume.info()[2] > size:
                return False
            volume.resize(size)
        return True

    def ensure_volume(self, plan: VolumePlan) -> libvirt.virStorageVol | None:
        """Make the volume. Returns it when it is there but smaller than wanted, so that the caller grows it."""
        volume = self._find_volume(names.volume(plan.handle))
        if volume is None:
            self._create(names.volume(plan.handle), plan.size, format="qcow2")
        elif volume.info()[1] < plan.size:
            return volume
        return None

    def write_seed(self, handle: str, iso: bytes) -> str:
        name = names.seed(handle)
        self.delete(name)
        self._upload(name, BytesIO(iso), len(iso), _PRIVATE)
        return self.path(name)

    # --- any file

    def has(self, name: str) -> bool:
        return self._find_volume(name) is not None

    def delete(self, name: str) -> None:
        pool = self._find()
        if pool is None or not pool.isActive():
            return
        try:
            pool.storageVolLookupByName(name).delete(0)
        except libvirt.libvirtError as error:
            if not is_missing(error) and self.has(name):
                raise

    def delete_guest_files(self, handle: str) -> None:
        """Everything that the guest alone owns, with the older parts of its console log."""
        pool = self._find()
        if pool is None:
            return
        if pool.isActive():
            pool.refresh(0)  # logs are written behind libvirt's back
        own = (names.root_disk(handle), names.seed(handle), names.console_log(handle))
        for name in self._names():
            if name.startswith(own):
                self.delete(name)

    def download_tail(self, name: str, limit: int) -> bytes:
        pool = self.pool()
        pool.refresh(0)
        volume = self._find_volume(name)
        if volume is None:
            return b""
        size = int(volume.info()[1])
        kept: list[bytes] = []
        stream = self._conn.newStream(0)
        volume.download(stream, max(0, size - limit), min(size, limit), 0)
        stream.recvAll(lambda _stream, data, _opaque: kept.append(data), None)
        stream.finish()
        return b"".join(kept)

    def remove_if_empty(self) -> None:
        """Take the pool and its folder down once nothing is in it."""
        pool = self._find()
        if pool is None:
            return
        if pool.isActive():
            pool.refresh(0)
            if pool.listVolumes():
                return
            pool.destroy()
        with suppress(libvirt.libvirtError):
            pool.delete(0)
        pool.undefine()

    def _names(self) -> list[str]:
        pool = self._find()
        return list(pool.listVolumes()) if pool is not None and pool.isActive() else []

    def _find(self) -> libvirt.virStoragePool | None:
        try:
            return self._conn.storagePoolLookupByUUIDString(_pool_uuid(self._settings))
        except libvirt.libvirtError as error:
            if is_missing(error):
                return None
            raise

    def _find_volume(self, name: str) -> libvirt.virStorageVol | None:
        """The volume, if its file is there too: libvirt remembers volumes whose files were taken away."""
        pool = self.pool()
        try:
            volume = pool.storageVolLookupByName(name)
        except libvirt.libvirtError as error:
            if is_missing(error):
                return None
            raise
        try:
            volume.info()
        except libvirt.libvirtError:
            pool.refresh(0)
            return None
        return volume

    def _create(
        self,
        name: str,
        size: int,
        *,
        format: str = "raw",
        mode: str = _PRIVATE,
        backing: tuple[str, str] = ("", ""),
    ) -> libvirt.virStorageVol:
        xml = _volume_xml(name, size, format, mode, backing)
        try:
            return self.pool().createXML(xml, 0)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_STORAGE_VOL_EXIST:
                raise
            return self.pool().storageVolLookupByName(name)

    def _upload(self, name: str, source: BinaryIO, size: int, mode: str) -> None:
        volume = self._create(name, size, mode=mode)
        stream = self._conn.newStream(0)
        volume.upload(stream, 0, size, 0)
        stream.sendAll(lambda _stream, wanted, file: file.read(wanted), source)
        stream.finish()


def _bring_up(pool: libvirt.virStoragePool) -> None:
    try:
        pool.build(0)  # makes the folder; harmless when it is there
        pool.create(0)
    except libvirt.libvirtError:
        if not pool.isActive():  # else another call was quicker
            raise


def _image_prefix(digest: str) -> str:
    return f"image-{digest[:32]}-"


def _sources(image: ImageFiles) -> dict[str, str]:
    """The parts that an image has, and their files here."""
    parts = {"disk": image.disk, "kernel": image.kernel, "initrd": image.initrd}
    return {kind: path for kind, path in parts.items() if path}


def _of_image(name: str, digest: str) -> bool:
    return name.startswith(_image_prefix(digest))


def _pool_uuid(settings: Settings) -> str:
    return names.named_uuid("pool", settings.pool_name)


def _pool_xml(settings: Settings) -> str:
    pool = root("pool", type="dir")
    add(pool, "name", settings.pool_name)
    add(pool, "uuid", _pool_uuid(settings))
    target = add(pool, "target")
    add(target, "path", settings.pool_path)
    add(add(target, "permissions"), "mode", "0711")  # guests' processes pass through, but list nothing
    return render(pool)


def _volume_xml(name: str, size: int, format: str, mode: str, backing: tuple[str, str]) -> str:
    volume = root("volume")
    add(volume, "name", name)
    add(volume, "capacity", str(size), unit="bytes")
    add(volume, "allocation", "0", unit="bytes")
    target = add(volume, "target")
    add(target, "format", type=format)
    add(add(target, "permissions"), "mode", mode)
    path, backing_format = backing
    if path:
        store = add(volume, "backingStore")
        add(store, "path", path)
        add(store, "format", type=backing_format)
    return render(volume)
