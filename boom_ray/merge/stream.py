"""Merging checkpoints, by a mergekit recipe or by coefficients, to a complete model directory in constant memory."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from boom_ray.config import BoomError
from boom_ray.merge.engine import Engine
from boom_ray.merge.files import check_files
from boom_ray.merge.job import MergePlan, finish, forget, merge_tensors, notes_of, prepare, with_directory, written
from boom_ray.merge.members import open_members
from boom_ray.merge.mergekit_recipe import MergeRecipe, read_recipe
from boom_ray.merge.options import MergeOptions as MergeOptions
from boom_ray.merge.recipe_plan import new_plan, plan_recipe

RECIPE_FILE = "mergekit_config.yml"


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
    _tidy(target)
    _check_target(target, options.overwrite)
    plan = plan_recipe(recipe, target, options)
    plan = with_directory(plan, target.parent / f".{target.name}.merging-{plan.identity}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(plan.directory):
        _check_target(target, options.overwrite)
        _fill(plan)
        (plan.directory / RECIPE_FILE).write_text(recipe.text, encoding="utf-8")
        finish(plan)
        if options.durable:
            _flush(plan.directory)
        _publish(plan.directory, target, options.overwrite)
        forget(plan)
    return target


def write(plan: MergePlan) -> None:
    """Carry out a plan in its directory, which is scratch: it fills in place, and a second call goes on where a killed
    one was.

    Raises:
        BoomError: read and write errors, results that are NaN or infinite.
    """
    _fill(plan)
    finish(plan)
    forget(plan)


def plan_coefficients(
    coefficients: Mapping[str, np.ndarray],
    members: Sequence[str | os.PathLike[str]],
    base: str | os.PathLike[str] | None,
    out_dir: str | os.PathLike[str],
    *,
    out_type: str | None = None,
    options: MergeOptions = MergeOptions(),
) -> MergePlan:
    """Σ c_i t_i of every tensor, in one pass, with the first member's other files, into ``out_dir``: for :func:`write`,
    or for job.prepare, merge_tensors (anywhere) and finish.

    Args:
        coefficients: per tensor, over members and (last, where given) base, as methods.coefficients returns them.

    Raises:
        BoomError: members that do not match, tensors without coefficients.
    """
    paths = tuple(Path(os.path.abspath(m)) for m in members)
    origin = None if base is None else Path(os.path.abspath(base))
    check_files(paths, origin)
    values = {name: tuple(float(c) for c in vector) for name, vector in coefficients.items()}
    plan = new_plan(paths, origin, Path(os.path.abspath(out_dir)), options)
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


def _fill(plan: MergePlan) -> None:
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


def _tidy(target: Path) -> None:
    """Remove what merges left that were killed after their output had appeared at ``target``."""
    for file in target.parent.glob(f".{target.name}.merging-*.lock"):
        directory = file.with_suffix("")
        with suppress(BoomError), _lock(directory):
            if written(directory, target):
                _remove(directory)  # what stood at the target before
            if not directory.exists():
                shutil.rmtree(notes_of(directory), ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(directory: Path) -> None:
    """Bring every file of a directory to the disk."""
    for file in (p for p in (directory, *directory.rglob("*")) if not p.is_symlink()):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _publish(directory: Path, target: Path, overwrite: bool) -> None:
    """Let the finished directory appear at its place; an old one there is exchanged for it in one step."""
    if overwrite and (target.exists() or target.is_symlink()):
        _exchange(directory, target)
        _remove(directory)
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
