"""The `usina` command: its nouns and verbs, and what becomes of errors.

Exit codes: 0 done, 1 refused or failed, 2 used wrongly, 3 the site does not answer, 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from usina.cli import screen
from usina.cli.shelf import Shelf
from usina.client.errors import ApiError, CannotConnect
from usina.core.errors import Invalid, Unavailable, UsinaError

app = typer.Typer(
    name="usina",
    cls=Shelf,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


@app.callback()
def usina() -> None:
    """An open control plane for AI factories.

    Begin with `usina up` on this machine, or `usina login ENDPOINT` for one that runs.
    `usina demo` shows the whole of it.

    Examples:
      usina up
      usina login --admin-file ~/.local/share/usina/admin.json
      usina machine create hello --image debian-12 --cores 2 --memory 2GiB
      usina ssh hello
      usina story hello
    """


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
