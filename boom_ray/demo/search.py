"""Exact search: all passages by their cosine to a question, in the order of one model and of the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from boom_ray.config import BoomError
from boom_ray.demo.models import Prompts, prompts_of

if TYPE_CHECKING:
    from boom_ray.encoder import Encoder

BASE, MODEL = "base", "model"
_BLOCK = 128  # passages between two signs of progress


@dataclass(frozen=True)
class Side:
    """A loaded model and its unit vectors of all passages, float32 [N, D]."""

    directory: Path
    encoder: Encoder
    prompts: Prompts
    vectors: np.ndarray


@dataclass(frozen=True)
class Hit:
    """A passage that was found: its number, its rank (1 is the nearest), its cosine to the question, and its rank by
    the other model, None where there is no other."""

    passage: int
    rank: int
    cosine: float
    other: int | None


@dataclass(frozen=True)
class Answer:
    """The nearest passages to a question, by side; the base, where there is one, comes first."""

    query: str
    hits: Mapping[str, tuple[Hit, ...]]


def load_side(directory: Path, passages: Sequence[str], advance: Callable[[int], None]) -> Side:
    """Load a model and encode the passages with its prompt; ``advance`` is told how many more are done.

    Raises:
        BoomError: the directory holds no model, or one whose vectors are not finite.
    """
    from boom_ray.encoder import Encoder

    encoder, prompts = Encoder.load(directory), prompts_of(directory)
    parts = []
    for start in range(0, len(passages), _BLOCK):
        block = passages[start : start + _BLOCK]
        parts.append(_encode(directory, encoder, block, prompts.passage))
        advance(len(block))
    return Side(directory, encoder, prompts, np.concatenate(parts))


def answer(query: str, sides: Mapping[str, Side], top: int) -> Answer:
    """The ``top`` nearest passages by each side's cosine; equal ones in the order of the passages."""
    query = query.encode("utf-8", "replace").decode()  # a terminal may hand over half characters
    scores = {name: _cosines(side, query) for name, side in sides.items()}
    ranks = {name: rank(of_side) for name, of_side in scores.items()}
    hits = {}
    for name, of_side in scores.items():
        other = next((ranks[n] for n in ranks if n != name), None)
        first = np.argsort(ranks[name])[:top]
        hits[name] = tuple(
            Hit(int(i), int(ranks[name][i]), float(of_side[i]), None if other is None else int(other[i])) for i in first
        )
    return Answer(query, hits)


def rank(scores: np.ndarray) -> np.ndarray:
    """Ranks [N] from 1 of scores [N], the highest first; of equal scores the earlier one first."""
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return ranks


def _cosines(side: Side, query: str) -> np.ndarray:
    vector = _encode(side.directory, side.encoder, [query], side.prompts.query)[0]
    return np.asarray(side.vectors @ vector)


def _encode(directory: Path, encoder: Encoder, texts: Sequence[str], prompt: str) -> np.ndarray:
    vectors = encoder.encode(texts, prompt=prompt)
    if not np.isfinite(vectors).all():
        raise BoomError(
            f"{directory} gives vectors with NaN or infinite numbers: its weights are damaged or its training diverged."
        )
    return vectors
