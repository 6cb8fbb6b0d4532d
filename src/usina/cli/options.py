"""Arguments and options that many commands share, and the completion of names from the site."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from usina.cli import config, door
from usina.cli.screen import Output
from usina.client import Client
from usina.core.errors import UsinaError

Out = Annotated[Output, typer.Option("--output", "-o", help="How to show it.")]
Project = Annotated[
    str | None, typer.Option("--project", "-p", help="Project, by name or id; else the one in use.", metavar="PROJECT")
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is so.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds to wait at most.", min=0, metavar="SECONDS")]
Labels = Annotated[list[str] | None, typer.Option("--label", "-l", help="KEY=VALUE; repeat it.", metavar="KEY=VALUE")]
SshKeys = Annotated[
    list[Path] | None, typer.Option("--ssh-key", help="File with public keys; repeat it.", metavar="FILE")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

PATIENCE = 900.0
MOST = 200  # names that a completion offers

Names = Callable[[Client], Iterable[Any]]


def completing(names: Names) -> Callable[[str], list[str]]:
    """A completion from the site; silent when it does not answer at once."""

    def complete(incomplete: str) -> list[str]:
        try:
            if not config.effective().token:
                return []
            with door.client(timeout=1.5) as site:
                found = islice(names(site), MOST)
                return sorted({one.name for one in found if one.name.startswith(incomplete)})
        except (UsinaError, OSError):
            return []

    return complete


def name_of(what: str, names: Names) -> Any:
    """An argument that is the name or id of something on the site."""
    return typer.Argument(
        help=f"{what}, by name or id.", metavar="NAME", autocompletion=completing(names), show_default=False
    )


Machine = Annotated[str, name_of("Machine", lambda site: site.machines.list())]
Volume = Annotated[str, name_of("Volume", lambda site: site.volumes.list())]
Network = Annotated[str, name_of("Network", lambda site: site.networks.list())]
Group = Annotated[str, name_of("Security group", lambda site: site.security_groups.list())]
Image = Annotated[str, name_of("Image", lambda site: site.images.list())]
Forward = Annotated[str, name_of("Forward", lambda site: site.forwards.list())]
Tenant = Annotated[str, name_of("Tenant", lambda site: site.tenants.list())]
ProjectName = Annotated[str, name_of("Project", lambda site: site.projects.list())]
Member = Annotated[str, name_of("Member", lambda site: site.members.list())]
Key = Annotated[str, name_of("Key", lambda site: site.keys.list())]
Host = Annotated[str, name_of("Host", lambda site: site.hosts.list())]

NewName = Annotated[str, typer.Argument(help="The new name.", metavar="NAME", show_default=False)]


def noun(help: str, *examples: str) -> typer.Typer:
    """The commands about one noun."""
    told = "\n".join([help, "", "Examples:", *(f"  {example}" for example in examples)])
    return typer.Typer(help=told, no_args_is_help=True, rich_markup_mode="rich", add_completion=False)


def confirmed(question: str, yes: bool) -> None:
    """Ask before what cannot be undone, where somebody is there to answer. Raises `typer.Exit` on no."""
    if yes or not sys.stdin.isatty():
        return
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)
