"""Runtime: a program that serves models. A plugin makes a model and a wish the task of a replica, and does nothing.

Contract: the functions are pure. What a runtime makes listens on one port, speaks the OpenAI API there (but for
``external``, which has no task), and answers its health check with 2xx once it can take requests. It ends at SIGTERM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Literal

import msgspec

from usina.core.endpoint import EndpointSpec, Recipe
from usina.core.footprint import DeviceOffer
from usina.core.model import Model
from usina.ports.driver import Tool

PORT = 8000
"""Where replicas listen that have a network of their own."""
FOLDER = "model"
"""Below the working directory: where the files of a model are seen."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a replica shall be. `spec.variant` is resolved: `model` is at its revision."""

    model: Model
    spec: EndpointSpec
    stack: str
    name: str  # what clients call the endpoint
    adapters: Mapping[str, Model] = field(default_factory=dict)  # LoRA: name -> weights
    settings: Mapping[str, str] = field(default_factory=dict)  # the operator's
    offers: tuple[DeviceOffer, ...] = ()  # devices of hosts that have this stack
    shares_network: bool = False  # replicas on one host of this stack share its ports
    gangs: bool = False  # the stack runs a gang as a whole

    @property
    def numbered(self) -> tuple[str, ...]:
        """Names of its adapters, in the order of their numbers."""
        return tuple(sorted(self.adapters))


@dataclass(frozen=True, slots=True)
class RuntimePlugin:
    """What a runtime folder exports as `PLUGIN`."""

    name: str
    summary: str
    formats: tuple[str, ...]  # file name suffixes, one of which a model must have; (): any
    stacks: tuple[str, ...]  # that it runs on, the best first; (): it has no tasks
    options: Mapping[str, str]  # a member's, in `EndpointSpec.options` -> one sentence; anything else is refused
    settings: Mapping[str, str]  # the operator's -> one sentence
    brings_model: bool = False  # its image may have the model in it: then the model has no files
    messages: bool = False  # it speaks Anthropic's messages; else the gateway makes chats of them
    adapters_by: Literal["model", "lora"] = "model"
    """How a request asks for an adapter: by its name, as the ``model``; or by its number, in the member ``lora`` of
    chats and completions (llama.cpp's), and not in messages."""
    recipe: Callable[[Wish], Recipe] | None = None  # raises core.errors.Invalid or Refused, with numbers
    check: Callable[[EndpointSpec], None] = lambda spec: None  # raises Invalid naming the field
    tool: Callable[[Mapping[str, str]], Tool | None] = lambda settings: None
    """What runs on this machine can be given of it, by the operator's settings; None: it is not here. Raises Invalid
    naming the setting."""


def fits(plugin: RuntimePlugin, model: Model) -> bool:
    """Whether a runtime can read the files of a model."""
    return not plugin.formats or any(file.path.endswith(plugin.formats) for file in model.files)


def marked(recipe: Recipe) -> Recipe:
    """A recipe with its mark: the same for the same replicas."""
    plain = msgspec.json.encode((recipe.variant, recipe.task, recipe.port, recipe.secret), order="deterministic")
    return replace(recipe, mark=sha256(plain).hexdigest()[:12])
