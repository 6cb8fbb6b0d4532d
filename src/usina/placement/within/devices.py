"""Devices against requests: which match, and which parts each could give now.

A device is given whole, or in shares, or in partitions, or as mediated instances; never two of these at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from usina.core.capacity import Device, DeviceKind, DeviceRequest, Part, Provider
from usina.placement.within.partitions import can_cut, next_cuts

WHOLE_SHARE = 1000  # thousandths


def taken_parts(provider: Provider) -> dict[str, tuple[Part, ...]]:
    """Address -> the parts of that device that are taken, each as often as it is."""
    parts: dict[str, tuple[Part, ...]] = {}
    for name, times in provider.taken_devices.items():
        part = Part.parse(name)
        parts[part.address] = parts.get(part.address, ()) + (part,) * times
    return parts


def matches(device: Device, request: DeviceRequest) -> bool:
    """Whether the device is of the kind asked for, be it free or not."""
    if request.kind is DeviceKind.MDEV:
        if request.mdev_type not in device.mdev_types:
            return False
    elif device.kind is not request.kind:
        return False
    if request.model is not None and not _is_model(device, request.model):
        return False
    if not request.traits <= device.traits:
        return False
    return can_cut(device, request) if request.profile else device.memory >= request.memory


def _is_model(device: Device, accepted: str) -> bool:
    model, vendor = device.model.lower(), device.vendor.lower()
    return any(word in model or word == vendor for word in (w.strip() for w in accepted.lower().split("|")) if word)


def offers(device: Device, parts: Sequence[Part], request: DeviceRequest) -> list[Part]:
    """All that a matching device with `parts` taken could give to this request alone, in the order it would."""
    if request.kind is DeviceKind.MDEV:
        return _instances(device, parts, request.mdev_type or "")
    if request.profile:
        return next_cuts(device, parts, request.profile)
    if device.mode:
        return []  # what is set up to be cut is neither given whole nor shared
    if request.share:
        return _shares(device, parts, request.share)
    return [] if parts else [Part(device.address)]


def _instances(device: Device, parts: Sequence[Part], mdev_type: str) -> list[Part]:
    if not all(part.mdev_type for part in parts):
        return []
    return [Part(device.address, mdev_type=mdev_type)] * (device.mdev_types[mdev_type] - len(parts))


def _shares(device: Device, parts: Sequence[Part], share: int) -> list[Part]:
    if not all(part.share for part in parts):
        return []
    return [Part(device.address, share=share)] * ((WHOLE_SHARE - sum(part.share for part in parts)) // share)


def wanted(request: DeviceRequest) -> str:
    """What a request is called in a reason: "H100", "A100 or H100", "1g.10gb", "nvidia-63", "250/1000 H100"."""
    if request.mdev_type or request.profile:
        return request.mdev_type or request.profile or ""
    name = " or ".join(word.strip() for word in (request.model or request.kind.value).split("|"))
    return f"{request.share}/{WHOLE_SHARE} {name}" if request.share else name


def wanted_in_all(requests: Sequence[DeviceRequest]) -> str:
    """ "4 H100, 2 vf"."""
    return ", ".join(
        f"{request.count} {wanted(request)}" if request.count > 1 else wanted(request) for request in requests
    )
