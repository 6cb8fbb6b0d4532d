"""Starting a factory in this process. One of the few commands that know the server, and only once they run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer
from rich.rule import Rule
from rich.text import Text

from usina.cli import screen
from usina.core.errors import Invalid

if TYPE_CHECKING:
    from usina.server.settings import Settings

HOME = Path("~/.local/share/usina")
PORT = 8470
_ROLES = ("api", "engine", "gateway")


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
    roles: Annotated[str, typer.Option(help="What this process does, of api, engine, gateway.")] = ",".join(_ROLES),
    gateway_workers: Annotated[
        str, typer.Option(help="Processes that serve models: a number, or auto for one a core.", metavar="N")
    ] = "1",
    local_host: Annotated[bool, typer.Option(help="Take this machine into service when founding.")] = True,
    allow_private_urls: Annotated[bool, typer.Option(help="Let images be fetched from private addresses.")] = False,
    hub_upstream: Annotated[
        str, typer.Option(help="Hub that models may be imported from (Hugging Face protocol).", metavar="URL")
    ] = "",
    hub_token_file: Annotated[Path | None, typer.Option(help="File with the key for it.", metavar="FILE")] = None,
    hub_on_demand: Annotated[bool, typer.Option(help="Import from it whatever members ask for.")] = False,
    traces: Annotated[
        str, typer.Option(help="Collector for traces (OTLP over HTTP), such as http://localhost:4318.", metavar="URL")
    ] = "",
    traces_share: Annotated[
        float, typer.Option(help="Share of the traces that begin here; callers decide on theirs.", min=0, max=1)
    ] = 0.05,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="How to place: a policy for all hosts, or one for a group of them.", metavar="[GROUP:]POLICY"
        ),
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            help="Setting of what serves models, such as vllm.image; repeat it.", metavar="NAME.SETTING=VALUE"
        ),
    ] = None,
    guards: Annotated[
        Path | None, typer.Option(help="TOML file that sets up guards of models.", metavar="FILE")
    ] = None,
) -> None:
    """Start a factory here. The first start founds the site and shows its first key, once.

    Examples:
      usina up
      usina up --data-dir /srv/usina --bind 0.0.0.0
      usina up --data-dir /srv/usina --database postgresql://usina@db/usina --master-key-file /etc/usina.key
      usina up --no-local-host --port 8571 --data-dir /tmp/trial
      usina up --hub-upstream https://hub.example.org --hub-token-file /etc/usina-hub.token
      usina up --policy fragmentation --policy cpu:pack
      usina up --gateway-workers 4
      usina up --runtime vllm.environment=/opt/vllm
      usina up --runtime vllm.image=docker.io/vllm/vllm-openai:latest
      usina up --traces http://localhost:4318 --traces-share 0.2
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
        gateway_workers=_workers(gateway_workers),
        local_host=local_host,
        allow_private_urls=allow_private_urls,
        hub_upstream=_address(hub_upstream, "hub-upstream", "https://hub.example.org"),
        hub_token_file=hub_token_file.expanduser().absolute() if hub_token_file else None,
        hub_on_demand=hub_on_demand,
        traces=_address(traces, "traces", "http://localhost:4318"),
        traces_share=traces_share,
        policies=tuple(policy or ()),
        runtimes=_runtimes(runtime or ()),
        guards=guards.expanduser().absolute() if guards else None,
    )
    try:
        run(settings, announce)
    except PermissionError as error:
        raise Invalid(f"data-dir: {error.filename or data_dir}: {error.strerror}", field="data-dir") from None


def _runtimes(words: Sequence[str]) -> dict[str, dict[str, str]]:
    """``vllm.image=…`` → {"vllm": {"image": "…"}}. Names of runtimes may have points in them, settings none."""
    found: dict[str, dict[str, str]] = {}
    for word in words:
        left, equals, value = word.partition("=")
        name, point, setting = left.rpartition(".")
        if not (equals and point and name and setting):
            raise Invalid(f"runtime: {word!r} is not like vllm.image=VALUE", field="runtime")
        found.setdefault(name, {})[setting] = value
    return found


def _address(address: str, field: str, example: str) -> str:
    parts = urlsplit(address)
    if address and (parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None):
        raise Invalid(f"{field}: {address!r} is not an address such as {example}", field=field)
    return address.rstrip("/")


def _workers(text: str) -> int:
    if text == "auto":
        return len(os.sched_getaffinity(0))
    if not (text.isascii() and text.isdecimal()):
        raise Invalid(f"gateway-workers: {text!r} is not a number, nor auto", field="gateway-workers")
    return int(text)


def _roles(text: str) -> frozenset[str]:
    roles = frozenset(part.strip() for part in text.split(",") if part.strip())
    if not roles or roles - set(_ROLES):
        raise Invalid(f"roles: {text!r}: give one or more of {', '.join(_ROLES)}", field="roles")
    return roles


def announce(settings: Settings, admin: dict[str, str] | None) -> None:
    """Where the factory is and what to type next; the first key only when the site was founded just now."""
    file = settings.data_dir / "admin.json"
    fresh = admin is not None
    console = screen.out()

    def line(title: str, value: str, style: str = "") -> None:
        console.print(Text.assemble((f"  {title:10}", "dim"), (value, style)), soft_wrap=True)

    # Lines without a frame, so that what is long can be copied from any terminal.
    console.print(Rule("Usina is up: a new site" if fresh else "Usina is up", style="green", align="left"), width=80)
    line("address", settings.endpoint if "api" in settings.roles else "none: engine only", "bold")
    line("data", str(settings.data_dir))
    if admin is not None:
        line("admin", str(file))
        line("first key", admin["token"], "bold yellow")
        line("", "shown this once; the file keeps it", "dim")
    line("", "")
    line("next, in another terminal", "")
    console.print(f"    usina login {settings.endpoint} --admin-file {shlex.quote(str(file))}", soft_wrap=True)
    console.print("    usina image create debian-12 --recipe debian-12", soft_wrap=True)
    console.print(Rule("Ctrl-C stops it; machines go on running", style="green", align="left"), width=80)
    console.file.flush()
