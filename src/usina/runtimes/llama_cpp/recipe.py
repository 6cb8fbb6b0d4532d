"""From a model and a wish to the task of a replica of llama.cpp. Pure.

Memory, on the host or, with `devices`, on them:

    weights  = bytes of the GGUF file (all parts of one that is split; mapped, and counted in full) and of adapters
    cache    = as in `core.footprint`, in the type of the option ``cache_type``: f16 2 bytes, q8_0 34/32, q4_0 18/32
    overhead = 160 MiB for the program, + 4 bytes × 512 tokens × (vocabulary + 8 × hidden) for the buffers of one batch

512 is llama.cpp's physical batch, whose logits and layer activations its compute buffer holds
(https://github.com/ggml-org/llama.cpp, `llama-context.cpp`; the q8_0 and q4_0 blocks are those of `ggml-common.h`).
Embeddings want all of a text in one batch, of up to 2048 tokens then, and no logits; instead the buffer holds the
scores of attention: 4 bytes × batch × (heads × batch + 8 × hidden).
"""

from __future__ import annotations

import re
from math import ceil

from usina.core.capacity import DeviceKind, DeviceRequest
from usina.core.endpoint import EndpointSpec, Recipe, Variant
from usina.core.errors import Invalid, Refused
from usina.core.footprint import Footprint, cache_of, context_of, spread, told_offers, whole
from usina.core.model import Model, ModelFile
from usina.core.task import File, Health, Network, TaskSpec
from usina.core.units import GiB, MiB, show_size
from usina.ports.runtime import FOLDER, PORT, Wish, marked

OPTIONS = {
    "file": "Which GGUF file of the repository, where it has several.",
    "cache_type": "Type of the cache: f16 (default), q8_0 or q4_0.",
    "gpu": "true: on GPUs, as many as it needs (false).",
    "pooling": "Embeddings instead of answers, made of all tokens so: mean, cls or last (many models say it).",
    "chat_template": "A built-in template's name, where the model carries none.",
}
SETTINGS = {
    "image": "Image with llama-server in it, for stacks of containers.",
    "program": "llama-server in that image (/app/llama-server).",
}
_TYPES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf\Z")
_PROGRAM = 160 * MiB
_POOLINGS = ("mean", "cls", "last")
_BATCH = 512
_LONGEST = 2048  # tokens of a text to embed
_USABLE = 0.95  # of a device


def check(spec: EndpointSpec) -> None:
    if spec.options.get("cache_type", "f16") not in _TYPES:
        raise Invalid(f"options.cache_type: must be one of {', '.join(_TYPES)}", field="options.cache_type")
    if spec.options.get("gpu", "false") not in ("true", "false"):
        raise Invalid("options.gpu: must be true or false", field="options.gpu")
    if spec.options.get("pooling", "mean") not in _POOLINGS:
        raise Invalid(f"options.pooling: must be one of {', '.join(_POOLINGS)}", field="options.pooling")
    if not re.fullmatch(r"[a-z0-9._-]{0,64}", spec.options.get("chat_template", "")):
        raise Invalid("options.chat_template: must be the name of a built-in template", field="options.chat_template")


def chosen(model: Model, wanted: str) -> tuple[ModelFile, ...]:
    """The file to serve, with all its parts, the first one first. Raises `Invalid` where it is not clear which."""
    found = [file for file in model.files if file.path.endswith(".gguf") and not file.path.endswith("mmproj.gguf")]
    if wanted:
        found = [file for file in found if file.path == wanted]
    heads = sorted({_PART.sub("", file.path) for file in found})
    if len(heads) != 1:
        names = ", ".join(file.path for file in model.files if file.path.endswith(".gguf")) or "none"
        what = "has no such file" if wanted else "has several GGUF files" if heads else "has no GGUF file"
        raise Invalid(f"options.file: {model.name} {what}; it has {names}", field="options.file")
    alike = [file for file in model.files if _PART.sub("", file.path) == heads[0]]
    return tuple(sorted(alike, key=lambda file: file.path))


def footprint(wish: Wish) -> Footprint:
    facts = wish.model.facts
    files = chosen(wish.model, wish.spec.options.get("file", ""))
    tokens = context_of(facts, wish.spec.context) * wish.spec.slots
    buffers = 4 * _BATCH * (facts.vocabulary + 8 * facts.hidden)
    if _embeds(wish):
        batch = _longest(wish)
        buffers = 4 * batch * (facts.heads * batch + 8 * facts.hidden)
    return Footprint(
        sum(file.size for file in (*files, *_adapters(wish).values())),
        cache_of(facts, tokens, _TYPES[wish.spec.options.get("cache_type", "f16")]),
        _PROGRAM + buffers,
    )


def _adapters(wish: Wish) -> dict[str, ModelFile]:
    """By number: name -> its file. Raises `Invalid`."""
    if wish.adapters and _embeds(wish):
        raise Invalid("adapters: llama.cpp has none for embeddings", field="adapters")
    found = {}
    for name in wish.numbered:
        try:
            (found[name],) = chosen(wish.adapters[name], "")
        except (Invalid, ValueError):
            told = f"adapters.{name}: {wish.adapters[name].name} must have one GGUF file"
            raise Invalid(told, field=f"adapters.{name}") from None
    return found


def _embeds(wish: Wish) -> bool:
    return wish.model.facts.embeddings or "pooling" in wish.spec.options


def _longest(wish: Wish) -> int:
    return min(_LONGEST, context_of(wish.model.facts, wish.spec.context))


def recipe(wish: Wish) -> Recipe:
    model, spec = wish.model, wish.spec
    files = chosen(model, spec.options.get("file", ""))
    needs = footprint(wish)
    devices, formula = _devices(wish, needs)
    cores = spec.cores or _cores(wish)
    memory = spec.memory or (whole(2 * GiB) if devices else whole(needs.total * 1.1))
    if not devices and memory < needs.weights + needs.overhead:
        least = show_size(needs.weights + needs.overhead)
        raise Invalid(f"memory: weights and buffers alone take {least} ({formula})", field="memory")
    image = _image(wish)
    port = 0 if wish.shares_network else PORT
    task = TaskSpec(
        on=wish.stack,
        command=(
            *((wish.settings.get("program", "/app/llama-server"),) if image else ()),
            *_words(wish, files, cores, devices),
        ),
        tool="" if image else "llama.cpp",
        image=image,
        files=(
            *(File(file.digest, f"{FOLDER}/{file.path}", shared=True) for file in files),
            *(File(file.digest, _place(name), shared=True) for name, file in _adapters(wish).items()),
        ),
        network=Network.HOST if wish.shares_network else Network.NONE,
        cores=cores,
        memory=memory,
        devices=devices,
        grace=10.0,
        health=Health(port=PORT, path="/health", every=5.0, limit=5.0, failures=4, patience=600.0),
    )
    return marked(Recipe(Variant(model.name, model.revision), task, port, formula, ""))


def _words(
    wish: Wish, files: tuple[ModelFile, ...], cores: float, devices: tuple[DeviceRequest, ...]
) -> tuple[str, ...]:
    spec, facts = wish.spec, wish.model.facts
    tokens = context_of(facts, spec.context) * spec.slots
    words = ["--model", f"{FOLDER}/{files[0].path}", "--alias", wish.name, "--host", "0.0.0.0", "--port", "{port}"]  # noqa: S104
    words += ["--ctx-size", str(tokens), "--parallel", str(spec.slots), "--threads", str(max(1, ceil(cores)))]
    words += ["--n-gpu-layers", "999" if devices else "0", "--cache-ram", "0", "--metrics", "--slots", "--jinja"]
    if (kind := spec.options.get("cache_type", "f16")) != "f16":
        words += ["--cache-type-k", kind, "--cache-type-v", kind]
    if template := spec.options.get("chat_template"):
        words += ["--chat-template", template]
    if _embeds(wish):
        batch = str(_longest(wish))
        words += ["--embedding", "--batch-size", batch, "--ubatch-size", batch]
    if wish.adapters:  # without weight, for who asks for none
        words += ["--lora-scaled", ",".join(f"{_place(name)}:0" for name in wish.numbered)]
    if pooling := spec.options.get("pooling"):
        words += ["--pooling", pooling]
    return (*words, "--no-webui")


def _place(adapter: str) -> str:
    return f"adapters/{adapter}.gguf"


def _cores(wish: Wish) -> float:
    """One for every two billion parameters, at most sixteen: more do not make tokens come faster than memory does."""
    return (
        2.0
        if wish.spec.options.get("gpu") == "true"
        else float(min(16, max(1, ceil(wish.model.facts.parameters / 2e9))))
    )


def _devices(wish: Wish, needs: Footprint) -> tuple[tuple[DeviceRequest, ...], str]:
    if wish.spec.devices or wish.spec.options.get("gpu") != "true":
        return wish.spec.devices, needs.told()
    found = spread(needs, needs.overhead, 0, wish.offers, _USABLE, many=False)
    if found is None:
        raise Refused(
            f"{wish.model.name} needs {needs.told()} on one host's devices; there are {told_offers(wish.offers)}"
        )
    request = DeviceRequest(DeviceKind.GPU, found.tensor, memory=found.offer.memory)
    return (request,), f"{needs.told()}, on {found.tensor} x {found.offer.model}"


def _image(wish: Wish) -> str:
    if wish.stack == "local":
        return ""
    if not wish.settings.get("image"):
        raise Refused("llama.cpp has no image for containers here; the operator sets one (llama.cpp.image)")
    return wish.settings["image"]
