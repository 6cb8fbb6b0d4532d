"""Keys: the ways in. A secret is shown once, when it is made, and never again."""

from __future__ import annotations

from typing import Annotated

import typer

from usina.cli import door, options, screen
from usina.cli.options import Key as KeyName
from usina.cli.options import NewName, Out, Yes
from usina.cli.screen import Cell, Output
from usina.client import FreshKey, Key

app = options.noun(
    "Keys: one key opens every door, for one member, and can be limited in place, power and time.",
    "usina key create laptop",
    "usina key list",
)

Expires = Annotated[
    str | None, typer.Option("--expires", help="When it ends, such as 2027-01-31T12:00:00Z.", metavar="TIME")
]


def _state(key: Key) -> str:
    return "revoked" if key.revoked_at else "valid"


_COLUMNS: screen.Columns[Key] = [
    ("name", lambda k: k.name),
    ("id", lambda k: k.id),
    ("member", lambda k: k.member),
    ("project", lambda k: k.project or "any"),
    ("role", lambda k: k.role or "the member's"),
    ("state", _state),
    ("expires", lambda k: f"{k.expires_at:%Y-%m-%d %H:%M}" if k.expires_at else "never"),
    ("used", lambda k: f"{screen.age(k.last_used_at)} ago" if k.last_used_at else "never"),
]


def _rows(key: Key) -> list[tuple[str, Cell]]:
    return [(title, draw(key)) for title, draw in _COLUMNS]


def _show_fresh(key: FreshKey, output: Output) -> None:
    rows = _rows(key)
    screen.show_one(key, [*rows, ("secret", key.secret), ("token", key.token)], output)
    screen.warn("this is the only time that the secret is shown")


@app.command()
def create(
    name: NewName,
    member: Annotated[str, typer.Option("--member", "-m", help="Whose key; me by default.")] = "me",
    project: Annotated[str | None, typer.Option("--project", "-p", help="It works in this project only.")] = None,
    role: Annotated[str | None, typer.Option("--role", "-r", help="It can do at most this.")] = None,
    expires: Expires = None,
    output: Out = Output.TABLE,
) -> None:
    """Make a key and show its secret, once.

    Examples:
      usina key create laptop
      usina key create nightly --project research --role viewer --expires 2027-01-31T12:00:00Z
      usina key create first --member ada -o json
    """
    with door.client() as site:
        key = site.keys.create(
            name, member=door.member_id(site, member), project=project, role=role, expires_at=expires
        )
    _show_fresh(key, output)


@app.command("list")
def list_keys(
    member: Annotated[str | None, typer.Option("--member", "-m", help="Whose keys.")] = None, output: Out = Output.TABLE
) -> None:
    """List keys, without their secrets.

    Examples:
      usina key list
      usina key list --member ada
    """
    with door.client() as site:
        whose = door.member_id(site, member) if member else None
        screen.show_list(site.keys.list(whose), _COLUMNS, output)


@app.command()
def show(key: KeyName, output: Out = Output.TABLE) -> None:
    """Show a key, without its secret.

    Examples:
      usina key show nightly
    """
    with door.client() as site:
        found = site.keys.get(door.key_id(site, key))
    screen.show_one(found, _rows(found), output)


@app.command()
def rotate(key: KeyName, expires: Expires = None, yes: Yes = False, output: Out = Output.TABLE) -> None:
    """Give a key a new secret and show it, once. The old one stops at once.

    Examples:
      usina key rotate nightly
    """
    options.confirmed(f"Give {key} a new secret? The old one stops at once.", yes)
    with door.client() as site:
        fresh = site.keys.rotate(door.key_id(site, key), expires)
    _show_fresh(fresh, output)


@app.command()
def revoke(key: KeyName, yes: Yes = False) -> None:
    """Revoke a key, for good.

    Examples:
      usina key revoke nightly
    """
    options.confirmed(f"Revoke {key} for good?", yes)
    with door.client() as site:
        site.keys.revoke(door.key_id(site, key))
    screen.done(f"{key} opens nothing any more")
