"""vLLM: serves models in safetensors on GPUs, with LoRA adapters; over several hosts by way of Ray."""

from __future__ import annotations

from usina.ports.runtime import RuntimePlugin
from usina.runtimes.vllm.recipe import OPTIONS, SETTINGS, check, recipe
from usina.runtimes.vllm.tool import tool

PLUGIN = RuntimePlugin(
    name="vllm",
    summary="Serves models in safetensors on GPUs, with adapters.",
    formats=(".safetensors",),
    stacks=("container", "slurm", "local"),
    options=OPTIONS,
    settings=SETTINGS,
    messages=True,
    recipe=recipe,
    check=check,
    tool=tool,
)
