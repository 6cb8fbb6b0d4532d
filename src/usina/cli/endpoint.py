"""Endpoints: models behind a name. Order, watch them come up, change, try a variant, promote it."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from usina.cli import door, endpoint_words, options, progress, run, screen, task_words
from usina.cli.options import PATIENCE, NewName, Out, Project, Timeout, Wait, Yes
from usina.cli.screen import Cell, Output
from usina.client import Client, Resource
from usina.core.units import parse_size

app = options.noun(
    "Endpoints: models behind a name that clients call.",
    "usina endpoint create chat --model acme/llama-3.1-8b-instruct --replicas 1..4",
    "usina endpoint list",
    "usina endpoint canary chat --revision v2 --weight 0.1",
)

Endpoint = Annotated[str, options.name_of("Endpoint", lambda site: site.endpoints.list())]
Replicas = Annotated[
    str | None, typer.Option("--replicas", "-r", help="So many, or 0..4: as load asks for.", metavar="N|A..B")
]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.", metavar="REVISION")]
Context = Annotated[int | None, typer.Option("--context", help="Tokens of one request.", min=1)]
Slots = Annotated[int | None, typer.Option("--slots", help="Requests that one replica works on at once.", min=1)]
Cores = Annotated[float | None, typer.Option(help="Cores of a replica; else by the runtime's formula.", min=0.001)]
Mem = Annotated[str | None, typer.Option("--mem", help="Memory of a replica.", metavar="SIZE")]
Option = Annotated[
    list[str] | None, typer.Option("--option", "-O", help="NAME=VALUE of the runtime; repeat it.", metavar="NAME=VALUE")
]
Adapter = Annotated[
    list[str] | None, typer.Option("--adapter", help="NAME=MODEL, a LoRA; repeat it.", metavar="NAME=MODEL")
]
Fallback = Annotated[
    list[str] | None, typer.Option("--fallback", help="Endpoint to try where this has none ready; repeat it.")
]
Guard = Annotated[list[str] | None, typer.Option("--guard", help="Guard of the site; repeat it.", metavar="GUARD")]
GuardsOpen = Annotated[
    bool | None, typer.Option("--guards-open/--guards-closed", help="Whether what guards cannot tell passes.")
]
Idle = Annotated[str | None, typer.Option("--idle", help="Without requests, until it goes to none.", metavar="TIME")]
Patience = Annotated[str | None, typer.Option("--patience", help="That a request may wait.", metavar="TIME")]
Drain = Annotated[str | None, typer.Option("--drain", help="For a replica to end what it began.", metavar="TIME")]
Target = Annotated[float | None, typer.Option("--target", help="Requests in flight per replica to aim at.", min=0)]
Key = Annotated[
    str | None, typer.Option("--secret", help="Variable that holds the key for the upstream.", metavar="VARIABLE")
]
_COLUMNS: screen.Columns[Resource] = [
    ("name", lambda e: e.name),
    ("phase", lambda e: screen.phase(e.phase)),
    ("replicas", endpoint_words.replicas),
    ("model", lambda e: endpoint_words.variant(e.spec["variant"])),
    ("runtime", lambda e: e.spec["runtime"]),
    ("on", lambda e: (e.spec["recipe"] or {}).get("on", "–")),
    ("age", lambda e: screen.age(e.created_at)),
]
_REPLICAS: screen.Columns[Resource] = [
    ("name", lambda t: t.name),
    ("phase", lambda t: screen.phase(t.phase)),
    ("healthy", lambda t: {True: "yes", False: "no"}.get(t.status.get("healthy"), "–")),  # type: ignore[arg-type]
    ("model", lambda t: f"{t.labels.get('model', '')}@{t.labels.get('revision', '')[:8]}"),
    ("age", lambda t: screen.age(t.created_at)),
    ("message", lambda t: str(t.status.get("message") or t.trouble)),
]


@app.command()
def create(
    name: NewName,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Name, namespace/name or id of a model.", metavar="MODEL")
    ],
    revision: Revision = None,
    runtime: Annotated[str | None, typer.Option(help="Else the first that reads the model's files.")] = None,
    replicas: Replicas = None,
    on: Annotated[str | None, typer.Option(help="Stack; else the first that has room.")] = None,
    context: Context = None,
    slots: Slots = None,
    gpus: Annotated[
        list[str] | None, typer.Option(help="As for usina run; else by the runtime's formula.", metavar="GPU")
    ] = None,
    cores: Cores = None,
    mem: Mem = None,
    adapter: Adapter = None,
    option: Option = None,
    url: Annotated[str | None, typer.Option(help="Of an external endpoint: https://host/v1.", metavar="URL")] = None,
    secret: Key = None,
    target: Target = None,
    idle: Idle = None,
    patience: Patience = None,
    drain: Drain = None,
    fallback: Fallback = None,
    guard: Guard = None,
    guards_open: GuardsOpen = None,
    tenant_wide: Annotated[bool, typer.Option("--tenant", help="Open to keys of the whole tenant.")] = False,
    label: options.Labels = None,
    project: Project = None,
    wait: Wait = True,
    timeout: Timeout = PATIENCE,
) -> None:
    """Serve a model under a name.

    Examples:
      usina endpoint create chat --model smollm2-135m-instruct --replicas 0..4
      usina endpoint create texts --model smollm2-135m-instruct --adapter law=acme/law-lora
      usina endpoint create big --model meta-llama/llama-3.1-70b-instruct --runtime vllm --context 16384
      usina endpoint create gpt --runtime external --model gpt-5 --url https://api.example.com/v1 --secret API_KEY
    """
    minimum, maximum = endpoint_words.span(replicas)
    wishes: dict[str, Any] = {
        "revision": revision,
        "runtime": runtime or ("external" if url else None),
        "minimum": minimum,
        "maximum": maximum,
        "on": on,
        "context": context,
        "slots": slots,
        "devices": task_words.devices(gpus or ()) or None,
        "cores": cores,
        "memory": parse_size(mem, "mem") if mem else None,
        "adapters": endpoint_words.pairs(adapter, "adapter"),
        "options": endpoint_words.pairs(option, "option"),
        "url": url,
        "secret": endpoint_words.from_environment(secret),
        "fallback": fallback,
        "guards": guard,
        "guards_open": guards_open,
        "shared": "tenant" if tenant_wide else None,
        "labels": endpoint_words.pairs(label, "label"),
        **_tuning(target, idle, patience, drain),
    }
    with door.client(project) as site:
        ordered = site.endpoints.create(name, model, **wishes)
        if formula := ordered.status.get("formula"):
            screen.say(f"a replica takes {formula}")
        _settle(site, ordered, wait, timeout)


def _tuning(target: float | None, idle: str | None, patience: str | None, drain: str | None) -> dict[str, Any]:
    return {
        "target": target,
        "idle_limit": task_words.seconds(idle, "idle") if idle else None,
        "patience": task_words.seconds(patience, "patience") if patience else None,
        "drain": task_words.seconds(drain, "drain") if drain else None,
    }


def _settle(site: Client, wished: Resource, wait: bool, timeout: float) -> None:
    found = progress.settle(site, wished, wait, timeout)
    if wait:
        screen.done(f"{found.title} is {found.phase}: {endpoint_words.replicas(found)} replicas")
    else:
        screen.done(f"{found.title} is on its way: usina endpoint show {found.name}")


@app.command("list")
def list_endpoints(
    project: Project = None,
    phase: Annotated[str | None, typer.Option(help="Only those in this phase.")] = None,
    everywhere: Annotated[bool, typer.Option("--all", "-a", help="Of all projects.")] = False,
    output: Out = Output.TABLE,
) -> None:
    """List endpoints.

    Examples:
      usina endpoint list
    """
    with door.client(project) as site:
        screen.show_list(site.endpoints.list(phase=phase, everywhere=everywhere), _COLUMNS, output)


@app.command()
def show(endpoint: Endpoint, project: Project = None, output: Out = Output.TABLE) -> None:
    """Show an endpoint and its replicas.

    Examples:
      usina endpoint show chat
    """
    with door.client(project) as site:
        found = site.endpoints.get(endpoint)
        screen.show_one(found, _rows(found), output)
        if output is Output.TABLE and found.spec["recipe"]:
            screen.show_list(iter(site.endpoints.replicas(found.id)), _REPLICAS, output)


def _rows(found: Resource) -> list[tuple[str, Cell]]:
    spec, recipe = found.spec, found.spec["recipe"] or {}
    trial = spec["canary"]
    rows: list[tuple[str, Cell]] = [
        ("name", f"{found.name} ({found.id})"),
        ("phase", screen.phase(found.phase)),
        ("message", found.trouble),
        ("model", endpoint_words.variant(spec["variant"])),
        ("on trial", f"{endpoint_words.variant(trial['variant'])}, {trial['weight']:.0%}" if trial else ""),
        ("runtime", " on ".join(word for word in (spec["runtime"], recipe.get("on", "")) if word)),
        ("url", spec["url"]),
        ("replicas", endpoint_words.replicas(found)),
        ("a replica", endpoint_words.sizes(recipe)),
        ("formula", found.status.get("formula", "")),
        ("slots", str(spec["slots"]) if recipe else ""),
        ("adapters", "\n".join(f"{name}  {endpoint_words.variant(one)}" for name, one in spec["adapters"].items())),
        ("fallback", ", ".join(spec["fallback"])),
        ("guards", ", ".join(spec["guards"]) + (" (open)" if spec["guards"] and spec["guards_open"] else "")),
        ("open to", f"keys of its {spec['shared']}"),
        ("age", screen.age(found.created_at)),
    ]
    return [(title, value) for title, value in rows if value]


@app.command("replicas")
def list_replicas(endpoint: Endpoint, project: Project = None, output: Out = Output.TABLE) -> None:
    """List the tasks of an endpoint; also the last one that failed.

    Examples:
      usina endpoint replicas chat
    """
    with door.client(project) as site:
        screen.show_list(iter(site.endpoints.replicas(endpoint)), _REPLICAS, output)


@app.command()
def change(
    endpoint: Endpoint,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Serve another model.", metavar="MODEL")] = None,
    revision: Revision = None,
    context: Context = None,
    slots: Slots = None,
    cores: Cores = None,
    mem: Mem = None,
    adapter: Adapter = None,
    option: Option = None,
    url: Annotated[str | None, typer.Option(help="Of an external endpoint.", metavar="URL")] = None,
    secret: Key = None,
    target: Target = None,
    idle: Idle = None,
    patience: Patience = None,
    drain: Drain = None,
    fallback: Fallback = None,
    guard: Guard = None,
    guards_open: GuardsOpen = None,
    project: Project = None,
    wait: Wait = True,
    timeout: Timeout = PATIENCE,
) -> None:
    """Change an endpoint. Where its replicas change, new ones come up before the old ones go.

    Examples:
      usina endpoint change chat --revision v2
      usina endpoint change chat --slots 8 --idle 30m
    """
    wishes: dict[str, Any] = {
        "model": model,
        "revision": revision,
        "context": context,
        "slots": slots,
        "cores": cores,
        "memory": parse_size(mem, "mem") if mem else None,
        "adapters": endpoint_words.pairs(adapter, "adapter"),
        "options": endpoint_words.pairs(option, "option"),
        "url": url,
        "secret": endpoint_words.from_environment(secret),
        "fallback": fallback,
        "guards": None if guard is None else [name for name in guard if name],  # "" alone: none
        "guards_open": guards_open,
        **_tuning(target, idle, patience, drain),
    }
    with door.client(project) as site:
        _settle(site, site.endpoints.change(endpoint, **wishes), wait, timeout)


@app.command()
def scale(
    endpoint: Endpoint,
    replicas: Annotated[str, typer.Argument(help="So many, or 0..4: as load asks for.", metavar="N|A..B")],
    project: Project = None,
    wait: Wait = True,
    timeout: Timeout = PATIENCE,
) -> None:
    """Say how many replicas there may be.

    Examples:
      usina endpoint scale chat 2
      usina endpoint scale chat 0..8
    """
    minimum, maximum = endpoint_words.span(replicas)
    with door.client(project) as site:
        _settle(site, site.endpoints.change(endpoint, minimum=minimum, maximum=maximum), wait, timeout)


@app.command()
def canary(
    endpoint: Endpoint,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Another model.", metavar="MODEL")] = None,
    revision: Revision = None,
    weight: Annotated[float, typer.Option(help="Share of the requests that it gets.", min=0, max=1)] = 0.1,
    project: Project = None,
    wait: Wait = True,
    timeout: Timeout = PATIENCE,
) -> None:
    """Put a variant on trial; or give the one that is another share.

    Examples:
      usina endpoint canary chat --revision v2 --weight 0.1
      usina endpoint canary chat --weight 0.5
    """
    with door.client(project) as site:
        _settle(site, site.endpoints.canary(endpoint, model, revision=revision, weight=weight), wait, timeout)


@app.command()
def promote(endpoint: Endpoint, project: Project = None, wait: Wait = True, timeout: Timeout = PATIENCE) -> None:
    """Make the variant on trial the one that is served.

    Examples:
      usina endpoint promote chat
    """
    with door.client(project) as site:
        _settle(site, site.endpoints.promote(endpoint), wait, timeout)


@app.command()
def rollback(endpoint: Endpoint, project: Project = None, wait: Wait = True, timeout: Timeout = PATIENCE) -> None:
    """End the trial; where there is none, go back to what was served before.

    Examples:
      usina endpoint rollback chat
    """
    with door.client(project) as site:
        _settle(site, site.endpoints.roll_back(endpoint), wait, timeout)


@app.command()
def logs(
    endpoint: Endpoint,
    replica: Annotated[str | None, typer.Option(help="Of one of them, by name.", metavar="NAME")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Of the newest one, until it is over.")] = False,
    since: Annotated[str | None, typer.Option(help="From then on: 10m ago.", metavar="TIME")] = None,
    project: Project = None,
) -> None:
    """Show what the replicas of an endpoint said; also the last one that failed.

    Examples:
      usina endpoint logs chat
      usina endpoint logs -f chat
    """
    moment = None if since is None else time.time() - task_words.seconds(since.removesuffix(" ago"), "since")
    with door.client(project) as site:
        found = [task for task in site.endpoints.replicas(endpoint) if replica in (None, task.name, task.id)]
        for task in found[-1:] if follow else found:
            _say(site, task, moment, follow, named=len(found) > 1)


def _say(site: Client, task: Resource, since: float | None, follow: bool, *, named: bool) -> None:
    if named:
        screen.say(f"{task.name}, {task.phase}, ordered {screen.age(task.created_at)} ago")
    for line in site.tasks.logs(task.id, since=since, follow=follow):
        run.say(line)


@app.command()
def delete(
    endpoints: Annotated[list[str], typer.Argument(help="Endpoints, by name or id.", metavar="NAME")],
    project: Project = None,
    yes: Yes = False,
    wait: Wait = True,
    timeout: Timeout = PATIENCE,
) -> None:
    """Delete endpoints with their replicas.

    Examples:
      usina endpoint delete chat
    """
    options.confirmed(f"Delete {', '.join(endpoints)}?", yes)
    with door.client(project) as site:
        for leaving in [site.endpoints.delete(endpoint) for endpoint in endpoints]:
            progress.leave(site, leaving, wait, timeout)


@app.command()
def runtimes(project: Project = None, output: Out = Output.TABLE) -> None:
    """List what serves models here, and its options.

    Examples:
      usina endpoint runtimes
    """
    with door.client(project) as site:
        screen.show_list(iter(site.endpoints.runtimes()), endpoint_words.RUNTIMES, output)
