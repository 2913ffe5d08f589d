"""The figures of the report, drawn from the run's summary.

Each function takes the summary and returns a matplotlib ``Figure`` (object API, no pyplot), or None where the run has
nothing to show. Cool colours are members, warm colours are merges, grey is the base; shape and line style say the same
a second time, for print and for eyes that do not tell the colours apart (the hues are Okabe and Ito's).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from boom_ray.report.clock import cost, timeline
from boom_ray.report.corpus import bags, lengths
from boom_ray.report.drawing import (
    BASE,
    DASHES,
    GRID,
    MARKERS,
    MEMBERS,
    MERGES,
    MUTED,
    PAPER,
    WIDTH,
    Draw,
    Summary,
    colours,
    new_axes,
    styled,
)
from boom_ray.report.intervals import set_reach
from boom_ray.report.layout import (
    bag_label,
    label_right,
    smooth,
)
from boom_ray.report.nodes import nodes
from boom_ray.report.tables import DOMAINS, ScoreRow, best_trial, finished_trials, lower_is_better, score_table, sets_of
from boom_ray.report.training import dataset_losses

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _dashes(index: int) -> Any:
    return DASHES[index % len(DASHES)]


@styled
def losses(summary: Summary) -> Figure | None:
    """Training loss of every member, step by step: dots as measured, lines smoothed."""
    members = [m for m in summary["members"] if m.get("losses")]
    if not members:
        return None
    colour = colours(summary)
    figure, axes = new_axes(WIDTH, 3.0)
    ends = []
    for index, member in enumerate(members):
        steps, values = zip(*member["losses"], strict=True)
        line = smooth(values)
        some = slice(None, None, max(1, len(steps) // 300))  # a long run must not make a heavy page
        axes.scatter(steps[some], values[some], s=5, color=colour[member["name"]], alpha=0.3, linewidth=0)
        axes.plot(steps[some], line[some], color=colour[member["name"]], linewidth=1.9, linestyle=_dashes(index))
        axes.plot(steps[-1], line[-1], "o", color=colour[member["name"]], markersize=4, clip_on=False)
        ends.append((steps[-1], line[-1]))
    axes.set_xlim(0, max(step for step, _ in ends))
    notes = [f"{m['name']} · {bag_label(m)}" for m in members]
    label_right(axes, ends, notes, [colour[m["name"]] for m in members], gap=0.08)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.grid(axis="y")
    return figure


@styled
def scatter(summary: Summary) -> Figure | None:
    """In-domain against out-of-domain mean of every model; where one domain has no sets, a strip of the other."""
    rows = score_table(summary)
    both = [(r, r.id_mean, r.ood_mean) for r in rows if r.id_mean is not None and r.ood_mean is not None]
    if not both:
        return _strip(rows, colours(summary))
    colour = colours(summary)
    figure, axes = new_axes(WIDTH, 4.0)
    for row, x, y in both:
        size = 200 if row.marker == "merge-searched" else 55 if row.kind == "base" else 75
        axes.scatter(x, y, s=size, color=colour.get(row.model, MUTED), zorder=3, marker=MARKERS.get(row.marker, "P"),
                     edgecolor=PAPER, linewidth=0.9)  # fmt: skip
        if row.kind == "base":
            axes.axvline(x, color=BASE, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
            axes.axhline(y, color=BASE, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
    axes.margins(0.09, 0.09)
    axes.grid()
    axes.set_xlabel("in-domain mean, points")
    axes.set_ylabel("out-of-domain mean, points")
    ratios = {m["name"]: f" · {bag_label(m)}" for m in summary["members"]}
    names = [row.model + ratios.get(row.model, "") for row, *_ in both]
    label_right(axes, [(x, y) for _, x, y in both], names, [colour.get(row.model, MUTED) for row, *_ in both], gap=0.06)
    return figure


def _strip(rows: Sequence[ScoreRow], colour: Mapping[str, str]) -> Figure | None:
    domain = "in-domain" if any(row.id_mean is not None for row in rows) else "out-of-domain"
    scored = [(r, r.id_mean if domain == "in-domain" else r.ood_mean) for r in rows]
    shown = sorted(((r, s) for r, s in scored if s is not None), key=lambda pair: pair[1])
    if not shown:
        return None
    figure, axes = new_axes(WIDTH, 0.9 + 0.34 * len(shown))
    for place, (row, score) in enumerate(shown):
        axes.plot([shown[0][1], score], [place, place], color=GRID, linewidth=1.5, zorder=1)
        axes.scatter(score, place, s=150 if row.marker == "merge-searched" else 64, color=colour.get(row.model, MUTED),
                     marker=MARKERS.get(row.marker, "o"), zorder=3, edgecolor=PAPER, linewidth=0.9)  # fmt: skip
        axes.annotate(f"{score:.1f}", (score, place), (9, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_yticks(range(len(shown)), [row.model for row, _ in shown])
    axes.margins(0.1, 0.08)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"{domain} mean, points")
    axes.grid(axis="x")
    return figure


@styled
def cosine(summary: Summary) -> Figure | None:
    """Cosines between the task vectors (member minus base) of the whole models."""
    found = summary.get("cosine") or {}
    names, matrix = found.get("names") or [], found.get("matrix") or []
    if len(names) < 2:
        return None
    figure, axes = new_axes(WIDTH, max(2.4, min(4.6, 0.42 * len(names) + 1.1)))
    below = [[matrix[i][j] if j < i else float("nan") for j in range(len(names) - 1)] for i in range(1, len(names))]
    values = [matrix[i][j] for i in range(len(names)) for j in range(i)]
    low, high = math.floor(10 * min(values)) / 10, math.ceil(10 * max(values)) / 10
    low, high = (low, high) if high - low > 0.15 else (low - 0.1, high)
    image = axes.imshow(below, cmap="cividis", vmin=low, vmax=high, aspect="auto")
    for i, row in enumerate(below):
        for j, value in enumerate(row[: i + 1] if len(names) <= 12 else []):
            tint = "#fdfdfd" if (value - low) / (high - low) < 0.5 else "#16181b"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=tint)
    axes.set_xticks(range(len(names) - 1), names[:-1])
    axes.set_yticks(range(len(names) - 1), names[1:])
    if len(names) > 6:
        axes.tick_params(axis="x", labelrotation=90)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=24, pad=0.03)
    bar.outline.set_visible(False)
    bar.set_label("cosine")
    return figure


@styled
def weights(summary: Summary) -> Figure | None:
    """Merge weights by ratio, uniform and searched, one group of bars per member."""
    merges = [m for m in summary["models"] if m["kind"] == "merge" and m.get("weights")]
    if not merges or len(summary["members"]) < 2:
        return None
    names = [m["name"] for m in summary["members"]]
    colour, hatches = colours(summary), {"merge-ratio": "////", "merge-uniform": "\\\\\\\\", "merge-searched": ""}
    figure, axes = new_axes(WIDTH, 3.0)
    width = 0.82 / len(merges)
    for place, merge in enumerate(merges):
        total = sum(merge["weights"]) or 1.0
        at = [i + (place - (len(merges) - 1) / 2) * width for i in range(len(names))]
        scale = merge.get("scale")
        label = merge["name"] + (f" (scale {scale:.2f})" if scale not in (None, 1.0) else "")
        bars = axes.bar(at, [w / total for w in merge["weights"]], width * 0.92, label=label,
                        color=colour.get(merge["name"], MUTED), hatch=hatches.get(merge["name"], "xx"),
                        edgecolor=PAPER, linewidth=0)  # fmt: skip
        if len(names) * len(merges) <= 18:
            axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=2, color=MUTED)
    ratios = {m["name"]: bag_label(m) for m in summary["members"]}
    axes.set_xticks(range(len(names)), [f"{name}\n{ratios[name]}" for name in names])
    axes.tick_params(axis="x", length=0, labelrotation=90 if len(names) > 6 else 0)
    axes.set_ylabel("weight, normalised")
    axes.grid(axis="y")
    figure.legend(loc="outside upper left", ncols=3, handlelength=1.4, columnspacing=1.6)
    return figure


@styled
def search(summary: Summary) -> Figure | None:
    """Objective of every trial of the weight search, and the best so far."""
    from matplotlib.ticker import MaxNLocator

    found = summary.get("search") or {}
    best = best_trial(found)
    if best is None:
        return None
    trials = finished_trials(found)
    better = min if lower_is_better(found) else max
    reached = [better(t["value"] for t in trials[: i + 1]) for i in range(len(trials))]
    numbers = [t["number"] for t in trials]
    figure, axes = new_axes(WIDTH, 2.8)
    axes.scatter(numbers, [t["value"] for t in trials], s=30, color=MEMBERS[0], zorder=3, label="trial")
    axes.step(numbers, reached, where="post", color=MERGES["merge-searched"], linewidth=1.8, label="best so far")
    axes.scatter(best["number"], best["value"], s=210, marker="*", color=MERGES["merge-searched"], zorder=4,
                 edgecolor=PAPER, linewidth=0.9, label=f"best: trial {best['number']}")  # fmt: skip
    axes.set_xlabel("trial")
    axes.set_ylabel(f"objective, {'lower' if better is min else 'higher'} is better")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    figure.legend(loc="outside upper left", ncols=3, handlelength=1.4, columnspacing=1.6)
    return figure


@styled
def gains(summary: Summary) -> Figure | None:
    """Difference to base of every member and merge, set by set, in points."""
    base = next((m.get("scores") or {} for m in summary["models"] if m["kind"] == "base"), {})
    sets = [s for domain in DOMAINS for s in sets_of(summary, domain) if base.get(s["name"]) is not None]
    others = [m for m in summary["models"] if m["kind"] != "base" and m.get("scores")]
    if not sets or not others:
        return None
    colour = colours(summary)
    figure, axes = new_axes(WIDTH, 1.1 + 0.34 * len(sets))
    for model in others:
        merge = model["kind"] == "merge"
        known = [(row, s["name"]) for row, s in enumerate(sets) if model["scores"].get(s["name"]) is not None]
        # merges sit a little above the line of members, so that neither hides the other
        axes.scatter([100 * (model["scores"][name] - base[name]) for _, name in known],
                     [row - 0.18 if merge else row + 0.12 for row, _ in known],
                     s=110 if model["name"] == "merge-searched" else 42, color=colour.get(model["name"], MUTED),
                     marker=MARKERS.get(model["name"] if merge else model["kind"], "P"), edgecolor=PAPER, linewidth=0.7,
                     label=model["name"] if merge else None, zorder=4 if merge else 3)  # fmt: skip
        if model["name"] == summary.get("chosen"):
            _whiskers(axes, summary, model, base, known)
    axes.scatter([], [], s=42, color=MUTED, marker="o", label="members")
    axes.axvline(0, color=BASE, linewidth=1.0)
    inside = sum(s["domain"] == "in_domain" for s in sets)
    if 0 < inside < len(sets):
        axes.axhline(inside - 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.set_yticks(range(len(sets)), [s["name"] for s in sets])
    axes.set_ylim(len(sets) - 0.5, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("points above base")
    axes.grid(axis="x")
    figure.legend(loc="outside upper left", ncols=4, handlelength=1.0, columnspacing=1.2, handletextpad=0.3)
    return figure


def _whiskers(
    axes: Axes,
    summary: Summary,
    model: Mapping[str, Any],
    base: Mapping[str, float],
    known: Sequence[tuple[int, str]],
) -> None:
    """The 95 % interval of a model's difference to base on each set, where it is known."""
    spans = [(row, name, set_reach(summary, "base", model["name"], name)) for row, name in known]
    bars = [(row, 100 * (model["scores"][name] - base[name]), reach) for row, name, reach in spans if reach is not None]
    if bars:
        rows, middles, reaches = zip(*bars, strict=True)
        place = [row - 0.18 if model["kind"] == "merge" else row + 0.12 for row in rows]
        axes.errorbar(middles, place, xerr=reaches, fmt="none", ecolor=MUTED, elinewidth=1.0, zorder=2)


FIGURES: dict[str, Draw] = {
    "scatter": scatter,
    "timeline": timeline,
    "nodes": nodes,
    "gains": gains,
    "cost": cost,
    "losses": losses,
    "search": search,
    "weights": weights,
    "cosine": cosine,
    "bags": bags,
    "lengths": lengths,
    "dataset_losses": dataset_losses,
}
