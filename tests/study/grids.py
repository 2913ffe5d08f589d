"""Recipes of small studies, and the world that they point at."""

from __future__ import annotations

from typing import Any

from boom_ray.config import Recipe, parse_recipe
from boom_ray.plan import World

WORLD = World(
    sources=("rows",), base="base", sets=(), datasets=(("ask", "retrieval"), ("sort", "classification"), ("x", "sts"))
)


def recipe(*conditions: dict[str, Any], seeds: int = 1, **sections: Any) -> Recipe:
    raw: dict[str, Any] = {"name": "grid", "base": {"model": "m"}, "corpus": {"datasets": [{"path": "rows.jsonl"}]}}
    raw["study"] = {"seeds": seeds, "conditions": [{"role": "merge", **condition} for condition in conditions]}
    return parse_recipe({**raw, **sections})
