"""The report's part on training: how fast every member was, and the loss of each dataset step by step."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import TYPE_CHECKING, Any

from boom_ray.report.drawing import MUTED, WIDTH, Summary, colours, styled
from boom_ray.report.html import table
from boom_ray.report.layout import smooth

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 4
_MOST = 24  # datasets with a panel of their own, the largest ones
_PANEL = (WIDTH / _COLUMNS, 1.15)  # inches

# heading, key of a member's measurements, what it is multiplied by, decimals
_MEASURED = (
    ("s a step", "step_seconds", 1.0, 2),
    ("texts/s", "texts_per_second", 1.0, 1),
    ("tokens/s", "tokens_per_second", 1.0, 0),
    ("padding %", "padding_share", 100.0, 1),
    ("waiting for data %", "stall_share", 100.0, 2),
    ("model GFLOP/s", "flops_per_second", 1e-9, 1),
    ("of the device's peak %", "mfu", 100.0, 1),
    ("memory GiB", "memory", 2.0**-30, 2),
    ("gradient norm", "grad_norm", 1.0, 3),
)


def training_section(summary: Summary) -> str:
    """HTML: a row of measurements per member; below it, by dataset, the loss at first and at last."""
    members = [m for m in summary["members"] if m.get("measured")]
    if not members:
        return ""
    columns = [c for c in _MEASURED if any(m["measured"].get(c[1]) is not None for m in members)]
    rows = [
        [m["name"], *(_cell(m["measured"].get(key), by, digits) for _, key, by, digits in columns)] for m in members
    ]
    note = (
        '<p class="muted">Over all steps but the first. Texts and tokens are those of all workers; padding, waiting, '
        "FLOPs and memory are the first worker's. Model FLOPs leave out padding and what is computed twice; the peak "
        "is the device's data sheet's, in 16 bits. The gradient norm is the median.</p>"
    )
    return note + table(["Member", *(heading for heading, *_ in columns)], rows) + _losses(members)


def _cell(value: float | None, by: float, digits: int) -> str:
    return "-" if value is None else f"{by * value:,.{digits}f}"


def _losses(members: list[Mapping[str, Any]]) -> str:
    """Mean loss of each dataset over the first and the last third of its steps, for every member."""
    names = sorted({name for m in members for name in m.get("datasets") or {}})
    head = ["Dataset", *(f"{m['name']}{part}" for m in members for part in (", first", ", last"))]
    rows = []
    for name in names:
        curves = [[loss for _, loss in (m["datasets"].get(name) or {}).get("losses", [])] for m in members]
        thirds = [part for curve in curves for part in (curve[: ceil(len(curve) / 3)], curve[-ceil(len(curve) / 3) :])]
        rows.append([name, *(f"{sum(part) / len(part):.3f}" if part else "-" for part in thirds)])
    return f"\n<details><summary>loss by dataset</summary>{table(head, rows)}</details>" if rows else ""


@styled
def dataset_losses(summary: Summary) -> Figure | None:
    """Training loss over steps, a panel per dataset, a smoothed line per member; each panel has its own scale."""
    from matplotlib.figure import Figure

    members = [m for m in summary["members"] if m.get("datasets")]
    sizes: dict[str, int] = {}
    for member in members:
        for name, told in member["datasets"].items():
            sizes[name] = sizes.get(name, 0) + told["rows"]
    names = sorted(sizes, key=lambda name: (-sizes[name], name))[:_MOST]
    if not names:
        return None
    colour, columns = colours(summary), min(_COLUMNS, len(names))
    rows = ceil(len(names) / columns)
    figure = Figure(figsize=(WIDTH, _PANEL[1] * rows + 0.3), layout="constrained", facecolor="none")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, name in zip(panels, names, strict=False):
        panel.set_facecolor("none")
        for member in members:
            points = member["datasets"].get(name, {}).get("losses")
            if points:
                steps, values = zip(*points, strict=True)
                panel.scatter(steps, values, s=3, color=colour[member["name"]], alpha=0.3, linewidth=0)
                panel.plot(steps, smooth(values), color=colour[member["name"]], linewidth=1.3)
        panel.set_title(name if len(name) <= 20 else f"{name[:19]}…", fontsize=7.5, loc="left", color=MUTED)
        panel.tick_params(labelsize=6.5, length=2)
        panel.locator_params(nbins=3)
        panel.grid(axis="y")
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    figure.supxlabel("step", fontsize=8.5)
    return figure
