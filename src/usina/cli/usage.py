"""What was used of models."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated

import typer

from usina.cli import door, screen, task_words
from usina.cli.options import Out
from usina.cli.screen import Output
from usina.client import ModelUsage

_BY = ("tenant", "project", "member", "key", "endpoint", "model")


def _columns(by: list[str], called: Mapping[str, str], timed: bool) -> screen.Columns[ModelUsage]:
    """`called`: names of ids, for people."""

    when: screen.Columns[ModelUsage] = [("from", lambda u: f"{u.at:%Y-%m-%d %H:%M}" if u.at else "–")] if timed else []
    names: screen.Columns[ModelUsage] = [(name, partial(_name, name, called)) for name in by]
    sums: screen.Columns[ModelUsage] = [
        ("requests", lambda u: f"{u.requests:,}"),
        ("failed", lambda u: f"{u.failed:,}"),
        ("prompt", lambda u: f"{u.prompt:,}"),
        ("cached", lambda u: f"{u.cached:,}"),
        ("completion", lambda u: f"{u.completion:,}"),
        ("s each", lambda u: f"{u.seconds / u.requests:.2f}" if u.requests else "–"),
    ]
    return [*when, *names, *sums]


def _name(what: str, called: Mapping[str, str], row: ModelUsage) -> str:
    id = getattr(row, what) or "–"
    return called.get(id, id)


def usage(
    by: Annotated[
        list[str] | None, typer.Option("--by", help=f"Sum up by {', '.join(_BY)}; may be given again.", metavar="WHAT")
    ] = None,
    last: Annotated[str, typer.Option(help="So far back: 90m, 24h, 30d.", metavar="TIME")] = "24h",
    every: Annotated[str | None, typer.Option(help="In steps of: 1m, 1h, 1d.", metavar="TIME")] = None,
    project: Annotated[str | None, typer.Option("--project", "-p", help="Of this project only.")] = None,
    output: Out = Output.TABLE,
) -> None:
    """What was used of models: requests, and tokens of prompts and answers.

    Examples:
      usina usage
      usina usage --by member --by model --last 30d
      usina usage --by endpoint --every 1h -o json
    """
    wanted = by or ["endpoint"]
    since = datetime.now(UTC) - timedelta(seconds=task_words.seconds(last, "last"))
    step = task_words.seconds(every, "every") if every else 0
    with door.client() as site:
        report = site.usage(wanted, since=since.isoformat(), every=step, project=project)
        names = {one.id: one.name for one in site.endpoints.list()} if "endpoint" in wanted else {}
    screen.show_list(report.items, _columns(wanted, names, bool(step)), output, name="endpoint")
