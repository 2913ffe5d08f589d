"""The figures of a study: each takes its answer or its result and returns a Figure, None where nothing is to be shown.

Colour and shape of a point both say what a condition is for; hollow points are exploratory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from boom_ray.report.drawing import BASE, GRID, INK, MEMBERS, MERGES, MUTED, PAPER, WIDTH, new_axes, styled
from boom_ray.report.layout import label_right, percent
from boom_ray.report.study_tables import SHORT, cosines, shares, title_of
from boom_ray.study.answer import DOMAINS, Answer
from boom_ray.study.goals import TARGETS, Gap, Line

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from boom_ray.study.results import ConditionResult, StudyResult

ROLES = {"reference": (MEMBERS[0], "o"), "merge": (MERGES["merge-searched"], "s"), "control": (MEMBERS[1], "^")}
_SEEDS = ("o", "s", "^", "D", "v", "P")
_LINE = 0.17  # inches that a name takes
_DARK, _LIGHT = "#16181b", "#fdfdfd"  # words on coloured cells, whatever the theme


def _point(axes: Axes, x: float, y: float, line: Line, size: float = 52) -> None:
    colour, marker = ROLES[line.role]
    fill, edge = (PAPER, colour) if line.exploratory else (colour, PAPER)
    width = 1.3 if line.exploratory else 0.8
    axes.scatter(x, y, s=size, marker=marker, zorder=3, linewidth=width, color=fill, edgecolor=edge)


def _legend(figure: Figure, axes: Axes, lines: Sequence[Line]) -> None:
    for role, (colour, marker) in ROLES.items():
        if any(line.role == role for line in lines):
            axes.scatter([], [], s=46, color=colour, marker=marker, label=role)
    if any(line.exploratory for line in lines):
        axes.scatter([], [], s=46, color=PAPER, edgecolor=MUTED, linewidth=1.3, label="hollow: exploratory")
    figure.legend(loc="outside upper left", ncols=4, handlelength=1.0, columnspacing=1.3, handletextpad=0.3)


def _points_of(line: Line, domain: str) -> tuple[float, float]:
    """Points above the single run, and half the interval; of the single run itself nothing."""
    gap = line.to_single.get(domain)
    return (0.0, 0.0) if gap is None else (100 * gap.value, _half(gap))


def _faint(line: Line) -> float:
    """How strong the bar of an interval is."""
    return 0.3 if line.exploratory else 0.6


def _half(gap: Gap) -> float:
    return 0.0 if gap.interval is None else 50 * (gap.interval.high - gap.interval.low)


@styled
def against_peers(answer: Answer) -> Figure | None:
    """Every condition's gap to the reference at equal compute, out-of-domain and in-domain, with the targets."""
    from matplotlib.figure import Figure

    lines = [line for line in answer.lines if line.to_peer]
    domains = [domain for domain in TARGETS if any(domain in line.to_peer for line in lines)]
    if not domains:
        return None
    figure = Figure(figsize=(9.2, 1.1 + 0.25 * len(lines)), layout="constrained", facecolor="none")
    names = [f"{line.title}  against {title_of(answer, line.peer)}{SHORT * line.short}" for line in lines]
    for number, domain in enumerate(domains):
        axes = figure.add_subplot(1, len(domains), number + 1, facecolor="none")
        axes.axvline(0, color=BASE, linewidth=1.0, zorder=1)
        axes.axvline(100 * TARGETS[domain], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        for place, line in enumerate(lines):
            gap = line.to_peer[domain]
            tint = ROLES[line.role][0] if gap.certain else MUTED
            axes.errorbar(100 * gap.value, place, xerr=_half(gap), fmt="none", ecolor=tint, elinewidth=1.6, zorder=2)
            _point(axes, 100 * gap.value, place, line)
        axes.set_yticks(range(len(lines)), names if number == 0 else [""] * len(lines))
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"{DOMAINS[domain]}, points above the reference")
        axes.grid(axis="x", color=GRID)
    _legend(figure, axes, lines)
    return figure


@styled
def id_ood(answer: Answer) -> Figure | None:
    """In-domain against out-of-domain, in points above the single run, with intervals."""
    single = answer.line(answer.single)
    if single is None or not all(domain in answer.means for domain in DOMAINS) or len(answer.lines) < 2:
        return None
    high = max(3.2, _LINE * 1.1 * (len(answer.lines) + 1))
    figure, axes = new_axes(WIDTH + 1.2, high + 0.9)
    spots = []
    for line in answer.lines:
        (x, dx), (y, dy) = _points_of(line, "in_domain"), _points_of(line, "out_of_domain")
        tint = ROLES[line.role][0]
        axes.errorbar(x, y, xerr=dx, yerr=dy, fmt="none", ecolor=tint, elinewidth=0.9, alpha=_faint(line), zorder=2)
        _point(axes, x, y, line)
        spots.append((x, y))
    axes.margins(0.06)
    names, tints = [line.title for line in answer.lines], [ROLES[line.role][0] for line in answer.lines]
    place = _base(axes, answer)
    if place is not None:
        spots, names, tints = [*spots, place[0]], [*names, place[1]], [*tints, BASE]
    axes.axvline(0, color=BASE, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
    axes.axhline(0, color=BASE, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
    axes.grid()
    axes.set_xlabel(f"in-domain, points above {single.title}")
    axes.set_ylabel(f"out-of-domain, points above {single.title}")
    label_right(axes, spots, names, tints, gap=_LINE / high)
    _legend(figure, axes, answer.lines)
    return figure


def _base(axes: Axes, answer: Answer) -> tuple[tuple[float, float], str] | None:
    """Draw the base; where it would squeeze all others it stands at the edge, and its name says where it belongs."""
    if not answer.base.to_single:
        return None
    limits = [axes.get_xlim(), axes.get_ylim()]
    there = [100 * answer.base.to_single[domain].value for domain in DOMAINS]
    near = [abs(value - (low + high) / 2) <= high - low for value, (low, high) in zip(there, limits, strict=True)]
    if all(near):
        axes.scatter(there[0], there[1], s=46, color=BASE, marker="D", zorder=3, edgecolor=PAPER, linewidth=0.8)
        axes.autoscale_view()
        return (there[0], there[1]), "base"
    x, y = (min(max(value, low), high) for value, (low, high) in zip(there, limits, strict=True))
    axes.scatter(x, y, s=60, color=BASE, marker="D", zorder=4, clip_on=False, linewidth=0)
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])
    return (x, y), f"base, out of sight at ({there[0]:+.1f}, {there[1]:+.1f})"


@styled
def gain_cost(answer: Answer) -> Figure | None:
    """Points above the single run against passes over the corpus; a line joins the references."""
    from matplotlib.figure import Figure

    domains = [domain for domain in TARGETS if domain in answer.means]
    single = answer.line(answer.single)
    if single is None or len(answer.lines) < 2 or not domains:
        return None
    high = max(2.4, _LINE * 1.1 * len(answer.lines))
    figure = Figure(figsize=(WIDTH + 1.2, (high + 0.5) * len(domains) + 0.3), layout="constrained", facecolor="none")
    places = _dodged(answer.lines)
    names, tints = [line.title for line in answer.lines], [ROLES[line.role][0] for line in answer.lines]
    for number, domain in enumerate(domains):
        axes = figure.add_subplot(len(domains), 1, number + 1, facecolor="none")
        spots = [(x, _points_of(line, domain)[0]) for x, line in zip(places, answer.lines, strict=True)]
        known = [spot for spot, line in zip(spots, answer.lines, strict=True) if _core_reference(line)]
        axes.plot(*zip(*sorted(known), strict=True), color=MEMBERS[0], linewidth=1.1, linestyle=(0, (5, 2)), zorder=1)
        for (x, y), line in zip(spots, answer.lines, strict=True):
            tint, reach = ROLES[line.role][0], _points_of(line, domain)[1]
            axes.errorbar(x, y, yerr=reach, fmt="none", ecolor=tint, elinewidth=0.9, alpha=_faint(line), zorder=2)
            _point(axes, x, y, line)
        axes.axhline(0, color=BASE, linewidth=0.9, zorder=1)
        axes.margins(0.05)
        axes.grid()
        axes.set_ylabel(f"{DOMAINS[domain]}, points above\n{single.title}")
        label_right(axes, spots, names, tints, gap=_LINE / high)
    axes.set_xlabel("cost: passes over the corpus, of all members together")
    _legend(figure, axes, answer.lines)
    return figure


def _core_reference(line: Line) -> bool:
    return line.role == "reference" and not line.exploratory


def _dodged(lines: Sequence[Line]) -> list[float]:
    """The passes; nearly equal ones stand side by side about the reference, so that no bar hides another."""
    passes = [line.passes for line in lines]
    wide = max(passes) - min(passes) or 1.0
    out = list(passes)
    groups: dict[int, list[int]] = {}
    for index, value in enumerate(passes):
        groups.setdefault(round(value / (0.03 * wide)), []).append(index)
    for group in groups.values():
        others = [index for index in group if not _core_reference(lines[index])]
        middle = [index for index in group if index not in others]
        step, half = min(0.022, 0.3 / len(group)) * wide, len(others) // 2
        for rank, index in enumerate([*others[:half], *middle, *others[half:]]):
            out[index] += (rank - (len(group) - 1) / 2) * step
    return out


@styled
def task_gaps(answer: Answer) -> Figure | None:
    """Heat map: every condition's gap to the single run, set by set; bold where the interval leaves out zero."""
    import numpy as np

    lines = [line for line in answer.lines if line.task_gaps]
    if not lines:
        return None
    cells = [[100 * line.task_gaps[task.name].value for line in lines] for task in answer.tasks]
    sizes = sorted(abs(value) for row in cells for value in row)
    reach = max(0.5, sizes[int(0.95 * (len(sizes) - 1))])  # a few outliers must not bleach all others
    figure, axes = new_axes(max(WIDTH, 2.6 + 0.42 * len(lines)), 1.9 + 0.215 * len(cells))
    image = axes.imshow(cells, cmap="PuOr_r", vmin=-reach, vmax=reach, aspect="auto")
    colours = image.to_rgba(np.array(cells))
    for i, task in enumerate(answer.tasks):
        for j, line in enumerate(lines):
            weight = "bold" if line.task_gaps[task.name].certain else "normal"
            tint = _readable(colours[i, j])
            told = axes.text(j, i, _signed(cells[i][j]), fontsize=7, weight=weight, color=tint)
            told.set(ha="center", va="center", in_layout=False)  # hundreds in the layout take long
    axes.set_xticks(range(len(lines)), [line.title for line in lines], rotation=90)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(cells)), [f"{task.name} · {task.task_type}" for task in answer.tasks])
    axes.tick_params(length=0, labelsize=8)
    inside = sum(task.domain == "in_domain" for task in answer.tasks)
    if 0 < inside < len(cells):
        axes.axhline(inside - 0.5, color=_DARK, linewidth=1.6)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.5, aspect=24, pad=0.02, extend="both")
    bar.outline.set_visible(False)
    bar.set_label(f"points above {title_of(answer, answer.single)}")
    return figure


def _readable(colour: np.ndarray) -> str:
    """Dark or light words, whichever stand out more on a colour."""
    red, green, blue = (part**2.2 for part in colour[:3])
    return _DARK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else _LIGHT


def _signed(points: float) -> str:
    return "0.0" if abs(points) < 0.05 else f"{points:+.1f}"


@styled
def cosine(result: StudyResult) -> Figure | None:
    """Cosine of every two members' task vectors, condition by condition, with the mean."""
    rows = [(found.condition.shown, values) for found in result.conditions if (values := cosines(found))]
    if not rows:
        return None
    figure, axes = new_axes(WIDTH, 0.8 + 0.27 * len(rows))
    for place, (_, values) in enumerate(rows):
        mean = sum(values) / len(values)
        axes.plot([min(values), max(values)], [place, place], color=GRID, linewidth=2.2, zorder=1)
        axes.scatter(values, [place] * len(values), s=26, color=MEMBERS[0], edgecolor=PAPER, linewidth=0.7, zorder=2)
        axes.scatter(mean, place, s=110, marker="|", color=MERGES["merge-searched"], linewidth=2.0, zorder=3)
        axes.annotate(
            f"{mean:.2f}", (max(values), place), (7, 0), textcoords="offset points", va="center", fontsize=8.5
        )
    axes.set_yticks(range(len(rows)), [title for title, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    known = [value for _, values in rows for value in values]
    axes.set_xlim(math.floor(10 * min(known)) / 10, math.ceil(10 * max(known)) / 10 + 0.03)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("cosine of two members' task vectors")
    axes.grid(axis="x")
    return figure


@styled
def searched(result: StudyResult) -> Figure | None:
    """The share of every member that the searches found, seed by seed, over its share by ratio."""
    from matplotlib.figure import Figure

    found = [c for c in result.conditions if any((s.found or {}).get("weights") for s in c.seeds)]
    if not found:
        return None
    figure = Figure(figsize=(WIDTH, 0.3 + 2.5 * len(found)), layout="constrained", facecolor="none")
    for number, condition in enumerate(found):
        axes = figure.add_subplot(len(found), 1, number + 1, facecolor="none")
        _shares(axes, condition)
        axes.set_title(condition.condition.shown, loc="left", fontsize=9)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handletextpad=0.3)
    return figure


def _shares(axes: Axes, condition: ConditionResult) -> None:
    ratios = condition.seeds[0].ratios
    for place, share in enumerate(shares(ratios)):
        label = "by ratio" if place == 0 else None
        axes.plot([place - 0.3, place + 0.3], [share, share], color=BASE, linewidth=2.5, label=label, zorder=1)
    told = [(seed.seed, seed.found) for seed in condition.seeds if seed.found and seed.found.get("weights")]
    for index, (seed, found) in enumerate(told):
        at = [place + 0.16 * (index - (len(told) - 1) / 2) for place in range(len(ratios))]
        label = f"seed {seed}" + ("" if found.get("scale") is None else f", scale {found['scale']:.2f}")
        colour, marker = MEMBERS[index % len(MEMBERS)], _SEEDS[index % len(_SEEDS)]
        axes.scatter(at, shares(found["weights"]), s=40, color=colour, marker=marker, edgecolor=PAPER, linewidth=0.7,
                     label=label, zorder=3)  # fmt: skip
    axes.set_xticks(range(len(ratios)), [percent(ratio) for ratio in ratios])
    axes.set_ylim(bottom=0)
    axes.margins(x=0.08)
    axes.set_ylabel("share of the merge")
    axes.set_xlabel("bag of the member")
    axes.grid(axis="y")
