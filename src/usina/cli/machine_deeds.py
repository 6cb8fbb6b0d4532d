"""What a machine is asked to do in its life: power, size, snapshots, volumes, network cards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from usina.cli import door, progress, screen, short_forms
from usina.cli.options import PATIENCE, Labels, Machine, Out, Project, Timeout, Wait
from usina.cli.screen import Output
from usina.client import Client, Resource
from usina.core.units import parse_size

SnapshotName = Annotated[str, typer.Argument(help="Name of the snapshot.", metavar="SNAPSHOT", show_default=False)]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the noun."""
    deeds: list[Callable[..., None]] = [start, stop, reboot, suspend, resume, resize, rebuild]
    deeds += [snapshot, snapshots, restore, drop_snapshot, attach_interface, detach_interface]
    for deed in deeds:
        app.command()(deed)


def _do(project: str | None, wait: bool, timeout: float, deed: Callable[[Client], Resource]) -> None:
    """Ask for a deed, wait for its end, and say how the machine is."""
    with door.client(project) as site:
        asked = deed(site)
        machine = progress.settle(site, asked, wait, timeout)
    screen.done(f"machine {machine.name} is {machine.phase}" if wait else f"machine {machine.name} was asked to")


def start(machine: Machine, project: Project = None, wait: Wait = True, timeout: Timeout = PATIENCE) -> None:
    """Start a machine that is stopped, or try a failed one again.

    Examples:
      usina machine start hello
    """
    _do(project, wait, timeout, lambda site: site.machines.start(machine))


def stop(machine: Machine, project: Project = None, wait: Wait = True, timeout: Timeout = PATIENCE) -> None:
    """Stop a machine: the guest is asked to power off, and cut off after 30 seconds. It keeps its place and disk.

    Examples:
      usina machine stop hello
    """
    _do(project, wait, timeout, lambda site: site.machines.stop(machine))


def reboot(machine: Machine, project: Project = None, wait: Wait = True, timeout: Timeout = PATIENCE) -> None:
    """Reboot a running machine.

    Examples:
      usina machine reboot hello
    """
    _do(project, wait, timeout, lambda site: site.machines.reboot(machine))


def suspend(machine: Machine, project: Project = None, wait: Wait = True, timeout: Timeout = PATIENCE) -> None:
    """Pause a running machine; its memory stays as it is.

    Examples:
      usina machine suspend hello
    """
    _do(project, wait, timeout, lambda site: site.machines.suspend(machine))


def resume(machine: Machine, project: Project = None, wait: Wait = True, timeout: Timeout = PATIENCE) -> None:
    """Let a suspended machine go on.

    Examples:
      usina machine resume hello
    """
    _do(project, wait, timeout, lambda site: site.machines.resume(machine))


def resize(
    machine: Machine,
    cores: Annotated[int | None, typer.Option(help="Virtual CPUs.", min=1)] = None,
    memory: Annotated[str | None, typer.Option(help="Memory.", metavar="SIZE")] = None,
    disk: Annotated[str | None, typer.Option(help="Root disk; can only grow.", metavar="SIZE")] = None,
    label: Labels = None,
    project: Project = None,
    wait: Wait = True,
    timeout: Timeout = PATIENCE,
) -> None:
    """Change the size of a machine, or its labels. A running one is stopped and started for it.

    Examples:
      usina machine resize hello --cores 4 --memory 8GiB
      usina machine resize hello --disk 40GiB
    """
    _do(
        project,
        wait,
        timeout,
        lambda site: site.machines.resize(
            machine,
            cores=cores,
            memory=parse_size(memory, "memory") if memory else None,
            disk=parse_size(disk, "disk") if disk else None,
            labels=short_forms.labels(label) if label else None,
        ),
    )


def rebuild(
    machine: Machine,
    image: Annotated[str | None, typer.Option(help="Another image; else the same again.", metavar="IMAGE")] = None,
    project: Project = None,
    wait: Wait = True,
    timeout: Timeout = PATIENCE,
) -> None:
    """Give a machine a fresh root disk. What was on the old one, and its snapshots, are lost.

    Examples:
      usina machine rebuild hello
      usina machine rebuild hello --image debian-12
    """
    _do(project, wait, timeout, lambda site: site.machines.rebuild(machine, image))


def snapshot(
    machine: Machine, name: SnapshotName, project: Project = None, wait: Wait = True, timeout: Timeout = PATIENCE
) -> None:
    """Take a snapshot of the root disk.

    Examples:
      usina machine snapshot hello before-upgrade
    """
    _do(project, wait, timeout, lambda site: site.machines.snapshot(machine, name))


def snapshots(machine: Machine, project: Project = None, output: Out = Output.TABLE) -> None:
    """List the snapshots of a machine.

    Examples:
      usina machine snapshots hello
      usina machine snapshots hello -o json
    """
    with door.client(project) as site:
        names: list[str] = site.machines.get(machine).spec["snapshots"]
    if output is Output.JSON:
        screen.print_json(names)
    elif names:
        print("\n".join(names))
    else:
        screen.say("there are none")


def restore(
    machine: Machine, name: SnapshotName, project: Project = None, wait: Wait = True, timeout: Timeout = PATIENCE
) -> None:
    """Go back to a snapshot. What was written since is lost.

    Examples:
      usina machine restore hello before-upgrade
    """
    _do(project, wait, timeout, lambda site: site.machines.restore(machine, name))


def drop_snapshot(
    machine: Machine, name: SnapshotName, project: Project = None, wait: Wait = True, timeout: Timeout = PATIENCE
) -> None:
    """Give up a snapshot.

    Examples:
      usina machine drop-snapshot hello before-upgrade
    """
    _do(project, wait, timeout, lambda site: site.machines.drop_snapshot(machine, name))


def attach_interface(
    machine: Machine,
    network: Annotated[str, typer.Argument(help="NETWORK, or NETWORK:ADDRESS.", metavar="NETWORK")] = "default",
    security_group: Annotated[list[str] | None, typer.Option("--security-group", help="Repeat it.")] = None,
    project: Project = None,
    wait: Wait = True,
    timeout: Timeout = PATIENCE,
) -> None:
    """Give a machine one more network card.

    Examples:
      usina machine attach-interface hello lab
      usina machine attach-interface hello lab:10.0.0.7 --security-group web
    """
    card = short_forms.card(network, security_group or ())
    _do(project, wait, timeout, lambda site: site.machines.attach_interface(machine, card))


def detach_interface(
    machine: Machine,
    mac: Annotated[str, typer.Argument(help="MAC address, as `usina machine show` has it.", metavar="MAC")],
    project: Project = None,
    wait: Wait = True,
    timeout: Timeout = PATIENCE,
) -> None:
    """Take a network card away.

    Examples:
      usina machine detach-interface hello 52:54:00:1a:2b:3c
    """
    _do(project, wait, timeout, lambda site: site.machines.detach_interface(machine, mac))
