"""Where a host stands, and on what terms it is sold: `usina host set`, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from usina.cli import door, screen, short_forms
from usina.cli.options import Host as HostName
from usina.cli.options import Out
from usina.cli.screen import Cell, Output
from usina.client import ApiError, Client, Host, Window
from usina.core.errors import Invalid

NONE = "none"  # what clears a term on the command line
MICRO = 1_000_000  # micro-credits in a credit

Domain = Annotated[str | None, typer.Option(metavar="NAME", help="Domain of this level it is in; none takes it away.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the noun."""
    app.command("set")(set_terms)


def set_terms(
    host: HostName,
    site: Domain = None,
    block: Domain = None,
    rack: Domain = None,
    nvlink: Domain = None,
    group: Annotated[str | None, typer.Option(help="Provider group; none takes it out.", metavar="NAME")] = None,
    cpu_ratio: Annotated[
        float | None, typer.Option(help="Virtual CPUs to give away per real one.", min=0.1, max=64)
    ] = None,
    memory_ratio: Annotated[
        float | None, typer.Option(help="Ordinary memory to give away per real byte.", min=0.1, max=10)
    ] = None,
    dedicate: Annotated[
        list[str] | None,
        typer.Option(help="Only for this tenant; repeat it. none: for everybody.", metavar="TENANT"),
    ] = None,
    maintenance: Annotated[
        list[str] | None,
        typer.Option(help="BEGIN/END, in UTC if no zone is given; repeat it. none: no more.", metavar="BEGIN/END"),
    ] = None,
    price: Annotated[int | None, typer.Option(help="Micro-credits an hour for all of it.", min=0)] = None,
    output: Out = Output.TABLE,
) -> None:
    """Say where a host stands, and on what terms it is given away. What is not named stays as it is.

    Examples:
      usina host set node7 --site lisbon --block b1 --rack r1 --nvlink nvl-3
      usina host set node7 --group gpu --cpu-ratio 4 --memory-ratio 1.2 --price 3600000
      usina host set node7 --dedicate acme --dedicate physics
      usina host set node7 --maintenance 2026-12-01T08:00/2026-12-01T12:00
      usina host set node7 --dedicate none --maintenance none --rack none
    """
    named = {"site": site, "block": block, "rack": rack, "nvlink": nvlink}
    topology = {level: _cleared(domain) for level, domain in named.items() if domain is not None}
    given = (group, cpu_ratio, memory_ratio, dedicate, maintenance, price)
    if not topology and all(one is None for one in given):
        raise Invalid("nothing to set; see usina host set --help", field="host")
    with door.client() as client:
        changed = client.hosts.change(
            host,
            topology=topology or None,
            group=None if group is None else _cleared(group),
            cpu_ratio=cpu_ratio,
            memory_ratio=memory_ratio,
            tenants=_several(dedicate, "dedicate"),
            maintenance=_windows(maintenance),
            price=price,
        )
        shown: list[tuple[str, Cell]] = [("name", f"{changed.name} ({changed.id})"), *rows(changed, client)]
        screen.show_one(changed, [(title, value) for title, value in shown if value], output)


def _cleared(text: str) -> str:
    return "" if text == NONE else text


def _several(texts: Sequence[str] | None, field: str) -> list[str] | None:
    """What was named, [] for a lone ``none``. Raises `Invalid` for a ``none`` among others."""
    if texts is None:
        return None
    if list(texts) == [NONE]:
        return []
    if NONE in texts:
        raise Invalid(f"{field}: none stands alone", field=field)
    return list(texts)


def _windows(texts: Sequence[str] | None) -> list[Window] | None:
    several = _several(texts, "maintenance")
    return None if several is None else [short_forms.window(text) for text in several]


def rows(host: Host, site: Client) -> list[tuple[str, Cell]]:
    """What is set, for people."""
    return [
        ("stands in", ", ".join(f"{level} {domain}" for level, domain in host.topology.items())),
        ("group", host.group),
        ("ratios", f"{host.cpu_ratio:g} for cores, {host.memory_ratio:g} for memory"),
        ("dedicated to", ", ".join(_tenant(site, id) for id in host.tenants)),
        ("maintenance", "\n".join(short_forms.show_window(window) for window in host.maintenance)),
        ("price", f"{host.price / MICRO:g} credits an hour" if host.price else ""),
    ]


def _tenant(site: Client, id: str) -> str:
    try:
        return f"{site.tenants.get(id).name} ({id})"
    except ApiError as error:
        if error.status != 404:
            raise
        return id
