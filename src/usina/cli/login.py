"""Logging in and out, and who one is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.prompt import Prompt

from usina.cli import config, door, screen
from usina.cli.options import Out
from usina.cli.screen import Output
from usina.client import Client
from usina.core.errors import Invalid


class _Admin(msgspec.Struct):
    """What `usina up` leaves in its data folder when it founds a site."""

    endpoint: str
    token: str


def login(
    endpoint: Annotated[str, typer.Argument(help="Where the site is; with --admin-file, what that says.")] = "",
    token: Annotated[str, typer.Option(help="A key's token, usk-…; asked for when absent.", metavar="TOKEN")] = "",
    admin_file: Annotated[
        Path | None, typer.Option(help="The admin.json of a site founded here.", metavar="FILE")
    ] = None,
    project: Annotated[str | None, typer.Option("--project", "-p", help="Project to work in.")] = None,
) -> None:
    """Log in to a site: check the key and remember it (mode 600).

    Examples:
      usina login http://127.0.0.1:8470
      usina login https://usina.example.org --token usk-…
      usina login --admin-file ~/.local/share/usina/admin.json
    """
    if admin_file is not None:
        admin = _read_admin(admin_file)
        endpoint, token = endpoint or admin.endpoint, token or admin.token
    if not endpoint:
        raise Invalid("endpoint: say where the site is, for example http://127.0.0.1:8470", field="endpoint")
    token = token or Prompt.ask("Token", password=True, console=screen.err())
    with Client(endpoint, token, timeout=15) as site:
        me = site.whoami()
        if project is not None:
            site.projects.get(project)
        projects = [one.name for one in site.projects.list()]
        chosen = project or (projects[0] if len(projects) == 1 and me.project is None else None)
        place = config.store(config.Config(site.endpoint, token, chosen))
    screen.done(f"logged in to {endpoint} as {me.name}" + (f", project {chosen}" if chosen else ""))
    screen.say(f"  remembered in {place}")
    if chosen is None and me.project is None and projects:
        screen.say(f"  choose a project: usina project use NAME ({', '.join(projects[:8])})")


def _read_admin(file: Path) -> _Admin:
    try:
        return msgspec.json.decode(file.expanduser().read_bytes(), type=_Admin)
    except OSError as error:
        raise Invalid(f"admin-file: {file}: {error.strerror}", field="admin-file") from None
    except msgspec.MsgspecError:
        raise Invalid(f"admin-file: {file} is not an admin.json of `usina up`", field="admin-file") from None


def logout() -> None:
    """Forget the site and the key. The key itself stays valid; `usina key revoke` ends it.

    Examples:
      usina logout
    """
    if config.forget():
        screen.done("forgotten")
    else:
        screen.say("nobody was logged in")


def whoami(output: Out = Output.TABLE) -> None:
    """Show who the key belongs to, and what it may do.

    Examples:
      usina whoami
      usina whoami -o json
    """
    with door.client() as site:
        me = site.whoami()
        rows = [
            ("member", f"{me.name} ({me.member})"),
            ("key", me.key),
            ("site", site.endpoint),
            ("tenant", me.tenant or "– (of the site itself)"),
            ("project", me.project or site.project or "–"),
            ("roles", ", ".join(f"{role} of {_scope(scope)}" for scope, role in me.roles.items()) or "none"),
        ]
    screen.show_one(me, rows, output)


def _scope(scope: str) -> str:
    return "the site" if scope == "*" else scope
