"""A pretended runtime, for hosts that run nothing: a replica sleeps on the stack ``fake``, and is well at once."""

from __future__ import annotations

from usina.core.endpoint import Recipe, Variant
from usina.core.task import File, TaskSpec
from usina.core.units import MiB
from usina.ports.runtime import FOLDER, PORT, RuntimePlugin, Wish, marked


def _recipe(wish: Wish) -> Recipe:
    """What the option ``command`` says, or a long sleep."""
    words = tuple(wish.spec.options.get("command", "sleep 100000").split())
    task = TaskSpec(
        on=wish.stack,
        command=words,
        environment={"NOTE": wish.spec.options.get("note", "")},
        files=tuple(File(file.digest, f"{FOLDER}/{file.path}", shared=True) for file in wish.model.files),
        cores=wish.spec.cores or 1.0,
        memory=wish.spec.memory or 64 * MiB,
        devices=wish.spec.devices,
    )
    formula = f"{sum(file.size for file in wish.model.files)} bytes"
    return marked(Recipe(Variant(wish.model.name, wish.model.revision), task, PORT, formula, "", secret="KEY"))  # noqa: S106


PRETENDED = RuntimePlugin(
    name="pretended",
    summary="Serves nothing, on hosts that run nothing.",
    formats=(".weights",),
    stacks=("fake",),
    options={"command": "What a replica runs.", "note": "Something that replicas are made anew for."},
    settings={},
    brings_model=True,
    recipe=_recipe,
)
