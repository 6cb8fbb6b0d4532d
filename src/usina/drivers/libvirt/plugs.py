"""Network devices that are no guest's, on networks of this host: the near ends of tasks' veth pairs. Blocking.

libvirt lends them its packet filter by a filter binding, which names the device and holds for whoever made it. The
bridge it does not lend: that is the kernel's, so this works on a libvirt of this machine, and as root.

Format: https://libvirt.org/formatnwfilter.html#filter-bindings (libvirt 4.5 and later)
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress

import libvirt

from usina.core.machine import Card
from usina.drivers.libvirt import names
from usina.drivers.libvirt.domain_xml import filter_reference
from usina.drivers.libvirt.faults import is_missing
from usina.drivers.libvirt.settings import Settings
from usina.drivers.libvirt.xml import add, render, root
from usina.ports.driver import DriverError

_PATIENCE = 10.0  # seconds of one change to a device


def possible(settings: Settings) -> bool:
    return settings.local and not settings.session and os.geteuid() == 0 and shutil.which("ip") is not None


def binding_xml(factory: str, handle: str, device: str, card: Card) -> str:
    mac = card.interface.mac
    binding = root("filterbinding")
    owner = add(binding, "owner")
    add(owner, "name", handle)
    add(owner, "uuid", names.guest_uuid(factory, handle))
    add(binding, "portdev", name=device)
    add(binding, "mac", address=mac)
    filter_reference(binding, names.packet_filter(handle, mac), card.interface.address, card.network)
    return render(binding)


def put_on(conn: libvirt.virConnect, factory: str, handle: str, device: str, card: Card) -> None:
    """Filter first: nothing passes before the device is on the bridge."""
    if _binding(conn, device) is None:
        conn.nwfilterBindingCreateXML(binding_xml(factory, handle, device, card))
    _ip("link", "set", "dev", device, "master", names.network(factory, card.network.handle), "up")


def take_off(conn: libvirt.virConnect, device: str, bridge: str) -> None:
    member = f"/sys/class/net/{bridge}/brif/{device}"
    try:
        if os.path.exists(member):
            _ip("link", "set", "dev", device, "nomaster", "down")
    except DriverError:
        if os.path.exists(member):  # else it went by itself just now
            raise
    binding = _binding(conn, device)
    if binding is not None:
        binding.delete()


def others_with(conn: libvirt.virConnect, device: str, mac: str) -> bool:
    """Whether another device has the MAC meanwhile, and its address and name with it."""
    for one in conn.listAllNWFilterBindings():
        with suppress(libvirt.libvirtError):  # gone since it was listed
            if one.portDev() != device and mac in one.XMLDesc():
                return True
    return False


def _binding(conn: libvirt.virConnect, device: str) -> libvirt.virNWFilterBinding | None:
    try:
        return conn.nwfilterBindingLookupByPortDev(device)
    except libvirt.libvirtError as error:
        if is_missing(error):
            return None
        raise


def _ip(*words: str) -> None:
    try:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DriverError("the host could not change a network device", detail=str(error)) from error
    if done.returncode:
        raise DriverError("the host could not change a network device", detail=done.stderr.strip()[:500])
