"""Updates in a row as a figure: what each way to weigh them leaves of the first version's scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from boom_ray.report.drawing import BASE, DASHES, GRID, MEMBERS, MERGES, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOOK = [(MERGES["merge-searched"], "s"), (MEMBERS[0], "o"), (MEMBERS[1], "^")]


@styled
def curve(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """A panel per mean, a line per merge weight: points above the first version after each update, with 95 % intervals.

    Args:
        rows: of the part ``chain``, ordered by merge weight and update; of none, there is no figure.
    """
    from matplotlib.figure import Figure

    if not rows:
        return None
    labels = [row["label"] for row in rows[0]["since_first"] if row["sets"] > 1]
    figure = Figure(figsize=(3.1 * len(labels), 2.9), layout="constrained")
    panels = figure.subplots(1, len(labels), squeeze=False)[0]
    chains = [(weights, list(chain)) for weights, chain in groupby(rows, key=lambda row: row["weights"])]
    for axes, label in zip(panels, labels, strict=True):
        axes.axhline(0, color=BASE, linewidth=1.0, zorder=1)
        for place, (weights, chain) in enumerate(chains):
            colour, marker = _LOOK[place % len(_LOOK)]
            gaps = [_gap(row, label) for row in chain]
            shift = 0.06 * (place - (len(chains) - 1) / 2)
            axes.errorbar(
                [row["piece"] + shift for row in chain],
                [value for value, _, _ in gaps],
                yerr=[[value - low for value, low, _ in gaps], [high - value for value, _, high in gaps]],
                color=colour, marker=marker, markersize=4.5, linewidth=1.4, elinewidth=0.9, zorder=3,
                linestyle=DASHES[place % len(DASHES)], label=weights if axes is panels[0] else None,
            )  # fmt: skip
        axes.set_title(label, fontsize=9)
        axes.set_xlabel("updates")
        axes.set_xticks(sorted({row["piece"] for row in rows}))
        axes.grid(axis="y", color=GRID)
    panels[0].set_ylabel("points above the first version")
    figure.legend(loc="outside upper left", ncols=len(chains))
    return figure


def _gap(row: Mapping[str, Any], label: str) -> tuple[float, float, float]:
    """Difference to the first version, low and high, in points."""
    found = next(shown for shown in row["since_first"] if shown["label"] == label)
    value, low, high = found["models"]["update"]["to_current"]
    return 100 * value, 100 * low, 100 * high
