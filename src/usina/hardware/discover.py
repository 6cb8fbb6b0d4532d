"""All devices of a host for computing, each once, from whoever knows most of it; and facts for people.

A broken card is kept, with the trait `broken`: what it is good for is the business of `health` and of cordons. One
that is bound to vfio-pci has the trait `vfio`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from usina.core.capacity import Device
from usina.hardware import amd, nvidia
from usina.hardware.nvidia import Card
from usina.hardware.nvml import Nvml, NvmlError
from usina.hardware.pci import AMD, NVIDIA, Function, functions, names, plain

BROKEN = "broken"


def devices(root: str = "") -> tuple[Device, ...]:
    """GPUs and accelerators below a root, by address. Never raises for what a card says or does not say."""
    with nvidia.library(root) as nvml:
        return found(root, nvml)


def found(root: str = "", nvml: Nvml | None = None) -> tuple[Device, ...]:
    """The same, with NVIDIA's library as given."""
    seen = functions(root)
    models = names(seen, root)
    known = {one.address: plain(one, models.get(one.address, "")) for one in seen}
    known |= {device.address: device for device in amd.devices(seen, models, root)}
    better = _nvidia(seen, known, root, nvml)
    chosen = (better.get(address, device) for address, device in sorted(known.items()))
    return tuple(device for device in chosen if device is not None)


def _nvidia(
    seen: Sequence[Function], known: Mapping[str, Device], root: str, nvml: Nvml | None
) -> dict[str, Device | None]:
    """Those that its driver has; None for one that is kept from us."""
    cards = {card.address: card for card in nvidia.cards(nvml)} if nvml else {}
    links = nvidia.links(nvml, list(cards.values())) if nvml else {}
    listed = nvidia.listed(root)
    found: dict[str, Device | None] = {}
    for one in (one for one in seen if one.vendor == NVIDIA and one.driver == "nvidia"):
        base, told, card = known[one.address], listed.get(one.address), cards.get(one.address)
        if card is not None:
            found[one.address] = replace(_from_card(base, card), link=links.get(one.address))
        elif told is None or not nvidia.reachable(told, root):
            found[one.address] = None
        else:
            found[one.address] = _from_proc(base, told, broken=nvml is not None)
    return found


def _from_card(base: Device, card: Card) -> Device:
    traits = set(base.traits)
    traits |= {f"fabric:{card.fabric}"} if card.fabric else set()
    traits |= {"mig-pending"} if card.changing else set()
    traits |= {BROKEN} if card.fault else set()
    return replace(
        base,
        model=card.name or base.model,
        memory=card.memory,
        mode=nvidia.MIG if card.mig else "",
        traits=frozenset(traits),
    )


def _from_proc(base: Device, told: Mapping[str, str], broken: bool) -> Device:
    """`broken`: the library was asked and does not know the card, which its driver has."""
    model = told.get("Model", "")
    return replace(
        base,
        model=base.model if model in ("", "Unknown") else model,
        traits=base.traits | ({BROKEN} if broken else set()),
    )


def facts(root: str = "") -> dict[str, str]:
    """Versions of drivers, the MIG instances that exist (address → ``1g.10gb@0 3g.40gb@4``), AMD's modes to choose."""
    with nvidia.library(root) as nvml:
        return told(root, nvml)


def told(root: str = "", nvml: Nvml | None = None) -> dict[str, str]:
    """The same, with NVIDIA's library as given."""
    said = {"nvidia_driver": nvidia.version(root), "amdgpu": amd.version(root)}
    said |= _by_library(nvml) if nvml is not None else {}
    ours = (one.address for one in functions(root) if one.vendor == AMD)
    said |= {f"modes_{address}": amd.modes(address, root) for address in ours}
    return {name: value for name, value in said.items() if value}


def _by_library(nvml: Nvml) -> dict[str, str]:
    said = {}
    try:
        said["nvidia_driver"] = nvml.driver()
        said["cuda"] = f"{nvml.cuda() // 1000}.{nvml.cuda() % 1000 // 10}"
    except NvmlError as error:
        said["nvml"] = str(error)
    for card in nvidia.cards(nvml):
        instances = sorted((one.start, nvidia.profile(one)) for one in card.instances)
        said[f"mig_{card.address}"] = " ".join(f"{name}@{start}" for start, name in instances if name)
    return said
