"""Quotas: what may exist at once in a tenant or project."""

from __future__ import annotations

from typing import Annotated

import typer

from usina.cli import door, options, screen
from usina.cli.options import Out
from usina.cli.screen import Output
from usina.cli.short_forms import limit
from usina.client import Quota
from usina.core.errors import Invalid

app = options.noun(
    "Quotas: what may exist at once in a tenant or project.", "usina quota show", "usina quota set acme --machines 20"
)

_SIZED = frozenset({"memory", "disk"})
_SCOPES = options.completing(lambda site: site.projects.list())
Limit = Annotated[str | None, typer.Option(help="A number, or none for no limit.", metavar="N")]
SizeLimit = Annotated[str | None, typer.Option(help="A size, or none for no limit.", metavar="SIZE")]
_SCOPE = typer.Argument(help="Tenant or project, by name or id; else the project in use.", autocompletion=_SCOPES)


def _amount(measure: str, value: float | None) -> str:
    if value is None:
        return "no limit"
    return screen.size(int(value)) if measure in _SIZED else f"{value:g}"


def _show(quota: Quota, output: Output) -> None:
    if output is Output.TABLE:
        rows = [(m, _amount(m, used), _amount(m, quota.limits.get(m))) for m, used in quota.used.items()]
        screen.out().print(screen.table([quota.scope, "used", "limit"], rows))
    else:
        screen.show_one(quota, [], output, name="scope")


@app.command()
def show(scope: Annotated[str | None, _SCOPE] = None, output: Out = Output.TABLE) -> None:
    """Show a quota, and how much of it is used.

    Examples:
      usina quota show
      usina quota show acme
      usina quota show research -o json
    """
    with door.client() as site:
        wanted = scope or site.project
        if wanted is None:
            raise Invalid("scope: say which tenant or project", field="scope")
        _show(site.quotas.get(wanted), output)


@app.command("set")
def set_quota(
    scope: Annotated[str, typer.Argument(help="Tenant or project, by name or id.", autocompletion=_SCOPES)],
    machines: Limit = None,
    cores: Limit = None,
    memory: SizeLimit = None,
    disk: SizeLimit = None,
    gpus: Limit = None,
    addresses: Limit = None,
    output: Out = Output.TABLE,
) -> None:
    """Set limits; what is not named stays as it is. What exists already stays, even where it is more.

    Examples:
      usina quota set acme --machines 20 --cores 256 --memory 1TiB --gpus 8
      usina quota set research --disk 10TiB --addresses none
    """
    limits = {
        **limit(machines, "machines"),
        **limit(cores, "cores"),
        **limit(memory, "memory", sized=True),
        **limit(disk, "disk", sized=True),
        **limit(gpus, "gpus"),
        **limit(addresses, "addresses"),
    }
    if not limits:
        raise Invalid("limits: name at least one, for example --machines 20", field="limits")
    with door.client() as site:
        _show(site.quotas.set(scope, limits), output)
