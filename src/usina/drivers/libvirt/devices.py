"""Hot-plug: volumes and network cards in and out of a guest, and mediated devices. Blocking, without waiting.

Taking a device out of a running guest is a request that the guest must agree to. `*_out` therefore ask and say
whether the device is gone; the caller asks again until it is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from xml.etree.ElementTree import Element, tostring

import libvirt

from usina.core.capacity import DeviceKind
from usina.core.machine import MachinePlan
from usina.drivers.libvirt import names
from usina.drivers.libvirt.domain_xml import Ground, disk_target, interface_xml, volume_disk_xml
from usina.drivers.libvirt.guests import attached_macs, attached_volumes, config_xml
from usina.drivers.libvirt.xml import add, parse, render, root
from usina.ports.driver import DriverError

_LIVE, _CONFIG = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG


def plug_volume(domain: libvirt.virDomain, volume: str, path: str) -> None:
    for flag, tree in _sides(domain):
        if volume not in attached_volumes(tree):
            domain.attachDeviceFlags(volume_disk_xml(volume, path, _free_target(domain)), flag)


def unplug_volume(domain: libvirt.virDomain, volume: str) -> bool:
    return _unplug(domain, volume, attached_volumes)


def plug_interface(domain: libvirt.virDomain, plan: MachinePlan, mac: str, ground: Ground) -> None:
    try:
        text = interface_xml(plan, mac, ground)
    except KeyError as error:
        raise DriverError("the machine has no such interface", lasting=True, detail=str(error)) from error
    for flag, tree in _sides(domain):
        if mac not in attached_macs(tree):
            domain.attachDeviceFlags(text, flag)


def unplug_interface(domain: libvirt.virDomain, mac: str) -> bool:
    return _unplug(domain, mac, attached_macs)


def _unplug(domain: libvirt.virDomain, key: str, attached: Callable[[Element], dict[str, Element]]) -> bool:
    """Whether the running guest no longer has the device; it is asked for it if it still has."""
    gone = True
    for flag, tree in _sides(domain):
        element = attached(tree).get(key)
        if element is not None:
            gone = gone and flag == _CONFIG
            with suppress(libvirt.libvirtError):  # asked already: the caller looks again
                domain.detachDeviceFlags(tostring(element, encoding="unicode"), flag)
    return gone


def _sides(domain: libvirt.virDomain) -> list[tuple[int, Element]]:
    """What the next start uses and, when the guest runs, what it has now."""
    sides = [(_CONFIG, parse(config_xml(domain)))]
    if domain.isActive():
        sides.append((_LIVE, parse(domain.XMLDesc())))
    return sides


def _free_target(domain: libvirt.virDomain) -> str:
    taken = {target.get("dev") for _, tree in _sides(domain) for target in tree.iterfind("devices/disk/target")}
    return next(name for name in map(disk_target, range(1, len(taken) + 2)) if name not in taken)


# --- mediated devices


def ensure_mdevs(conn: libvirt.virConnect, plan: MachinePlan) -> None:
    """Create the mediated devices of the plan on their parents: address ``0000:3b:00.0/nvidia-63``."""
    for device in plan.devices:
        if device.kind is DeviceKind.MDEV:
            uuid = names.mdev_uuid(plan.handle, device.address)
            if _find_mdev(conn, uuid) is None:
                conn.nodeDeviceCreateXML(mdev_xml(device.address, uuid), 0)


def remove_mdevs(conn: libvirt.virConnect, domain_xml: str) -> None:
    for address in parse(domain_xml).iterfind("devices/hostdev[@type='mdev']/source/address"):
        mdev = _find_mdev(conn, address.get("uuid", ""))
        if mdev is not None:
            mdev.destroy()


def mdev_xml(address: str, uuid: str) -> str:
    """A mediated device to be made. Raises `DriverError` when the address does not name a type."""
    parent, _, kind = address.partition("/")
    if not kind:
        raise DriverError("a mediated device needs a type", lasting=True, detail=address)
    device = root("device")
    add(device, "parent", "pci_" + parent.replace(":", "_").replace(".", "_"))
    capability = add(device, "capability", type="mdev")
    add(capability, "type", id=kind)
    add(capability, "uuid", uuid)
    return render(device)


def _find_mdev(conn: libvirt.virConnect, uuid: str) -> libvirt.virNodeDevice | None:
    """By UUID in the device's name, `mdev_<uuid>` or, in newer libvirts, `mdev_<uuid>_<parent>`."""
    prefix = "mdev_" + uuid.replace("-", "_")
    devices = conn.listAllDevices(libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_MDEV)
    return next((device for device in devices if device.name().startswith(prefix)), None)
