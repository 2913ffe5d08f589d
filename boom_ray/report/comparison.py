"""A comparison of models for people: plain text with a verdict, a page, a forest plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from typing import TYPE_CHECKING, Any

from boom_ray.evaluate.compare import Comparison, Row
from boom_ray.report.contamination import SIGN
from boom_ray.report.drawing import BASE, GRID, INK, MEMBERS, MUTED, PAPER, STYLE, WIDTH, new_axes, to_svg
from boom_ray.report.html import table
from boom_ray.report.intervals import format_interval
from boom_ray.report.page import inline_svg
from boom_ray.report.style import STYLE as SHEET
from boom_ray.report.text import grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NOTE = (
    "Points are hundredths of each task's main score. [low, high]: 95 % interval of the difference, by paired "
    "bootstrap, over other queries and texts of these tasks{seeds}."
)
_HEIGHT = 0.26  # inches of a row of the plot


def verdict(found: Comparison) -> list[str]:
    """Plain sentences about every side but the first: better, worse, or no difference that can be told."""
    return [line for number in range(1, len(found.sides)) for line in _sentences(found, number)]


def _sentences(found: Comparison, number: int) -> list[str]:
    row, one, other = found.overall, found.sides[number], found.sides[0]
    units, tasks = row.differences[number - 1], row.over_tasks[number - 1]
    count = len(row.tasks)
    where = f"on {row.label}" if count == 1 else f"in the mean over these {count} tasks"
    gap = 100 * (row.scores[number] - row.scores[0])
    if units is None:
        lines = [f"{one} is {gap:+.2f} points from {other} {where}; how sure that is, is not known: what some scores "
                 "were made from was not kept, or cannot be drawn again."]  # fmt: skip
    elif units.certain:
        low, high = sorted((abs(100 * units.low), abs(100 * units.high)))
        word = "better" if gap > 0 else "worse"
        lines = [f"{one} is {word} than {other} by {abs(gap):.2f} points [{low:.2f}, {high:.2f}] {where}."]
    else:
        lines = [f"No difference between {one} and {other} can be told {where}: {format_interval(units)} points."]
    if tasks is not None:
        word = "would show on other tasks like these, too" if tasks.certain else "may be none on other tasks like these"
        lines.append(f"Taken over tasks the difference is {format_interval(tasks)}: it {word}.")
    each = [r.differences[number - 1] for r in found.rows if r.kind == "task"]
    if count > 1:
        better, worse = (sum(d is not None and d.certain and (d.low > 0) == up for d in each) for up in (True, False))
        lines.append(
            f"Task by task {one} is better on {better}, worse on {worse}, and on {count - better - worse} of {count} "
            "no difference can be told."
        )
    parts = [f"{r.label} {format_interval(r.differences[number - 1])}" for r in found.rows if r.kind == "domain"]
    return [*lines, *([f"By domain: {', '.join(parts)}."] if parts else [])]


def notes(found: Comparison) -> list[str]:
    """What the numbers are, and what they leave out."""
    several = any(count > 1 for count in found.seeds)
    lines = [_NOTE.format(seeds=" and other training seeds" if several else "; other training seeds are not in it")]
    if several and min(found.seeds) == 1:
        lines.append("A side of one model stands for that model: how much its seed matters is not in the interval.")
    if found.left_out:
        lines.append(f"Left out, as not every model has a score: {', '.join(found.left_out)}.")
    shown = {task.name for task in found.tasks} & found.touched.keys()
    return lines + [f"{SIGN} {name}, {line}" for name in sorted(shown) for line in found.touched[name]]


def format_comparison(found: Comparison) -> str:
    """The verdict, a table of tasks and means, and the notes, as plain text."""
    legend = [f"{_letter(i)}  {_side(found, i)}" for i in range(len(found.sides))]
    head, cells = _columns(found)
    tasks, means = ([cells(r) for r in found.rows if (r.kind == "task") == single] for single in (True, False))
    lines = grid([head], [*tasks, *means], left=2).split("\n")
    if means:
        lines.insert(2 + len(tasks), lines[1])
    blocks = [legend, lines, _over_tasks(found), verdict(found), notes(found)]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _letter(number: int) -> str:
    return _LETTERS[number] if number < len(_LETTERS) else f"M{number + 1}"


def _side(found: Comparison, number: int) -> str:
    count = found.seeds[number]
    return found.sides[number] + (f" ({count} seeds)" if count > 1 else "")


def _columns(found: Comparison) -> tuple[list[str], Any]:
    """Heads, and the cells of a row."""
    kinds = {task.name: task.task_type for task in found.tasks}
    letters = [_letter(i) for i in range(len(found.sides))]

    def cells(row: Row) -> list[str]:
        what = kinds[row.label] if row.kind == "task" else f"{len(row.tasks)} task{'s' * (len(row.tasks) > 1)}"
        gaps = [_gap(row, i) for i in range(1, len(letters))]
        label = f"{row.label} {SIGN}" if row.kind == "task" and row.label in found.touched else row.label
        return [label, what, *(f"{100 * score:.2f}" for score in row.scores), *gaps]

    return ["task", "type", *letters, *(f"{letter} - {letters[0]}" for letter in letters[1:])], cells


def _gap(row: Row, number: int) -> str:
    units = row.differences[number - 1]
    return format_interval(units) if units else f"{100 * (row.scores[number] - row.scores[0]):+.2f} [?]"


def _over_tasks(found: Comparison) -> list[str]:
    rows = [r for r in found.rows if any(r.over_tasks)]
    if not rows:
        return []
    first = _letter(0)
    head = ["over other tasks like these", *(f"{_letter(i)} - {first}" for i in range(1, len(found.sides)))]
    return grid([head], [[r.label, *map(format_interval, r.over_tasks)] for r in rows]).split("\n")


def to_json(found: Comparison) -> dict[str, Any]:
    """Everything, scores in 0..1, with the verdict's sentences."""
    return {**asdict(found), "verdict": verdict(found), "notes": notes(found)}


def forest(found: Comparison) -> Figure:
    """A line per task and mean: difference to the first side with its interval over units and, thin, over tasks."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        others, rows = len(found.sides) - 1, found.rows
        figure, axes = new_axes(WIDTH + 1.3, 0.9 + _HEIGHT * len(rows) * max(1.0, 0.6 * others))
        for number in range(others):
            for place, row in enumerate(rows):
                _draw(axes, row, number, place + (number - (others - 1) / 2) * 0.6 / others)
            label = f"{found.sides[number + 1]} minus {found.sides[0]}"
            axes.scatter([], [], s=30, color=MEMBERS[number % len(MEMBERS)], label=label)
        axes.axvline(0, color=BASE, linewidth=1.0, zorder=1)
        singles = sum(row.kind == "task" for row in rows)
        if singles < len(rows):
            axes.axhline(singles - 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("points; 95 % over other queries and texts, thin: over other tasks; grey: may be none")
        axes.grid(axis="x", color=GRID)
        figure.legend(loc="outside upper left", ncols=1, handlelength=1.0, labelcolor=INK)
    return figure


def _draw(axes: Axes, row: Row, number: int, height: float) -> None:
    """One difference with its intervals; grey where none can be told."""
    units, tasks = row.differences[number], row.over_tasks[number]
    colour = MEMBERS[number % len(MEMBERS)] if units is not None and units.certain else MUTED
    for reach, width in ((tasks, 0.8), (units, 1.9)):
        if reach is not None:
            ends = [100 * reach.low, 100 * reach.high]
            axes.plot(ends, [height, height], color=colour, linewidth=width, solid_capstyle="butt", zorder=2)
    middle, single = 100 * (row.scores[number + 1] - row.scores[0]), row.kind == "task"
    axes.scatter(middle, height, s=26 if single else 46, marker="o" if single else "D", color=colour, zorder=3,
                 edgecolor=PAPER, linewidth=0.6)  # fmt: skip


def write_comparison(found: Comparison) -> str:
    """One self-contained HTML page: verdict, plot, table."""
    title = " against ".join(escape(_side(found, i)) for i in range(len(found.sides)))
    head, cells = _columns(found)
    tasks, means = ([cells(r) for r in found.rows if (r.kind == "task") == single] for single in (True, False))
    legend = "".join(f"<li>{_letter(i)}: {escape(_side(found, i))}</li>" for i in range(len(found.sides)))
    svg = inline_svg(to_svg(forest(found)), "forest", "Differences with intervals")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f'<link rel="icon" href="data:,">\n<style>{SHEET}</style>\n</head>\n<body>\n<header>\n'
        f"<h1>{escape(verdict(found)[0])}</h1>\n{_list(verdict(found)[1:])}</header>\n"
        f"<figure>{svg}</figure>\n<h2>Tasks</h2>\n<ul>{legend}</ul>\n{table(head, tasks, text=2)}\n"
        + (f"<h2>Means</h2>\n{table(head, means, text=2)}\n" if means else "")
        + _over_table(found)
        + "\n".join(f'<p class="muted">{escape(line)}</p>' for line in notes(found))
        + "\n</body>\n</html>\n"
    )


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>\n" if lines else ""


def _over_table(found: Comparison) -> str:
    rows = [[r.label, *map(format_interval, r.over_tasks)] for r in found.rows if any(r.over_tasks)]
    head = ["mean", *(f"{_letter(i)} - {_letter(0)}" for i in range(1, len(found.sides)))]
    return f"<h2>Over other tasks like these</h2>\n{table(head, rows)}\n" if rows else ""
