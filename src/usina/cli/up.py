"""Starting a factory in this process. One of the few commands that know the server, and only once they run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.panel import Panel
from rich.text import Text

from usina.cli import screen
from usina.core.errors import Invalid

if TYPE_CHECKING:
    from usina.server.settings import Settings

HOME = Path("~/.local/share/usina")
PORT = 8470
_ROLES = ("api", "engine")


def up(
    data_dir: Annotated[Path, typer.Option(help="Where the site keeps everything.", metavar="FOLDER")] = HOME,
    port: Annotated[int, typer.Option(help="Port of every HTTP door.", min=1, max=65535)] = PORT,
    bind: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    database: Annotated[
        str, typer.Option(help="postgresql://… to share one database; else SQLite in the folder.", metavar="URL")
    ] = "",
    master_key_file: Annotated[
        Path | None, typer.Option(help="Key that all secrets derive from; else in the folder.", metavar="FILE")
    ] = None,
    roles: Annotated[str, typer.Option(help="What this process does: api, engine or both.")] = "api,engine",
    local_host: Annotated[bool, typer.Option(help="Take this machine into service when founding.")] = True,
    allow_private_urls: Annotated[bool, typer.Option(help="Let images be fetched from private addresses.")] = False,
) -> None:
    """Start a factory here. The first start founds the site and shows its first key, once.

    Examples:
      usina up
      usina up --data-dir /srv/usina --bind 0.0.0.0
      usina up --data-dir /srv/usina --database postgresql://usina@db/usina --master-key-file /etc/usina.key
      usina up --no-local-host --port 8571 --data-dir /tmp/trial
    """
    from usina.server.run import run
    from usina.server.settings import Settings

    settings = Settings(
        data_dir=data_dir.expanduser().absolute(),
        port=port,
        bind=bind,
        database=database,
        master_key_file=master_key_file.expanduser().absolute() if master_key_file else None,
        roles=_roles(roles),
        local_host=local_host,
        allow_private_urls=allow_private_urls,
    )
    try:
        run(settings, announce)
    except PermissionError as error:
        raise Invalid(f"data-dir: {error.filename or data_dir}: {error.strerror}", field="data-dir") from None


def _roles(text: str) -> frozenset[str]:
    roles = frozenset(part.strip() for part in text.split(",") if part.strip())
    if not roles or roles - set(_ROLES):
        raise Invalid(f"roles: {text!r}: give one or more of {', '.join(_ROLES)}", field="roles")
    return roles


def announce(settings: Settings, admin: dict[str, str] | None) -> None:
    """Where the factory is and what to type next; the first key only when the site was founded just now."""
    lines = Text()
    lines.append(f"{settings.endpoint}\n" if "api" in settings.roles else "engine only: no door here\n", style="bold")
    lines.append("data      ", style="dim").append(f"{settings.data_dir}\n")
    file = settings.data_dir / "admin.json"
    if admin is not None:
        lines.append("admin     ", style="dim").append(f"{file}\n")
        lines.append("first key ", style="dim").append(admin["token"], style="bold yellow")
        lines.append("  (shown once)\n", style="dim")
    lines.append("\nnext, in another terminal\n", style="dim")
    lines.append(f"  usina login {settings.endpoint} --admin-file {file}\n")
    lines.append("  usina image create debian-12 --recipe debian-12\n")
    lines.append("\nCtrl-C stops it; machines go on running", style="dim")
    title = "Usina is up: a new site" if admin is not None else "Usina is up"
    console = screen.out()
    console.print(Panel(lines, title=title, border_style="green", expand=False, padding=(1, 2)), soft_wrap=True)
    console.file.flush()
