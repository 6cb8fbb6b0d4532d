"""Security groups: what may come in and go out."""

from __future__ import annotations

from typing import Annotated

import typer

from usina.cli import door, options, progress, screen, short_forms
from usina.cli.options import PATIENCE, Group, Labels, NewName, Out, Project, Timeout, Wait, Yes
from usina.cli.screen import Cell, Output
from usina.client import Resource

app = options.noun(
    "Security groups: what may come in to machines, and go out. What no rule allows is dropped.",
    "usina security-group create web --rule in:tcp:443 --rule out:all",
    "usina security-group show default",
)

_RULE_HELP = "DIRECTION:PROTOCOL, then a port or range and a remote range if wanted; repeat it."
Rules = Annotated[list[str] | None, typer.Option("--rule", "-r", help=_RULE_HELP, metavar="RULE")]


def _short(group: Resource, between: str) -> str:
    return between.join(short_forms.show_rule(rule) for rule in group.spec["rules"]) or "none"


_COLUMNS: screen.Columns[Resource] = [
    ("name", lambda g: g.name),
    ("phase", lambda g: screen.phase(g.phase)),
    ("rules", lambda g: _short(g, "  ")),
    ("age", lambda g: screen.age(g.created_at)),
    ("id", lambda g: g.id),
]


def _rows(group: Resource) -> list[tuple[str, Cell]]:
    return [
        ("name", f"{group.name} ({group.id})"),
        ("phase", screen.phase(group.phase)),
        ("rules", _short(group, "\n")),
        ("age", screen.age(group.created_at)),
    ]


@app.command()
def create(
    name: NewName,
    rule: Rules = None,
    label: Labels = None,
    project: Project = None,
    wait: Wait = True,
    timeout: Timeout = PATIENCE,
    output: Out = Output.TABLE,
) -> None:
    """Make a security group.

    Examples:
      usina security-group create web --rule in:tcp:80 --rule in:tcp:443 --rule out:all
      usina security-group create lab --rule in:tcp:8000-8100:10.0.0.0/8 --rule in:icmp --rule out:all
    """
    rules = [short_forms.rule(text) for text in rule or ()]
    with door.client(project) as site:
        ordered = site.security_groups.create(name, rules, labels=short_forms.labels(label or ()))
        group = progress.settle(site, ordered, wait, timeout)
    screen.show_one(group, _rows(group), output)


@app.command("list")
def list_groups(
    project: Project = None,
    everywhere: Annotated[bool, typer.Option("--all", "-a", help="Of all projects.")] = False,
    output: Out = Output.TABLE,
) -> None:
    """List security groups.

    Examples:
      usina security-group list
    """
    with door.client(project) as site:
        screen.show_list(site.security_groups.list(everywhere=everywhere), _COLUMNS, output)


@app.command()
def show(group: Group, project: Project = None, output: Out = Output.TABLE) -> None:
    """Show a security group.

    Examples:
      usina security-group show default
    """
    with door.client(project) as site:
        found = site.security_groups.get(group)
    screen.show_one(found, _rows(found), output)


@app.command()
def rules(
    group: Group,
    rules: Annotated[list[str] | None, typer.Argument(help="The new rules; none lets nothing through.")] = None,
    project: Project = None,
    wait: Wait = True,
    timeout: Timeout = PATIENCE,
    output: Out = Output.TABLE,
) -> None:
    """Replace the rules of a security group. Takes effect on what runs.

    Examples:
      usina security-group rules web in:tcp:22 in:tcp:443 out:all
      usina security-group rules web in:tcp:5432:10.0.0.0/8 out:all
    """
    fresh = [short_forms.rule(text) for text in rules or ()]
    with door.client(project) as site:
        group_now = progress.settle(site, site.security_groups.set_rules(group, fresh), wait, timeout)
    screen.show_one(group_now, _rows(group_now), output)


@app.command()
def delete(
    group: Group, project: Project = None, yes: Yes = False, wait: Wait = True, timeout: Timeout = PATIENCE
) -> None:
    """Delete a security group. Refused while machines or tasks use it.

    Examples:
      usina security-group delete web
    """
    options.confirmed(f"Delete security group {group}?", yes)
    with door.client(project) as site:
        progress.leave(site, site.security_groups.delete(group), wait, timeout)
