"""From methods and weights to the coefficients of every tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from boom_ray.config import BoomError
from boom_ray.merge.registry import Method, check_parameters, get_method

if TYPE_CHECKING:
    from boom_ray.merge.gram import Grams


@dataclass(frozen=True)
class Setting:
    """How one tensor is merged: everything but the Gram matrix."""

    method: str
    weights: tuple[float, ...]
    parameters: Mapping[str, Any]
    scale: float = 1.0
    task_vectors: bool = False

    @property
    def in_deltas(self) -> bool:
        space = get_method(self.method).space
        return space in ("delta", "elementwise") or (space == "either" and self.task_vectors)


def tensor_coefficients(setting: Setting, gram: np.ndarray | None, has_base: bool) -> np.ndarray:
    """Coefficients (M,), or (M + 1,) with base last, of one tensor.

    Args:
        gram: (M, M) of task vectors where ``setting.in_deltas``, else of raw tensors; None for methods without Gram.

    Raises:
        BoomError: weights that are not finite or of the wrong number; a base that is needed and not there.
    """
    chosen = get_method(setting.method)
    weights = np.asarray(setting.weights, np.float64)
    check_setting(setting, has_base)
    if chosen.space == "elementwise":
        raise BoomError(f"merge method {chosen.name} decides every element by itself and has no coefficients.")
    values = _members_only(chosen, setting, weights, gram) * setting.scale
    if not has_base:
        return values
    rest = 1.0 - math.fsum(values) if setting.in_deltas else 1.0 - setting.scale
    return np.append(values, rest)


def check_setting(setting: Setting, has_base: bool) -> None:
    """Refuse what no tensor could be merged with.

    Raises:
        BoomError: weights that are not finite or of the wrong number; a base that is needed and not there; unknown
            parameters.
    """
    chosen = get_method(setting.method)
    count = len(setting.weights)
    check_parameters(chosen, setting.parameters)
    if not np.isfinite(setting.weights).all():
        raise BoomError(f"merge weights must be finite numbers, got {list(setting.weights)}.")
    if not chosen.members[0] <= count <= chosen.members[1]:
        bounds = chosen.members[0] if chosen.members[0] == chosen.members[1] else f"at least {chosen.members[0]}"
        raise BoomError(f"merge method {chosen.name} takes {bounds} members, got {count}.")
    if not has_base and (setting.in_deltas or setting.scale != 1.0):
        why = "works on task vectors" if setting.in_deltas else f"scale {setting.scale} moves away from the base"
        raise BoomError(f"merge method {chosen.name} {why} and needs a base. Name it with base_model.")


def _members_only(chosen: Method, setting: Setting, weights: np.ndarray, gram: np.ndarray | None) -> np.ndarray:
    parameters = check_parameters(chosen, setting.parameters)
    frozen = gram is not None and setting.in_deltas and not np.diagonal(gram).any()
    if frozen:  # every member equals the base: so does the merge, bit for bit
        return np.zeros(len(weights))
    active = np.flatnonzero(weights)
    if chosen.gram and len(active) == 1 and chosen.weighted:  # that member, bit for bit
        single = np.zeros(len(weights))
        single[active] = 1.0 if parameters.get("normalize_weights", True) else weights[active]
        return single
    matrix = np.empty((0, 0)) if gram is None else gram
    return np.asarray(chosen.function(matrix, weights, **parameters), np.float64)


def coefficients(
    method: str,
    grams: Grams,
    weights: Sequence[float],
    *,
    scale: float = 1.0,
    task_vectors: bool = False,
    **parameters: Any,
) -> dict[str, np.ndarray]:
    """Coefficients of every tensor: float64 vectors over the members, and over the base (last) where there is one.

    Args:
        method: name in :data:`METHODS`; weights: one per member; scale: out = base + scale (merged - base);
        task_vectors: merge member - base instead of the members themselves (always so for methods that need it).

    Raises:
        BoomError: unknown method or parameter, wrong number of weights, a base that is missing.
    """
    if len(weights) != grams.members:
        raise BoomError(f"{len(weights)} merge weights for {grams.members} members. Give one weight per member.")
    setting = Setting(method, tuple(float(w) for w in weights), parameters, scale, task_vectors)
    chosen = get_method(method)
    return {
        name: tensor_coefficients(setting, grams.of(name, setting.in_deltas) if chosen.gram else None, grams.has_base)
        for name in grams.matrices
    }
