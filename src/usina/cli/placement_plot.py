"""Curves of a simulation, drawn by matplotlib, which is only imported for this."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from usina.core.errors import Invalid
from usina.placement.simulate import Result


def draw(path: Path, policy: str, results: Sequence[Result], unit: str) -> None:
    """Allocation and fragmentation over demand, a line per run, to a .png or .svg file."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise Invalid("plot: needs matplotlib: pip install 'usina[plots]'", field="plot") from None
    figure = Figure(figsize=(10, 4), layout="constrained")
    allocation, fragmentation = figure.subplots(1, 2)
    most = max((point.offered for result in results for point in result.curve), default=100)
    allocation.plot([0, 100, most], [0, 100, 100], color="0.75", linestyle="--", linewidth=1, label="offered")
    for result in results:
        offered = [point.offered for point in result.curve]
        label = f"seed {result.seed}" if len(results) <= 10 else None
        allocation.plot(offered, [point.allocated for point in result.curve], linewidth=1.4, label=label)
        fragmentation.plot(offered, [point.fragmented for point in result.curve], linewidth=1.4, label=label)
    allocation.set(title=f"Allocated ({policy})", ylabel=f"% of all {unit}", ylim=(0, 102))
    fragmentation.set(title="Fragmented", ylabel=f"% of the idle {unit} that the mix cannot use", ylim=(0, 102))
    for axes in (allocation, fragmentation):
        axes.set(xlabel=f"demand offered, % of all {unit}", xlim=(0, most))
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    allocation.legend(loc="lower right", frameon=False, fontsize=8)
    try:
        figure.savefig(path, dpi=144)
    except OSError as error:
        raise Invalid(f"plot: {path}: {error.strerror}", field="plot") from None
