"""What a domain carries about itself in its own XML: whose it is, and which deeds were done to it. Pure.

The marks live with the guest and not with us, so that a deed is done once even when we die right after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree.ElementTree import Element

from usina.core.machine import MachinePlan
from usina.drivers.libvirt.xml import USINA, add, parse, render, root

KEY = "usina"


def guest_element(factory: str, handle: str, marks: Mapping[str, int]) -> Element:
    guest = root(f"{{{USINA}}}guest", factory=factory, handle=handle)
    for name, token in sorted(marks.items()):
        add(guest, f"{{{USINA}}}mark", name=name, token=token)
    return guest


def guest_metadata(factory: str, plan: MachinePlan, marks: Mapping[str, int]) -> Element:
    guest = guest_element(factory, plan.handle, marks)
    add(guest, f"{{{USINA}}}plan", hostname=plan.hostname, image=plan.image.digest[:32], disk=plan.disk)
    return guest


def read_marks(element: Element | None) -> dict[str, int]:
    """The marks below a `guest` element, or below a whole domain's."""
    if element is None:
        return {}
    return {mark.get("name", ""): int(mark.get("token", "0")) for mark in element.iter(f"{{{USINA}}}mark")}


def with_mark(guest_xml: str, name: str, token: int) -> str:
    """A `guest` element's text with one mark set.

    Without a namespace on both sides: libvirt strips it when it gives the element out, and adds it when it takes it in.
    """
    guest = parse(guest_xml)
    for mark in [mark for mark in guest.findall("mark") if mark.get("name") == name]:
        guest.remove(mark)
    add(guest, "mark", name=name, token=token)
    return render(guest)
