"""The figures of time: when everything ran, and what it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from boom_ray.report.drawing import INK, MEMBERS, MUTED, PAPER, WIDTH, Summary, colours, new_axes, styled
from boom_ray.report.layout import UNITS, busy, clock_unit, duration, percent, share, without_gaps

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def timeline(summary: Summary) -> Figure | None:
    """When each stage and each member ran; idle time between runs is cut out and marked."""
    rows = _lanes(summary)
    if not rows:
        return None
    place, cuts = without_gaps([span for _, spans, _ in rows for span in spans])
    total = max(place(end) for _, spans, _ in rows for _, end in spans)
    unit, seconds = clock_unit(total)
    figure, axes = new_axes(WIDTH, 0.8 + 0.27 * len(rows))
    for height, (_, spans, tint) in enumerate(rows):
        bars = [(place(a) / seconds, max(place(b) - place(a), 0.003 * total) / seconds) for a, b in spans]
        edge = {"edgecolor": PAPER, "linewidth": 0.6} if len(bars) > 1 else {"linewidth": 0}
        axes.broken_barh(bars, (height - 0.33, 0.66), color=tint, alpha=0.6 if tint == MUTED else 1.0, **edge)
        end = max(start + length for start, length in bars)
        axes.annotate(duration(busy(spans)), (end, height), (4, 0), textcoords="offset points", va="center",
                      fontsize=8, color=MUTED)  # fmt: skip
    for at, idle in cuts:
        axes.axvline(at / seconds, color=MUTED, linewidth=0.9, linestyle=(0, (2, 3)))
        axes.annotate(f"{duration(idle)} idle, cut out", (at / seconds, -0.5), (0, 4), ha="center",
                      textcoords="offset points", fontsize=8, color=MUTED, annotation_clip=False)  # fmt: skip
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.09 * total / seconds)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"{UNITS[unit]} since the start")
    axes.grid(axis="x")
    return figure


def _lanes(summary: Summary) -> list[tuple[str, list[tuple[float, float]], str]]:
    """(label, spans, colour) by start: a lane for every stage, with all that it made, and one for every member."""
    members, colour = summary["members"], colours(summary)
    names = {m["name"] for m in members}
    stages: dict[str, list[tuple[float, float]]] = {}
    for stage in summary["stages"]:
        if stage.get("finished") and stage["label"] not in names:
            stages.setdefault(stage["name"], []).append((stage["started"], stage["finished"]))
    lanes = [(name, sorted(spans), MUTED) for name, spans in stages.items()]
    lanes += [(f"{m['name']} · {percent(m['ratio'])}", [(m["started"], m["finished"])], colour[m["name"]])
              for m in members if m.get("finished")]  # fmt: skip
    return sorted(lanes, key=lambda lane: lane[1][0])


@styled
def cost(summary: Summary) -> Figure | None:
    """Device-seconds of every stage, with all that it made."""
    stages: dict[str, float] = {}
    for stage in summary["stages"]:
        stages[stage["name"]] = stages.get(stage["name"], 0.0) + (stage.get("device_seconds") or 0.0)
    total = sum(stages.values())
    if total <= 0:
        return None
    figure, axes = new_axes(WIDTH, 0.8 + 0.3 * len(stages))
    values = list(stages.values())
    bars = axes.barh(range(len(stages)), values, height=0.66, color=MEMBERS[0], linewidth=0)
    notes = [f"{value:,.0f} s · {share(value / total)}" for value in values]
    axes.bar_label(bars, labels=notes, padding=4, fontsize=8.5, color=INK)
    axes.set_yticks(range(len(stages)), list(stages))
    axes.invert_yaxis()
    axes.margins(x=0.17)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("device-seconds")
    axes.grid(axis="x")
    return figure
