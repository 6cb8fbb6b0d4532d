"""Budgets: tokens of models that a key, project or tenant may use up."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from usina.cli import door, options, screen
from usina.cli.options import Out, Yes
from usina.cli.screen import Output
from usina.client import Budget, Client

app = options.noun(
    "Budgets: tokens of models that a key, project or tenant may use up, exactly.",
    "usina budget set research 5M --every month",
    "usina budget list",
)

Scope = Annotated[str, typer.Argument(help="Tenant, project or key, by name or id.", metavar="WHOSE")]
_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def _ref(site: Client, whose: str) -> str:
    """A project or tenant as it is called; a key by name where it is written ``key:NAME``."""
    return door.key_id(site, whose.removeprefix("key:")) if whose.startswith("key:") else whose


def _share(budget: Budget) -> str:
    return f"{100 * budget.spent / budget.tokens:.1f} %" if budget.tokens else "–"


def _until(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M}" if at else "–"


_COLUMNS: screen.Columns[Budget] = [
    ("whose", lambda b: b.scope),
    ("tokens", lambda b: f"{b.tokens:,}"),
    ("every", lambda b: b.every),
    ("spent", lambda b: f"{b.spent:,}"),
    ("used", _share),
    ("left", lambda b: f"{b.left:,}"),
    ("begins anew", lambda b: _until(b.ends_at)),
]


def _tokens(text: str) -> int:
    number, unit = (text[:-1], _UNITS[text[-1].lower()]) if text and text[-1].lower() in _UNITS else (text, 1)
    try:
        return int(float(number) * unit)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number such as 250000, 500k or 5M") from None


@app.command("list")
def list_budgets(output: Out = Output.TABLE) -> None:
    """List the budgets that you see.

    Examples:
      usina budget list
    """
    with door.client() as site:
        screen.show_list(site.budgets.list(), _COLUMNS, output, name="scope")


@app.command()
def show(whose: Scope, output: Out = Output.TABLE) -> None:
    """Show one budget.

    Examples:
      usina budget show research
      usina budget show key:chatbot
    """
    with door.client() as site:
        found = site.budgets.get(_ref(site, whose))
    screen.show_one(found, [(title, draw(found)) for title, draw in _COLUMNS], output, name="scope")


@app.command("set")
def set_budget(
    whose: Scope,
    tokens: Annotated[int, typer.Argument(help="How many: 250000, 500k, 5M.", parser=_tokens, metavar="TOKENS")],
    every: Annotated[str, typer.Option(help="When it begins anew, in UTC: never, day or month.")] = "never",
    output: Out = Output.TABLE,
) -> None:
    """Set a budget. What is spent in the period under way stays spent.

    Examples:
      usina budget set research 5M --every month
      usina budget set key:chatbot 100k --every day
    """
    with door.client() as site:
        found = site.budgets.set(_ref(site, whose), tokens, every)
    screen.show_one(found, [(title, draw(found)) for title, draw in _COLUMNS], output, name="scope")


@app.command()
def delete(whose: Scope, yes: Yes = False) -> None:
    """Take a budget away: tokens are not counted against it any more.

    Examples:
      usina budget delete research
    """
    options.confirmed(f"Take the budget of {whose} away?", yes)
    with door.client() as site:
        site.budgets.delete(_ref(site, whose))
    screen.done(f"{whose} has no budget of its own any more")
