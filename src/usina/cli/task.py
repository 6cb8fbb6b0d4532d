"""Tasks: what was run. List, show, follow, get into, fetch what they left, run again."""

from __future__ import annotations

import os
import socket
import sys
import tarfile
import tempfile
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from usina.cli import chart, door, options, progress, run, screen, task_words, terminal
from usina.cli.options import PATIENCE, Out, Project, Timeout, Wait, Yes
from usina.cli.screen import Cell, Output
from usina.client import Client, LogLine, Resource, Stream
from usina.core.errors import Invalid, NotFound, Unavailable
from usina.core.units import parse_size

app = options.noun(
    "Tasks: what was run, and how it went. `usina run` orders one.",
    "usina task list",
    "usina task logs -f train-7k2m9x",
    "usina task exec train-7k2m9x -- nvidia-smi",
)

Task = Annotated[str, options.name_of("Task", lambda site: site.tasks.list())]
Index = Annotated[int | None, typer.Option("--index", "-i", help="A part of an array or gang.", min=0)]
CHUNK = 64 * 1024


def _ran(task: Resource) -> str:
    began, ended = task.status.get("began_at"), task.status.get("ended_at")
    if not began:
        return "–"
    seconds = int((ended or datetime.now(UTC).timestamp()) - began)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _code(task: Resource) -> str:
    code = task.status.get("code")
    return "–" if code is None else str(code)


def _command(task: Resource) -> str:
    text = " ".join(task.spec["command"]) or task.spec["image"]
    return text if len(text) <= 60 else text[:59] + "…"


def _sizes(task: Resource) -> str:
    gpus = sum(one["count"] for one in task.spec["devices"])
    more = f", {gpus} GPU{'s' if gpus > 1 else ''}" if gpus else ""
    cores = task.spec["cores"]
    return f"{cores:g} {'core' if cores == 1 else 'cores'}, {screen.size(task.spec['memory'])}{more}"


_COLUMNS: screen.Columns[Resource] = [
    ("name", lambda t: t.name),
    ("phase", lambda t: screen.phase(t.phase)),
    ("on", lambda t: t.spec["on"]),
    ("code", _code),
    ("ran", _ran),
    ("age", lambda t: screen.age(t.created_at)),
    ("command", _command),
]
_PARTS: screen.Columns[Resource] = [
    ("index", lambda t: str(t.spec["index"])),
    ("phase", lambda t: screen.phase(t.phase)),
    ("code", _code),
    ("ran", _ran),
    ("message", lambda t: str(t.status.get("message") or t.trouble)),
]


def _when(seconds: float | None) -> str:
    return "" if not seconds else f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S}"


def _network(spec: dict[str, Any]) -> str:
    card = spec["interface"]
    if card is None:
        return str(spec["network"]) if spec["network"] != "none" else ""
    return f"{card['address']}  {card['network']}".strip()


def _mount(mount: dict[str, Any]) -> str:
    return f"{mount['path']}  {mount['volume']}" + ("  read-only" if mount["read_only"] else "")


def _rows(task: Resource) -> list[tuple[str, Cell]]:
    spec, status = task.spec, task.status
    many = f"array of {len(spec['indices'])}" if spec["indices"] else ""
    many = f"gang of {spec['replicas']}" if spec["replicas"] > 1 else many
    rows: list[tuple[str, Cell]] = [
        ("name", f"{task.name} ({task.id})"),
        ("phase", screen.phase(task.phase)),
        ("message", str(status.get("message") or task.trouble or status.get("doing") or "")),
        ("command", " ".join(spec["command"])),
        ("image", spec["image"]),
        ("on", spec["on"]),
        ("machine", spec.get("machine", "")),
        ("asks for", _sizes(task)),
        ("parts", many),
        ("time limit", f"{spec['time_limit']:g} s" if spec["time_limit"] else ""),
        ("network", _network(spec)),
        ("volumes", "\n".join(_mount(mount) for mount in spec.get("volumes", ()))),
        ("job", status.get("job", "")),
        ("nodes", ", ".join(status.get("nodes", ()))),
        ("expected", _when(status.get("estimate"))),
        ("began", _when(status.get("began_at"))),
        ("ended", _when(status.get("ended_at"))),
        ("exit code", _code(task) if status.get("code") is not None else ""),
        ("runs", str(status["run"]) if status.get("run", 0) > 1 else ""),
        ("kept", "\n".join(f"{a['name']}  {screen.size(a['size'])}" for a in status.get("artifacts", ()))),
        ("age", screen.age(task.created_at)),
    ]
    return [(title, value) for title, value in rows if value]


@app.command("list")
def list_tasks(
    project: Project = None,
    phase: Annotated[str | None, typer.Option(help="Only those in this phase.")] = None,
    everywhere: Annotated[bool, typer.Option("--all", "-a", help="Of all projects.")] = False,
    output: Out = Output.TABLE,
) -> None:
    """List tasks, the newest last.

    Examples:
      usina task list
      usina task list --phase running -o json
    """
    with door.client(project) as site:
        screen.show_list(site.tasks.list(phase=phase, everywhere=everywhere), _COLUMNS, output)


@app.command()
def show(task: Task, project: Project = None, output: Out = Output.TABLE) -> None:
    """Show a task: what it was asked to do, how it went, what it used.

    Examples:
      usina task show train-7k2m9x
    """
    with door.client(project) as site:
        found = site.tasks.get(task)
        screen.show_one(found, _rows(found), output)
        if output is Output.TABLE:
            for line in chart.lines(site.tasks.usage(found.id), found.spec["cores"], found.spec["memory"]):
                screen.out().print(line)


@app.command()
def parts(task: Task, project: Project = None, output: Out = Output.TABLE) -> None:
    """List the parts of an array or gang.

    Examples:
      usina task parts sweep
    """
    with door.client(project) as site:
        screen.show_list(site.tasks.parts(task), _PARTS, output)


@app.command()
def logs(
    task: Task,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it is over.")] = False,
    times: Annotated[bool, typer.Option("--times", "-t", help="Say when each line came.")] = False,
    since: Annotated[
        str | None, typer.Option(help="From then on: 10m ago, or 2026-12-01T08:00.", metavar="TIME")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Up to then.", metavar="TIME")] = None,
    run_number: Annotated[int | None, typer.Option("--run", help="Of which run; else the newest.", min=1)] = None,
    index: Index = None,
    project: Project = None,
) -> None:
    """Show what a task said, also when it is over.

    Examples:
      usina task logs train-7k2m9x
      usina task logs -f train-7k2m9x
      usina task logs sweep --index 3 --since 10m --times
    """
    with door.client(project) as site:
        lines = site.tasks.logs(
            task,
            index=index,
            run=run_number,
            since=_moment(since, "since"),
            until=_moment(until, "until"),
            follow=follow,
        )
        for line in lines:
            _say(line, times)


def _say(line: LogLine, times: bool) -> None:
    if times:
        stamp = f"{line.at:%H:%M:%S}.{line.at.microsecond // 1000:03d} "
        (sys.stdout if line.stream == "o" else sys.stderr).write(stamp)
    run.say(line)


def _moment(text: str | None, option: str) -> float | None:
    """A time, or how long ago."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError:
        return datetime.now(UTC).timestamp() - task_words.seconds(text.removesuffix(" ago"), option)


@app.command()
def exec(
    task: Task,
    command: Annotated[list[str], typer.Argument(help="Command to run there, after --.", metavar="COMMAND")],
    index: Index = None,
    project: Project = None,
) -> None:
    """Run a command beside a running task: its files, its environment, its limits.

    Examples:
      usina task exec train-7k2m9x -- nvidia-smi
      usina task exec train-7k2m9x -- bash
    """
    with door.client(project) as site:
        raise typer.Exit(beside(site, task, command, index))


def beside(site: Client, task: str, command: list[str], index: int | None = None) -> int:
    """Run a command beside a task on this terminal (or pipe); its exit code."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    with site.tasks.exec(task, command, terminal=interactive, index=index) as line:
        if interactive:
            terminal.sized(line)
        left = terminal.attend(line)
        return 0 if left else line.code if line.code is not None else 1


@app.command()
def stop(task: Task, project: Project = None, wait: Wait = True, timeout: Timeout = PATIENCE) -> None:
    """Ask a task to end; it is killed after its grace.

    Examples:
      usina task stop train-7k2m9x
    """
    with door.client(project) as site:
        found = progress.settle(site, site.tasks.stop(task), wait, timeout, until=tuple(run.OVER))
        screen.done(f"{found.title} is {found.phase}")


@app.command()
def rerun(
    task: Task,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Order it and leave it.")] = False,
    project: Project = None,
) -> None:
    """Run a task that is over once more, as it was ordered.

    Examples:
      usina task rerun train-7k2m9x
    """
    with door.client(project) as site:
        again = site.tasks.rerun(task)
        if detach:
            screen.done(f"{again.title} is ordered again: usina task logs -f {again.name}")
            return
        raise typer.Exit(run.attend(site, again))


@app.command()
def delete(
    tasks: Annotated[list[str], typer.Argument(help="Tasks, by name or id.", metavar="NAME")],
    project: Project = None,
    yes: Yes = False,
    wait: Wait = True,
    timeout: Timeout = PATIENCE,
) -> None:
    """Delete tasks with their logs and what they left; those that run are ended.

    Examples:
      usina task delete train-7k2m9x
    """
    options.confirmed(f"Delete {', '.join(tasks)}?", yes)
    with door.client(project) as site:
        for leaving in [site.tasks.delete(task) for task in tasks]:
            progress.leave(site, leaving, wait, timeout)


@app.command()
def download(
    task: Task,
    into: Annotated[Path, typer.Argument(help="Folder to put it into.", metavar="DIR")] = Path("."),
    project: Project = None,
) -> None:
    """Fetch the files that a task left (those ordered with --keep).

    Examples:
      usina task download train-7k2m9x results
    """
    with door.client(project) as site:
        found = site.tasks.get(task)
        if not found.status.get("artifacts"):
            raise NotFound(f"task {found.name} left nothing; order it with --keep PATTERN")
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile() as file:
            site.tasks.download(found.id, found.status["artifacts"][0]["name"], file)
            file.seek(0)
            with tarfile.open(fileobj=file) as archive:
                members = archive.getmembers()
                archive.extractall(into, filter="data")
    screen.done(f"{len(members)} files are in {into}")


@app.command()
def forward(
    task: Task,
    ports: Annotated[list[str], typer.Argument(help="PORT of the task, or LOCAL:PORT.", metavar="PORT")],
    index: Index = None,
    project: Project = None,
) -> None:
    """Make ports of a running task reachable here, until Ctrl-C.

    Examples:
      usina task forward notebook 8888
      usina task forward notebook 9000:8888
    """
    with door.client(project) as site:
        found = site.tasks.get(task)
        for text in ports:
            local, _, port = text.rpartition(":")
            if not port.isdecimal() or (local and not local.isdecimal()):
                raise Invalid(f"port: {text!r} is not like 8888 or 9000:8888", field="port")
            _listen(site, found, int(local or port), int(port), index)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


def _listen(site: Client, task: Resource, local: int, port: int, index: int | None) -> None:
    try:
        server = socket.create_server(("127.0.0.1", local))
    except OSError as error:
        raise Unavailable(f"port {local} of this machine cannot be used: {error.strerror}", code="port") from None
    screen.done(f"127.0.0.1:{local} leads to port {port} of {task.name}; Ctrl-C ends it")

    def serve() -> None:
        while True:
            taken, _ = server.accept()
            threading.Thread(target=_carry, args=(site, task.id, port, index, taken), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()


def _carry(site: Client, task: str, port: int, index: int | None, local: socket.socket) -> None:
    with local, suppress(Exception), site.tasks.tunnel(task, port, index) as stream:
        threading.Thread(target=_pour_in, args=(local, stream), daemon=True).start()
        while data := stream.read():
            local.sendall(data)


def _pour_in(local: socket.socket, stream: Stream) -> None:
    with suppress(OSError, EOFError):
        while data := local.recv(CHUNK):
            stream.write(data)
    stream.close()


def shell(
    on: Annotated[
        str | None, typer.Option(help="Stack: local, container, slurm or machine; else local, or that of --machine.")
    ] = None,
    gpus: Annotated[list[str] | None, typer.Option(help="As for usina run; repeat it.", metavar="GPU")] = None,
    cores: Annotated[float, typer.Option(help="Cores.", min=0.001)] = 1.0,
    mem: Annotated[str, typer.Option("--mem", help="Memory.", metavar="SIZE")] = "2GiB",
    time_limit: Annotated[str, typer.Option("--time", "-t", help="Ended after so long.", metavar="TIME")] = "8h",
    idle: Annotated[str, typer.Option(help="Ended when nobody was there for so long.", metavar="TIME")] = "30m",
    image: Annotated[str, typer.Option(help="Container image.", metavar="IMAGE")] = "",
    machine: Annotated[str | None, typer.Option("--machine", help="Machine to run in.", metavar="NAME")] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm partition.")] = None,
    volume: Annotated[
        list[str] | None,
        typer.Option("--volume", "-v", help="NAME:PATH or NAME:PATH:ro, a folder volume; repeat it.", metavar="VOLUME"),
    ] = None,
    network: Annotated[
        str, typer.Option(help="What it reaches: none, outbound, host, or a network of the project by name.")
    ] = "none",
    package_dir: Annotated[Path | None, typer.Option("--package", help="Folder to take along.", metavar="DIR")] = None,
    keep: Annotated[bool, typer.Option("--stay", help="Leave it running when you leave.")] = False,
    project: Project = None,
) -> None:
    """A shell with what you ask for (a GPU, say), in one command. It ends when you leave, or when it is idle.

    Examples:
      usina shell
      usina shell --gpus 1
      usina shell --on slurm --partition gpu --gpus h100:1 --time 2h
      usina shell --on container --image docker.io/library/python:3.12
      usina shell --volume data:/data
    """
    wishes: dict[str, Any] = {
        "on": on or ("machine" if machine else "local"),
        "machine": machine,
        "name": f"shell-{os.urandom(3).hex()}",
        "cores": cores,
        "memory": parse_size(mem, "mem"),
        "devices": task_words.devices(gpus or ()),
        "time_limit": task_words.seconds(time_limit),
        "idle_limit": task_words.seconds(idle, "idle"),
        "image": image,
        "volumes": task_words.volumes(volume or ()),
        "network": network,
        "dialect": task_words.dialect((), partition=partition),
    }
    with door.client(project) as site:
        found = run.order(
            site, ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"], wishes, package_dir
        )
        try:
            found = progress.settle(site, found, True, PATIENCE, until=("running", *run.OVER))
            if found.phase != "running":
                run.tell_end(site, found)
                raise typer.Exit(1)
            screen.say(Text(f"{found.title}: Ctrl-D or exit leaves it", style="dim"))
            words = ["/bin/sh", "-c", "exec $(command -v bash || command -v sh)"]
            code = beside(site, found.id, words)
        finally:
            if not keep:
                with suppress(Exception):
                    site.tasks.delete(found.id)
    raise typer.Exit(code)
