"""Small pure helpers of the figures: where labels go, smoothing, and a clock without idle gaps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNITS = {"s": "seconds", "min": "minutes", "h": "hours"}


def percent(share: float) -> str:
    """``0.4`` as ``40 %``, ``0.025`` as ``2.5 %``."""
    return f"{100 * share:.3g} %"


def bag_label(member: Mapping[str, Any]) -> str:
    """What people call a member's bag: ``40 %``, ``100 % poisson``, ``retrieval``."""
    return str(member.get("bag") or percent(member["ratio"]))


def share(part: float) -> str:
    """``0.614`` as ``61 %``; what would round to nothing as ``<1 %``."""
    return "<1 %" if 0 < part < 0.005 else f"{100 * part:.0f} %"


def clock_unit(seconds: float) -> tuple[str, float]:
    """The unit that suits a duration, with its length in seconds."""
    if seconds < 120:
        return "s", 1.0
    return ("min", 60.0) if seconds < 7200 else ("h", 3600.0)


def duration(seconds: float) -> str:
    """A duration for people: ``42 s``, ``5.1 min``, ``2.3 h``."""
    unit, length = clock_unit(seconds)
    return f"{seconds / length:.{0 if unit == 's' and seconds >= 10 else 1}f} {unit}"


def smooth(values: Sequence[float]) -> list[float]:
    """Savitzky-Golay line (straight, a window of about a third of the curve): no lag, and honest at both ends.

    Batches of different datasets have losses of different heights, so the window has to hold many of them.
    """
    from scipy.signal import savgol_filter

    window = max(5, len(values) // 3 | 1)
    return list(values) if len(values) < window else savgol_filter(values, window, 1).tolist()


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Positions at least ``gap`` apart, in the order of ``values`` and with the least squared distance from them.

    Isotonic regression by pooling adjacent violators on ``value_k - k * gap``.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    blocks: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        mean, count = values[index] - rank * gap, 1
        while blocks and blocks[-1][0] > mean:
            before, number = blocks.pop()
            mean, count = (before * number + mean * count) / (number + count), number + count
        blocks.append((mean, count))
    level = [mean for mean, count in blocks for _ in range(count)]
    out = [0.0] * len(values)
    for rank, index in enumerate(order):
        out[index] = level[rank] + rank * gap
    return out


def union(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The time that at least one of the spans covers, in order and without overlaps."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def busy(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds that at least one of the spans covers."""
    return sum(end - start for start, end in union(spans))


def without_gaps(
    spans: Sequence[tuple[float, float]], share: float = 0.25
) -> tuple[Callable[[float], float], list[tuple[float, float]]]:
    """A clock that skips long idle time, as between a killed run and its resumption.

    Args:
        spans: (start, end) in seconds, in any order.
        share: an idle gap longer than this share of the busy time is cut out.

    Returns:
        A function from a moment inside the spans to seconds since the first start, and the cuts as
        (position on that clock, seconds cut out).
    """
    merged = union(spans)
    limit = share * busy(spans)
    origin, removed = merged[0][0], 0.0
    steps: list[tuple[float, float]] = []
    cuts = []
    for before, after in pairwise(merged):
        idle = after[0] - before[1]
        if idle > limit:
            cuts.append((before[1] - origin - removed, idle))
            removed += idle
            steps.append((after[0], removed))

    def place(moment: float) -> float:
        return moment - origin - max((skip for start, skip in steps if moment >= start), default=0.0)

    return place, cuts


def label_right(
    axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str], tints: Sequence[str], gap: float
) -> None:
    """Name every point in a column right of the axes, in the order of their heights, with a thin line to each point.

    Args:
        axes: with its final limits.
        points: in data coordinates.
        names: one per point.
        tints: colours of the lines.
        gap: distance between names, as a share of the axes' height.
    """
    low, high = axes.get_ylim()
    heights = below(spread([(y - low) / (high - low) for _, y in points], gap), 0.98, gap)
    for point, name, tint, height in zip(points, names, tints, heights, strict=True):
        axes.annotate(
            name, point, (1.07, height), textcoords="axes fraction", va="center", fontsize=8.5, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": tint, "linewidth": 0.8, "alpha": 0.7, "relpos": (0.0, 0.5)},
        )  # fmt: skip


def below(heights: Sequence[float], top: float, gap: float) -> list[float]:
    """Push heights that are ``gap`` apart under ``top``, moving no more of them than it takes."""
    out = list(heights)
    for index in sorted(range(len(out)), key=lambda i: -out[i]):
        out[index] = min(out[index], top)
        top = out[index] - gap
    return out
