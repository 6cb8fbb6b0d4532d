"""The few words in which this driver writes XML. Pure. Everything goes through ElementTree, which escapes."""

from __future__ import annotations

import re
from typing import Final
from xml.etree.ElementTree import Element, SubElement, fromstring, indent, register_namespace, tostring

USINA: Final = "urn:usina:libvirt:1"
register_namespace("usina", USINA)

_FORBIDDEN: Final = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def add(parent: Element, tag: str, text: str = "", /, **attributes: object) -> Element:
    """A child element; a trailing underscore in an attribute's name is dropped (`type_`)."""
    child = SubElement(parent, tag, {name.rstrip("_"): clean(str(value)) for name, value in attributes.items()})
    if text:
        child.text = clean(text)
    return child


def root(tag: str, /, **attributes: object) -> Element:
    return Element(tag, {name.rstrip("_"): clean(str(value)) for name, value in attributes.items()})


def clean(text: str) -> str:
    """Without the characters that XML 1.0 cannot carry even escaped."""
    return _FORBIDDEN.sub("", text)


def render(element: Element) -> str:
    indent(element)
    return tostring(element, encoding="unicode") + "\n"


def parse(text: str) -> Element:
    """XML that libvirt itself wrote."""
    return fromstring(text)  # noqa: S314 - the hypervisor we command is trusted, and expat expands no external entity


def pci_address(address: str) -> dict[str, str]:
    """``0000:3b:00.0`` → libvirt's attributes. Raises `ValueError` for anything else."""
    found = re.fullmatch(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", address, re.IGNORECASE)
    if not found:
        raise ValueError(f"{address!r} is not a PCI address")
    return dict(zip(("domain", "bus", "slot", "function"), (f"0x{part}" for part in found.groups()), strict=True))


def cpu_set(cpus: tuple[int, ...]) -> str:
    return ",".join(str(cpu) for cpu in cpus)
