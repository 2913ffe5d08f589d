"""The registry of merge methods: one decorated function or class each; its signature is its parameters' schema."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from boom_ray.config import BoomError

Space = Literal["raw", "delta", "either", "elementwise"]
PerMember = tuple[float, ...]  # annotation of a parameter that has one value per member
METHODS: dict[str, Method] = {}


@dataclass(frozen=True)
class Method:
    """A merge method. ``space``: what its vectors are, or that it works element by element; ``gram``: False where
    weights suffice; ``members``: how few and how many it takes; ``weighted``: whether it asks for weights."""

    name: str
    function: Callable[..., Any]
    space: Space
    gram: bool
    members: tuple[int, int]
    weighted: bool

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The method's own parameters by their name in a recipe (``lambda_`` is written ``lambda``)."""
        found = inspect.signature(self.function).parameters.values()
        return {p.name.rstrip("_"): p for p in found if p.kind is inspect.Parameter.KEYWORD_ONLY}


def method(
    name: str,
    *,
    space: Space = "either",
    gram: bool = True,
    members: tuple[int, int] = (1, 10_000),
    weighted: bool = True,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register ``(gram (K, K), weights (K,), *, parameters) -> coefficients (K,)``, or an elementwise class."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        METHODS[name] = Method(name, function, space, gram, members, weighted)
        return function

    return register


def get_method(name: str) -> Method:
    """The registered method.

    Raises:
        BoomError: no such method; names the nearest.
    """
    import boom_ray.merge.elementwise
    import boom_ray.merge.span  # noqa: F401  both register their methods

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
    if kind == "PerMember" and isinstance(value, tuple | list):
        return tuple(_typed(v, "float", where) for v in value)
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind in ("float", "PerMember") and number:
        return float(value)
    raise BoomError(f"{where} must be {kind}, got {value!r}.")
