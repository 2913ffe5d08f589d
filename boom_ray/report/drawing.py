"""How the figures are drawn: sizes, colours, and files; the figures themselves are in ``figures``."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from boom_ray.config import BoomError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.7  # inches: one column of the page, and of a printed page with its labels still readable
INK, MUTED, GRID, PAPER = "#1f2328", "#656d76", "#d8dee4", "#ffffff"
BASE = "#8a929a"
MEMBERS = ("#0072b2", "#009e73", "#4aa8de", "#7b61b8", "#2f7f86", "#8fa63f", "#5470c6", "#3fb59b")
MERGES = {"merge-ratio": "#e69f00", "merge-uniform": "#cc79a7", "merge-searched": "#d55e00"}
MARKERS = {"base": "D", "member": "o", "average": "P", "merge-ratio": "s", "merge-uniform": "^", "merge-searched": "*"}
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)))
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "svg.fonttype": "none",
    "svg.hashsalt": "boom_ray",
}

Summary = Mapping[str, Any]
Draw = Callable[[Summary], "Figure | None"]
Drawn = TypeVar("Drawn")


def styled(draw: Callable[[Drawn], Figure | None]) -> Callable[[Drawn], Figure | None]:
    """Draw inside the report's matplotlib style, and leave the caller's as it was."""

    @functools.wraps(draw)
    def inside_style(what: Drawn) -> Figure | None:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(what)

    return inside_style


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG with real text; the same figure gives the same bytes."""
    return _save(figure, "svg", {"Date": None})


def to_png(figure: Figure, dpi: int = 200) -> bytes:
    """The figure as PNG on white."""
    return _save(figure, "png", {"Software": None}, dpi=dpi, facecolor=PAPER)


def check_plot(file: Path | None) -> None:
    """Refuse a file that :func:`to_file` cannot write, before the work for it is done.

    Raises:
        BoomError: another ending.
    """
    if file is not None and file.suffix not in (".png", ".svg"):
        raise BoomError(f"--plot {file}: give a name that ends in .png or .svg.")


def to_file(figure: Figure, file: Path) -> bytes:
    """What is to be written into a file of that name, .png or .svg."""
    return to_svg(figure) if file.suffix == ".svg" else to_png(figure)


def _save(figure: Figure, kind: str, metadata: dict[str, None], **options: Any) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=kind, metadata=metadata, **options)
    return buffer.getvalue()


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A transparent figure of that many inches with one axes, laid out when it is drawn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    return figure, axes


def colours(summary: Summary) -> dict[str, str]:
    """``{model name: colour}``, the same in every figure of a run."""
    found = {"base": BASE, **MERGES}
    for index, member in enumerate(summary["members"]):
        found[member["name"]] = MEMBERS[index % len(MEMBERS)]
    return found
