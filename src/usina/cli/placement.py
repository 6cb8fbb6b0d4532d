"""Placement on paper: what a policy would do with hosts and requests from files. It needs no running factory."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from usina.cli import door, options, screen
from usina.core.capacity import Provider
from usina.core.errors import Invalid
from usina.placement.policy import DEFAULT, POLICIES, policy_of
from usina.placement.scorers import SCORERS
from usina.placement.simulate import Experiment, Result, hosts_of, requests_of

app = options.noun(
    "Placement on paper: simulate policies on hosts and requests from files.",
    "usina placement simulate --hosts nodes.csv --requests pods.csv",
    "usina placement export > hosts.json",
    "usina placement simulate --hosts hosts.json --requests wanted.json --once --more gpu-7:10",
)

FILE_SIZE = 256 * 1024 * 1024
UPDATES = 200  # steps of the progress bar and of the curve

Hosts = Annotated[Path, typer.Option("--hosts", help="CSV of a trace, or JSON of `usina placement export`.")]
Requests = Annotated[Path, typer.Option("--requests", help="CSV of a trace, or JSON.")]
PolicyName = Annotated[
    str, typer.Option("--policy", help="A policy, or weights of scorers such as fragmentation=1,price=0.2.")
]
Seed = Annotated[int, typer.Option("--seed", help="Of the order in which requests come.", min=0)]
Seeds = Annotated[int, typer.Option("--seeds", help="So many runs, with this seed and those after it.", min=1)]
Demand = Annotated[float, typer.Option("--demand", help="How much is offered, as a part of the capacity.", min=0.01)]
Once = Annotated[bool, typer.Option("--once", help="Offer each request of the file once, whatever the demand.")]
More = Annotated[list[str] | None, typer.Option("--more", help="So many more hosts like this one.", metavar="HOST:N")]
Plot = Annotated[
    Path | None, typer.Option("--plot", help="Draw allocation and fragmentation over demand: a .png or .svg file.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("simulate")
def simulate(
    hosts: Hosts,
    requests: Requests,
    policy: PolicyName = DEFAULT.name,
    seed: Seed = 0,
    seeds: Seeds = 1,
    demand: Demand = 1.3,
    once: Once = False,
    more: More = None,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Offer requests to hosts until more than their capacity was asked for, and count what is placed.

    Requests come in random order, are drawn again when the file is used up, and never leave. Figures are per cent of
    all GPUs (of all cores, where there are no GPUs).

    Examples:
      usina placement simulate --hosts nodes.csv --requests pods.csv
      usina placement simulate --hosts nodes.csv --requests pods.csv --policy best-fit --seeds 10
      usina placement simulate --hosts hosts.json --requests wanted.json --once --more gpu-7:10
      usina placement simulate --hosts nodes.csv --requests pods.csv --json
    """
    chosen = policy_of(policy)
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise Invalid("plot: must be a .png or .svg file", field="plot")
    fleet = _with_more(hosts_of(_text(hosts, "hosts")), more or [])
    experiment = Experiment(fleet, requests_of(_text(requests, "requests")), chosen)
    runs = range(seed, seed + seeds)
    results, seconds = _run(experiment, runs, None if once else demand, curve=plot is not None)
    if as_json:
        screen.print_json(_summary(chosen.name, results, seconds))
    else:
        _show(chosen.name, experiment, results, seconds)
    if plot is not None:
        from usina.cli.placement_plot import draw

        draw(plot, chosen.name, results, "GPUs" if experiment.by_gpu else "cores")
        if not as_json:
            screen.done(f"drawn to {plot}")


@app.command("policies")
def policies() -> None:
    """List the policies and the scorers they weigh.

    Examples:
      usina placement policies
    """
    rows = [(p.name, ", ".join(f"{name}={weight:g}" for name, weight in p.weights.items())) for p in POLICIES.values()]
    screen.out().print(screen.table(["policy", "scorers and weights"], rows))
    described = [
        (name, (sys.modules[cost.__module__].__doc__ or "").partition("\n")[0]) for name, cost in SCORERS.items()
    ]
    screen.out().print(screen.table(["scorer", "idea"], described))


@app.command("export")
def export() -> None:
    """Print the hosts of a running factory, with what is held on them, for `simulate --hosts`. For operators.

    Examples:
      usina placement export > hosts.json
    """
    with door.client(None) as site:
        sys.stdout.write(site.hosts.snapshot().decode() + "\n")


def _text(path: Path, field: str) -> str:
    try:
        if path.stat().st_size > FILE_SIZE:
            raise Invalid(f"{field}: {path} is larger than {screen.size(FILE_SIZE)}", field=field)
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise Invalid(f"{field}: {path}: {error.strerror}", field=field) from None
    except UnicodeDecodeError:
        raise Invalid(f"{field}: {path} is not text", field=field) from None


def _with_more(hosts: list[Provider], more: Sequence[str]) -> list[Provider]:
    """`hosts`, and as many empty ones like some of them as were asked for."""
    known = {host.name: host for host in hosts}
    for wish in more:
        name, _, count = wish.rpartition(":")
        if name not in known or not count.isdecimal():
            raise Invalid(f"more: {wish!r} is not HOST:N with a host of the file", field="more")
        like = known[name]
        empty = Provider("", "", like.driver, like.state, 1, like.inventory, like.cpu_ratio, terms=like.terms)
        labels = [f"{name}+{number}" for number in range(1, int(count) + 1)]
        hosts += [replace(empty, id=label, name=label) for label in labels]
    return hosts


def _run(experiment: Experiment, seeds: range, demand: float | None, *, curve: bool) -> tuple[list[Result], float]:
    """The results, and the seconds that the decisions took in all."""
    results, seconds = [], 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"), TimeRemainingColumn())
    with Progress(*columns, console=screen.err(), transient=True) as progress:
        most = 100 * (demand or experiment.demanded)
        task = progress.add_task("offering", total=most * len(seeds), told="")
        for number, seed in enumerate(seeds):
            begun = time.perf_counter()
            for result in experiment.run(seed, demand, every=UPDATES, curve=curve):
                told = f"seed {seed}: {result.placed:,} of {result.decisions:,} placed"
                progress.update(task, completed=most * number + result.offered, told=told)
            seconds += time.perf_counter() - begun
            results.append(result)
    return results, seconds


def _summary(policy: str, results: list[Result], seconds: float) -> dict[str, object]:
    refused: Counter[str] = sum((result.refused for result in results), Counter())
    decisions = sum(result.decisions for result in results)
    marks = list(results[0].allocation)
    mean = {str(m): round(fmean(r.allocation[m] for r in results if m in r.allocation), 3) for m in marks}
    return {
        "policy": policy,
        "seeds": [result.seed for result in results],
        "allocation_pct": mean,
        "allocation_stdev": {str(m): round(pstdev([r.allocation[m] for r in results]), 3) for m in marks},
        "decisions": decisions,
        "placed": sum(result.placed for result in results),
        "seconds": round(seconds, 3),
        "decisions_per_s": round(decisions / seconds, 1) if seconds else None,
        "refused": dict(refused.most_common()),
        "idle_pct": {key: round(fmean(r.idle[key] for r in results), 3) for key in results[0].idle},
    }


def _show(policy: str, experiment: Experiment, results: list[Result], seconds: float) -> None:
    unit = "GPUs" if experiment.by_gpu else "cores"
    rows = []
    for mark in results[0].allocation:
        values = [result.allocation[mark] for result in results if mark in result.allocation]
        spread = f"± {pstdev(values):.2f}" if len(values) > 1 else ""
        rows.append((f"{mark} %", f"{fmean(values):.2f} %", spread))
    out = screen.out()
    out.print(screen.table([f"offered, of {experiment.capacity / 1000:,.0f} {unit}", "allocated", ""], rows))
    decisions = sum(result.decisions for result in results)
    placed = sum(result.placed for result in results)
    runs = f" in {len(results)} runs" if len(results) > 1 else ""
    out.print(
        f"policy {policy}: {placed:,} of {decisions:,} requests placed{runs}, {decisions / seconds:,.0f} decisions/s"
    )
    refused: Counter[str] = sum((result.refused for result in results), Counter())
    if refused:
        out.print(screen.table(["refused", "most hosts"], [(f"{n:,}", why) for why, n in refused.most_common(8)]))
