"""From a point to the coefficients of every tensor. Pure, without torch: memory and disk merge by the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from boom_ray.config import BoomError, Recipe
from boom_ray.ledger import Ledger
from boom_ray.merge.gram import Grams
from boom_ray.merge.methods import Setting, tensor_coefficients
from boom_ray.merge.registry import get_method
from boom_ray.plan import Keys
from boom_ray.search.groups import tensor_groups
from boom_ray.search.points import Point


@dataclass(frozen=True)
class MergeSpec:
    """What is merged; everything but the point. ``method`` is the recipe's, for points that are made from it."""

    members: tuple[Path, ...]
    base: Path
    grams: Path
    method: str
    task_vectors: bool


def merge_spec(ledger: Ledger, keys: Keys, recipe: Recipe) -> MergeSpec:
    """The members, base and Gram matrices of a run."""
    return MergeSpec(
        members=tuple(ledger.path(key).resolve() for key in keys.ensemble.values()),
        base=ledger.path(keys.base).resolve(),
        grams=(ledger.path(keys.grams) / "grams.npz").resolve(),
        method=recipe.merge.method,
        task_vectors=recipe.merge.task_vectors,
    )


def groups_of(point: Point, names: Sequence[str]) -> dict[str, str]:
    """Tensor name -> group of the point, by the kind of groups that the point has (see :mod:`search.groups`).

    Raises:
        BoomError: a tensor lies in a group that the point has no weights for.
    """
    layers = any(group.startswith("layer-") for group in point.weights)
    found = tensor_groups(names, "none" if not point.grouped else "layers" if layers else "coarse")
    for group in dict.fromkeys(found.values()):
        point.of(group)
    return found


def effective_scale(point: Point) -> float:
    """The factor on what the merge adds to the base, with the base's share in it.

    (1 - b) (base + s (merge - base)) + b base = base + s (1 - b) (merge - base).
    """
    return point.scale * (1.0 - point.base)


def point_coefficients(
    grams: Grams, spec: MergeSpec, point: Point, groups: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """Coefficients of every tensor: float64 vectors over the members, and over the base (last) where there is one.

    Args:
        groups: tensor -> group, where the caller knows them already; default :func:`groups_of`.

    Raises:
        BoomError: a method that is unknown or not in the span of the members; another number of weights than members.
    """
    if point.members != grams.members:
        raise BoomError(f"{point.members} merge weights for {grams.members} members. Give one weight per member.")
    names = list(grams.matrices)
    chosen = get_method(point.method)
    places = groups_of(point, names) if groups is None else groups
    scale = effective_scale(point)
    settings = {g: Setting(point.method, point.of(g), {}, scale, spec.task_vectors) for g in set(places.values())}

    def tensor(name: str) -> np.ndarray:
        setting = settings[places[name]]
        return tensor_coefficients(setting, grams.of(name, setting.in_deltas) if chosen.gram else None, grams.has_base)

    return {name: tensor(name) for name in names}
