"""Tenants: who shares the factory."""

from __future__ import annotations

from typing import Annotated

import typer

from usina.cli import door, options, screen
from usina.cli.options import NewName, Out, Yes
from usina.cli.options import Tenant as TenantName
from usina.cli.screen import Cell, Output
from usina.client import Tenant

app = options.noun(
    "Tenants: the companies, faculties and ministries that share the factory.",
    "usina tenant create acme",
    "usina tenant list",
)

_COLUMNS: screen.Columns[Tenant] = [
    ("name", lambda t: t.name),
    ("id", lambda t: t.id),
    ("age", lambda t: screen.age(t.created_at)),
]


def _rows(tenant: Tenant) -> list[tuple[str, Cell]]:
    return [(title, draw(tenant)) for title, draw in _COLUMNS]


@app.command()
def create(name: NewName, output: Out = Output.TABLE) -> None:
    """Create a tenant.

    Examples:
      usina tenant create acme
    """
    with door.client() as site:
        tenant = site.tenants.create(name)
    screen.show_one(tenant, _rows(tenant), output)


@app.command("list")
def list_tenants(output: Out = Output.TABLE) -> None:
    """List tenants.

    Examples:
      usina tenant list
      usina tenant list -o name
    """
    with door.client() as site:
        screen.show_list(site.tenants.list(), _COLUMNS, output)


@app.command()
def show(tenant: TenantName, output: Out = Output.TABLE) -> None:
    """Show a tenant.

    Examples:
      usina tenant show acme
    """
    with door.client() as site:
        found = site.tenants.get(tenant)
    screen.show_one(found, _rows(found), output)


@app.command()
def rename(tenant: TenantName, name: Annotated[str, typer.Argument(help="The new name.")]) -> None:
    """Rename a tenant. Its id stays.

    Examples:
      usina tenant rename acme acme-labs
    """
    with door.client() as site:
        renamed = site.tenants.rename(tenant, name)
    screen.done(f"tenant {tenant} is called {renamed.name}")


@app.command()
def delete(tenant: TenantName, yes: Yes = False) -> None:
    """Delete a tenant with its members and their keys. Refused while it has projects.

    Examples:
      usina tenant delete acme
      usina tenant delete acme --yes
    """
    options.confirmed(f"Delete tenant {tenant} with its members and keys?", yes)
    with door.client() as site:
        site.tenants.delete(tenant)
    screen.done(f"tenant {tenant} is gone")
