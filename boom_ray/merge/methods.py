"""Merge methods as mathematics: from a Gram matrix and weights to the coefficients of Σ c_i t_i.

A method is one decorated function; its signature is the schema of its parameters. It sees the Gram matrix of K vectors
(raw tensors, or task vectors member - base) and one weight per vector, and returns one coefficient per vector. Sums
are exact (``fsum``), so the order of members changes no bit. A vector of length zero has no direction: it takes no part
in finding one. Where directions cancel, a method falls back to the weighted mean; docs/merging.md has the table.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from boom_ray.config import BoomError

if TYPE_CHECKING:
    from boom_ray.merge.gram import Grams

Space = Literal["raw", "delta", "either"]
_CANCELLED = 1e-7  # a sum of unit vectors shorter than this is the rounding of float64 inner products
METHODS: dict[str, Method] = {}


@dataclass(frozen=True)
class Method:
    """A method in the span of the members. ``space``: what its vectors are; ``gram``: False where weights suffice."""

    name: str
    function: Callable[..., np.ndarray]
    space: Space
    gram: bool
    members: tuple[int, int]

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The method's own parameters by their name in a recipe (``lambda_`` is written ``lambda``)."""
        found = list(inspect.signature(self.function).parameters.values())[2:]
        return {p.name.rstrip("_"): p for p in found}


def method(
    name: str, *, space: Space = "either", gram: bool = True, members: tuple[int, int] = (1, 10_000)
) -> Callable[[Callable[..., np.ndarray]], Callable[..., np.ndarray]]:
    """Register ``function(gram (K, K), weights (K,), *, parameters) -> coefficients (K,)`` under ``name``."""

    def register(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        METHODS[name] = Method(name, function, space, gram, members)
        return function

    return register


@method("linear", gram=False)
def linear(gram: np.ndarray, weights: np.ndarray, *, normalize: bool = True) -> np.ndarray:
    """Weighted mean (model soup, arXiv 2203.05482); without ``normalize`` the weighted sum."""
    return _normalised(weights, "linear") if normalize else weights


@method("task_arithmetic", space="delta", gram=False)
def task_arithmetic(
    gram: np.ndarray, weights: np.ndarray, *, normalize: bool = False, lambda_: float = 1.0
) -> np.ndarray:
    """base + lambda Σ w_i (member_i - base) (arXiv 2212.04089)."""
    return lambda_ * (_normalised(weights, "task_arithmetic") if normalize else weights)


@method("passthrough", space="raw", gram=False, members=(1, 1))
def passthrough(gram: np.ndarray, weights: np.ndarray, *, scale: float = 1.0) -> np.ndarray:
    """The only member, times ``scale``."""
    return np.array([scale])


@method("multislerp")
def multislerp(
    gram: np.ndarray, weights: np.ndarray, *, normalize_weights: bool = True, eps: float = 1e-8
) -> np.ndarray:
    """mergekit's Multi-SLERP, as BOOM uses it: direction of the weighted mean of unit vectors, at the mean length.

    u_i = t_i / (|t_i| + eps);  out = (Σ w_i |t_i|) M / |M|  with  M = Σ w_i u_i. (Its tangent-space step is zero
    identically: docs/merging.md.)
    """
    weights = _normalised(weights, "multislerp") if normalize_weights else weights
    lengths = _lengths(gram)
    direction = np.where(lengths > 0, weights / (lengths + eps), 0.0)
    length = _norm(gram, direction)
    if length <= max(eps, _CANCELLED):
        return weights
    return direction * (math.fsum(weights * lengths) / length)


@method("karcher")
def karcher(gram: np.ndarray, weights: np.ndarray, *, max_iter: int = 1000, tol: float = 1e-15) -> np.ndarray:
    """Weighted Karcher (Fréchet) mean of the directions on the unit sphere, at the weighted mean length.

    Iterates x <- exp_x(Σ w_i log_x u_i) on coefficients alone until no coefficient moves by ``tol``: the converged,
    weighted mean. (mergekit stops after 10 steps and ignores weights.)
    """
    if (weights < 0).any():
        raise BoomError("karcher: weights must not be negative; a mean on the sphere has none.")
    weights = _normalised(weights, "karcher")
    lengths = _lengths(gram)
    valid = (lengths > 0) & (weights > 0)
    unit = np.where(valid, 1.0 / np.where(valid, lengths, 1.0), 0.0)
    cosines = gram * np.outer(unit, unit)
    np.fill_diagonal(cosines, valid.astype(float))
    shares = np.where(valid, weights, 0.0)
    start = _norm(cosines, shares)
    if start <= _CANCELLED:
        return weights
    mean = shares / start
    shares = shares / math.fsum(shares)
    for _ in range(max_iter):
        moved = _karcher_step(cosines, shares, mean)
        change = np.abs(moved - mean).max()
        mean = moved
        if change <= tol:
            break
    return mean * unit * math.fsum(weights * lengths)


def _karcher_step(cosines: np.ndarray, shares: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """One step of the mean's fixed point; all vectors are coefficients over the unit vectors."""
    size = len(mean)
    tangent: list[list[float]] = [[] for _ in range(size)]
    for i in np.flatnonzero(shares):
        cosine = math.fsum(cosines[i] * mean)
        offset = -cosine * mean
        offset[i] += 1.0
        sine = _norm(cosines, offset)
        stretch = shares[i] * (math.atan2(sine, cosine) / sine if sine > _CANCELLED else 1.0)
        for k in range(size):
            tangent[k].append(stretch * offset[k])
    step = np.array([math.fsum(terms) for terms in tangent])
    length = _norm(cosines, step)
    sinc = math.sin(length) / length if length > 0 else 1.0
    moved = math.cos(length) * mean + sinc * step
    return moved / _norm(cosines, moved)


@method("slerp", members=(2, 2))
def slerp(gram: np.ndarray, weights: np.ndarray, *, threshold: float = 0.9995) -> np.ndarray:
    """Spherical interpolation of two tensors at t = w_1 / (w_0 + w_1); linear where |cos| exceeds ``threshold``."""
    share = _normalised(weights, "slerp")
    return _arc(gram, share, threshold)


@method("nuslerp", members=(2, 2))
def nuslerp(gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spherical interpolation of two tensors at t = w_1 / (w_0 + w_1), linear only where they are parallel."""
    share = np.array([0.5, 0.5]) if abs(math.fsum(weights)) < 1e-6 else _normalised(weights, "nuslerp")
    return _arc(gram, share, math.inf)


def _arc(gram: np.ndarray, share: np.ndarray, threshold: float) -> np.ndarray:
    lengths = _lengths(gram)
    product = lengths[0] * lengths[1]
    if product == 0:
        return share
    cosine = min(1.0, max(-1.0, gram[0, 1] / product))
    sine = _norm(gram, np.array([1.0, -gram[0, 1] / gram[1, 1]])) / lengths[0]
    if abs(cosine) > threshold or sine <= _CANCELLED:
        return share
    angle = math.atan2(sine, cosine)
    return np.array([math.sin(share[0] * angle), math.sin(share[1] * angle)]) / math.sin(angle)


@method("model_stock", space="delta", members=(2, 10_000))
def model_stock(gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Towards the members' mean by t = N cos / (1 + (N-1) cos), cos the mean over pairs (arXiv 2403.19522).

    Weights are not used. Members that cancel (the denominator is zero) give the base.
    """
    count = len(gram)
    lengths = _lengths(gram)
    pairs = [(i, j) for i in range(count) for j in range(i) if lengths[i] > 0 and lengths[j] > 0]
    cosines = [min(1.0, max(-1.0, gram[i, j] / (lengths[i] * lengths[j]))) for i, j in pairs]
    cosine = math.fsum(cosines) / (count * (count - 1) / 2)
    denominator = 1 + (count - 1) * cosine
    factor = 0.0 if abs(denominator) < 1e-6 else count * cosine / denominator
    return np.full(count, factor / count)


def _lengths(gram: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(np.diagonal(gram), 0.0))


def _norm(gram: np.ndarray, coefficients: np.ndarray) -> float:
    """Length of Σ c_i t_i."""
    return math.sqrt(max(0.0, math.fsum((np.outer(coefficients, coefficients) * gram).ravel())))


def _normalised(weights: np.ndarray, name: str) -> np.ndarray:
    total = math.fsum(weights)
    if abs(total) < 1e-12:
        raise BoomError(
            f"{name}: the weights {weights.tolist()} sum to zero and cannot be normalised. Change a weight."
        )
    return weights / total


def get_method(name: str) -> Method:
    """The registered method.

    Raises:
        BoomError: no such method; names the nearest.
    """
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(sorted(METHODS))}."
    raise BoomError(f"unknown merge method '{name}': {hint}")


def check_parameters(chosen: Method, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by the names of the method's function, with their declared types.

    Raises:
        BoomError: unknown name (with the nearest) or wrong type.
    """
    known = chosen.parameters
    checked = {}
    for name, value in parameters.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known) or 'none'}."
            raise BoomError(f"merge method {chosen.name} has no parameter '{name}': {hint}")
        checked[known[name].name] = _typed(value, str(known[name].annotation), f"{chosen.name}: parameter '{name}'")
    return checked


def _typed(value: Any, kind: str, where: str) -> Any:
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind == "float" and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise BoomError(f"{where} must be {kind}, got {value!r}.")


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
        return space == "delta" or (space == "either" and self.task_vectors)


def tensor_coefficients(setting: Setting, gram: np.ndarray | None, has_base: bool) -> np.ndarray:
    """Coefficients (M,), or (M + 1,) with base last, of one tensor.

    Args:
        gram: (M, M) of task vectors where ``setting.in_deltas``, else of raw tensors; None for methods without Gram.

    Raises:
        BoomError: weights that are not finite or of the wrong number; a base that is needed and not there.
    """
    chosen = get_method(setting.method)
    weights = np.asarray(setting.weights, np.float64)
    count = len(weights)
    if not np.isfinite(weights).all():
        raise BoomError(f"merge weights must be finite numbers, got {list(setting.weights)}.")
    if not chosen.members[0] <= count <= chosen.members[1]:
        bounds = chosen.members[0] if chosen.members[0] == chosen.members[1] else f"at least {chosen.members[0]}"
        raise BoomError(f"merge method {chosen.name} takes {bounds} members, got {count}.")
    if not has_base and (setting.in_deltas or setting.scale != 1.0):
        why = "works on task vectors" if setting.in_deltas else f"scale {setting.scale} moves away from the base"
        raise BoomError(f"merge method {chosen.name} {why} and needs a base. Name it with base_model.")
    values = _members_only(chosen, setting, weights, gram) * setting.scale
    if not has_base:
        return values
    rest = 1.0 - math.fsum(values) if setting.in_deltas else 1.0 - setting.scale
    return np.append(values, rest)


def _members_only(chosen: Method, setting: Setting, weights: np.ndarray, gram: np.ndarray | None) -> np.ndarray:
    parameters = check_parameters(chosen, setting.parameters)
    frozen = gram is not None and setting.in_deltas and not np.diagonal(gram).any()
    if frozen:  # every member equals the base: so does the merge, bit for bit
        return np.zeros(len(weights))
    active = np.flatnonzero(weights)
    if chosen.gram and len(active) == 1 and chosen.name != "model_stock":  # that member, bit for bit
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
