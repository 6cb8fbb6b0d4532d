"""`usina run`: a command, somewhere, as if it ran here."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from usina.cli import chart, door, package, progress, screen, task_words
from usina.cli.options import Labels, Project
from usina.cli.short_forms import labels as labels_of
from usina.client import ApiError, Client, LogLine, Resource
from usina.core.errors import Invalid
from usina.core.units import parse_size

OVER = frozenset({"succeeded", "failed", "stopped"})
ENDED_BY = {"time-limit": 124, "out-of-memory": 137, "stopped": 143}
LARGE = 100 << 20
CHART_AFTER = 10.0  # seconds of running from which a chart tells anything

Many = list[str] | None


def run(
    command: Annotated[Many, typer.Argument(help="Command to run, after --.", metavar="COMMAND")] = None,
    on: Annotated[
        str | None, typer.Option(help="Stack: local, container, slurm or machine; else local, or that of --machine.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="A name for it; else one is made up.")] = None,
    cores: Annotated[float, typer.Option(help="Cores; fractions are fine.", min=0.001)] = 1.0,
    mem: Annotated[str, typer.Option("--mem", help="Memory.", metavar="SIZE")] = "1GiB",
    gpus: Annotated[
        Many,
        typer.Option(
            help="N, MODEL or MODEL:N; then ,memory=SIZE ,linked ,share=500 ,profile=1g.10gb; repeat it.", metavar="GPU"
        ),
    ] = None,
    time_limit: Annotated[
        str | None, typer.Option("--time", "-t", help="Time limit: 90s, 1h30m, 01:30:00.", metavar="TIME")
    ] = None,
    array: Annotated[
        str | None, typer.Option(help="Once for each index, such as 0-99%10: ten at a time.", metavar="INDICES")
    ] = None,
    replicas: Annotated[int, typer.Option(help="A gang: so many at the same time, or none.", min=1)] = 1,
    image: Annotated[str, typer.Option(help="Container image.", metavar="IMAGE")] = "",
    archive: Annotated[
        Path | None, typer.Option(help="OCI archive to be the image.", metavar="FILE", exists=True)
    ] = None,
    env: Annotated[Many, typer.Option("--env", "-e", help="NAME=VALUE, or NAME as it is here; repeat it.")] = None,
    secret: Annotated[
        Many, typer.Option(help="NAME as it is here, or NAME=@FILE; never shown; repeat it.", metavar="NAME")
    ] = None,
    package_dir: Annotated[
        Path | None, typer.Option("--package", help="Folder to take along; else this one.", metavar="DIR")
    ] = None,
    bare: Annotated[bool, typer.Option("--bare", help="Take no folder along.")] = False,
    volume: Annotated[
        Many,
        typer.Option("--volume", "-v", help="NAME:PATH or NAME:PATH:ro, a folder volume; repeat it.", metavar="VOLUME"),
    ] = None,
    output: Annotated[
        Many, typer.Option("--keep", "-k", help="Pattern of files to keep when it has ended; repeat it.")
    ] = None,
    port: Annotated[list[int] | None, typer.Option(help="Port that it listens on; repeat it.")] = None,
    network: Annotated[
        str, typer.Option(help="What it reaches: none, outbound, host, or a network of the project by name.")
    ] = "none",
    security_group: Annotated[
        Many, typer.Option(help="On a network of the project; else its default one; repeat it.", metavar="NAME")
    ] = None,
    restart: Annotated[str, typer.Option(help="never, on-failure or always.")] = "never",
    retries: Annotated[int, typer.Option(help="Restarts after failures at most.", min=0)] = 3,
    after: Annotated[Many, typer.Option(help="TASK, or TASK:end; begins afterwards; repeat it.")] = None,
    machine: Annotated[
        str | None,
        typer.Option("--machine", help="Machine of the project to run in, on stack machine.", metavar="NAME"),
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm account.")] = None,
    qos: Annotated[str | None, typer.Option(help="Slurm QoS.")] = None,
    more: Annotated[
        Many, typer.Option("--set", help="KEY=VALUE that only its stack understands; repeat it.", metavar="KEY=VALUE")
    ] = None,
    label: Labels = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Order it and leave it.")] = False,
    remove: Annotated[bool, typer.Option("--rm", help="Delete it when it has ended.")] = False,
    project: Project = None,
) -> None:
    """Run a command on any stack: the working directory goes along, what it says comes here, and so does its exit code.

    What git ignores stays here. Ctrl-C stops the task.

    Examples:
      usina run -- python train.py
      usina run --gpus 1 --mem 16GiB --time 2h -- python train.py
      usina run --gpus h100:2 --on slurm --partition main -- python train.py
      usina run --array 0-99%10 -- sh -c 'python part.py $USINA_INDEX'
      usina run --replicas 4 --network train --security-group mesh -- python train.py
      usina run --on container --image docker.io/library/python:3.12 -- python -V
      usina run --machine box -- nvidia-smi
      usina run --volume data:/data --volume models:models:ro -- python train.py
      usina run --detach --keep 'results/*' -- make all
    """
    if not command and not image and archive is None:
        raise Invalid("command: say what to run, after --: usina run -- python train.py", field="command")
    indices, at_once = task_words.array(array) if array else ([], 0)
    wishes: dict[str, Any] = {
        "name": name,
        "on": on or ("machine" if machine else "local"),
        "cores": cores,
        "memory": parse_size(mem, "mem"),
        "devices": task_words.devices(gpus or ()),
        "time_limit": task_words.seconds(time_limit) if time_limit else 0.0,
        "indices": indices,
        "at_once": at_once,
        "replicas": replicas,
        "image": image,
        "environment": task_words.variables(env or ()),
        "secrets": task_words.secrets(secret or ()),
        "volumes": task_words.volumes(volume or ()),
        "outputs": list(output or ()),
        "ports": list(port or ()),
        "network": network,
        "security_groups": security_group or None,
        "restart": restart,
        "retries": retries,
        "after": task_words.after(after or ()),
        "machine": machine,
        "dialect": task_words.dialect(more or (), partition=partition, account=account, qos=qos),
        "labels": labels_of(label or ()),
    }
    with door.client(project) as site:
        folder = None if bare else package_dir or Path.cwd()
        task = order(site, command or [], wishes, folder, archive)
        if detach:
            screen.done(f"{task.title} is ordered: usina task logs -f {task.name}")
            return
        code = attend(site, task)
        if remove:
            site.tasks.delete(task.id)
    raise typer.Exit(code)


def order(
    site: Client, command: list[str], wishes: dict[str, Any], folder: Path | None, archive: Path | None = None
) -> Resource:
    """Give what it takes along, and order it."""
    with ExitStack() as stack:
        if folder is not None:
            packed = stack.enter_context(package.packed(folder))
            if packed.files:
                digest = _give(site, packed.path, f"{packed.files} files, {screen.size(packed.size)}")
                wishes["files"] = [{"digest": digest, "unpack": True}]
        if archive is not None:
            wishes["archive"] = _give(site, archive, f"image {archive.name}")
    return site.tasks.create(command, **wishes)


def _give(site: Client, path: Path, what: str) -> str:
    size = path.stat().st_size
    if size > LARGE:
        screen.warn(f"{what} to send: {screen.size(size)} packed; .usinaignore leaves files out")
    sent = 0

    with screen.err().status(f"sending {what} ({screen.size(size)} packed)") as status:

        def told(more: int) -> None:
            nonlocal sent
            sent += more
            status.update(f"sending {what}: {screen.size(sent)} of {screen.size(size)}")

        return site.tasks.give(path, told=told)


def attend(site: Client, task: Resource) -> int:
    """Show what it says until it is over; Ctrl-C stops it. The exit code to leave with."""
    try:
        _show(site, task)
        return _over(site, task)
    except KeyboardInterrupt:
        screen.warn(f"stopping {task.name}; Ctrl-C again leaves it to itself")
        site.tasks.stop(task.id)
        _over(site, task)
        return 130


def _show(site: Client, task: Resource) -> None:
    """The phases until it says something, then what it says."""
    heard = threading.Event()
    with progress.watching() as watcher:
        waiter = threading.Thread(target=_wait_aloud, args=(site, task, watcher, heard), daemon=True)
        waiter.start()
        lines = site.tasks.logs(task.id, follow=True)
        first = next(lines, None)
        heard.set()
        waiter.join(timeout=5)
    if first is not None:
        say(first)
        for line in lines:
            say(line)


def _wait_aloud(site: Client, task: Resource, watcher: progress.Watcher, heard: threading.Event) -> None:
    with door.client(timeout=10) as mine:  # a connection of its own: the other one is reading
        while not heard.wait(0.4):
            try:
                now = mine.tasks.get(task.id)
            except ApiError:
                return
            doing = now.status.get("doing") or now.trouble
            if doing:
                watcher.tell(doing)
            watcher(now, None)


def say(line: LogLine) -> None:
    """Output to stdout, errors to stderr, as if it ran here."""
    stream = sys.stdout if line.stream == "o" else sys.stderr
    text = screen.clean(line.text) if stream.isatty() else line.text
    stream.write(text + "\n")
    stream.flush()


def _over(site: Client, task: Resource) -> int:
    """Wait for the end, and tell how it was where it was not well."""
    while True:
        now = site.tasks.get(task.id)
        if now.phase in OVER and now.observed == now.generation:
            break
        time.sleep(0.1)
    tell_end(site, now)
    return exit_code(now)


def tell_end(site: Client, task: Resource) -> None:
    if task.phase != "succeeded":
        reason = task.status.get("message") or task.trouble or task.phase
        screen.say(Text.assemble((f"{task.phase}: ", "bold red"), screen.clean(str(reason))))
    began, ended = task.status.get("began_at"), task.status.get("ended_at")
    if began and ended and ended - began >= CHART_AFTER and sys.stderr.isatty():
        for line in chart.lines(site.tasks.usage(task.id), task.spec["cores"], task.spec["memory"]):
            screen.say(line)
    if task.status.get("artifacts"):
        screen.say(Text(f"kept: usina task download {task.name}", style="dim"))


def exit_code(task: Resource) -> int:
    """As the task left, or by what ended it."""
    if task.phase == "succeeded":
        return 0
    code = task.status.get("code")
    by = ENDED_BY.get(str(task.status.get("how")))
    return by if by is not None else code if isinstance(code, int) and code else 1
