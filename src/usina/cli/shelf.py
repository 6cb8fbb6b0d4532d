"""The shelf of commands: a command's module is imported when it is asked for, so that each starts quickly."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

COMMANDS = {  # word → module of this package : what it holds, a noun's Typer or one function
    "login": "login:login",
    "logout": "login:logout",
    "whoami": "login:whoami",
    "run": "run:run",
    "task": "task:app",
    "shell": "task:shell",
    "endpoint": "endpoint:app",
    "machine": "machine:app",
    "ssh": "machine_inside:ssh",
    "story": "story:story",
    "explain": "explain:explain",
    "events": "story:events",
    "image": "image:app",
    "model": "model:app",
    "volume": "volume:app",
    "network": "network:app",
    "security-group": "security_group:app",
    "forward": "forward:app",
    "tenant": "tenant:app",
    "project": "project:app",
    "member": "member:app",
    "key": "key:app",
    "quota": "quota:app",
    "budget": "budget:app",
    "usage": "usage:usage",
    "host": "host:app",
    "placement": "placement:app",
    "up": "up:up",
    "doctor": "doctor:doctor",
    "demo": "demo:demo",
    "version": "version:version",
}


class Lazy(MutableMapping[str, Any]):
    """Word → command, loaded at the first look."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, word: str) -> Any:
        if word not in self._loaded:
            self._loaded[word] = _load(word, COMMANDS[word])
        return self._loaded[word]

    def __setitem__(self, word: str, command: Any) -> None:
        self._loaded[word] = command

    def __delitem__(self, word: str) -> None:
        del self._loaded[word]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


def _load(word: str, place: str) -> Any:
    module, _, name = place.partition(":")
    found = getattr(import_module(f"usina.cli.{module}"), name)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
        alone.command(word)(found)
        found = alone
    command = typer.main.get_command(found)
    command.name = word
    return command


class Shelf(TyperGroup):
    """The top of the command tree."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = Lazy()

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)
