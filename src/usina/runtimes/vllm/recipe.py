"""From a model and a wish to the task of a replica of vLLM. Pure.

Memory of devices:

    weights  = bytes of the safetensors files (and of adapters)
    cache    = as in `core.footprint`, in 16 bits, or 8 with the option ``kv_cache_dtype``: fp8
    overhead = on each device: 2 GiB for CUDA, its graphs and NCCL, + 2 bytes × 8192 tokens × 10 × hidden
               for the activations of the largest batch
    devices  = ceil((weights + cache) / (0.9 × memory of a device − overhead))

0.9 is the default of ``--gpu-memory-utilization``, and vLLM takes all of it: what the model does not need becomes more
cache. Tensor parallelism within a host, by a power of two that divides the heads; pipeline parallelism over hosts, on
stacks that run gangs as a whole (https://docs.vllm.ai/en/stable/serving/parallelism_scaling/).
"""

from __future__ import annotations

import re
from math import ceil

from usina.core.capacity import DeviceKind, DeviceRequest
from usina.core.endpoint import EndpointSpec, Recipe, Variant
from usina.core.errors import Invalid, Refused
from usina.core.footprint import Footprint, Spread, cache_of, context_of, spread, told_offers, weights_of, whole
from usina.core.model import Model, ModelFile
from usina.core.task import File, Health, Network, TaskSpec
from usina.core.units import GiB
from usina.ports.runtime import FOLDER, PORT, Wish, marked
from usina.runtimes.vllm.ray import joined

OPTIONS = {
    "dtype": "Type of the weights at work: auto (default), half, bfloat16, float16 or float32.",
    "kv_cache_dtype": "Type of the cache: auto (default), fp8, fp8_e4m3 or fp8_e5m2.",
    "quantization": "How the weights are quantized, where the model does not say it.",
    "tool_call_parser": "Name of a parser of tool calls; switches automatic tool choice on.",
    "reasoning_parser": "Name of a parser of reasoning.",
    "enforce_eager": "true: no CUDA graphs (false).",
    "device": "cpu: without GPUs, for trying (cuda).",
    "nodes": "Nodes that one replica is spread over, where the order names its devices: those of each node (1).",
}
SETTINGS = {
    "image": "Image of vLLM, for stacks of containers.",
    "program": "The command vllm, in that image or on nodes (vllm).",
    "environment": "On this machine: the folder of a virtual environment that vLLM is installed in.",
}
DTYPES = ("auto", "half", "bfloat16", "float16", "float32")
CACHES = ("auto", "fp8", "fp8_e4m3", "fp8_e5m2")
_WORD = re.compile(r"[a-z0-9_]{1,64}\Z")
_USABLE = 0.9
_CUDA = 2 * GiB
_BATCH = 8192
_FILES = (".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")
_RANK = 64  # the largest that vLLM takes for an adapter without being told: 16; this covers the usual ones


def check(spec: EndpointSpec) -> None:
    for name, allowed in (("dtype", DTYPES), ("kv_cache_dtype", CACHES), ("enforce_eager", ("true", "false"))):
        value = spec.options.get(name, allowed[0])
        if value not in allowed:
            raise Invalid(f"options.{name}: must be one of {', '.join(allowed)}", field=f"options.{name}")
    if spec.options.get("device", "cuda") not in ("cuda", "cpu"):
        raise Invalid("options.device: must be cuda or cpu", field="options.device")
    if not re.fullmatch(r"[1-9][0-9]?", spec.options.get("nodes", "1")):
        raise Invalid("options.nodes: must be between 1 and 99", field="options.nodes")
    for name in ("quantization", "tool_call_parser", "reasoning_parser"):
        if name in spec.options and not _WORD.match(spec.options[name]):
            raise Invalid(f"options.{name}: must be a name of a-z, 0-9 and '_'", field=f"options.{name}")


def footprint(wish: Wish) -> Footprint:
    """`overhead` is that of one device."""
    facts, spec = wish.model.facts, wish.spec
    weights = weights_of(wish.model, (".safetensors",)) + sum(
        weights_of(adapter, (".safetensors",)) for adapter in wish.adapters.values()
    )
    number = 1.0 if spec.options.get("kv_cache_dtype", "auto") != "auto" else 2.0
    cache = cache_of(facts, context_of(facts, spec.context) * spec.slots, number)
    return Footprint(weights, cache, _CUDA + 2 * _BATCH * 10 * facts.hidden)


def recipe(wish: Wish) -> Recipe:
    model, spec = wish.model, wish.spec
    needs = footprint(wish)
    on_cpu = spec.options.get("device") == "cpu"
    found = None if on_cpu else _spread(wish, needs)
    tensor, pipeline = (found.tensor, found.pipeline) if found is not None else _ordered(wish)
    words = _words(wish, tensor, pipeline, on_cpu)
    image = _image(wish)
    task = TaskSpec(
        on=wish.stack,
        command=joined(words, pipeline) if pipeline > 1 else words,
        tool="" if image or wish.stack == "slurm" else "vllm",
        image=image,
        environment=_environment(wish, needs, pipeline, on_cpu),
        files=_files(wish),
        network=Network.HOST if wish.shares_network else Network.NONE,
        cores=_cores(spec, on_cpu, tensor),
        memory=spec.memory or whole((needs.total if on_cpu else 0) + 8 * GiB + (needs.weights // 4)),
        devices=_devices(spec, found),
        replicas=pipeline,
        dialect={"nodes": str(pipeline)} if pipeline > 1 else {},
        grace=30.0,
        health=Health(port=PORT, path="/health", every=5.0, limit=5.0, failures=4, patience=1800.0),
    )
    port = 0 if wish.shares_network else PORT
    return marked(Recipe(Variant(model.name, model.revision), task, port, _told(needs, found), ""))


def _environment(wish: Wish, needs: Footprint, pipeline: int, on_cpu: bool) -> dict[str, str]:
    """See https://docs.vllm.ai/en/stable/configuration/env_vars/ and the guide to its installation."""
    found = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "HOME": "/tmp"}  # noqa: S108 - of its own
    if pipeline == 1:
        found["VLLM_HOST_IP"] = "127.0.0.1"  # its processes meet there, also where there is no other network
    if on_cpu:
        found["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, ceil(needs.cache / GiB)))
        found["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # its control group holds it to its cores
        found["OMP_NUM_THREADS"] = str(ceil(_cores(wish.spec, on_cpu, 1)))
    return found


def _cores(spec: EndpointSpec, on_cpu: bool, tensor: int) -> float:
    return spec.cores or (4.0 if on_cpu else float(2 + 2 * tensor))


def _words(wish: Wish, tensor: int, pipeline: int, on_cpu: bool) -> tuple[str, ...]:
    spec, facts = wish.spec, wish.model.facts
    tool = wish.stack == "local"
    words = [] if tool else [wish.settings.get("program", "vllm")]
    words += ["serve", FOLDER, "--served-model-name", wish.name, "--host", "0.0.0.0", "--port", "{port}"]  # noqa: S104
    words += ["--dtype", spec.options.get("dtype", "auto"), "--max-model-len", str(context_of(facts, spec.context))]
    words += ["--max-num-seqs", str(spec.slots)]
    if not on_cpu:
        words += ["--tensor-parallel-size", str(tensor), "--gpu-memory-utilization", str(_USABLE)]
    if pipeline > 1:
        words += ["--pipeline-parallel-size", str(pipeline), "--distributed-executor-backend", "ray"]
    for name in ("kv_cache_dtype", "quantization", "reasoning_parser"):
        if spec.options.get(name, "auto") != "auto":
            words += [f"--{name.replace('_', '-')}", spec.options[name]]
    if parser := spec.options.get("tool_call_parser"):
        words += ["--enable-auto-tool-choice", "--tool-call-parser", parser]
    if spec.options.get("enforce_eager") == "true":
        words.append("--enforce-eager")
    if wish.adapters:
        words += ["--enable-lora", "--max-lora-rank", str(_RANK), "--max-loras", str(len(wish.adapters))]
        words += ["--lora-modules", *(f"{name}=adapters/{name}" for name in sorted(wish.adapters))]
    return tuple(words)


def _files(wish: Wish) -> tuple[File, ...]:
    found = [(FOLDER, wish.model), *((f"adapters/{name}", model) for name, model in sorted(wish.adapters.items()))]
    return tuple(
        File(file.digest, f"{folder}/{file.path}", shared=True) for folder, model in found for file in _read_by(model)
    )


def _read_by(model: Model) -> list[ModelFile]:
    return [file for file in model.files if file.path.endswith(_FILES)]


def _ordered(wish: Wish) -> tuple[int, int]:
    """(devices of each host, hosts) as the order says."""
    nodes = int(wish.spec.options.get("nodes", "1"))
    if nodes > 1 and not wish.gangs:
        raise Refused(f"{wish.stack} does not run gangs as a whole; one replica keeps to one host there")
    return max(1, sum(request.count for request in wish.spec.devices)), nodes


def _spread(wish: Wish, needs: Footprint) -> Spread | None:
    """Over which devices; None where the order says it. Raises `Refused` with the numbers where none would do."""
    if wish.spec.devices:
        return None
    found = spread(needs, needs.overhead, wish.model.facts.heads, wish.offers, _USABLE, many=wish.gangs)
    if found is None:
        raise Refused(
            f"{wish.model.name} needs {needs.told()} on each device, of which {_USABLE:.0%} may be used; "
            f"on {wish.stack} there are {told_offers(wish.offers)} whose memory is known; or say how many it shall have"
        )
    return found


def _devices(spec: EndpointSpec, found: Spread | None) -> tuple[DeviceRequest, ...]:
    if found is None:
        return spec.devices
    return (DeviceRequest(DeviceKind.GPU, found.tensor, memory=found.offer.memory),)


def _told(needs: Footprint, found: Spread | None) -> str:
    if found is None:
        return needs.told()
    hosts = f" on each of {found.pipeline} hosts" if found.pipeline > 1 else ""
    return f"{needs.told()} on each device, cut over {found.tensor} x {found.offer.model or 'GPU'}{hosts}"


def _image(wish: Wish) -> str:
    if wish.stack != "container":
        return ""
    if not wish.settings.get("image"):
        raise Refused("vllm has no image for containers here; the operator sets one (vllm.image)")
    return wish.settings["image"]
