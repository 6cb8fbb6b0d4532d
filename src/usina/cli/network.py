"""Networks of a project."""

from __future__ import annotations

from typing import Annotated

import typer

from usina.cli import door, options, progress, screen, short_forms
from usina.cli.options import PATIENCE, Labels, NewName, Out, Project, Timeout, Wait, Yes
from usina.cli.options import Network as NetworkName
from usina.cli.screen import Cell, Output
from usina.client import Resource

app = options.noun(
    "Networks: what a project's machines talk through.", "usina network create lab", "usina network list"
)

_COLUMNS: screen.Columns[Resource] = [
    ("name", lambda n: n.name),
    ("phase", lambda n: screen.phase(n.phase)),
    ("range", lambda n: n.spec["cidr"]),
    ("domain", lambda n: n.spec["domain"]),
    ("age", lambda n: screen.age(n.created_at)),
    ("id", lambda n: n.id),
]


def _rows(network: Resource) -> list[tuple[str, Cell]]:
    return [(title, draw(network)) for title, draw in _COLUMNS]


@app.command()
def create(
    name: NewName,
    cidr: Annotated[str | None, typer.Option(help="Its IPv4 range; else a free one is chosen.", metavar="CIDR")] = None,
    label: Labels = None,
    project: Project = None,
    wait: Wait = True,
    timeout: Timeout = PATIENCE,
    output: Out = Output.TABLE,
) -> None:
    """Make a network.

    Examples:
      usina network create lab
      usina network create lab --cidr 10.20.0.0/24
    """
    with door.client(project) as site:
        ordered = site.networks.create(name, cidr=cidr, labels=short_forms.labels(label or ()))
        network = progress.settle(site, ordered, wait, timeout)
    screen.show_one(network, _rows(network), output)


@app.command("list")
def list_networks(
    project: Project = None,
    everywhere: Annotated[bool, typer.Option("--all", "-a", help="Of all projects.")] = False,
    output: Out = Output.TABLE,
) -> None:
    """List networks.

    Examples:
      usina network list
      usina network list --all -o json
    """
    with door.client(project) as site:
        screen.show_list(site.networks.list(everywhere=everywhere), _COLUMNS, output)


@app.command()
def show(network: NetworkName, project: Project = None, output: Out = Output.TABLE) -> None:
    """Show a network.

    Examples:
      usina network show default
    """
    with door.client(project) as site:
        found = site.networks.get(network)
    screen.show_one(found, _rows(found), output)


@app.command()
def delete(
    network: NetworkName, project: Project = None, yes: Yes = False, wait: Wait = True, timeout: Timeout = PATIENCE
) -> None:
    """Delete a network. Refused while machines or tasks are on it.

    Examples:
      usina network delete lab
    """
    options.confirmed(f"Delete network {network}?", yes)
    with door.client(project) as site:
        progress.leave(site, site.networks.delete(network), wait, timeout)
