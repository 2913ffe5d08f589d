"""The figures of an analysis of searches: each takes a search (or several) and returns a Figure, None where there is
nothing to show. Colours and shapes are those of the run's report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from boom_ray.report.drawing import BASE, DASHES, GRID, MARKERS, MEMBERS, MERGES, MUTED, PAPER, WIDTH, new_axes, styled
from boom_ray.search.analysis import Found, Row, comparable, half_b, importance, parameters
from boom_ray.search.analysis import convergence as so_far

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BEST = MERGES["merge-searched"]
_MAP = "cividis"
_MOST_AXES = 14  # of parallel coordinates and panels: more cannot be read
_PANEL = 1.75  # inches


def shown(name: str) -> str:
    """What people call a column: ``weight:early:member-0`` is ``early: member-0``."""
    head, _, rest = name.partition(":")
    return (rest if head in ("weight", "has", "config") else name).replace(":", ": ")


def best_of(found: Found) -> Row | None:
    """The best of the comparable judgements."""
    rows, sign = comparable(found), 1 if found.lower else -1
    return min(rows, key=lambda row: (sign * row["value"], row["trial"])) if rows else None


def shown_parameters(found: Found) -> list[str]:
    """The parameters that figures show: those that vary, and of too many the most important."""
    names = parameters(found)
    if len(names) <= _MOST_AXES:
        return names
    shares = {row["parameter"]: row["importance"] for row in importance(found)}
    kept = set(sorted(names, key=lambda name: -shares.get(name, 0.0))[:_MOST_AXES])
    return [name for name in names if name in kept]


@styled
def convergence(searches: Sequence[Found]) -> Figure | None:
    """The best value so far of every search, trial by trial."""
    from matplotlib.ticker import MaxNLocator

    lines = [(found, so_far(found)) for found in searches]
    lines = [(found, rows) for found, rows in lines if rows]
    if not lines:
        return None
    figure, axes = new_axes(WIDTH, 3.0)
    for index, (found, rows) in enumerate(lines):
        colour, trials = MEMBERS[index % len(MEMBERS)], [row["trial"] for row in rows]
        axes.scatter(trials, [row["value"] for row in rows], s=10, color=colour, alpha=0.35, linewidth=0)
        axes.step(trials, [row["best"] for row in rows], where="post", color=colour, linewidth=1.9,
                  linestyle=DASHES[index % len(DASHES)], label=found.name)  # fmt: skip
    axes.set_xlabel("trial")
    axes.set_ylabel("objective, lower is better" if lines[0][0].lower else "objective, higher is better")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    figure.legend(loc="outside upper left", ncols=2, handlelength=2.0)
    return figure


@styled
def importances(found: Found) -> Figure | None:
    """Share of the value's variance that each parameter explains."""
    rows = importance(found)[:_MOST_AXES]
    if not rows:
        return None
    figure, axes = new_axes(WIDTH, 0.8 + 0.28 * len(rows))
    axes.barh(range(len(rows)), [100 * row["importance"] for row in rows], color=MEMBERS[0], height=0.62)
    axes.set_yticks(range(len(rows)), [shown(row["parameter"]) for row in rows])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("share of the variance, %")
    axes.grid(axis="x")
    return figure


@styled
def parallel(found: Found) -> Figure | None:
    """Parallel coordinates: a line per trial over its parameters, coloured by its value; the best one thick."""
    rows, names, best = comparable(found), shown_parameters(found), best_of(found)
    if best is None or len(names) < 2 or len(rows) < 2:
        return None
    figure, axes = new_axes(max(WIDTH, 0.75 * (len(names) + 1)), 3.2)
    scales = [_axis([row[name] for row in rows]) for name in names]
    colour, mappable = _colours(found, rows)
    for row in sorted(rows, key=lambda row: -row["value"] if found.lower else row["value"]):
        heights = [place(row[name]) for name, (place, _, _) in zip(names, scales, strict=True)]
        thick = row is best
        tint, width, alpha = (_BEST, 2.6, 1.0) if thick else (colour(row["value"]), 1.0, 0.75)
        axes.plot(range(len(names)), heights, color=tint, linewidth=width, alpha=alpha, zorder=3 if thick else 2)
    for place, (_, low, high) in enumerate(scales):
        axes.axvline(place, color=MUTED, linewidth=0.7, zorder=1)
        for height, text, side in ((0, low, "top"), (1, high, "bottom")):
            axes.annotate(text, (place, height), (0, -3 if side == "top" else 3), textcoords="offset points",
                          ha="center", va=side, fontsize=7.5, color=MUTED)  # fmt: skip
    axes.set_xticks(range(len(names)), [shown(name) for name in names], rotation=90 if len(names) > 6 else 0)
    axes.tick_params(axis="x", length=0, pad=14)
    axes.set_yticks([])
    axes.set_ylim(-0.08, 1.1)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    bar = figure.colorbar(mappable, ax=axes, shrink=0.8, aspect=24, pad=0.03)
    bar.outline.set_visible(False)
    bar.set_label("value; the thick line is the best")
    return figure


def _axis(values: Sequence[Any]) -> tuple[Callable[[Any], float], str, str]:
    """Where a value stands between 0 and 1, and the labels of both ends."""
    if any(isinstance(value, str) for value in values):
        order = sorted({str(value) for value in values})
        last = max(1, len(order) - 1)
        return lambda value: order.index(str(value)) / last, order[0], order[-1]
    known = [value for value in values if value is not None]
    low, high = float(min(known)), float(max(known))
    span = high - low or 1.0
    return lambda value: math.nan if value is None else (value - low) / span, f"{low:.3g}", f"{high:.3g}"


def _colours(found: Found, rows: Sequence[Row]) -> tuple[Callable[[float], Any], Any]:
    """Colour of a value, the better the brighter; the worst tenth does not stretch the scale."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    values = sorted((row["value"] for row in rows), reverse=not found.lower)
    kept = values[: max(2, math.ceil(0.9 * len(values)))]
    scale = Normalize(min(kept), max(kept), clip=True)
    colours = matplotlib.colormaps[f"{_MAP}_r" if found.lower else _MAP]
    return lambda value: colours(scale(value)), ScalarMappable(scale, colours)


@styled
def against_value(found: Found) -> Figure | None:
    """A panel per parameter: its values against the objective, the best trial as a star."""
    from matplotlib.figure import Figure

    rows, names, best = comparable(found), shown_parameters(found), best_of(found)
    if best is None or not names:
        return None
    columns = min(4, len(names))
    lines = math.ceil(len(names) / columns)
    figure = Figure(
        figsize=(max(WIDTH, columns * _PANEL), lines * _PANEL + 0.3), layout="constrained", facecolor="none"
    )
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        axes.set_facecolor("none")
        known = [row for row in rows if row[name] is not None]
        axes.scatter([row[name] for row in known], [row["value"] for row in known], s=14, color=MEMBERS[0], alpha=0.7,
                     linewidth=0)  # fmt: skip
        if best[name] is not None:
            axes.scatter(best[name], best["value"], s=110, marker="*", color=_BEST, edgecolor=PAPER, linewidth=0.6,
                         zorder=3)  # fmt: skip
        axes.set_xlabel(shown(name))
        axes.grid(color=GRID)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    figure.supylabel("objective", fontsize=9)
    return figure


@styled
def distances(found: Found) -> Figure | None:
    """How far every trial's weights lie from uniform and from ratio weights, coloured by value."""
    rows = [
        r for r in comparable(found) if r.get("distance_uniform") is not None and r.get("distance_ratio") is not None
    ]
    if len(rows) < 2:
        return None
    best = min(rows, key=lambda row: (row["value"] if found.lower else -row["value"], row["trial"]))
    figure, axes = new_axes(WIDTH, 3.4)
    colour, mappable = _colours(found, rows)
    x, y = "distance_uniform", "distance_ratio"
    axes.scatter([r[x] for r in rows], [r[y] for r in rows], s=26, color=[colour(r["value"]) for r in rows],
                 linewidth=0, zorder=2)  # fmt: skip
    axes.scatter(best[x], best[y], s=190, marker="*", color=_BEST, edgecolor=PAPER, linewidth=0.8, zorder=3,
                 label=f"best: trial {best['trial']}")  # fmt: skip
    axes.set_xlabel("distance from uniform weights")
    axes.set_ylabel("distance from ratio weights")
    axes.margins(0.08)
    axes.grid()
    bar = figure.colorbar(mappable, ax=axes, shrink=0.8, aspect=24, pad=0.03)
    bar.outline.set_visible(False)
    bar.set_label("value")
    figure.legend(loc="outside upper left", handlelength=1.2)
    return figure


@styled
def reported(found: Found) -> Figure | None:
    """Half B: every model's difference to the reference, in points, with its 95 % interval; grey where none is told."""
    rows = [row for row in half_b(found) if row["difference"] is not None]
    if not rows:
        return None
    figure, axes = new_axes(WIDTH, 0.9 + 0.3 * len(rows))
    for place, row in enumerate(rows):
        told = row["low"] > 0 or row["high"] < 0
        colour = (_BEST if row["model"] == "searched" else MEMBERS[0]) if told else MUTED
        axes.plot([100 * row["low"], 100 * row["high"]], [place, place], color=colour, linewidth=1.9, zorder=2)
        axes.scatter(100 * row["difference"], place, s=40, color=colour, edgecolor=PAPER, linewidth=0.6, zorder=3)
    axes.axvline(0, color=BASE, linewidth=1.0, zorder=1)
    axes.set_yticks(range(len(rows)), [row["model"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"points of the metric over {rows[0]['against']}, dev half B; grey: may be none")
    axes.grid(axis="x")
    return figure


@styled
def id_ood(rows: Sequence[Row]) -> Figure | None:
    """In-domain against out-of-domain gain over the base, in points, with 95 % intervals."""
    if not rows:
        return None
    figure, axes = new_axes(WIDTH, 3.8)
    axes.axhline(0, color=BASE, linewidth=0.9, zorder=1)
    axes.axvline(0, color=BASE, linewidth=0.9, zorder=1)
    for index, row in enumerate(rows):
        colour = MERGES.get(row["model"], MEMBERS[index % len(MEMBERS)])
        _cross(axes, row, colour)
        size = 170 if row["model"] == "merge-searched" else 60
        axes.scatter(100 * row["id"], 100 * row["ood"], s=size, color=colour, zorder=3, edgecolor=PAPER, linewidth=0.8,
                     marker=MARKERS.get(row["model"], MARKERS.get(row["kind"], "o")), label=row["model"])  # fmt: skip
    axes.set_xlabel("in-domain, points over the base")
    axes.set_ylabel("out-of-domain, points over the base")
    axes.grid()
    figure.legend(loc="outside right center", handlelength=1.0)
    return figure


def _cross(axes: Axes, row: Row, colour: str) -> None:
    axes.plot(
        [100 * row["id_low"], 100 * row["id_high"]], [100 * row["ood"]] * 2, color=colour, linewidth=1.0, alpha=0.7
    )
    axes.plot(
        [100 * row["id"]] * 2, [100 * row["ood_low"], 100 * row["ood_high"]], color=colour, linewidth=1.0, alpha=0.7
    )


OF_ONE: dict[str, tuple[Callable[[Found], Any], str, str]] = {
    "importance": (
        importances,
        "What matters",
        "fANOVA: the share of the objective's variance that each parameter explains.",
    ),
    "parallel": (parallel, "Parallel coordinates", "A line per trial; brighter is better."),
    "against_value": (against_value, "Parameters against the objective", "A dot per trial; the star is the best."),
    "distances": (distances, "How far from the closed forms", "Share of the weight that would have to move, 0 to 1."),
    "reported": (reported, "What half B says", "Chosen on half A, reported on half B."),
}
