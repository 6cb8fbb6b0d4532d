"""What goes out of endpoints: the wish without its secret, and of recipes what people want to know."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from usina.core.endpoint import EndpointSpec, Recipe
from usina.ports.runtime import RuntimePlugin


def endpoint_spec(spec: EndpointSpec) -> dict[str, Any]:
    shown = {one.name: getattr(spec, one.name) for one in fields(spec)}
    shown["secret"] = "***" if spec.secret else ""
    shown["recipe"] = _recipe(spec.recipe)
    if spec.canary is not None:
        variant, weight = spec.canary.variant, spec.canary.weight
        shown["canary"] = {"variant": variant, "weight": weight, "recipe": _recipe(spec.canary.recipe)}
    return shown


def _recipe(recipe: Recipe | None) -> dict[str, Any] | None:
    if recipe is None:
        return None
    task = recipe.task
    return {
        "mark": recipe.mark,
        "formula": recipe.formula,
        "on": task.on,
        "tool": task.tool,
        "image": task.image,
        "command": task.command,
        "cores": task.cores,
        "memory": task.memory,
        "devices": task.devices,
        "hosts": task.replicas,
    }


def runtime_view(plugin: RuntimePlugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "summary": plugin.summary,
        "formats": plugin.formats,
        "stacks": plugin.stacks,
        "options": plugin.options,
    }
