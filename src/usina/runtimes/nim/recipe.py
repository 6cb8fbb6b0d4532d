"""From a wish to the task of a replica of NIM. Pure.

An image brings its model, unless the repository has files: then these are served (``NIM_MODEL_PATH``). Memory and
devices are worked out as for vLLM's defaults where there are files, and stand in the order otherwise: only the image
knows then. The endpoint's secret is the key for NVIDIA's registry (``NGC_API_KEY``). Variables and
``/v1/health/ready``: https://docs.nvidia.com/nim/large-language-models/latest/reference/environment-variables.html.
"""

from __future__ import annotations

import re

from usina.core.capacity import DeviceKind, DeviceRequest
from usina.core.endpoint import EndpointSpec, Recipe, Variant
from usina.core.errors import Invalid, Refused
from usina.core.footprint import Footprint, cache_of, context_of, spread, told_offers, weights_of
from usina.core.task import File, Health, Network, TaskSpec
from usina.core.units import GiB
from usina.ports.runtime import FOLDER, PORT, Wish, marked

OPTIONS = {
    "image": "The NIM image, such as nvcr.io/nim/meta/llama-3.1-8b-instruct:latest; else the operator's.",
    "profile": "NIM_MODEL_PROFILE: which of its tuned forms; else it chooses by the GPUs it finds.",
}
SETTINGS = {"image": "Image of NIM that serves any model."}
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}\Z")
_PROFILE = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")
_USABLE = 0.9
_OVERHEAD = 3 * GiB  # on each device


def check(spec: EndpointSpec) -> None:
    if "image" in spec.options and not _IMAGE.match(spec.options["image"]):
        raise Invalid("options.image: must be the name of an image", field="options.image")
    if "profile" in spec.options and not _PROFILE.match(spec.options["profile"]):
        raise Invalid("options.profile: must be the id of a profile", field="options.profile")
    if spec.adapters:
        raise Invalid("adapters: NIM takes them from a folder of its own; use vllm", field="adapters")


def recipe(wish: Wish) -> Recipe:
    model, spec = wish.model, wish.spec
    image = spec.options.get("image") or wish.settings.get("image", "")
    if not image:
        raise Invalid("options.image: name the NIM image; the operator has set none (nim.image)", field="options.image")
    devices, formula = _devices(wish)
    environment = {
        "NIM_SERVER_PORT": "{port}",
        "NIM_SERVED_MODEL_NAME": wish.name,
        "NIM_CACHE_PATH": "/tmp/nim",  # noqa: S108 - of its own
        "NIM_JSONL_LOGGING": "false",
    }
    if spec.context:
        environment["NIM_MAX_MODEL_LEN"] = str(spec.context)
    if profile := spec.options.get("profile"):
        environment["NIM_MODEL_PROFILE"] = profile
    if model.files:
        environment |= {"NIM_MODEL_PATH": f"/work/{FOLDER}", "NIM_DISABLE_MODEL_DOWNLOAD": "true"}
    task = TaskSpec(
        on=wish.stack,
        image=image,
        environment=environment,
        files=tuple(File(file.digest, f"{FOLDER}/{file.path}", shared=True) for file in model.files),
        network=Network.NONE if model.files else Network.OUTBOUND,
        cores=spec.cores or 8.0,
        memory=spec.memory or 32 * GiB,
        devices=devices,
        grace=30.0,
        health=Health(port=PORT, path="/v1/health/ready", every=5.0, limit=5.0, failures=4, patience=3600.0),
    )
    return marked(Recipe(Variant(model.name, model.revision), task, PORT, formula, "", secret="NGC_API_KEY"))  # noqa: S106


def _devices(wish: Wish) -> tuple[tuple[DeviceRequest, ...], str]:
    model, spec = wish.model, wish.spec
    if spec.devices:
        return spec.devices, "as ordered"
    if not model.files:
        raise Invalid("devices: say how many GPUs this image needs; only it knows its model", field="devices")
    tokens = context_of(model.facts, spec.context) * spec.slots
    needs = Footprint(weights_of(model, (".safetensors",)), cache_of(model.facts, tokens), _OVERHEAD)
    found = spread(needs, needs.overhead, model.facts.heads, wish.offers, _USABLE, many=False)
    if found is None:
        raise Refused(f"{model.name} needs {needs.told()} on each device; there are {told_offers(wish.offers)}")
    told = f"{needs.told()} on each device, cut over {found.tensor} x {found.offer.model or 'GPU'}"
    return (DeviceRequest(DeviceKind.GPU, found.tensor, memory=found.offer.memory),), told
