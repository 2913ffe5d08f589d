"""Search with one model's queries in another one's index: rankings, their overlap, and nDCG.

The index streams past the queries block by block, so that memory holds the queries, one block, and the best of each
query, whatever the size of the index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

TOP = 10
_SCORES = 1 << 22  # similarities held at once: queries x documents
Embed = Callable[[Sequence[str], str], np.ndarray]
"""(texts, side) to unit vectors, float32 [N, D]; side is "query", "document", or "" where a task has no sides."""


@dataclass(frozen=True)
class Subject:
    """What two models are compared on.

    Attributes:
        queries: Q texts.
        blocks: ``blocks(size)`` gives the index as ``(ids, texts)``, at most ``size`` at once.
        relevant: for every query, score by document id; None where nobody knows what is relevant.
        own: for every query, the id of the document that is no answer to it, or None.
        sides: of queries and of documents.
    """

    name: str
    queries: Sequence[str]
    blocks: Callable[[int], Iterator[tuple[Sequence[str], Sequence[str]]]]
    relevant: Sequence[Mapping[str, int]] | None
    own: Sequence[str | None]
    sides: tuple[str, str]


@dataclass(frozen=True)
class Measured:
    """What was measured on a subject; ``mixed`` is new queries in the old index.

    Attributes:
        dimensions: of old and new vectors.
        cosines: float32, of old and new vector of every document and then of every query; empty where they have
            different dimensions, as is all that is mixed.
        overlaps: by pair of systems, share of the ten first that both give, float64 [Q].
        ndcg: by system, nDCG@10 of every query, float64 [Q]; empty where nothing is known to be relevant.
    """

    name: str
    dimensions: tuple[int, int]
    documents: int
    queries: int
    cosines: np.ndarray
    overlaps: Mapping[str, np.ndarray]
    ndcg: Mapping[str, np.ndarray]


class Ranking:
    """The ``top`` documents of every query so far, best first; equal scores in the order of the index."""

    def __init__(self, queries: np.ndarray, top: int = TOP) -> None:
        self._queries = queries
        self._scores = np.full((len(queries), top), -np.inf, np.float32)
        self.numbers = np.full((len(queries), top), -1, np.int64)  # -1: there is no such document

    def add(self, vectors: np.ndarray, start: int, own: np.ndarray) -> None:
        """Documents [B, D], the first of which has number ``start``; query q does not take document ``own[q]``."""
        step = max(1, _SCORES // len(vectors))
        for first in range(0, len(self._queries), step):
            rows = slice(first, first + step)
            scores = self._queries[rows] @ vectors.T
            place = own[rows] - start
            inside = np.flatnonzero((place >= 0) & (place < len(vectors)))
            scores[inside, place[inside]] = -np.inf
            self._merge(rows, scores, start)

    def _merge(self, rows: slice, scores: np.ndarray, start: int) -> None:
        top = self.numbers.shape[1]
        if scores.shape[1] > top:
            # everything above the top-th score, then ties in order: a stable sort of what is left decides
            limit = -np.partition(-scores, top - 1, axis=1)[:, top - 1 : top]
            order = np.argsort(np.where(scores >= limit, -scores, np.inf), axis=1, kind="stable")[:, :top]
            scores, numbers = np.take_along_axis(scores, order, axis=1), order + start
        else:
            numbers = np.broadcast_to(np.arange(scores.shape[1]) + start, scores.shape)
        numbers = np.where(np.isfinite(scores), numbers, -1)
        both = np.concatenate([self._scores[rows], scores], axis=1)
        known = np.concatenate([self.numbers[rows], numbers], axis=1)
        order = np.argsort(-both, axis=1, kind="stable")[:, :top]
        self._scores[rows] = np.take_along_axis(both, order, axis=1)
        self.numbers[rows] = np.take_along_axis(known, order, axis=1)


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Share of the documents [Q, k] of two rankings that both hold, float64 [Q]; -1 is no document."""
    common = ((first[:, :, None] == second[:, None, :]) & (first >= 0)[:, :, None]).sum(axis=(1, 2))
    return np.asarray(common / np.maximum(1, np.maximum((first >= 0).sum(axis=1), (second >= 0).sum(axis=1))))


def ndcg(numbers: np.ndarray, relevant: Sequence[Mapping[int, int]]) -> np.ndarray:
    """nDCG@k [Q] of rankings [Q, k] with the relevance as gain, as trec_eval and mteb compute it.

    Source: Järvelin & Kekäläinen 2002, Cumulated gain-based evaluation of IR techniques, with log2(rank + 1).
    """
    top = numbers.shape[1]
    discounts = 1 / np.log2(np.arange(top) + 2)
    values = np.zeros(len(numbers))
    for row, (found, known) in enumerate(zip(numbers.tolist(), relevant, strict=True)):
        best = np.sort([max(0, score) for score in known.values()])[::-1][:top]
        ideal = float(best @ discounts[: len(best)])
        gained = float(np.array([max(0, known.get(number, 0)) for number in found]) @ discounts)
        values[row] = gained / ideal if ideal else 0.0
    return values


@dataclass
class _Index:
    """What is remembered of the documents that have gone past."""

    wanted: set[str]
    numbers: dict[str, int] = field(default_factory=dict)
    cosines: list[np.ndarray] = field(default_factory=list)
    size: int = 0

    def add(self, ids: Sequence[str]) -> None:
        self.numbers.update((key, self.size + place) for place, key in enumerate(ids) if key in self.wanted)
        self.size += len(ids)


def measure(subject: Subject, old: Embed, new: Embed, block: int = 2048) -> Measured:
    """Encode a subject by both models and search: old in old, new in new, and new queries in the old index."""
    ask, answer = subject.sides
    queries = {"old": old(subject.queries, ask), "new": new(subject.queries, ask)}
    comparable = queries["old"].shape[1] == queries["new"].shape[1]
    rankings = {name: Ranking(vectors) for name, vectors in queries.items()}
    if comparable:
        rankings["mixed"] = Ranking(queries["new"])
    index = _Index({key for found in subject.relevant or () for key in found} | {key for key in subject.own if key})
    for ids, texts in subject.blocks(block):
        start = index.size
        index.add(ids)
        own = np.array([index.numbers.get(key, -1) if key else -1 for key in subject.own], dtype=np.int64)
        vectors = {"old": old(texts, answer), "new": new(texts, answer)}
        if comparable:
            vectors["mixed"] = vectors["old"]
            index.cosines.append((vectors["old"] * vectors["new"]).sum(axis=1))
        for name, ranking in rankings.items():
            ranking.add(vectors[name], start, own)
    if comparable:
        index.cosines.append((queries["old"] * queries["new"]).sum(axis=1))
    known = [{index.numbers[k]: s for k, s in r.items() if k in index.numbers} for r in subject.relevant or ()]
    found = {name: ranking.numbers for name, ranking in rankings.items()}
    pairs = [("mixed", "new"), ("mixed", "old"), ("new", "old")] if comparable else [("new", "old")]
    return Measured(
        name=subject.name,
        dimensions=(queries["old"].shape[1], queries["new"].shape[1]),
        documents=index.size,
        queries=len(subject.queries),
        cosines=np.concatenate(index.cosines) if index.cosines else np.zeros(0, np.float32),
        overlaps={f"{a}/{b}": overlap(found[a], found[b]) for a, b in pairs},
        ndcg={name: ndcg(numbers, known) for name, numbers in found.items()} if subject.relevant is not None else {},
    )
