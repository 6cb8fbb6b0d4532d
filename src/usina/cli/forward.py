"""Forwards: a TCP port of the site that leads into a machine."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

import typer

from usina.cli import door, options, progress, screen
from usina.cli.options import PATIENCE, Machine, Out, Project, Timeout, Wait, Yes
from usina.cli.options import Forward as ForwardName
from usina.cli.screen import Cell, Output
from usina.client import Client, Resource

app = options.noun(
    "Forwards: ports of the site that lead into machines.", "usina forward create web 80", "usina forward list"
)


def _columns(site: Client) -> screen.Columns[Resource]:
    host = urlsplit(site.endpoint).hostname
    return [
        ("name", lambda f: f.name),
        ("phase", lambda f: screen.phase(f.phase)),
        ("from", lambda f: f"{host}:{f.spec['listen']}"),
        ("to port", lambda f: str(f.spec["port"])),
        ("of machine", lambda f: f.spec["machine"]),
        ("age", lambda f: screen.age(f.created_at)),
    ]


def _rows(site: Client, forward: Resource) -> list[tuple[str, Cell]]:
    return [(title, draw(forward)) for title, draw in _columns(site)]


@app.command()
def create(
    machine: Machine,
    port: Annotated[int, typer.Argument(help="Port in the guest.", min=1, max=65535)],
    listen: Annotated[int | None, typer.Option(help="Port of the site; else a free one.", min=1, max=65535)] = None,
    name: Annotated[str | None, typer.Option(help="Its name; else one is made.")] = None,
    project: Project = None,
    wait: Wait = True,
    timeout: Timeout = PATIENCE,
    output: Out = Output.TABLE,
) -> None:
    """Forward a port of the site to a port of a machine.

    Examples:
      usina forward create web 80
      usina forward create web 443 --listen 20443 --name web-tls
    """
    with door.client(project) as site:
        ordered = site.forwards.create(machine, port, listen=listen, name=name)
        forward = progress.settle(site, ordered, wait, timeout)
        screen.show_one(forward, _rows(site, forward), output)


@app.command("list")
def list_forwards(
    project: Project = None,
    everywhere: Annotated[bool, typer.Option("--all", "-a", help="Of all projects.")] = False,
    output: Out = Output.TABLE,
) -> None:
    """List forwards.

    Examples:
      usina forward list
    """
    with door.client(project) as site:
        screen.show_list(site.forwards.list(everywhere=everywhere), _columns(site), output)


@app.command()
def show(forward: ForwardName, project: Project = None, output: Out = Output.TABLE) -> None:
    """Show a forward.

    Examples:
      usina forward show web-tls
    """
    with door.client(project) as site:
        found = site.forwards.get(forward)
        screen.show_one(found, _rows(site, found), output)


@app.command()
def delete(
    forward: ForwardName, project: Project = None, yes: Yes = False, wait: Wait = True, timeout: Timeout = PATIENCE
) -> None:
    """Delete a forward.

    Examples:
      usina forward delete web-tls
    """
    options.confirmed(f"Delete forward {forward}?", yes)
    with door.client(project) as site:
        progress.leave(site, site.forwards.delete(forward), wait, timeout)
