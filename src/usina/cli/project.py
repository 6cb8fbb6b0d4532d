"""Projects: what owns resources."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
import typer

from usina.cli import config, door, exchange_words, options, screen, task_words
from usina.cli.options import NewName, Out, ProjectName, Yes
from usina.cli.screen import Cell, Output
from usina.client import Exchange, Project
from usina.core.errors import Invalid

app = options.noun(
    "Projects: what a tenant's machines, networks and images belong to.",
    "usina project create research --tenant acme",
    "usina project use research",
)

_TENANTS = options.completing(lambda site: site.tenants.list())
_COLUMNS: screen.Columns[Project] = [
    ("name", lambda p: p.name),
    ("id", lambda p: p.id),
    ("tenant", lambda p: p.tenant),
    ("age", lambda p: screen.age(p.created_at)),
]
_PROMPTS: screen.Columns[Exchange] = [
    ("at", lambda e: e.at[:19].replace("T", " ")),
    ("request", lambda e: e.request),
    ("model", lambda e: e.model),
    ("status", lambda e: str(e.status)),
    ("asked", lambda e: _short(exchange_words.asked(e.asked))),
    ("answered", lambda e: _short(exchange_words.answered(e.answered))),
]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:59]}…"


def _rows(project: Project) -> list[tuple[str, Cell]]:
    kept = f"kept for {project.keep_prompts} days" if project.keep_prompts else "not kept"
    return [*((title, draw(project)) for title, draw in _COLUMNS), ("prompts", kept)]


@app.command()
def create(
    name: NewName,
    tenant: Annotated[
        str, typer.Option("--tenant", "-t", help="Tenant, by name or id.", metavar="TENANT", autocompletion=_TENANTS)
    ],
    output: Out = Output.TABLE,
) -> None:
    """Create a project. It comes with a network and a security group called default.

    Examples:
      usina project create research --tenant acme
    """
    with door.client() as site:
        project = site.projects.create(name, tenant)
    screen.show_one(project, _rows(project), output)


@app.command("list")
def list_projects(output: Out = Output.TABLE) -> None:
    """List projects; the one in use has a star.

    Examples:
      usina project list
      usina project list -o json
    """
    with door.client() as site:
        used = site.project
        starred = [("", lambda p: "*" if used in (p.name, p.id) else ""), *_COLUMNS]
        screen.show_list(site.projects.list(), starred, output)


@app.command()
def show(project: ProjectName, output: Out = Output.TABLE) -> None:
    """Show a project.

    Examples:
      usina project show research
    """
    with door.client() as site:
        found = site.projects.get(project)
    screen.show_one(found, _rows(found), output)


@app.command()
def use(project: ProjectName) -> None:
    """Work in a project from now on, where --project says nothing else.

    Examples:
      usina project use research
    """
    with door.client() as site:
        found = site.projects.get(project)
    # By id when the name was not enough: names are unique within a tenant only.
    chosen = found.id if project == found.id else found.name
    config.store(msgspec.structs.replace(config.stored(), project=chosen))
    screen.done(f"working in project {found.name}")


@app.command()
def rename(project: ProjectName, name: Annotated[str, typer.Argument(help="The new name.")]) -> None:
    """Rename a project. Its id stays.

    Examples:
      usina project rename research lab
    """
    with door.client() as site:
        renamed = site.projects.rename(project, name)
    if config.stored().project == project:
        config.store(msgspec.structs.replace(config.stored(), project=renamed.name))
    screen.done(f"project {project} is called {renamed.name}")


@app.command()
def keep_prompts(
    project: ProjectName,
    days: Annotated[str, typer.Argument(help="So many days, such as 30d; off: not at all.", metavar="DAYS")],
    yes: Yes = False,
) -> None:
    """Keep what is asked and answered at the gateway of models, for admins to read; or end that.

    Nothing of it is kept unless a project asks for it. off forgets what there is.

    Examples:
      usina project keep-prompts research 30d
      usina project keep-prompts research off
      usina project prompts research
    """
    wanted = 0 if days == "off" else int(task_words.seconds(days, "days") // 86_400)
    if not wanted and days != "off":
        raise Invalid("days: at least 1d, or off", field="days")
    if not wanted:
        options.confirmed(f"Forget all that is kept of project {project}?", yes)
    with door.client() as site:
        site.projects.keep_prompts(project, wanted)
    screen.done(f"prompts are kept for {wanted} days from now on" if wanted else "prompts are not kept any more")


@app.command()
def prompts(
    project: ProjectName,
    last: Annotated[str, typer.Option(help="So far back: 90m, 24h, 30d.", metavar="TIME")] = "24h",
    output: Out = Output.TABLE,
) -> None:
    """Show what is kept of requests at the gateway of models, and of their answers; -o json has all of it.

    Examples:
      usina project prompts research --last 7d
      usina project prompts research -o json > prompts.json
    """
    since = datetime.now(UTC) - timedelta(seconds=task_words.seconds(last, "last"))
    with door.client() as site:
        found = site.projects.prompts(project, since.isoformat())
        screen.show_list(found, _PROMPTS, output, name="request")


@app.command()
def delete(project: ProjectName, yes: Yes = False) -> None:
    """Delete a project. Refused while it has resources beyond its default network and group.

    Examples:
      usina project delete research
    """
    options.confirmed(f"Delete project {project}?", yes)
    with door.client() as site:
        site.projects.delete(project)
    screen.done(f"project {project} is gone")
