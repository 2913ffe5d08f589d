"""What a wrong recipe is told: the key, what is the matter with it, and the nearest valid one."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, recipe: type[BaseModel]) -> str:
    """A line for each thing that is wrong with a ``recipe``."""
    problems = error.errors()
    deeper = [e for e in problems if e["type"] != "too_short"] or problems  # a broken item also empties its list
    return "\n  ".join(_line(e, recipe) for e in deeper)


def _line(error: Any, recipe: type[BaseModel]) -> str:
    loc = tuple(p for p in error["loc"] if p not in ("files", "python_environment"))
    dotted = ".".join(str(p) for p in loc)
    if error["type"] == "extra_forbidden":
        known = _valid_keys(error["loc"][:-1], recipe)
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"valid keys here: {', '.join(known)}."
        return f"unknown key '{dotted}': {hint}"
    if error["type"] == "missing":
        return f"key '{dotted}' is missing."
    given = error.get("input")
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) or given is None else ""
    return f"key '{dotted}': {error['msg'].removeprefix('Value error, ')}{shown}"


def _valid_keys(loc: tuple[str | int, ...], recipe: type[BaseModel]) -> list[str]:
    """The keys of the recipe's section at ``loc``, walked through the models' annotations."""
    models: list[type[BaseModel]] = [recipe]
    for part in loc:
        if isinstance(part, int):
            continue
        tagged = [m for m in models if part in _tags(m)]
        if tagged:
            models = tagged
            continue
        fields = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        models = [m for annotation in fields for m in _models_in(annotation)]
    return sorted({key for m in models for key in m.model_fields})


def _tags(model: type[BaseModel]) -> tuple[str, ...]:
    field = model.model_fields.get("source")
    return get_args(field.annotation) if field else ()


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for arg in get_args(annotation) for m in _models_in(arg)]
