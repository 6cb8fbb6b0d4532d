"""What a task used, drawn small: a line of blocks for each measure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rich.text import Text

from usina.cli import screen
from usina.client import Usage

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 48


def lines(samples: Sequence[Usage], cores: float, memory: int) -> list[Text]:
    """CPU, memory and each GPU; none where there are fewer than two samples."""
    if len(samples) < 2:
        return []
    pairs = [(a, b) for a, b in pairwise(samples) if b.at > a.at]
    busy = [(b.cpu - a.cpu) / (b.at - a.at).total_seconds() for a, b in pairs]
    peak = max(max(s.memory, s.peak) for s in samples)
    found = [
        _line("CPU", busy, max(cores, *busy), f"{sum(busy) / len(busy):.2f} cores on average, {max(busy):.2f} at most"),
        _line("memory", [s.memory for s in samples], max(memory, peak), f"{screen.size(peak)} at most"),
    ]
    for address in dict.fromkeys(use.address for s in samples for use in s.devices):
        uses = [next((u for u in s.devices if u.address == address), None) for s in samples]
        shares = [use.busy if use else 0.0 for use in uses]
        most = max(use.memory for use in uses if use)
        text = f"{sum(shares) / len(shares):.0%} busy on average, {screen.size(most)} of memory at most"
        found.append(_line(f"GPU {address}", shares, 1.0, text))
    return found


def _line(title: str, values: Sequence[float], top: float, text: str) -> Text:
    return Text.assemble((f"{title:<8}", "dim"), (blocks(values, top), "cyan"), " ", (text, "dim"))


def blocks(values: Sequence[float], top: float, width: int = WIDTH) -> str:
    """Values from 0 to `top` as blocks; more of them than `width` are averaged."""
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    last = len(BLOCKS) - 1
    return "".join(BLOCKS[round(min(1.0, value / top) * last) if value > 0 and top > 0 else 0] for value in values)
