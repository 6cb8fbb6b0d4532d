"""How much memory a model takes where it is served, and how it is spread over devices. Pure arithmetic.

    total = weights + cache + overhead
    weights  = bytes of its files; or parameters × bytes of their type, where there are no files
    cache    = 2 × layers × KV heads × head size × tokens × bytes of the cache's type     (keys and values)
    tokens   = context × slots
    overhead = what the runtime says of itself: activations, its buffers, its program

The cache of grouped-query attention, where KV heads are fewer than heads: Ainslie et al. 2023,
https://arxiv.org/abs/2305.13245. Sliding windows and compressed caches take less; that is not counted, so such models
are given more than they need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from usina.core.model import Model, ModelFacts
from usina.core.units import GiB, MiB

_BYTES = {"f32": 4.0, "fp32": 4.0, "float32": 4.0, "f16": 2.0, "bf16": 2.0, "fp16": 2.0, "float16": 2.0}
_BYTES |= {"bfloat16": 2.0, "fp8": 1.0, "f8_e4m3": 1.0, "f8_e5m2": 1.0, "int8": 1.0, "int4": 0.5}

USUAL_CONTEXT = 4096
"""Tokens of one request, where neither the order nor the model says it."""
MOST_CONTEXT = 32_768
"""Tokens of one request, where only the model says it: newer ones allow so many that their cache would fit nowhere."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes."""

    weights: int
    cache: int
    overhead: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.overhead

    def told(self) -> str:
        """``25.1 GB = 16.1 weights + 4.3 cache + 4.7 overhead``, in units of 10⁹ bytes or 10⁶."""
        unit, name = (1e9, "GB") if self.total >= 1e9 else (1e6, "MB")
        parts = (self.total, self.weights, self.cache, self.overhead)
        total, weights, cache, overhead = (f"{part / unit:.1f}" for part in parts)
        return f"{total} {name} = {weights} weights + {cache} cache + {overhead} overhead"


@dataclass(frozen=True, slots=True)
class DeviceOffer:
    """Devices alike that hosts have."""

    model: str
    memory: int  # of one
    per_host: int  # at most, on one host
    hosts: int = 1  # that have so many


@dataclass(frozen=True, slots=True)
class Spread:
    """A model over devices: tensors cut within a host, layers given out over hosts."""

    offer: DeviceOffer
    tensor: int  # devices on each host
    pipeline: int = 1  # hosts

    @property
    def devices(self) -> int:
        return self.tensor * self.pipeline


def context_of(facts: ModelFacts, wanted: int) -> int:
    """Tokens of one request: as ordered, or as the model was made for."""
    return wanted or min(facts.context or USUAL_CONTEXT, MOST_CONTEXT)


def weights_of(model: Model, suffixes: tuple[str, ...]) -> int:
    """Bytes of the files that end so; or by parameters, where the repository has none of them."""
    held = sum(file.size for file in model.files if file.path.endswith(suffixes))
    return held or ceil(model.facts.parameters * _BYTES.get(model.facts.dtype.lower(), 2.0))


def cache_of(facts: ModelFacts, tokens: int, bytes_of_type: float = 2.0) -> int:
    """Bytes of keys and values of so many tokens. `bytes_of_type`: of one number, 2 for 16 bits."""
    return ceil(2 * facts.layers * (facts.kv_heads or facts.heads) * facts.head_size * tokens * bytes_of_type)


def spread(
    footprint: Footprint, per_device: int, heads: int, offers: Sequence[DeviceOffer], usable: float, *, many: bool
) -> Spread | None:
    """The fewest devices that hold weights and cache, cut evenly, beside `per_device` bytes of overhead on each.

    Of one device, the share `usable` may be used. Devices of one host are a power of two that divides `heads` (tensor
    parallelism). With `many`, several hosts may hold the layers between them (pipeline parallelism), each with as many
    devices. None where no offer would do.
    """
    found: list[Spread] = []
    for offer in offers:
        room = int(offer.memory * usable) - per_device
        if room <= 0:
            continue
        number = ceil((footprint.weights + footprint.cache) / room)
        sizes = [n for n in (1, 2, 4, 8, 16) if n <= offer.per_host and (not heads or heads % n == 0)]
        within = next((n for n in sizes if n >= number), None)
        if within is not None:
            found.append(Spread(offer, within))
        elif many and sizes and ceil(number / sizes[-1]) <= offer.hosts:
            found.append(Spread(offer, sizes[-1], ceil(number / sizes[-1])))
    return min(found, key=lambda one: (one.pipeline, one.devices, one.offer.memory), default=None)


def whole(size: float, unit: int = 64 * MiB) -> int:
    """Bytes, up to whole units."""
    return ceil(size / unit) * unit


def told_offers(offers: Sequence[DeviceOffer]) -> str:
    """What there is, for a refusal: ``4 x H100 of 80 GiB``."""
    parts = [f"{one.per_host} x {one.model or 'device'} of {one.memory / GiB:.0f} GiB on a host" for one in offers]
    return ", ".join(parts) or "no devices that tasks can be given"
