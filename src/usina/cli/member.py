"""Members: people and programs, the roles they play, the SSH keys they log in with."""

from __future__ import annotations

from typing import Annotated

import typer

from usina.cli import door, options, screen, short_forms
from usina.cli.options import Member as MemberName
from usina.cli.options import NewName, Out, SshKeys, Yes
from usina.cli.screen import Cell, Output
from usina.client import Member
from usina.core.errors import Invalid

app = options.noun(
    "Members: people and programs, and the roles they play.",
    "usina member create ada --tenant acme --role research=member",
    "usina member change me --ssh-key ~/.ssh/id_ed25519.pub",
)

_TENANTS = options.completing(lambda site: site.tenants.list())
Tenant = Annotated[
    str | None, typer.Option("--tenant", "-t", help="Tenant, by name or id.", metavar="TENANT", autocompletion=_TENANTS)
]


def _roles(member: Member) -> str:
    return ", ".join(f"{role} of {'the site' if scope == '*' else scope}" for scope, role in member.roles.items())


_COLUMNS: screen.Columns[Member] = [
    ("name", lambda m: m.name),
    ("id", lambda m: m.id),
    ("tenant", lambda m: m.tenant or "–"),
    ("roles", _roles),
    ("ssh keys", lambda m: str(len(m.ssh_keys))),
    ("state", lambda m: "disabled" if m.disabled else "active"),
    ("age", lambda m: screen.age(m.created_at)),
]


def _rows(member: Member) -> list[tuple[str, Cell]]:
    return [
        ("name", f"{member.name} ({member.id})"),
        ("tenant", member.tenant or "– (of the site itself)"),
        ("email", member.email or "–"),
        ("roles", _roles(member) or "none"),
        ("ssh keys", "\n".join(member.ssh_keys) or "none"),
        ("state", "disabled" if member.disabled else "active"),
        ("age", screen.age(member.created_at)),
    ]


@app.command()
def create(
    name: NewName,
    tenant: Tenant = None,
    email: Annotated[str, typer.Option(help="For people to reach them.")] = "",
    ssh_key: SshKeys = None,
    role: Annotated[
        list[str] | None,
        typer.Option("--role", "-r", help="SCOPE=ROLE: a tenant or project, and viewer, member or admin; repeat it."),
    ] = None,
    output: Out = Output.TABLE,
) -> None:
    """Create a member. Without a tenant, it is one of the site's own, for operators.

    Examples:
      usina member create ada --tenant acme --role research=member --ssh-key ~/.ssh/id_ed25519.pub
      usina member create grace --tenant acme --role acme=admin
      usina member create nightwatch --role '*=operator'
    """
    roles = dict(_role(text) for text in role or ())
    with door.client() as site:
        member = site.members.create(
            name, tenant, email=email, ssh_keys=short_forms.ssh_keys(ssh_key or ()), roles=roles
        )
    screen.show_one(member, _rows(member), output)


def _role(text: str) -> tuple[str, str]:
    scope, equals, role = text.partition("=")
    if not scope or not equals or not role:
        raise Invalid(f"role: {text!r}: a role looks like research=member", field="role")
    return scope, role


@app.command("list")
def list_members(tenant: Tenant = None, output: Out = Output.TABLE) -> None:
    """List members.

    Examples:
      usina member list
      usina member list --tenant acme -o json
    """
    with door.client() as site:
        screen.show_list(site.members.list(tenant), _COLUMNS, output)


@app.command()
def show(member: MemberName, output: Out = Output.TABLE) -> None:
    """Show a member; `me` is oneself.

    Examples:
      usina member show ada
      usina member show me
    """
    with door.client() as site:
        found = site.members.get(door.member_id(site, member))
    screen.show_one(found, _rows(found), output)


@app.command()
def change(
    member: MemberName,
    email: Annotated[str | None, typer.Option(help="A new address.")] = None,
    ssh_key: SshKeys = None,
    no_ssh_keys: Annotated[bool, typer.Option("--no-ssh-keys", help="Take all SSH keys away.")] = False,
    disabled: Annotated[
        bool | None, typer.Option("--disable/--enable", help="Shut all doors for them, or open them again.")
    ] = None,
    output: Out = Output.TABLE,
) -> None:
    """Change a member. SSH keys given here replace those there were.

    Examples:
      usina member change me --ssh-key ~/.ssh/id_ed25519.pub
      usina member change ada --disable
    """
    keys = [] if no_ssh_keys else short_forms.ssh_keys(ssh_key) if ssh_key else None
    with door.client() as site:
        changed = site.members.change(door.member_id(site, member), email=email, ssh_keys=keys, disabled=disabled)
    screen.show_one(changed, _rows(changed), output)


@app.command()
def role(
    member: MemberName,
    scope: Annotated[str, typer.Argument(help="Tenant or project, by name or id; * is the site.", metavar="SCOPE")],
    role: Annotated[
        str, typer.Argument(help="viewer, member, admin, operator, or none to take it away.", metavar="ROLE")
    ],
) -> None:
    """Give a member a role in a tenant or project, or take it away.

    Examples:
      usina member role ada research member
      usina member role ada acme admin
      usina member role ada acme none
    """
    with door.client() as site:
        changed = site.members.set_role(door.member_id(site, member), scope, None if role == "none" else role)
    screen.done(f"{changed.name}: {_roles(changed) or 'no role'}")


@app.command()
def delete(member: MemberName, yes: Yes = False) -> None:
    """Delete a member and their keys. What they made stays.

    Examples:
      usina member delete ada
    """
    options.confirmed(f"Delete member {member} and their keys?", yes)
    with door.client() as site:
        site.members.delete(door.member_id(site, member))
    screen.done(f"member {member} is gone")
