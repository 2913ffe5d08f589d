"""Merging checkpoints, by a mergekit recipe or by coefficients, to a complete model directory in constant memory."""

from __future__ import annotations

import ctypes
import fcntl
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from boom_ray.config import BoomError
from boom_ray.ledger import checksums
from boom_ray.merge.engine import Engine
from boom_ray.merge.files import check_files
from boom_ray.merge.job import MergePlan, finish, merge_tensors, prepare, with_directory
from boom_ray.merge.members import open_members
from boom_ray.merge.mergekit_recipe import Depth, MergeRecipe, read_recipe, resolve
from boom_ray.merge.methods import Setting, check_setting
from boom_ray.merge.registry import Method, check_parameters, get_method
from boom_ray.merge.remote import local_directory

RECIPE_FILE = "mergekit_config.yml"
_UNITS = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}


@dataclass(frozen=True)
class MergeOptions:
    """How a merge runs; nothing here changes a byte of the weights, except that ``shard_size`` cuts the files.

    Attributes:
        workers: threads, default one per core; memory: of the members' weights and buffers at once, beside the
        interpreter and its libraries; mmap: no such limit, the members stay mapped (fastest); overwrite: replace an
        existing output, by a swap at the end; shard_size: largest output file; durable: flush to the disk before the
        result appears.
    """

    workers: int | None = None
    memory: str = "256MB"
    mmap: bool = False
    overwrite: bool = False
    shard_size: str = "4GB"
    durable: bool = True

    @property
    def window(self) -> int | None:
        return None if self.mmap else parse_bytes(self.memory)


def merge(
    config: str | os.PathLike[str] | Mapping[str, Any] | MergeRecipe,
    out: str | os.PathLike[str],
    options: MergeOptions = MergeOptions(),
) -> Path:
    """Merge by a mergekit recipe into a new model directory; returns its path.

    Weights are merged tensor by tensor in float64 and rounded once; everything else is copied from the first member.
    The directory appears complete or not at all; a killed merge goes on where it was when it is called again.

    Raises:
        BoomError: recipe, members or disk do not allow it; nothing has been written then.
    """
    recipe = read_recipe(config)
    target = Path(os.path.abspath(out))
    _check_target(target, options.overwrite)
    plan = plan_recipe(recipe, target, options)
    plan = with_directory(plan, target.parent / f".{target.name}.merging-{plan.identity}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(plan.directory):
        _check_target(target, options.overwrite)
        _run(plan, durable=options.durable)
        (plan.directory / RECIPE_FILE).write_text(recipe.text, encoding="utf-8")
        finish(plan)
        if options.durable:
            checksums(plan.directory)
        _publish(plan.directory, target, options.overwrite)
    return target


def merge_weights(
    coefficients: Mapping[str, np.ndarray],
    members: Sequence[str | os.PathLike[str]],
    base: str | os.PathLike[str] | None,
    out_dir: str | os.PathLike[str],
    *,
    out_type: str | None = None,
    options: MergeOptions = MergeOptions(),
) -> MergePlan:
    """Write Σ c_i t_i of every tensor, in one pass, with the first member's other files, into ``out_dir``.

    ``out_dir`` is scratch: it fills in place, and a second call goes on where a killed one was.

    Args:
        coefficients: per tensor, over members and (last, where given) base, as methods.coefficients returns them.

    Raises:
        BoomError: members that do not match, tensors without coefficients, results that are NaN or infinite.
    """
    plan = plan_coefficients(coefficients, members, base, out_dir, out_type=out_type, options=options)
    _run(plan, durable=options.durable)
    finish(plan)
    return plan


def plan_coefficients(
    coefficients: Mapping[str, np.ndarray],
    members: Sequence[str | os.PathLike[str]],
    base: str | os.PathLike[str] | None,
    out_dir: str | os.PathLike[str],
    *,
    out_type: str | None = None,
    options: MergeOptions = MergeOptions(),
) -> MergePlan:
    """The plan of :func:`merge_weights`, to be carried out with job.prepare, merge_tensors (anywhere) and finish."""
    paths = tuple(Path(os.path.abspath(m)) for m in members)
    origin = None if base is None else Path(os.path.abspath(base))
    check_files(paths, origin)
    values = {name: tuple(float(c) for c in vector) for name, vector in coefficients.items()}
    plan = _plan(paths, origin, Path(os.path.abspath(out_dir)), options)
    plan = replace(plan, coefficients=values, out_type=out_type)
    count = len(plan.opened.checkpoints)
    for name in plan.opened.floats:
        if len(values.get(name, ())) != count:
            raise BoomError(
                f"tensor '{name}' has {len(values.get(name, ()))} coefficients for {count} members and base."
            )
    return plan


def in_directory(recipe: Mapping[str, Any], directory: str | os.PathLike[str]) -> dict[str, Any]:
    """A merge recipe whose relative model paths start at ``directory``, as a published model's recipe means them."""

    def placed(model: Any) -> Any:
        return str(Path(directory) / model) if isinstance(model, str) else model

    changed = dict(recipe)
    if "base_model" in changed:
        changed["base_model"] = placed(changed["base_model"])
    if isinstance(changed.get("models"), list):
        changed["models"] = [
            {**m, "model": placed(m.get("model"))} if isinstance(m, dict) else m for m in changed["models"]
        ]
    return changed


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
    return replace(_plan(paths, origin, directory, options), settings=settings, out_type=recipe.out_type)


def _plan(members: tuple[Path, ...], base: Path | None, directory: Path, options: MergeOptions) -> MergePlan:
    size = parse_bytes(options.shard_size)
    return MergePlan(members, base, directory, shard_bytes=size, workers=options.workers, window=options.window)


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


def _run(plan: MergePlan, *, durable: bool) -> None:
    pending = prepare(plan)
    with Engine(plan.opened, plan.workers, plan.window) as engine:
        merge_tensors(plan, pending, durable=False, engine=engine)


def _check_target(target: Path, overwrite: bool) -> None:
    if (target.exists() or target.is_symlink()) and not overwrite:
        raise BoomError(f"{target} exists. Choose another output or give --overwrite, which replaces it at the end.")


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """One merge at a time per temporary directory; the lock ends with the process, however it ends."""
    file = directory.with_name(directory.name + ".lock")
    with open(file, "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            current = file.stat().st_ino == os.fstat(stream.fileno()).st_ino
        except OSError:
            current = False
        if not current:
            raise BoomError(f"another process is writing {directory}. Wait for it or end it.")
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def _publish(directory: Path, target: Path, overwrite: bool) -> None:
    """Let the finished directory appear at its place; an old one there is exchanged for it in one step."""
    if overwrite and (target.exists() or target.is_symlink()):
        _exchange(directory, target)
        shutil.rmtree(directory) if directory.is_dir() and not directory.is_symlink() else directory.unlink()
    else:
        os.rename(directory, target)
    parent = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _exchange(one: Path, other: Path) -> None:
    """Swap two names by renameat2(RENAME_EXCHANGE); by way of a third name where the file system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is not None and call(-100, os.fsencode(one), -100, os.fsencode(other), 2) == 0:  # AT_FDCWD, EXCHANGE
        return
    aside = one.with_name(one.name + ".old")
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)


def combine_into(
    name: str,
    coefficients: np.ndarray,
    members: Sequence[str | os.PathLike[str]],
    base: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """Σ c_i t_i of one tensor as a float32 array in its shape, from memory-mapped members: the bits a merge writes.

    For many tensors open :class:`boom_ray.merge.engine.Engine` once and call its ``combine_into``.
    """
    with Engine(open_members(members, base)) as engine:
        return engine.combine_into(name, np.asarray(coefficients))


def parse_bytes(text: str) -> int:
    """``256MB``, ``4 GB`` … as bytes, decimal units.

    Raises:
        BoomError: not such a text.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?B)\s*", text, re.IGNORECASE)
    if not match or not math.isfinite(float(match.group(1))):
        raise BoomError(f"'{text}' is no size. Write for example 256MB or 4GB.")
    return max(1, int(float(match.group(1)) * _UNITS[match.group(2).upper()]))
