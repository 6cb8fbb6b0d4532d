"""NVIDIA's GPUs: what its management library says of them, or, where that cannot be asked, its driver's /proc.

Logic only; the library is behind `Nvml`. A question that a card does not answer costs that answer, not the card: one
that answers nothing is still a card, with a fault.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final, TypeVar

from usina.hardware.files import entries, pci_address, text
from usina.hardware.libnvml import Library
from usina.hardware.nvml import (
    FABRIC_COMPLETED,
    NO_FUNCTION,
    NO_PERMISSION,
    NOT_SUPPORTED,
    Instance,
    Nvml,
    NvmlError,
)

MIG: Final = "mig"
_PROC: Final = "/proc/driver/nvidia"
_FIELD: Final = re.compile(r"^([^:\n]+?)[ \t]*:[ \t]*(.*?)[ \t]*$", re.MULTILINE)
_PROFILE: Final = re.compile(r"\bMIG ((?:\d+c\.)?)(\d+g\.\d+gb\S*)", re.IGNORECASE)
_PARTS: Final = re.compile(r"(\d{1,2}g)\.(\d{1,4})gb(\S*)")
_ROUNDING: Final = 0.03
_NOT_FOR_US: Final = {NO_FUNCTION, NO_PERMISSION, NOT_SUPPORTED}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as the library numbers it."""

    index: int
    address: str
    uuid: str = ""
    name: str = ""
    memory: int = 0
    mig: bool = False
    changing: bool = False  # another MIG mode takes effect at the next reset
    instances: tuple[Instance, ...] = ()
    fabric: str = ""  # "<cluster>.<clique>" of what it reaches by NVLink beyond this host
    fault: str = ""


@contextmanager
def library(root: str = "") -> Iterator[Nvml | None]:
    """The host's NVML; None where it has none that works, and for a recorded tree."""
    opened: Library | None = None
    if not root:
        with suppress(OSError, NvmlError):
            opened = Library()
    try:
        yield opened
    finally:
        if opened is not None:
            with suppress(NvmlError):
                opened.close()


def cards(nvml: Nvml) -> list[Card]:
    """All that say at least where they are; one that is lost does not."""
    return [card for index in range(_ask(nvml.count, 0)) if (card := _card(nvml, index)) is not None]


def _card(nvml: Nvml, index: int) -> Card | None:
    address = pci_address(_ask(lambda: nvml.bus(index), "").rstrip("\0"))
    if address is None:
        return None
    now, later = _ask(lambda: nvml.mig(index), (0, 0))
    return Card(
        index=index,
        address=address,
        uuid=_ask(lambda: nvml.uuid(index), ""),
        name=_ask(lambda: nvml.name(index), ""),
        memory=_ask(lambda: nvml.memory(index), 0),
        mig=now == 1,
        changing=now != later,
        instances=tuple(_ask(lambda: nvml.instances(index), ())) if now == 1 else (),
        fabric=_fabric(nvml, index),
        fault=fault(nvml, index),
    )


def fault(nvml: Nvml, index: int) -> str:
    """Why the card cannot be used at all; "" if it can. Asked by what every card that works can answer."""
    for question in (nvml.uuid, nvml.memory, nvml.mig):
        try:
            question(index)
        except NvmlError as error:
            if error.code not in _NOT_FOR_US:
                return str(error)
    return ""


def _fabric(nvml: Nvml, index: int) -> str:
    try:
        told = nvml.fabric(index)
    except NvmlError:
        return ""
    if told.state != FABRIC_COMPLETED or told.status or not told.cluster.strip("0"):
        return ""
    return f"{told.cluster}.{told.clique}"


def links(nvml: Nvml, found: Sequence[Card]) -> dict[str, str]:
    """Address → name of the group of GPUs that all reach each other by NVLink; groups of one have no name.

    Groups are not components: where links form a ring or a cube, not all that are connected reach each other. A card
    in MIG mode is in none, because its instances have no use of NVLink.
    """
    able = [card for card in found if not card.mig and not card.fault]
    pairs = {(a.index, b.index) for a, b in combinations(able, 2) if _linked(nvml, a.index, b.index)}
    groups: list[list[Card]] = []
    for card in able:
        for group in groups:
            if all((other.index, card.index) in pairs for other in group):
                group.append(card)
                break
        else:
            groups.append([card])
    named = [group for group in groups if len(group) > 1]
    return {card.address: f"nvlink{number}" for number, group in enumerate(named) for card in group}


def _linked(nvml: Nvml, index: int, other: int) -> bool:
    return _ask(lambda: nvml.linked(index, other), False)


def _ask(question: Callable[[], T], otherwise: T) -> T:
    try:
        return question()
    except NvmlError:
        return otherwise


def profile(instance: Instance) -> str:
    """``1g.10gb``; "" for one that is only a part of its GPU instance (``1c.3g.40gb``), which no claim means."""
    found = _PROFILE.search(instance.name)
    return found.group(2).lower() if found and not found.group(1) else ""


def instance_at(found: Sequence[Card], address: str, wanted: str, start: int) -> Instance | None:
    """The MIG device on a card with exactly this profile and start."""
    instances = (one for card in found if card.address == address for one in card.instances)
    return next((one for one in instances if one.start == start and alike(profile(one), wanted)), None)


def alike(profile: str, other: str) -> bool:
    """Whether both name one profile of one card: drivers round memory differently (3g.39gb is 3g.40gb)."""
    one, two = (_PARTS.fullmatch(name.lower()) for name in (profile, other))
    if one is None or two is None or one.group(1, 3) != two.group(1, 3):
        return False
    size, least = int(one.group(2)), int(two.group(2))
    return abs(size - least) <= max(1, _ROUNDING * least)


# --- its driver's own words


def listed(root: str = "") -> dict[str, Mapping[str, str]]:
    """Address → what the driver says of the card: Model, GPU UUID, Device Minor …"""
    top = f"{root}{_PROC}/gpus"
    found = ((pci_address(name), text(f"{top}/{name}/information")) for name in entries(top))
    return {address: dict(_FIELD.findall(words)) for address, words in found if address is not None}


def reachable(told: Mapping[str, str], root: str = "") -> bool:
    """Whether its node is here: in a container that was given some GPUs, the driver may still list all of them."""
    minor = told.get("Device Minor", "")
    return not minor.isdecimal() or Path(f"{root}/dev/nvidia{minor}").exists()


def capabilities(minor: int, instance: Instance, root: str = "") -> list[str]:
    """Nodes of /dev that let a program use a MIG device: of its GPU instance and of its compute instance."""
    top = f"{root}{_PROC}/capabilities/gpu{minor}/mig/gi{instance.gpu}"
    told = (text(f"{folder}/access") for folder in (top, f"{top}/ci{instance.compute}"))
    numbers = (dict(_FIELD.findall(words)).get("DeviceFileMinor", "") for words in told)
    return [f"/dev/nvidia-caps/nvidia-cap{number}" for number in numbers if number.isdecimal()]


def version(root: str = "") -> str:
    found = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d[\d.]+)", text(f"{root}{_PROC}/version"))
    return found.group(1) if found else ""
