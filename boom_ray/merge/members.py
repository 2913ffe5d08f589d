"""The members of a merge as one set of tensors: matched by name, checked against each other, addressable by kernels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from boom_ray.config import BoomError
from boom_ray.ledger import identity
from boom_ray.merge.headers import FLOATS, Tensor
from boom_ray.merge.shards import Checkpoint, Maps, open_checkpoint
from boom_ray.stores import mirrors

CODES = {"F32": 0, "BF16": 1, "F16": 2}
_PREFIX = "model."
_HEADS = ("lm_head.weight", "predictions.decoder.weight")  # stored copies of the input embedding


@dataclass(frozen=True)
class Members:
    """Checkpoints ``[members..., base?]`` with equal tensors. Names are the first member's."""

    checkpoints: tuple[Checkpoint, ...]
    has_base: bool
    rows: dict[str, tuple[Tensor, ...]]

    @property
    def count(self) -> int:
        return len(self.checkpoints) - self.has_base

    @cached_property
    def floats(self) -> dict[str, int]:
        """Name → number of elements of the tensors that are merged, in file order."""
        return {name: row[0].size for name, row in self.rows.items() if row[0].dtype in FLOATS}

    @cached_property
    def copied(self) -> list[str]:
        """Names of integer tensors (position ids): equal in all members, taken over as they are."""
        return [name for name, row in self.rows.items() if row[0].dtype not in FLOATS]

    @cached_property
    def tied(self) -> dict[str, str]:
        """Output heads that all checkpoints store as a copy of another tensor → that tensor: merged alike."""
        plain = {_plain(name): name for name in self.rows}
        found = {}
        for name in (name for name in self.rows if name.endswith(_HEADS)):
            twins = [twin(c, row.name) for c, row in zip(self.checkpoints, self.rows[name], strict=True)]
            places = {None if other is None else plain.get(_plain(other)) for other in twins}
            if len(places) == 1 and (place := places.pop()) is not None:
                found[name] = place
        return found

    @cached_property
    def fingerprints(self) -> tuple[str, ...]:
        return tuple(identity(checkpoint.digest_input) for checkpoint in self.checkpoints)

    def sources(self, name: str, maps: Maps) -> np.ndarray:
        """Rows (K, 2) for the kernels: address of the first element, type code."""
        table = np.zeros((len(self.checkpoints), 2), np.int64)
        for k, tensor in enumerate(self.rows[name]):
            path = self.checkpoints[k].directory / tensor.file
            table[k] = (maps.address(path) + tensor.offset if tensor.size else 0), CODES[tensor.dtype]
        return table

    def where(self, name: str, k: int) -> str:
        """Text that names tensor ``name`` of vector ``k`` in a message."""
        return f"{self.checkpoints[k].directory}: tensor '{self.rows[name][k].name}'"


def open_members(members: Sequence[str | os.PathLike[str]], base: str | os.PathLike[str] | None) -> Members:
    """Open and match member checkpoints (and the base, as the last vector).

    Raises:
        BoomError: damaged or missing files; a tensor that one of them lacks; shapes or integer tensors that differ.
    """
    if not members:
        raise BoomError("a merge needs at least one member. Name model directories.")
    paths = [*members, *([base] if base is not None else [])]
    for path in paths:
        mirrors.fetch(path)
    checkpoints = tuple(open_checkpoint(path) for path in paths)
    first = checkpoints[0]
    common = set.intersection(*({_plain(name) for name in c.tensors} for c in checkpoints))
    kept = [_without_copies(checkpoint, common) for checkpoint in checkpoints]
    matched = [_match(first, kept[0], other, tensors) for other, tensors in zip(checkpoints, kept, strict=True)]
    rows = {name: tuple(found[name] for found in matched) for name in kept[0]}
    found = Members(checkpoints, base is not None, rows)
    _check_equal_shapes(found)
    _check_copied(found)
    return found


def _without_copies(checkpoint: Checkpoint, common: set[str]) -> dict[str, Tensor]:
    """The tensors but for stored copies of tied weights (``lm_head.weight``) that not all checkpoints store."""
    return {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if _plain(name) in common or not name.endswith(_HEADS) or twin(checkpoint, name) is None
    }


def twin(checkpoint: Checkpoint, name: str) -> str | None:
    """Another tensor of the checkpoint with the same type, shape and bytes: the one that ``name`` is tied to."""
    tensor = checkpoint.tensors[name]
    for other in checkpoint.tensors.values():
        alike = other.name != name and (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
        if alike and np.array_equal(checkpoint.view(name), checkpoint.view(other.name)):
            return other.name
    return None


def _match(
    first: Checkpoint, ours: Mapping[str, Tensor], other: Checkpoint, theirs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """``theirs`` by the names of ``ours``, equal up to a leading ``model.`` of names."""
    plain = {_plain(name): name for name in ours}
    if len(plain) != len(ours):
        raise BoomError(f"{first.directory} has tensors that differ only by a leading '{_PREFIX}'. Rename one of them.")
    found = {plain.get(_plain(name), name): tensor for name, tensor in theirs.items()}
    lacking = [name for name in ours if name not in found]
    extra = [name for name in found if name not in ours]
    if lacking or extra or len(found) != len(theirs):
        raise BoomError(
            f"{other.directory} does not have the same tensors as {first.directory}: it lacks {_list(lacking)}; it has "
            f"besides {_list(extra)}. Merge models of one architecture."
        )
    return found


def _plain(name: str) -> str:
    folder, slash, tensor = name.rpartition("/")
    return folder + slash + tensor.removeprefix(_PREFIX)


def _list(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:5])
    return (shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")) or "none"


def _check_equal_shapes(members: Members) -> None:
    for name, row in members.rows.items():
        for k, tensor in enumerate(row):
            if tensor.shape != row[0].shape:
                raise BoomError(
                    f"{members.where(name, k)} has shape {list(tensor.shape)}, but {members.where(name, 0)} has "
                    f"{list(row[0].shape)}. Members must come from one base with one vocabulary."
                )
            if (tensor.dtype in FLOATS) != (row[0].dtype in FLOATS) or (
                tensor.dtype not in FLOATS and tensor.dtype != row[0].dtype
            ):
                raise BoomError(
                    f"{members.where(name, k)} has type {tensor.dtype}, but the first member's has {row[0].dtype}."
                )
            if tensor.dtype == "F64" or tensor.dtype.startswith("F8"):
                raise BoomError(f"{members.where(name, k)} has type {tensor.dtype}; merged are {', '.join(FLOATS)}.")


def _check_copied(members: Members) -> None:
    for name in members.copied:
        views = [c.view(row.name) for c, row in zip(members.checkpoints, members.rows[name], strict=True)]
        for k, view in enumerate(views):
            if not np.array_equal(view, views[0]):
                raise BoomError(
                    f"{members.where(name, k)} is not a float tensor and differs from the first member's. Refused."
                )
