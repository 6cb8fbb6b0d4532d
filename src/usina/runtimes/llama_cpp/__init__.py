"""llama.cpp: serves GGUF files on processors and GPUs. The embedded default: on this machine it needs nothing but the
extra ``usina[llm]``."""

from __future__ import annotations

from usina.ports.runtime import RuntimePlugin
from usina.runtimes.llama_cpp.recipe import OPTIONS, SETTINGS, check, recipe
from usina.runtimes.llama_cpp.tool import tool

PLUGIN = RuntimePlugin(
    name="llama.cpp",
    summary="Serves GGUF files, on processors and GPUs, with adapters.",
    formats=(".gguf",),
    stacks=("local", "container"),
    options=OPTIONS,
    settings=SETTINGS,
    messages=True,
    adapters_by="lora",
    recipe=recipe,
    check=check,
    tool=tool,
)
