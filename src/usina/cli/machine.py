"""Machines: order, list, show, delete. What comes afterwards is in `machine_deeds` and `machine_inside`."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from usina.cli import door, machine_deeds, machine_inside, options, progress, screen, short_forms
from usina.cli.options import PATIENCE, Labels, Machine, NewName, Out, Project, SshKeys, Timeout, Wait, Yes
from usina.cli.screen import Cell, Output
from usina.client import Client, Resource
from usina.core.errors import Invalid
from usina.core.units import parse_size

app = options.noun(
    "Machines: order them, run them, get into them.",
    "usina machine create hello --image debian-12",
    "usina machine list",
    "usina machine ssh hello",
)

machine_deeds.add_to(app)
machine_inside.add_to(app)

_IMAGES = options.completing(lambda site: site.images.list())


@app.command()
def create(
    name: NewName,
    image: Annotated[
        str, typer.Option("--image", help="Image, by name or id.", metavar="IMAGE", autocompletion=_IMAGES)
    ],
    cores: Annotated[int, typer.Option(help="Virtual CPUs.", min=1)] = 1,
    memory: Annotated[str, typer.Option(help="Memory.", metavar="SIZE")] = "1GiB",
    disk: Annotated[str, typer.Option(help="Root disk.", metavar="SIZE")] = "10GiB",
    ssh_key: SshKeys = None,
    user_data: Annotated[Path | None, typer.Option(help="cloud-init user-data.", metavar="FILE")] = None,
    hostname: Annotated[str | None, typer.Option(help="Host name inside; else NAME.")] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(
            "--network", "-n", help="Network, or NETWORK:ADDRESS; repeat it. Else default.", metavar="NETWORK"
        ),
    ] = None,
    security_group: Annotated[
        list[str] | None, typer.Option("--security-group", help="For every card; repeat it. Else default.")
    ] = None,
    no_network: Annotated[bool, typer.Option("--no-network", help="No network card at all.")] = False,
    volume: Annotated[list[str] | None, typer.Option("--volume", "-v", help="Volume to attach; repeat it.")] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            "--gpu",
            help="MODEL, N, or MODEL:N, such as H100:4; then ,memory=SIZE ,linked ,trait=NAME; repeat it.",
            metavar="GPU",
        ),
    ] = None,
    pinned: Annotated[bool, typer.Option("--pinned", help="Whole host cores of its own.")] = False,
    whole_cores: Annotated[
        bool, typer.Option("--whole-cores", help="Pinned, and no hardware thread of its cores is anybody else's.")
    ] = False,
    numa: Annotated[
        str, typer.Option(help="strict or preferred: all on one NUMA node; a number: spread over so many.")
    ] = "none",
    hugepage: Annotated[str, typer.Option(help="Back memory by pages of 2MiB or 1GiB.", metavar="SIZE")] = "0",
    uefi: Annotated[bool, typer.Option("--uefi", help="UEFI firmware instead of BIOS.")] = False,
    queues: Annotated[int, typer.Option(help="Queues of each network card.", min=1)] = 1,
    restart: Annotated[str, typer.Option(help="never, on-failure or always.")] = "never",
    host: Annotated[str | None, typer.Option(help="The host, for operators.")] = None,
    near: Annotated[
        list[str] | None, typer.Option(help="On the host of this machine or group; repeat it.", metavar="NAME")
    ] = None,
    apart: Annotated[
        list[str] | None, typer.Option(help="Not on the host of this machine or group; repeat it.", metavar="NAME")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Group it is in, for --near, --apart and --spread-over.", metavar="NAME")
    ] = None,
    spread_over: Annotated[
        str | None,
        typer.Option(help="No two of its group in one site, block, rack, nvlink or host.", metavar="LEVEL"),
    ] = None,
    priority: Annotated[int, typer.Option(help="-100 to 100; higher may push lower aside. Above 0 for operators.")] = 0,
    preemptible: Annotated[bool, typer.Option("--preemptible", help="May be pushed aside.")] = False,
    no_tasks: Annotated[
        bool, typer.Option("--no-tasks", help="Let in no key for tasks: none can be run in it.")
    ] = False,
    label: Labels = None,
    project: Project = None,
    wait: Wait = True,
    timeout: Timeout = PATIENCE,
    output: Out = Output.TABLE,
) -> None:
    """Order a machine and wait until it runs.

    Examples:
      usina machine create hello --image debian-12
      usina machine create train --image debian-12 --cores 16 --memory 64GiB --disk 200GiB --gpu H100:2
      usina machine create db --image debian-12 --network lab:10.0.0.10 --volume data --restart on-failure
      usina machine create fast --image debian-12 --cores 8 --memory 16GiB --pinned --numa 1 --hugepage 1GiB
      usina machine create tune --image debian-12 --cores 32 --whole-cores --numa strict --gpu 'H100|H200:2,linked'
      usina machine create db-2 --image debian-12 --group db --spread-over rack --apart web --preemptible
      usina machine create web --image debian-12 --user-data cloud.yaml --label tier=front --no-wait
    """
    numa_word, numa_nodes = short_forms.numa(numa)
    cards = () if no_network else [short_forms.card(text, security_group or ()) for text in network or ["default"]]
    with door.client(project) as site:
        ordered = site.machines.create(
            name,
            image,
            cores=cores,
            memory=parse_size(memory, "memory"),
            disk=parse_size(disk, "disk"),
            interfaces=cards,
            volumes=volume or (),
            ssh_keys=_keys(site, ssh_key),
            user_data=_text(user_data) if user_data else None,
            hostname=hostname,
            pinned=pinned,
            numa_nodes=numa_nodes,
            hugepage=parse_size(hugepage, "hugepage"),
            firmware="uefi" if uefi else "bios",
            queues=queues,
            devices=[short_forms.gpu(text) for text in gpu or ()],
            restart=restart,
            host=host,
            labels=short_forms.labels(label or ()),
            numa=numa_word,
            whole_cores=whole_cores,
            near=near or (),
            apart=apart or (),
            group=group,
            spread_over=spread_over,
            priority=priority,
            preemptible=preemptible,
            tasks=not no_tasks,
        )
        machine = progress.settle(site, ordered, wait, timeout)
        if wait:
            screen.done(f"machine {machine.name} is {machine.phase}; get in with: usina ssh {machine.name}")
        _show(site, machine, output)


def _keys(site: Client, files: list[Path] | None) -> list[str] | None:
    """The keys of the files; else the member's own (None); else, if there are none, those of this person's account."""
    if files:
        return short_forms.ssh_keys(files)
    if site.members.get("me").ssh_keys:
        return None
    found = sorted(Path("~/.ssh").expanduser().glob("id_*.pub"))
    if not found:
        screen.warn(
            "no SSH key is known; only the console will let you in (add one: usina member change me --ssh-key FILE)"
        )
        return None
    screen.say(f"using your SSH keys: {', '.join(str(file) for file in found)}")
    return short_forms.ssh_keys(found)


def _text(file: Path) -> str:
    try:
        return file.expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text"
        raise Invalid(f"user-data: {file}: {reason}", field="user-data") from None


@app.command("list")
def list_machines(
    project: Project = None,
    phase: Annotated[str | None, typer.Option(help="Only those in this phase, such as running.")] = None,
    host: Annotated[str | None, typer.Option(help="Only those on this host, for operators.")] = None,
    everywhere: Annotated[bool, typer.Option("--all", "-a", help="Of all projects.")] = False,
    output: Out = Output.TABLE,
) -> None:
    """List machines.

    Examples:
      usina machine list
      usina machine list --all --phase failed
      usina machine list -o json
    """
    with door.client(project) as site:
        found = site.machines.list(phase=phase, host=host, everywhere=everywhere)
        screen.show_list(found, _COLUMNS, output)


@app.command()
def show(machine: Machine, project: Project = None, output: Out = Output.TABLE) -> None:
    """Show one machine: what was wished, what is seen, and why it is not so.

    Examples:
      usina machine show hello
      usina machine show hello -o json
    """
    with door.client(project) as site:
        _show(site, site.machines.get(machine), output)


@app.command()
def delete(
    machines: Annotated[list[str], options.name_of("Machines", lambda site: site.machines.list())],
    project: Project = None,
    yes: Yes = False,
    wait: Wait = True,
    timeout: Timeout = PATIENCE,
) -> None:
    """Delete machines, with their disks and forwards. Volumes stay.

    Examples:
      usina machine delete hello
      usina machine delete web-1 web-2 web-3 --yes --no-wait
    """
    options.confirmed(f"Delete {', '.join(machines)} with all that is on its disk?", yes)
    with door.client(project) as site:
        for leaving in [site.machines.delete(name) for name in machines]:
            progress.leave(site, leaving, wait, timeout)


def addresses(machine: Resource) -> str:
    return ", ".join(card["address"] for card in machine.spec["interfaces"])


def _size(machine: Resource) -> str:
    spec = machine.spec
    gpus = sum(device["count"] for device in spec["devices"])
    return f"{spec['cores']} × {screen.size(spec['memory'])}" + (f" + {gpus} GPU" if gpus else "")


_COLUMNS: screen.Columns[Resource] = [
    ("name", lambda m: m.name),
    ("phase", lambda m: screen.phase(m.phase)),
    ("size", _size),
    ("disk", lambda m: screen.size(m.spec["disk"])),
    ("address", addresses),
    ("host", lambda m: m.host or "–"),
    ("age", lambda m: screen.age(m.created_at)),
    ("trouble", lambda m: m.trouble),
]


def _device(wish: dict[str, Any]) -> str:
    more = [screen.size(wish["memory"]) if wish["memory"] else "", "linked" if wish["linked"] else "", *wish["traits"]]
    return " ".join(filter(None, [f"{wish['count']} × {wish['model'] or wish['mdev_type'] or wish['kind']}", *more]))


def _show(site: Client, machine: Resource, output: Output) -> None:
    screen.show_one(machine, _rows(machine), output)


def _rows(machine: Resource) -> list[tuple[str, Cell]]:
    spec, status = machine.spec, machine.status
    placed = [
        "whole cores" if spec["whole_cores"] else "pinned" if spec["pinned"] else "",
        f"{spec['numa_nodes']} NUMA nodes" if spec["numa_nodes"] else "",
        f"one NUMA node {spec['numa']}" if spec["numa"] == "preferred" else "",
        "one NUMA node" if spec["numa"] == "strict" else "",
        f"{screen.size(spec['hugepage'])} pages" if spec["hugepage"] else "",
        "UEFI" if spec["firmware"] == "uefi" else "",
        f"{spec['queues']} queues" if spec["queues"] > 1 else "",
    ]
    rows: list[tuple[str, Cell]] = [
        ("name", f"{machine.name} ({machine.id})"),
        ("phase", screen.phase(machine.phase)),
        ("trouble", machine.trouble),
        ("size", f"{_size(machine)}, disk {screen.size(spec['disk'])}"),
        ("options", ", ".join(filter(None, placed))),
        ("devices", ", ".join(_device(wish) for wish in spec["devices"])),
        ("group", spec["group"] + (f", spread over {spec['spread_over']}" if spec["spread_over"] else "")),
        ("near", ", ".join(spec["near"])),
        ("apart from", ", ".join(spec["apart"])),
        ("priority", ", ".join(filter(None, [str(spec["priority"] or ""), "preemptible" * spec["preemptible"]]))),
        ("image", spec["image"]),
        ("tasks", "" if spec.get("tasks", True) else "none may be run in it"),
        ("address", addresses(machine)),
        ("interfaces", "\n".join(f"{c['mac']}  {c['address']}  {c['network']}" for c in spec["interfaces"])),
        ("volumes", ", ".join(spec["volumes"])),
        ("snapshots", ", ".join(spec["snapshots"])),
        (
            "host",
            " ".join(chain([machine.host or "–"], [f"({status['accelerator']})"] if status["accelerator"] else [])),
        ),
        ("restart", spec["restart"]),
        ("labels", ", ".join(f"{name}={value}" for name, value in machine.labels.items())),
        ("age", screen.age(machine.created_at)),
        ("generation", f"{machine.generation} (answered: {machine.observed})"),
    ]
    return [(title, value) for title, value in rows if value]
