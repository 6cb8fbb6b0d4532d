"""Images: what machines start from. Made by a recipe, fetched from an address, or sent up from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from usina.cli import door, options, progress, screen, short_forms
from usina.cli.options import PATIENCE, Labels, NewName, Out, Project, Timeout, Wait, Yes
from usina.cli.options import Image as ImageName
from usina.cli.screen import Cell, Output
from usina.client import Client, Resource
from usina.core.errors import Invalid

app = options.noun(
    "Images: what machines start from.", "usina image create debian-12 --recipe debian-12", "usina image list"
)

Visibility = Annotated[str, typer.Option("--visibility", help="Who may use it: project, tenant or public.")]


def _source(image: Resource) -> str:
    spec = image.spec
    return {"recipe": f"recipe {spec['recipe']}", "url": str(spec["url"])}.get(spec["source"], "upload")


def _progress(image: Resource) -> str:
    if image.phase == "ready":
        return ""
    return image.trouble or f"{image.status['progress']:.0%} {image.status['message']}"


_COLUMNS: screen.Columns[Resource] = [
    ("name", lambda i: i.name),
    ("phase", lambda i: screen.phase(i.phase)),
    ("size", lambda i: screen.size(i.status.get("virtual_size"))),
    ("source", _source),
    ("user", lambda i: i.spec["user"]),
    ("visible to", lambda i: i.spec["visibility"]),
    ("age", lambda i: screen.age(i.created_at)),
    ("progress", _progress),
]


def _rows(image: Resource) -> list[tuple[str, Cell]]:
    rows: list[tuple[str, Cell]] = [
        ("name", f"{image.name} ({image.id})"),
        ("phase", screen.phase(image.phase)),
        ("progress", _progress(image)),
        ("source", _source(image)),
        ("size", screen.size(image.status.get("virtual_size"))),
        ("sha256", image.status.get("sha256", "")),
        ("login", image.spec["user"]),
        ("visible to", image.spec["visibility"]),
        ("labels", ", ".join(f"{name}={value}" for name, value in image.labels.items())),
        ("age", screen.age(image.created_at)),
    ]
    return [(title, value) for title, value in rows if value]


@app.command()
def create(
    name: NewName,
    recipe: Annotated[str | None, typer.Option(help="Build it by this recipe, such as debian-12.")] = None,
    url: Annotated[str | None, typer.Option(help="Fetch it from here.", metavar="URL")] = None,
    file: Annotated[Path | None, typer.Option(help="Send up this qcow2 or raw file.", metavar="FILE")] = None,
    sha256: Annotated[str | None, typer.Option(help="What its bytes must amount to.", metavar="HEX")] = None,
    visibility: Visibility = "project",
    user: Annotated[str | None, typer.Option(help="The name to log in with.")] = None,
    label: Labels = None,
    project: Project = None,
    wait: Wait = True,
    timeout: Timeout = 3600.0,
    output: Out = Output.TABLE,
) -> None:
    """Make an image and wait until it is ready. Give one of --recipe, --url and --file.

    Examples:
      usina image create debian-12 --recipe debian-12 --visibility public
      usina image create alma --url https://example.org/alma-9.qcow2 --sha256 9f86d0… --user almalinux
      usina image create mine --file ./disk.qcow2 --user ubuntu
    """
    if [recipe, url, file].count(None) != 2:
        raise Invalid("source: give one of --recipe, --url and --file", field="source")
    if file is not None and not file.is_file():
        raise Invalid(f"file: {file} is not there", field="file")
    with door.client(project) as site:
        ordered = site.images.create(
            name,
            recipe=recipe,
            url=url,
            upload=file is not None,
            sha256=sha256,
            visibility=visibility,
            user=user,
            labels=short_forms.labels(label or ()),
        )
        if file is not None:
            ordered = _send(site, ordered, file)
        image = progress.settle(site, ordered, wait, timeout)
    screen.show_one(image, _rows(image), output)


@app.command()
def upload(
    image: ImageName,
    file: Annotated[Path, typer.Argument(help="The same file again.", exists=True, dir_okay=False)],
    project: Project = None,
    wait: Wait = True,
    timeout: Timeout = PATIENCE,
    output: Out = Output.TABLE,
) -> None:
    """Go on with an upload that broke off, from where it broke off.

    Examples:
      usina image upload mine ./disk.qcow2
    """
    with door.client(project) as site:
        sent = _send(site, site.images.get(image), file)
        done = progress.settle(site, sent, wait, timeout)
    screen.show_one(done, _rows(done), output)


def _send(site: Client, image: Resource, file: Path) -> Resource:
    """Upload with a bar on stderr."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen.err(), transient=True) as bar:
        task = bar.add_task(f"sending {file.name}", total=file.stat().st_size)
        sent = site.images.send(image, file, lambda done, size: bar.update(task, completed=done, total=size))
    screen.done(f"sent {screen.size(file.stat().st_size)}; it is checked now")
    return sent


@app.command("list")
def list_images(
    project: Project = None,
    everywhere: Annotated[bool, typer.Option("--all", "-a", help="Of all projects.")] = False,
    output: Out = Output.TABLE,
) -> None:
    """List images: the project's own, and those shared with it.

    Examples:
      usina image list
      usina image list -o name
    """
    with door.client(project) as site:
        screen.show_list(site.images.list(everywhere=everywhere), _COLUMNS, output)


@app.command()
def show(image: ImageName, project: Project = None, output: Out = Output.TABLE) -> None:
    """Show an image.

    Examples:
      usina image show debian-12
    """
    with door.client(project) as site:
        found = site.images.get(image)
    screen.show_one(found, _rows(found), output)


@app.command()
def share(
    image: ImageName,
    visibility: Annotated[str, typer.Argument(help="Who may use it: project, tenant or public.", metavar="VISIBILITY")],
    project: Project = None,
) -> None:
    """Say who may use an image: its project, its tenant, or everybody.

    Examples:
      usina image share debian-12 tenant
      usina image share debian-12 public
    """
    with door.client(project) as site:
        shared = site.images.share(image, visibility)
    screen.done(f"image {shared.name} is visible to {shared.spec['visibility']}")


@app.command()
def delete(
    image: ImageName, project: Project = None, yes: Yes = False, wait: Wait = True, timeout: Timeout = PATIENCE
) -> None:
    """Delete an image. Refused while machines are made of it.

    Examples:
      usina image delete mine
    """
    options.confirmed(f"Delete image {image}?", yes)
    with door.client(project) as site:
        progress.leave(site, site.images.delete(image), wait, timeout)
