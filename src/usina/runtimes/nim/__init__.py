"""NIM: NVIDIA's containers that bring their model, or take one, and serve it as it was tuned for the GPUs they find."""

from __future__ import annotations

from usina.ports.runtime import RuntimePlugin
from usina.runtimes.nim.recipe import OPTIONS, SETTINGS, check, recipe

PLUGIN = RuntimePlugin(
    name="nim",
    summary="NVIDIA NIM: containers tuned for NVIDIA's GPUs.",
    formats=(),
    stacks=("container",),
    options=OPTIONS,
    settings=SETTINGS,
    brings_model=True,
    recipe=recipe,
    check=check,
)
