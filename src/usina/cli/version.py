"""The version of this command."""

from __future__ import annotations

from usina import __version__
from usina.cli import screen
from usina.cli.options import Out
from usina.cli.screen import Output


def version(output: Out = Output.TABLE) -> None:
    """Show the version of this command.

    Examples:
      usina version
    """
    if output is Output.JSON:
        screen.print_json({"version": __version__})
    else:
        print(__version__)
