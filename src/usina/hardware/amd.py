"""AMD's GPUs by sysfs: the files of the amdgpu driver, and the compute driver's topology (KFD).

Written from AMD's and the kernel's documentation, tested on trees made by hand, never run beside a real card. A card
that is cut into partitions is one PCI function with several nodes in KFD, each with a render node of its own.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from usina.core.capacity import Device
from usina.hardware.files import entries, number, parse_number, text
from usina.hardware.pci import AMD, Function, plain

_NODES: Final = "/sys/class/kfd/kfd/topology/nodes"
_WHOLE: Final = "spx"


@dataclass(frozen=True, slots=True)
class Node:
    """A partition of a card (all of it, if it is not cut), as the compute driver counts."""

    id: int
    address: str
    render: int  # minor of its render node, 128 for renderD128
    hive: int
    simds: int
    memory: int


def devices(functions: Sequence[Function], names: dict[str, str], root: str = "") -> list[Device]:
    """Those of AMD that its driver has; by address."""
    ours = [one for one in functions if one.vendor == AMD and one.driver == "amdgpu"]
    known: dict[str, list[Node]] = defaultdict(list)
    for node in nodes(root):
        known[node.address].append(node)
    hives = {one.address: _hive(one, known[one.address]) for one in ours}
    sizes = Counter(hives.values())
    return [
        replace(
            _device(one, names.get(one.address, ""), known[one.address]),
            link=f"xgmi-{hive:x}" if (hive := hives[one.address]) and sizes[hive] > 1 else None,
        )
        for one in ours
    ]


def _device(function: Function, name: str, known: Sequence[Node]) -> Device:
    folder = function.folder
    cut = _mode(text(f"{folder}/current_compute_partition"))
    memory_mode = _mode(text(f"{folder}/current_memory_partition"))
    memory = number(f"{folder}/mem_info_vram_total")
    return replace(
        plain(function, text(f"{folder}/product_name") or name),
        memory=memory or sum(node.memory for node in known),
        mode="" if cut == _WHOLE else cut,
        traits=frozenset({memory_mode} if memory_mode else ()) | (set() if memory or known else {"broken"}),
    )


def _mode(words: str) -> str:
    """``SPX``, ``NPS4``; "" for what is no mode ("UNKNOWN" too)."""
    return words.lower() if re.fullmatch(r"[SDTQC]PX|NPS[1-8]", words, re.IGNORECASE) else ""


def _hive(function: Function, known: Sequence[Node]) -> int:
    """The cards that reach each other by xGMI are one hive; 0: none."""
    own = number(f"{function.folder}/xgmi_hive_info/xgmi_hive_id")
    return own or next((node.hive for node in known if node.hive), 0)


def nodes(root: str = "") -> list[Node]:
    """GPU nodes of the compute driver, in its order."""
    names = sorted((name for name in entries(f"{root}{_NODES}") if name.isdecimal()), key=int)
    found = (_node(int(name), f"{root}{_NODES}/{name}") for name in names)
    return [node for node in found if node is not None]


def _node(id: int, folder: str) -> Node | None:
    told = _properties(text(f"{folder}/properties"))
    if not told.get("simd_count") or told.get("vendor_id", AMD) != AMD:
        return None
    banks = (_properties(text(f"{folder}/mem_banks/{bank}/properties")) for bank in entries(f"{folder}/mem_banks"))
    return Node(
        id=id,
        address=_address(told.get("domain", 0), told.get("location_id", 0)),
        render=told.get("drm_render_minor", 0),
        hive=told.get("hive_id", 0),
        simds=told["simd_count"],
        memory=sum(bank.get("size_in_bytes", 0) for bank in banks),
    )


def _properties(words: str) -> dict[str, int]:
    pairs = (line.split() for line in words.splitlines())
    found = ((pair[0], parse_number(pair[1])) for pair in pairs if len(pair) == 2)
    return {name: value for name, value in found if value is not None}


def _address(domain: int, location: int) -> str:
    """The upper bits of a location number the partitions of a card."""
    return f"{domain & 0xFFFFFFFF:04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7}"


def renders(address: str, root: str = "") -> list[int]:
    """Minors of the render nodes of a card's partitions, the first partition first."""
    return sorted(node.render for node in nodes(root) if node.address == address and node.render)


def mode(address: str, root: str = "") -> str:
    """How a card is cut now, "spx" if it is not; "" where it does not say."""
    return _mode(text(f"{root}/sys/bus/pci/devices/{address}/current_compute_partition"))


def modes(address: str, root: str = "") -> str:
    """The ways it can be cut: ``spx dpx qpx cpx``."""
    words = text(f"{root}/sys/bus/pci/devices/{address}/available_compute_partition")
    return " ".join(filter(None, map(_mode, words.replace(",", " ").split())))


def uncorrected(folder: str) -> dict[str, int]:
    """Block → uncorrectable errors since the driver was loaded, of blocks that had any. A file says ``ue: 1 ce: 0``."""
    names = (name for name in entries(f"{folder}/ras") if name.endswith("_err_count"))
    read = ((name.removesuffix("_err_count"), text(Path(folder, "ras", name))) for name in names)
    found = ((name, re.search(r"\bue:?\s+(\d{1,18})\b", words)) for name, words in read)
    return {name: int(count.group(1)) for name, count in found if count and int(count.group(1))}


def version(root: str = "") -> str:
    """Of amdgpu where it is not the kernel's own."""
    return text(f"{root}/sys/module/amdgpu/version")
