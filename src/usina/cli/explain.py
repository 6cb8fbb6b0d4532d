"""Why a machine is where it is, or nowhere."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from usina.cli import door, options, screen
from usina.cli.options import Out, Project
from usina.cli.screen import Output
from usina.client import Explanation

_NAMED = options.completing(lambda site: site.machines.list())


def explain(
    name: Annotated[str, typer.Argument(help="Name or id of a machine.", metavar="ORDER", autocompletion=_NAMED)],
    project: Project = None,
    output: Out = Output.TABLE,
) -> None:
    """Say why placement put a machine where it is, or why no host can have it now.

    Hosts that cannot have it are counted by the first reason against each. Hosts that can are ranked by cost, less is
    better, with what each idea of the policy adds to it. Operators also see hosts' names, and whose place the
    machine's priority could take.

    Examples:
      usina explain train-1
      usina explain train-1 -o json
    """
    with door.client(project) as site:
        found = site.machines.explain(name)
    if output is Output.TABLE:
        _show(name, found)
    else:
        screen.show_one(found, [], output, name="policy")


def _show(name: str, found: Explanation) -> None:
    out = screen.out()
    title = screen.clean(name)
    if found.placed:
        out.print(Text(f"{title} fits {found.fits} of {found.hosts} hosts; policy {found.policy}"))
    else:
        out.print(Text(f"no host can have {title} now; {found.hosts} were asked", style="yellow"))
    if found.best:
        parts = list(found.best[0].parts)
        rows = [
            (
                score.name or f"host {number}",
                f"{score.cost:.4f}",
                *(f"{score.parts.get(part, 0):.4f}" for part in parts),
            )
            for number, score in enumerate(found.best, start=1)
        ]
        out.print(screen.table(["host", "cost", *parts], rows))
    if found.reasons:
        counted = sorted(found.reasons.items(), key=lambda item: -item[1])
        out.print(screen.table(["hosts", "that"], [(str(count), reason) for reason, count in counted]))
    if found.nearest:
        out.print(Text(f"nearest: {screen.clean(found.nearest_host) or 'one host'}: {screen.clean(found.nearest)}"))
    if found.largest:
        out.print(Text(screen.clean(found.largest)))
    for victim in found.victims:
        out.print(Text(f"could take the place of {screen.clean(victim.resource)}: {screen.clean(victim.why)}"))
