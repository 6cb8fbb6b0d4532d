"""Keys: the ways in. A secret is shown once, when it is made, and never again."""

from __future__ import annotations

from typing import Annotated

import typer

from usina.cli import door, options, screen
from usina.cli.options import Key as KeyName
from usina.cli.options import NewName, Out, Yes
from usina.cli.screen import Cell, Output
from usina.client import FreshKey, Key, Limits

app = options.noun(
    "Keys: one key opens every door, for one member, and can be limited in place, power and time.",
    "usina key create laptop",
    "usina key list",
)

Expires = Annotated[
    str | None, typer.Option("--expires", help="When it ends, such as 2027-01-31T12:00:00Z.", metavar="TIME")
]


Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="It may use this endpoint (or ENDPOINT:ADAPTER) only; repeat it.", metavar="NAME"),
]
Requests = Annotated[int, typer.Option(help="Requests to models a minute; 0: no limit.", min=0)]
Tokens = Annotated[int, typer.Option(help="Tokens a minute, of prompts and answers; 0: no limit.", min=0)]
AtOnce = Annotated[int, typer.Option("--at-once", help="Requests to models at a time; 0: no limit.", min=0)]
Priority = Annotated[
    int, typer.Option(help="Where replicas are full: -1 after all others, 1 before them.", min=-1, max=1)
]


def _limited(key: Key) -> str:
    limits = key.limits
    told = [f"only {', '.join(limits.models)}"] if limits.models else []
    told += [f"{value:,} {word}" for value, word in (
        (limits.requests, "requests/min"), (limits.tokens, "tokens/min"), (limits.concurrency, "at a time")
    ) if value]  # fmt: skip
    return "; ".join(told + ([f"priority {limits.priority:+d}"] if limits.priority else [])) or "no limits"


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
    return [*((title, draw(key)) for title, draw in _COLUMNS), ("models", _limited(key))]


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
    model: Models = None,
    requests: Requests = 0,
    tokens: Tokens = 0,
    at_once: AtOnce = 0,
    priority: Priority = 0,
    output: Out = Output.TABLE,
) -> None:
    """Make a key and show its secret, once.

    Examples:
      usina key create laptop
      usina key create chatbot --project research --model chat --requests 60 --tokens 100000 --at-once 4
      usina key create nightly --project research --role viewer --expires 2027-01-31T12:00:00Z
      usina key create first --member ada -o json
    """
    with door.client() as site:
        key = site.keys.create(
            name,
            member=door.member_id(site, member),
            project=project,
            role=role,
            expires_at=expires,
            limits=Limits(tuple(model or ()), requests, tokens, at_once, priority),
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
def limit(
    key: KeyName,
    model: Models = None,
    requests: Requests = 0,
    tokens: Tokens = 0,
    at_once: AtOnce = 0,
    priority: Priority = 0,
    output: Out = Output.TABLE,
) -> None:
    """Set what a key may do at the gateway of models; what is not named is not limited.

    Examples:
      usina key limit chatbot --model chat --requests 60 --tokens 100000 --at-once 4
      usina key limit chatbot
    """
    limits = Limits(tuple(model or ()), requests, tokens, at_once, priority)
    with door.client() as site:
        found = site.keys.limit(door.key_id(site, key), limits)
    screen.show_one(found, _rows(found), output)


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
