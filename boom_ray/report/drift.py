"""Drift between two versions of a model: lines for the terminal, a figure, and a section of the page.

All read the plain values of :meth:`boom_ray.evaluate.drift_verdict.Drift.to_json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boom_ray.report.drawing import BASE, GRID, MEMBERS, MERGES, MUTED, styled
from boom_ray.report.html import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Told = Mapping[str, Any]
DRIFT_FILE = "report/drift.json"  # in the run of the new model
_PAIRS = {"mixed/new": "as new index", "mixed/old": "as today", "new/old": "new index as today"}
_SYSTEMS = {"old": "today", "mixed": "old index", "new": "new index"}


def _columns(told: Told) -> dict[str, Callable[[Told], str]]:
    """Title of each column and what it shows of a set, or of the mean over sets."""
    columns: dict[str, Callable[[Told], str]] = {}
    if told["mean"]["cosine"]:
        columns["cosine"] = lambda m: _interval(m["cosine"]["mean"], 1, 3)
        columns["lowest 5 %"] = lambda m: f"{m['cosine']['quantiles']['0.05']:.3f}"
    for pair in told["mean"]["overlap"]:
        columns[f"overlap@10, {_PAIRS[pair]}"] = lambda m, pair=pair: _interval(m["overlap"][pair], 100, 1)  # type: ignore[misc]
    for system in told["mean"].get("ndcg", {}):
        columns[f"nDCG@10 {_SYSTEMS[system]}"] = lambda m, s=system: (  # type: ignore[misc]
            f"{100 * m['ndcg'][s]:.2f}" if m.get("ndcg") else "-"
        )
    if told["mean"].get("loss"):
        columns["lost without re-embedding"] = lambda m: (
            _interval(m["loss"]["to_new_index"], 100, 2) if m.get("loss") else "-"
        )
    return columns


def drift_table(told: Told) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a set each, and the mean over the sets last where there are several."""
    columns = _columns(told)
    rows = [
        [m["name"], f"{m['documents']:,}", f"{m['queries']:,}", *(cell(m) for cell in columns.values())]
        for m in told["sets"]
    ]
    if len(rows) > 1:
        rows.append(["mean", "", "", *(cell(told["mean"]) for cell in columns.values())])
    return ["set", "texts", "queries", *columns], rows


def format_drift(told: Told) -> str:
    """For the terminal: one block of lines per set, the mean, and the verdict."""
    head, rows = drift_table(told)
    width = max(len(name) for name in head[1:])
    lines = [f"old: {told['old']}", f"new: {told['new']}"]
    for name, *cells in rows:
        lines += ["", name]
        lines += [f"  {title:{width}}  {cell}" for title, cell in zip(head[1:], cells, strict=True) if cell]
    return "\n".join([*lines, "", told["verdict"]["text"], *told["verdict"]["notes"]])


def run_drift(root: Path, published: str) -> Told | None:
    """What a run keeps of its published model's drift; None where none was measured for this one."""
    try:
        told: Told = json.loads((root / DRIFT_FILE).read_text(encoding="utf-8"))
        return told if Path(told["new"]).name == published else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def drift_section(summary: Told) -> str:
    """HTML of a run's drift against the model that it replaces; empty where none was measured."""
    told = summary.get("drift")
    if not told:
        return ""
    head, rows = drift_table(told)
    lines = "".join(f"<li>{escape(line)}</li>" for line in (told["verdict"]["text"], *told["verdict"]["notes"]))
    note = (
        f"Old: <code>{escape(Path(told['old']).name)}</code>, new: <code>{escape(Path(told['new']).name)}</code>. "
        f"Today is old queries in the old index; old index is new queries in it; points, with 95 % intervals."
    )
    return f'<ul class="verdict">{lines}</ul>\n<p class="muted">{note}</p>\n{table(head, rows)}'


def drift_lines(summary: Told) -> str:
    """``## Drift`` of the card: the verdict against the model before; empty where none was measured."""
    told = summary.get("drift")
    if not told:
        return ""
    lines = (f"- {line}" for line in (told["verdict"]["text"], *told["verdict"]["notes"]))
    return "\n".join([f"## Drift\n\nAgainst the vectors of `{Path(told['old']).name}`:\n", *lines])


@styled
def drift_figure(told: Told) -> Figure | None:
    """Cosines, and what not re-embedding costs, set by set, with the limits that the verdict goes by."""
    from matplotlib.figure import Figure

    sets = list(told["sets"])
    rows = [*sets, {**told["mean"], "name": "mean"}] if len(sets) > 1 else sets
    shown = [panel for panel in (_cosines, _losses, _overlaps) if panel(None, rows, told)]
    if not shown:
        return None
    figure = Figure(figsize=(3.6 * len(shown) + 1.2, 1.1 + 0.3 * len(rows)), layout="constrained", facecolor="none")
    for number, panel in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), number + 1, facecolor="none")
        panel(axes, rows, told)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [m["name"] for m in rows] if number == 0 else [""] * len(rows))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=GRID)
    return figure


def _cosines(axes: Axes | None, rows: Sequence[Told], told: Told) -> bool:
    if axes is None or not told["mean"]["cosine"]:
        return bool(told["mean"]["cosine"])
    for place, m in enumerate(rows):
        q = m["cosine"]["quantiles"]
        axes.plot([q["0.05"], q["0.75"]], [place, place], color=MEMBERS[0], linewidth=1.2)
        axes.plot([q["0.25"], q["0.75"]], [place, place], color=MEMBERS[0], linewidth=4.5, solid_capstyle="butt")
        axes.plot(q["0.5"], place, "o", color=MEMBERS[0], markersize=5)
    axes.set_xlabel("cosine of old and new vector\n(5 %, middle half, median)")
    return True


def _losses(axes: Axes | None, rows: Sequence[Told], told: Told) -> bool:
    found = [(place, m["loss"]["to_new_index"]) for place, m in enumerate(rows) if m.get("loss")]
    if axes is None or not found:
        return bool(found)
    _forest(axes, [(place, {k: 100 * v for k, v in loss.items()}) for place, loss in found])
    _limit(axes, 100 * told["verdict"]["limits"]["ndcg_loss"])
    axes.axvline(0, color=BASE, linewidth=0.8)
    axes.set_xlabel("points of nDCG@10 lost\nwithout re-embedding")
    return True


def _overlaps(axes: Axes | None, rows: Sequence[Told], told: Told) -> bool:
    found = [(p, m["overlap"]["mixed/new"]) for p, m in enumerate(rows) if "mixed/new" in m["overlap"]]
    if axes is None or not found:
        return bool(found)
    _forest(axes, [(place, {k: 100 * v for k, v in same.items()}) for place, same in found])
    _limit(axes, 100 * told["verdict"]["limits"]["overlap"])
    axes.set_xlabel("% of the first ten that the\nold index gives, too")
    return True


def _forest(axes: Axes, found: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    for place, interval in found:
        axes.plot([interval["low"], interval["high"]], [place, place], color=MEMBERS[0], linewidth=1.6)
        axes.plot(interval["value"], place, "o", color=MEMBERS[0], markersize=5)


def _limit(axes: Axes, value: float) -> None:
    axes.axvline(value, color=MERGES["merge-searched"], linewidth=1.1, linestyle=(0, (4, 2)))
    axes.text(value, -0.45, " limit", color=MUTED, fontsize=8, va="top")


def _interval(interval: Mapping[str, float], factor: float, digits: int) -> str:
    value, low, high = (f"{factor * interval[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
