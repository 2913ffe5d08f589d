"""From a recipe to a plan: which directories are members, which is the base, and every tensor's setting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from boom_ray.config import BoomError
from boom_ray.merge.files import check_files
from boom_ray.merge.job import MergePlan
from boom_ray.merge.members import open_members
from boom_ray.merge.mergekit_recipe import Depth, MergeRecipe, resolve
from boom_ray.merge.methods import Setting, check_setting
from boom_ray.merge.options import MergeOptions, parse_bytes
from boom_ray.merge.registry import Method, check_parameters, get_method
from boom_ray.merge.remote import local_directory


def plan_recipe(recipe: MergeRecipe, directory: Path, options: MergeOptions) -> MergePlan:
    """Members, checked against each other, and every tensor's setting.

    Raises:
        BoomError: unknown method or parameter; members that do not match.
    """
    members, base = _roles(recipe)
    paths = tuple(local_directory(model) for model in members)
    origin = None if base is None else local_directory(base)
    check_files(paths, origin)
    opened = open_members(paths, origin)
    depth = Depth.of(list(opened.floats))
    settings = {name: _setting(recipe, members, name, depth.at(name)) for name in opened.floats}
    settings |= {name: settings[twin] for name, twin in opened.tied.items()}
    return replace(new_plan(paths, origin, directory, options), settings=settings, out_type=recipe.out_type)


def _roles(recipe: MergeRecipe) -> tuple[list[str], str | None]:
    """Members and base. A base among the models is a member where the method merges raw weights, else only the base."""
    named = [entry.model for entry in recipe.models]
    chosen = get_method(recipe.merge_method)
    if len(set(named)) != len(named):
        raise BoomError("a model appears twice in 'models'. Give it once, with the sum of its weights.")
    base = recipe.base_model
    if recipe.merge_method == "slerp":
        if base is None:
            raise BoomError("slerp needs base_model: the end of the arc at t = 0. Name one of the two models.")
        return [base, *(model for model in named if model != base)], None
    if chosen.space == "raw" or recipe.merge_method == "linear":
        return named, base
    return [model for model in named if model != base] if base is not None else named, base


def _setting(recipe: MergeRecipe, members: Sequence[str], tensor: str, depth: float) -> Setting:
    """Method, weights and parameters of one tensor."""
    chosen = get_method(recipe.merge_method)
    own = {entry.model: entry.parameters for entry in recipe.models}

    def lookup(key: str, member: str | None = None) -> Any:
        scopes = [own.get(member, {}), recipe.parameters] if member is not None else [recipe.parameters]
        return resolve(key, scopes, tensor, depth, member or "merge recipe")

    general = {"weight", "scale", "task_vectors", "int8_mask"} - set(chosen.parameters) | (
        {"t"} if chosen.name == "slerp" else set()
    )
    values: dict[str, Any] = {}
    for key in sorted({key for scope in [recipe.parameters, *own.values()] for key in scope} - general):
        if key in chosen.parameters and "PerMember" in str(chosen.parameters[key].annotation):
            found = [lookup(key, member) for member in members]
            values[key] = tuple(1.0 if value is None else value for value in found)
        else:
            value = lookup(key, members[0] if chosen.name == "passthrough" else None)
            if value is not None or key not in chosen.parameters:
                values[key] = value
    check_parameters(chosen, values)
    scale = lookup("scale") if "scale" in general else None
    wanted = lookup("task_vectors")
    if wanted is not None and not isinstance(wanted, bool):
        raise BoomError(f"merge recipe: 'task_vectors' must be true or false, got {wanted!r}.")
    deltas = recipe.base_model is not None and chosen.name not in ("slerp", "linear") if wanted is None else wanted
    weights = _weights(chosen, members, tensor, lookup)
    setting = Setting(chosen.name, weights, values, 1.0 if scale is None else float(scale), task_vectors=deltas)
    check_setting(setting, recipe.base_model is not None and chosen.name != "slerp")
    return setting


def _weights(chosen: Method, members: Sequence[str], tensor: str, lookup: Callable[..., Any]) -> tuple[float, ...]:
    if chosen.name == "slerp":
        t = lookup("t")
        if t is None:
            raise BoomError("slerp needs the parameter 't': 0 is base_model, 1 the other model.")
        return (1.0 - float(t), float(t))
    weights = [lookup("weight", member) for member in members]
    for member, weight in zip(members, weights, strict=True):
        if weight is None and chosen.weighted and chosen.name != "karcher":
            raise BoomError(f"merge recipe: {member} has no 'weight' for tensor '{tensor}'. Give it under parameters.")
    return tuple(1.0 if weight is None else float(weight) for weight in weights)


def new_plan(members: tuple[Path, ...], base: Path | None, directory: Path, options: MergeOptions) -> MergePlan:
    size = parse_bytes(options.shard_size)
    return MergePlan(members, base, directory, shard_bytes=size, workers=options.workers, window=options.window)
