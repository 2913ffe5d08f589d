"""The figure of nodes: how a cluster grew for the run's stages and let go of what it did not need."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from boom_ray.report.drawing import MEMBERS, MUTED, WIDTH, Summary, new_axes, styled
from boom_ray.report.layout import UNITS, clock_unit, duration, without_gaps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KINDS = {"cpu_nodes": ("without GPU", MEMBERS[1], 1.6), "gpu_nodes": ("with GPUs", MEMBERS[0], 2.2)}

Piece = tuple[float, float, int]  # from, to, nodes


@styled
def nodes(summary: Summary) -> Figure | None:
    """Worker nodes over time; time without a driver is cut out and marked. None where their number never changed."""
    from matplotlib.ticker import MaxNLocator

    samples = summary.get("nodes") or []
    shown = {kind: pieces(summary, kind) for kind in _KINDS if any(sample[kind] for sample in samples)}
    spans = [(a, b) for found in shown.values() for a, b, _ in found]
    if not spans:
        return None
    place, cuts = without_gaps(spans)
    unit, seconds = clock_unit(max(place(end) for _, end in spans))
    figure, axes = new_axes(WIDTH, 2.4)
    for kind, found in shown.items():
        label, colour, width = _KINDS[kind]
        for number, (moments, last, values) in enumerate(_runs(found)):
            places = [place(moment) / seconds for moment in (*moments, last)]
            axes.step(places, [*values, values[-1]], where="post", color=colour, linewidth=width,
                      label=None if number else label)  # fmt: skip
    for at, idle in cuts:
        axes.axvline(at / seconds, color=MUTED, linewidth=0.9, linestyle=(0, (2, 3)))
        axes.annotate(f"{duration(idle)} without a driver, cut out", (at / seconds, 1.0), (3, -9), fontsize=8,
                      color=MUTED, xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip
    axes.set_ylim(0, 1.15 * max(count for found in shown.values() for *_, count in found) + 0.2)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"{UNITS[unit]} since the start")
    axes.set_ylabel("worker nodes")
    axes.grid(axis="y")
    figure.legend(loc="outside upper left", ncols=2, handlelength=1.4, columnspacing=1.6)
    return figure


def pieces(summary: Summary, kind: str) -> list[Piece]:
    """Spans in which the number of nodes stayed the same; none between a driver's last sample and the next driver."""
    found = pairwise(summary.get("nodes") or [])
    return [(a["at"], b["at"], a[kind]) for a, b in found if not b["begins"] and b["at"] > a["at"]]


def _runs(found: list[Piece]) -> list[tuple[list[float], float, list[int]]]:
    """Pieces that follow on one another, as moments, the end, and counts."""
    runs: list[tuple[list[float], float, list[int]]] = []
    for begin, end, count in found:
        if runs and runs[-1][1] == begin:
            runs[-1] = ([*runs[-1][0], begin], end, [*runs[-1][2], count])
        else:
            runs.append(([begin], end, [count]))
    return runs
