"""Hosts: what the factory runs on. For operators."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from usina.cli import door, host_terms, options, screen, short_forms
from usina.cli.options import Host as HostName
from usina.cli.options import NewName, Out, Yes
from usina.cli.screen import Cell, Output
from usina.client import Claim, Client, Device, Host

app = options.noun(
    "Hosts: what machines run on. For operators.",
    "usina host list",
    "usina host add node7 --option uri=qemu+ssh://root@node7/system",
)
device = options.noun("Single devices of a host, such as a GPU.", "usina host device cordon node7 0000:3b:00.0")
app.add_typer(device, name="device")
host_terms.add_to(app)

Address = Annotated[str, typer.Argument(help="PCI address, as `usina host show` has it.", metavar="ADDRESS")]


def _used(host: Host, measure: str, sized: bool = True) -> str:
    total: int = getattr(host, measure)
    if sized:
        sold = int(total * host.memory_ratio) if measure == "memory" else total
        return f"{screen.size(int(host.used[measure]))} of {screen.size(sold)}"
    return f"{host.used[measure]:g} of {total * host.cpu_ratio:g}"


def _devices(host: Host) -> str:
    taken = sum(one.taken for one in host.devices)
    return f"{taken} of {len(host.devices)}" if host.devices else "–"


_COLUMNS: screen.Columns[Host] = [
    ("name", lambda h: h.name),
    ("state", lambda h: screen.phase(h.state if h.reachable else "unreachable")),
    ("drivers", lambda h: ", ".join([h.driver, *h.also])),
    ("cores", lambda h: _used(h, "cores", sized=False)),
    ("memory", lambda h: _used(h, "memory")),
    ("disk", lambda h: _used(h, "disk")),
    ("devices", _devices),
    ("id", lambda h: h.id),
    ("message", lambda h: h.message),
]
_CLAIMS: screen.Columns[Claim] = [
    ("resource", lambda c: c.resource),
    ("cores", lambda c: f"{c.cores:g}"),
    ("memory", lambda c: screen.size(c.memory)),
    ("disk", lambda c: screen.size(c.disk)),
    ("cpus", lambda c: ",".join(map(str, c.cpus)) or "–"),
    ("NUMA", lambda c: ",".join(map(str, c.nodes)) or "–"),
    ("devices", lambda c: ", ".join(c.devices) or "–"),
]


def _driver(name: str, options: dict[str, Any]) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in options.items())])


def _device(one: Device) -> str:
    state = "cordoned" if one.cordoned else "taken" if one.taken else "free"
    where = "" if one.node is None else f"  NUMA {one.node}"
    link = f"  {one.link}" if one.link else ""
    traits = f"  {' '.join(one.traits)}" if one.traits else ""
    return f"{one.address}  {one.kind}  {one.model}{where}{link}{traits}  {state}"


def _rows(host: Host, site: Client) -> list[tuple[str, Cell]]:
    rows: list[tuple[str, Cell]] = [
        ("name", f"{host.name} ({host.id})"),
        ("state", screen.phase(host.state if host.reachable else "unreachable")),
        ("message", host.message),
        ("drivers", "\n".join(_driver(one, its) for one, its in {host.driver: host.options, **host.also}.items())),
        ("cores", _used(host, "cores", sized=False)),
        ("memory", _used(host, "memory")),
        ("disk", _used(host, "disk")),
        *host_terms.rows(host, site),
        ("NUMA", "\n".join(f"{n['id']}: {len(n['cpus'])} CPUs, {screen.size(n['memory'])}" for n in host.nodes)),
        ("devices", "\n".join(_device(one) for one in host.devices)),
        ("traits", ", ".join(host.traits)),
        ("facts", "\n".join(f"{name}: {fact}" for name, fact in host.facts.items())),
        ("age", screen.age(host.created_at)),
    ]
    return [(title, value) for title, value in rows if value]


@app.command()
def add(
    name: NewName,
    driver: Annotated[str, typer.Option("--driver", "-d", help="How it is reached; see `usina doctor`.")] = "libvirt",
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-O", help="KEY=VALUE for the driver; repeat it.", metavar="KEY=VALUE"),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option("--with", help="DRIVER, or DRIVER,KEY=VALUE,…: a further one on the same host; repeat it."),
    ] = None,
    cpu_ratio: Annotated[float, typer.Option(help="Virtual CPUs to give away per real one.", min=0.1, max=64)] = 1.0,
    output: Out = Output.TABLE,
) -> None:
    """Take a host into service. It is probed first; one that does not answer is not added.

    One machine is one host, however many drivers do things there: what they give away is counted once.

    Examples:
      usina host add local --option uri=qemu:///system --with process --with podman
      usina host add node7 --option uri=qemu+ssh://root@node7/system --cpu-ratio 4
      usina host add pretend --driver fake --option cores=64 --option memory=256GiB --option gpus=8
    """
    with door.client() as site:
        others = {word.partition(",")[0]: _also(word) for word in also or ()}
        host = site.hosts.add(name, driver, short_forms.host_options(option or ()), cpu_ratio, others)
        screen.show_one(host, _rows(host, site), output)


def _also(text: str) -> dict[str, Any]:
    return short_forms.host_options([word for word in text.split(",")[1:] if word])


@app.command()
def adopt(
    name: NewName,
    driver: Annotated[str, typer.Option("--driver", "-d", help="How it is reached; see `usina doctor`.")] = "slurm",
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-O", help="KEY=VALUE for the driver; repeat it.", metavar="KEY=VALUE"),
    ] = None,
    output: Out = Output.TABLE,
) -> None:
    """Take all parts of a cluster into service, each partition as a host; nothing is changed on the cluster.

    Repeat it when partitions have come; those that are there stay as they are.

    Examples:
      usina host adopt hpc --driver slurm --option url=http://slurm:6820 --option jwt_key=/etc/usina/jwt.key
    """
    with door.client() as site:
        hosts = site.hosts.adopt(name, driver, short_forms.host_options(option or ()))
        screen.show_list(hosts, _COLUMNS, output)


@app.command()
def drivers(
    host: HostName,
    add: Annotated[list[str] | None, typer.Option("--add", help="DRIVER, or DRIVER,KEY=VALUE,…; repeat it.")] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="DRIVER; repeat it.", metavar="DRIVER")] = None,
) -> None:
    """Add further drivers to a host, or take them away.

    Examples:
      usina host drivers local --add process --add podman
      usina host drivers local --remove podman
    """
    changes: dict[str, dict[str, Any] | None] = {word.partition(",")[0]: _also(word) for word in add or ()}
    changes |= dict.fromkeys(remove or ())
    with door.client() as site:
        found = site.hosts.change(host, also=changes) if changes else site.hosts.get(host)
        screen.done(f"host {found.name} is run by {', '.join([found.driver, *found.also])}")


@app.command()
def identity(
    host: HostName,
    member: Annotated[str | None, typer.Argument(help="Member, by name or id.", metavar="MEMBER")] = None,
    name: Annotated[str | None, typer.Argument(help='Unix name there; "" takes it away.', metavar="NAME")] = None,
    output: Out = Output.TABLE,
) -> None:
    """Say who members are on a host whose stack knows people, such as a Slurm cluster; without NAME, list them.

    Tasks run there as that Unix user. It holds for all hosts that share their accounts.

    Examples:
      usina host identity hpc-main
      usina host identity hpc-main ada alovelace
    """
    with door.client() as site:
        if member is not None and name is not None:
            id = site.whoami().member if member == "me" else door.member_id(site, member)
            site.hosts.map_identity(host, id, name)
            screen.done(f"{member} is {name or 'nobody'} there")
            return
        names = {one.id: one.name for one in site.members.list()}
        found = [(names.get(id, id), unix) for id, unix in site.hosts.identities(host).items()]
        if output is Output.JSON:
            screen.print_json(dict(found))
        else:
            screen.out().print(screen.table(["member", "name there"], sorted(found)))


@app.command("list")
def list_hosts(output: Out = Output.TABLE) -> None:
    """List hosts, and how full they are.

    Examples:
      usina host list
      usina host list -o json
    """
    with door.client() as site:
        screen.show_list(site.hosts.list(), _COLUMNS, output)


@app.command()
def show(host: HostName, output: Out = Output.TABLE) -> None:
    """Show a host: what it has, and what is known about it.

    Examples:
      usina host show local
    """
    with door.client() as site:
        found = site.hosts.get(host)
        screen.show_one(found, _rows(found, site), output)


@app.command()
def claims(host: HostName, output: Out = Output.TABLE) -> None:
    """Show what is held on a host, and for whom.

    Examples:
      usina host claims local
      usina host claims local -o json
    """
    with door.client() as site:
        screen.show_list(site.hosts.claims(host), _CLAIMS, output, name="resource")


@app.command()
def cordon(host: HostName) -> None:
    """Place nothing new on a host; what runs goes on.

    Examples:
      usina host cordon node7
    """
    with door.client() as site:
        _say(site.hosts.cordon(host))


@app.command()
def drain(host: HostName, yes: Yes = False) -> None:
    """Place nothing new on a host, stop its machines, and move the replicas of endpoints elsewhere.

    Other tasks run to their end.

    Examples:
      usina host drain node7
    """
    options.confirmed(f"Stop every machine on host {host}?", yes)
    with door.client() as site:
        _say(site.hosts.drain(host))


@app.command()
def enable(host: HostName) -> None:
    """Take a host back into service.

    Examples:
      usina host enable node7
    """
    with door.client() as site:
        _say(site.hosts.enable(host))


@app.command()
def remove(host: HostName, yes: Yes = False) -> None:
    """Take a host out of the factory. Refused while anything is on it.

    Examples:
      usina host remove node7
    """
    options.confirmed(f"Remove host {host}?", yes)
    with door.client() as site:
        site.hosts.remove(host)
    screen.done(f"host {host} is removed")


@device.command("cordon")
def cordon_device(host: HostName, address: Address) -> None:
    """Give one device to nobody any more; who has it keeps it.

    Examples:
      usina host device cordon node7 0000:3b:00.0
    """
    with door.client() as site:
        site.hosts.cordon_device(host, address)
    screen.done(f"device {address} of {host} is cordoned")


@device.command("enable")
def enable_device(host: HostName, address: Address) -> None:
    """Take one device back into service.

    Examples:
      usina host device enable node7 0000:3b:00.0
    """
    with door.client() as site:
        site.hosts.enable_device(host, address)
    screen.done(f"device {address} of {host} is in service")


def _say(host: Host) -> None:
    screen.done(f"host {host.name} is {host.state}")
