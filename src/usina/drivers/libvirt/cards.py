"""Network cards of a guest that starts: their links are down until their packet filters stand. Blocking.

libvirt puts filters up before a guest's first instruction, a second in which nothing else happens. So a guest is
started with its links down and without filters, and gets both while it boots; QEMU lets nothing in or out of a card
whose link is down. Only a running guest is ever so: its definition, which a start by any other hand uses, is complete.
A card that has neither link nor filter is thus one that waits: should whoever started the guest die, that tells it.
"""

from __future__ import annotations

from copy import deepcopy
from xml.etree.ElementTree import Element, tostring

import libvirt

from usina.drivers.libvirt.xml import add, parse, render

_FILTER = "filterref"


def start_dark(conn: libvirt.virConnect, domain: libvirt.virDomain, definition: str) -> None:
    """Start a guest that is defined and off, its filtered cards waiting."""
    tree = parse(definition)
    filtered = [card for card in tree.iterfind("devices/interface") if card.find(_FILTER) is not None]
    for card in filtered:
        for part in card.findall(_FILTER) + card.findall("link"):
            card.remove(part)
        add(card, "link", state="down")
    if filtered:
        conn.createXML(render(tree))
    else:
        domain.create()


def waiting(guest: Element) -> list[Element]:
    """The cards of a running guest that have neither filter nor link yet."""
    cards = guest.iterfind("devices/interface[@type='network']")
    return [card for card in cards if card.find(_FILTER) is None and card.find("link[@state='down']") is not None]


def connect(domain: libvirt.virDomain, definition: str) -> None:
    """Give every card that waits its filter, as the definition has it, and then its link."""
    filters = {_mac(card): card.find(_FILTER) for card in parse(definition).iterfind("devices/interface")}
    for card in waiting(parse(domain.XMLDesc())):
        reference, link = filters.get(_mac(card)), card.find("link")
        if reference is None or link is None:
            continue
        card.append(deepcopy(reference))
        for state in ("down", "up"):
            link.set("state", state)
            domain.updateDeviceFlags(tostring(card, encoding="unicode"), libvirt.VIR_DOMAIN_AFFECT_LIVE)


def _mac(card: Element) -> str:
    mac = card.find("mac")
    return mac.get("address", "") if mac is not None else ""
