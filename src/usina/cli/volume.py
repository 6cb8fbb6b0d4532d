"""Volumes: disks that outlive machines, and folders that outlive tasks."""

from __future__ import annotations

from typing import Annotated

import typer

from usina.cli import door, options, progress, screen, short_forms
from usina.cli.options import PATIENCE, Labels, Machine, NewName, Out, Project, Timeout, Wait, Yes
from usina.cli.options import Volume as VolumeName
from usina.cli.screen import Cell, Output
from usina.client import Resource
from usina.core.units import parse_size

app = options.noun(
    "Volumes: disks that outlive the machines they are attached to, and folders for tasks.",
    "usina volume create data 100GiB",
    "usina volume attach data hello",
    "usina volume create results 10GiB --folder",
)

Size = Annotated[str, typer.Argument(help="Its size, such as 100GiB.", metavar="SIZE", show_default=False)]

_COLUMNS: screen.Columns[Resource] = [
    ("name", lambda v: v.name),
    ("phase", lambda v: screen.phase(v.phase)),
    ("form", lambda v: v.spec.get("form", "disk")),
    ("size", lambda v: screen.size(v.spec["size"])),
    ("host", lambda v: v.host or "–"),
    ("age", lambda v: screen.age(v.created_at)),
    ("id", lambda v: v.id),
    ("trouble", lambda v: v.trouble),
]


def _rows(volume: Resource) -> list[tuple[str, Cell]]:
    return [(title, value) for title, draw in _COLUMNS if (value := draw(volume))]


@app.command()
def create(
    name: NewName,
    size: Size,
    folder: Annotated[bool, typer.Option("--folder", help="Files for tasks, instead of a disk for a machine.")] = False,
    host: Annotated[str | None, typer.Option(help="The host, for operators.")] = None,
    label: Labels = None,
    project: Project = None,
    wait: Wait = True,
    timeout: Timeout = PATIENCE,
    output: Out = Output.TABLE,
) -> None:
    """Make a volume.

    Examples:
      usina volume create data 100GiB
      usina volume create results 10GiB --folder
      usina run --volume results:/results -- python train.py
    """
    with door.client(project) as site:
        ordered = site.volumes.create(
            name,
            parse_size(size),
            host=host,
            form="folder" if folder else None,
            labels=short_forms.labels(label or ()),
        )
        volume = progress.settle(site, ordered, wait, timeout)
    screen.show_one(volume, _rows(volume), output)


@app.command("list")
def list_volumes(
    project: Project = None,
    everywhere: Annotated[bool, typer.Option("--all", "-a", help="Of all projects.")] = False,
    output: Out = Output.TABLE,
) -> None:
    """List volumes.

    Examples:
      usina volume list
    """
    with door.client(project) as site:
        screen.show_list(site.volumes.list(everywhere=everywhere), _COLUMNS, output)


@app.command()
def show(volume: VolumeName, project: Project = None, output: Out = Output.TABLE) -> None:
    """Show a volume.

    Examples:
      usina volume show data
    """
    with door.client(project) as site:
        found = site.volumes.get(volume)
    screen.show_one(found, _rows(found), output)


@app.command()
def grow(
    volume: VolumeName, size: Size, project: Project = None, wait: Wait = True, timeout: Timeout = PATIENCE
) -> None:
    """Make a volume larger. The file system on a disk is the guest's to grow.

    Examples:
      usina volume grow data 200GiB
    """
    with door.client(project) as site:
        grown = progress.settle(site, site.volumes.grow(volume, parse_size(size)), wait, timeout)
    screen.done(f"volume {grown.name} has {screen.size(grown.spec['size'])}")


@app.command()
def attach(
    volume: VolumeName, machine: Machine, project: Project = None, wait: Wait = True, timeout: Timeout = PATIENCE
) -> None:
    """Attach a volume to a machine, running or not.

    Examples:
      usina volume attach data hello
    """
    with door.client(project) as site:
        found = progress.settle(site, site.machines.attach_volume(machine, volume), wait, timeout)
    screen.done(f"volume {volume} is attached to {found.name}" if wait else f"volume {volume} goes to {found.name}")


@app.command()
def detach(
    volume: VolumeName, machine: Machine, project: Project = None, wait: Wait = True, timeout: Timeout = PATIENCE
) -> None:
    """Detach a volume from a machine. Unmount it inside first.

    Examples:
      usina volume detach data hello
    """
    with door.client(project) as site:
        found = progress.settle(site, site.machines.detach_volume(machine, volume), wait, timeout)
    screen.done(f"volume {volume} is detached from {found.name}" if wait else f"volume {volume} leaves {found.name}")


@app.command()
def delete(
    volume: VolumeName, project: Project = None, yes: Yes = False, wait: Wait = True, timeout: Timeout = PATIENCE
) -> None:
    """Delete a volume and what is on it. Refused while it is attached, or tasks use it.

    Examples:
      usina volume delete data
    """
    options.confirmed(f"Delete volume {volume} and what is on it?", yes)
    with door.client(project) as site:
        progress.leave(site, site.volumes.delete(volume), wait, timeout)
