"""Which ranked texts become negatives of a row: the rules of mining, as pure functions on arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from boom_ray.data.mining_texts import Index

DROPPED = ("equal", "label", "margin")


@dataclass(frozen=True)
class Ranked:
    """What one model finds for n rows: a window of its ranking.

    Attributes:
        passages: int [n, w], numbers of passages, best first.
        scores: float32 [n, w], their cosines with the query.
        limit: float32 [n]; a negative scores below it.
    """

    passages: np.ndarray
    scores: np.ndarray
    limit: np.ndarray


def margin_limit(lowest: np.ndarray, share: float) -> np.ndarray:
    """``share`` of the score of a row's lowest positive; below it also where that score is negative."""
    return (lowest - (1 - share) * np.abs(lowest)).astype(np.float32)


def allowed(ranked: Ranked, index: Index, rows: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """Boolean [n, w]: which texts may be negatives of ``rows`` (int [n]), and how many are not, by the first reason.

    ``equal``: the query itself or a positive that this query has in any row of the dataset; ``label``: a text of the
    row's label; ``margin``: not below the limit.
    """
    folds = np.asarray(index.passage_fold[ranked.passages])
    queries = np.asarray(index.query_fold[index.query[rows]])[:, None]
    labels = np.asarray(index.label[rows])[:, None]
    equal = _contains(index.equal, index.pair(queries, folds))
    label = ~equal & _contains(index.same_label, index.pair(labels, folds))
    margin = ~equal & ~label & ~(ranked.scores < ranked.limit[:, None])
    counts = {name: int(np.count_nonzero(mask)) for name, mask in zip(DROPPED, (equal, label, margin), strict=True)}
    return ~(equal | label | margin), counts


def take_turns(lists: Sequence[Sequence[int]], folds: Sequence[Sequence[int]], count: int) -> list[int]:
    """Up to ``count`` of the lists' entries: each list in turn gives its first one whose fold is not taken yet."""
    taken: dict[int, int] = {}
    waiting = [zip(numbers, same, strict=True) for numbers, same in zip(lists, folds, strict=True)]
    while waiting and len(taken) < count:
        waiting = [turn for turn in waiting if len(taken) < count and _take(turn, taken)]
    return list(taken.values())


def _take(turn: Iterator[tuple[int, int]], taken: dict[int, int]) -> bool:
    """Whether the list still had a new one."""
    for number, fold in turn:
        if fold not in taken:
            taken[fold] = number
            return True
    return False


def _contains(pairs: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Boolean, the shape of ``asked``: which of its numbers are in the sorted array."""
    if not len(pairs):
        return np.zeros(asked.shape, dtype=bool)
    places = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
    return np.asarray(pairs[places] == asked)
