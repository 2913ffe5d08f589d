"""Gram matrices of a set of members, tensor by tensor, in float64: all that merge weights need to know of the weights.

With a base, the vectors are the task vectors and the base itself, ``[d_1 .. d_M, b]``: task vectors are thousands of
times shorter than weights, and their inner products would drown in the rounding of the weights' own. The Gram matrix
of the raw members follows from it exactly enough: t_i·t_j = d_i·d_j + d_i·b + b·d_j + b·b.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from boom_ray.config import BoomError
from boom_ray.merge.engine import Engine
from boom_ray.merge.members import Members, open_members


@dataclass(frozen=True)
class Grams:
    """Per tensor, the (K, K) Gram matrix of ``[t_1 .. t_M]``, or of ``[d_1 .. d_M, b]`` with a base (K = M + 1)."""

    members: int
    has_base: bool
    matrices: Mapping[str, np.ndarray]
    fingerprints: tuple[str, ...]

    def of(self, name: str, deltas: bool) -> np.ndarray:
        """(M, M) Gram matrix of task vectors (``deltas``) or of the raw members.

        Raises:
            BoomError: task vectors without a base.
        """
        matrix = self.matrices[name]
        if not self.has_base:
            if deltas:
                raise BoomError("task vectors need a base. Name it with base_model.")
            return matrix
        inner = matrix[:-1, :-1]
        if deltas:
            return inner
        along = matrix[:-1, -1]
        return inner + (along[:, None] + along[None, :]) + matrix[-1, -1]

    def cosine(self) -> np.ndarray:
        """(M, M) cosines between the members' whole task vectors (whole weight vectors without a base)."""
        stacked = np.stack([self.of(name, self.has_base) for name in self.matrices])
        total = np.array([[math.fsum(stacked[:, i, j]) for j in range(self.members)] for i in range(self.members)])
        lengths = np.sqrt(np.diagonal(total))
        lengths = np.where(lengths > 0, lengths, 1.0)
        return total / np.outer(lengths, lengths)

    def fits(self, fingerprints: Sequence[str]) -> bool:
        """Whether these files (members, then base) have the base and a member of this one: it can grow to them."""
        if not self.has_base:
            return bool(set(self.fingerprints) & set(fingerprints))
        return self.fingerprints[-1] == fingerprints[-1] and bool(set(self.fingerprints[:-1]) & set(fingerprints[:-1]))

    @classmethod
    def joined(cls, parts: Sequence[Grams]) -> Grams:
        """Grams of all tensors from those of some tensors each, of the same members."""
        first = parts[0]
        matrices = {name: matrix for part in parts for name, matrix in part.matrices.items()}
        return cls(first.members, first.has_base, matrices, first.fingerprints)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an ``.npz``; a few kilobytes."""
        head = {"members": self.members, "has_base": self.has_base, "fingerprints": self.fingerprints}
        with open(path, "wb") as stream:
            names = np.array(json.dumps([head, list(self.matrices)]))
            np.savez(stream, head=names, matrices=np.stack(list(self.matrices.values())))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Grams:
        """Read what :meth:`save` wrote.

        Raises:
            BoomError: missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                head, names = json.loads(str(data["head"]))
                matrices = dict(zip(names, data["matrices"], strict=True))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise BoomError(
                f"{path} is no Gram file of boom_ray ({error}). Delete it; the next merge computes it again."
            ) from None
        return cls(head["members"], head["has_base"], matrices, tuple(head["fingerprints"]))


def gram(
    members: Sequence[str | os.PathLike[str]],
    base: str | os.PathLike[str] | None = None,
    *,
    known: Grams | None = None,
    workers: int | None = None,
    window: int | None = None,
) -> Grams:
    """One pass over all members. Any number of workers, and growing from ``known``, give the same bits.

    Args:
        known: Grams of some of these members with the same base: only pairs with a new member are computed.
        workers: threads, default one per core; window: bytes of the members in memory at once (None: no limit).

    Raises:
        BoomError: members that do not match, damaged files, NaN or infinite weights.
    """
    opened = open_members(members, base)
    with Engine(opened, workers, window) as engine:
        return gram_of(engine, list(opened.floats), known)


def gram_of(engine: Engine, names: Sequence[str], known: Grams | None = None) -> Grams:
    """Grams of some tensors, on an open engine."""
    members = engine.members
    places = _known_places(members, known)
    pairs = _unknown_pairs(len(members.checkpoints), places)
    found = engine.gram(names, pairs)
    matrices = {}
    for name in names:
        matrix = np.empty((len(members.checkpoints),) * 2)
        if known is not None:
            matrix[np.ix_(list(places), list(places))] = known.matrices[name][
                np.ix_(list(places.values()), list(places.values()))
            ]
        for (i, j), value in zip(pairs, found[name], strict=True):
            matrix[i, j] = matrix[j, i] = value
        matrices[name] = matrix
    return Grams(members.count, members.has_base, matrices, members.fingerprints)


def _unknown_pairs(size: int, places: Mapping[int, int]) -> np.ndarray:
    """Index pairs (P, 2) whose inner products are to be computed."""
    pairs = [(i, j) for i in range(size) for j in range(i + 1) if not (i in places and j in places)]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _known_places(members: Members, known: Grams | None) -> dict[int, int]:
    """Vector of ``members`` → the same vector in ``known``."""
    if known is None:
        return {}
    there = {print_: k for k, print_ in enumerate(known.fingerprints)}
    places = {k: there[print_] for k, print_ in enumerate(members.fingerprints) if print_ in there}
    if known.has_base != members.has_base or not known.fits(members.fingerprints):
        raise BoomError("the known Gram matrices are of other members or files. Compute them again without them.")
    return places
