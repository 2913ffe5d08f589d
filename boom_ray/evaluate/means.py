"""Weights of sets in the means that tables show, as mteb's leaderboard takes them. Light, for reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

LOCAL = "local sets"  # what stands for a benchmark's name where there is none


def even(names: Collection[str]) -> dict[str, float]:
    """Every set the same."""
    return dict.fromkeys(names, 1 / len(names)) if names else {}


def over_types(types: Mapping[str, str]) -> dict[str, float]:
    """The mean of the means of each task type, of ``{set: task type}``."""
    sizes = Counter(types.values())
    return {name: 1 / (len(sizes) * sizes[kind]) for name, kind in types.items()}
