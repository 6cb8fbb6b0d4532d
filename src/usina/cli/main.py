"""The `usina` command: its nouns and verbs, and what becomes of errors.

Exit codes: 0 done, 1 refused or failed, 2 used wrongly, 3 the site does not answer, 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from usina import __version__
from usina.cli import demo as demonstration
from usina.cli import (
    doctor,
    forward,
    host,
    image,
    key,
    login,
    machine,
    machine_deeds,
    machine_inside,
    member,
    network,
    project,
    quota,
    screen,
    security_group,
    story,
    tenant,
    up,
    volume,
)
from usina.client import ApiError, CannotConnect
from usina.core.errors import Invalid, Unavailable, UsinaError

app = typer.Typer(
    name="usina",
    help="""An open control plane for AI factories.

Begin with `usina up` on this machine, or `usina login ENDPOINT` for one that runs. `usina demo` shows the whole of it.

Examples:
  usina up
  usina login http://127.0.0.1:8470 --admin-file ~/.local/share/usina/admin.json
  usina machine create hello --image debian-12 --cores 2 --memory 2GiB
  usina ssh hello
  usina story hello""",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)

NOUNS = {
    "machine": machine.app,
    "image": image.app,
    "volume": volume.app,
    "network": network.app,
    "security-group": security_group.app,
    "forward": forward.app,
    "tenant": tenant.app,
    "project": project.app,
    "member": member.app,
    "key": key.app,
    "quota": quota.app,
    "host": host.app,
}

machine_deeds.add_to(machine.app)
machine_inside.add_to(machine.app)
for _name, _noun in NOUNS.items():
    app.add_typer(_noun, name=_name)
for _command in (login.login, login.logout, login.whoami, machine_inside.ssh, story.story, story.events):
    app.command()(_command)
for _command in (up.up, doctor.doctor, demonstration.demo):
    app.command()(_command)


@app.command()
def version(output: screen.Output = typer.Option(screen.Output.TABLE, "--output", "-o")) -> None:
    """Show the version of this command.

    Examples:
      usina version
    """
    if output is screen.Output.JSON:
        screen.print_json({"version": __version__})
    else:
        print(__version__)


def run() -> NoReturn:
    """The entry point: run the command, turn errors into one line, a hint and an exit code."""
    try:
        app(prog_name="usina")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except UsinaError as error:
        sys.exit(explain(error))
    sys.exit(0)


def explain(error: UsinaError) -> int:
    """Say what went wrong on stderr; the exit code."""
    screen.fail(error.message, error.field, _hint(error))
    if isinstance(error, ApiError):
        for wrong in error.errors[1:]:
            screen.fail(wrong.get("message", ""), wrong.get("field"))
        return 1
    if isinstance(error, CannotConnect):
        return 3
    return 2 if isinstance(error, Invalid) or error.code == "not-logged-in" else 1


def _hint(error: UsinaError) -> str:
    """What would help, where that is known."""
    if error.code == "not-logged-in":
        return "usina login ENDPOINT, or set USINA_ENDPOINT and USINA_TOKEN"
    if isinstance(error, CannotConnect):
        return "is it running? `usina up` starts one here; `usina login ENDPOINT` goes to another"
    if isinstance(error, Unavailable):
        return "choose another with --port and --data-dir, or stop the one that runs"
    if not isinstance(error, ApiError):
        return ""
    if error.status == 401:
        return "log in again: usina login ENDPOINT --token TOKEN"
    if error.field == "project":
        return "choose one with --project NAME, or for good with `usina project use NAME`"
    if error.request_id:
        return f"your operator finds it in the log as {error.request_id}"
    return _HINTS.get(error.code, "")


_HINTS = {
    "quota-exceeded": "see `usina quota show`; an admin can raise it with `usina quota set`",
    "stale": "read it again and repeat",
    "in-use": "see what uses it with `usina story NAME`, and remove that first",
}


if __name__ == "__main__":
    run()
