"""The passages nearest to each query, exactly, block by block: the whole matrix of scores never exists.

Candidates are found in float32 (faiss on a CPU where it is installed, else torch), a few more than asked for; they are
then scored again one by one in float64. So a score depends on its two vectors alone, not on the library, the device or
the block that found it, and ties are ties.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from boom_ray.data.mining_texts import TEXTS_PER_SHARD

_SLACK = 16  # candidates beyond those asked for: float32 may order close ones wrongly
_BLOCK_SHARDS = 8  # passages at once: 8192
_QUERIES = 1024  # scores at once: 1024 x 8192 float32 are 32 MiB
_RESCORED = 64  # queries whose candidates' vectors are gathered at once


class Matrix:
    """Rows [N, D] in memory-mapped .npy shards of ``TEXTS_PER_SHARD`` rows, the last one shorter."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._shards = [np.load(file, mmap_mode="r") for file in files]

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows in order, a few shards at a time."""
        for start in range(0, len(self._shards), _BLOCK_SHARDS):
            yield np.concatenate(self._shards[start : start + _BLOCK_SHARDS])

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """[n, D]: the rows of these numbers (int [n]), in the order asked for."""
        like = self._shards[0]
        taken = np.empty((len(numbers), like.shape[1]), dtype=like.dtype)
        shard, place = np.divmod(numbers, TEXTS_PER_SHARD)
        for index in np.unique(shard):
            here = shard == index
            taken[here] = self._shards[index][place[here]]
        return taken


def nearest(queries: np.ndarray, passages: Matrix, count: int, faiss: bool | None = None) -> tuple[np.ndarray, ...]:
    """The ``count`` passages of highest cosine for each query (float32 [n, D]); ties in the order of passages.

    Args:
        faiss: whether to search with faiss; default: where it is installed and torch sees no GPU.

    Returns:
        Numbers int32 [n, k] and cosines float32 [n, k], best first; k is the smaller of ``count`` and all passages.
    """
    found = [_nearest(queries[i : i + _QUERIES], passages, count, faiss) for i in range(0, len(queries), _QUERIES)]
    numbers, scores = zip(*found, strict=True)
    return np.concatenate(numbers), np.concatenate(scores)


def scores_of_pairs(queries: np.ndarray, passages: np.ndarray) -> np.ndarray:
    """float32 [n, k]: inner products of queries [n, D] with their own passages [n, k, D], summed in float64."""
    return np.einsum("nd,nkd->nk", queries.astype(np.float64), passages.astype(np.float64)).astype(np.float32)


def _nearest(queries: np.ndarray, passages: Matrix, count: int, faiss: bool | None) -> tuple[np.ndarray, np.ndarray]:
    wanted = count + _SLACK
    search = _search(queries, faiss)
    numbers: np.ndarray = np.empty((len(queries), 0), np.int64)
    scores: np.ndarray = np.empty((len(queries), 0), np.float32)
    start = 0
    for block in passages.blocks():
        places, found = search(block, min(wanted, len(block)))
        numbers, scores = (np.hstack(both) for both in ((numbers, places + start), (scores, found)))
        if numbers.shape[1] > wanted:
            best = np.argpartition(-scores, wanted - 1, axis=1)[:, :wanted]
            numbers, scores = (np.take_along_axis(a, best, axis=1) for a in (numbers, scores))
        start += len(block)
    exact = _rescored(queries, passages, numbers)
    order = np.lexsort((numbers, -exact), axis=1)[:, :count]
    return np.take_along_axis(numbers, order, axis=1).astype(np.int32), np.take_along_axis(exact, order, axis=1)


def _rescored(queries: np.ndarray, passages: Matrix, numbers: np.ndarray) -> np.ndarray:
    exact = np.empty(numbers.shape, dtype=np.float32)
    for start in range(0, len(queries), _RESCORED):
        part = slice(start, start + _RESCORED)
        taken = passages.take(numbers[part].ravel()).reshape(*numbers[part].shape, -1)
        exact[part] = scores_of_pairs(queries[part], taken)
    return exact


class _Torch:
    """The best of a block by a matrix product, on the GPU where there is one."""

    def __init__(self, queries: np.ndarray) -> None:
        import torch

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._queries = torch.from_numpy(queries).to(self._device)

    def __call__(self, block: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        import torch

        scores, places = torch.topk(self._queries @ torch.from_numpy(block).to(self._device).T, count, dim=1)
        return places.cpu().numpy(), scores.cpu().numpy()


class _Faiss:
    """The best of a block by faiss' exact search, which builds no index."""

    def __init__(self, queries: np.ndarray) -> None:
        import torch

        self._queries, self._threads = queries, torch.get_num_threads()

    def __call__(self, block: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        faiss.omp_set_num_threads(self._threads)
        scores, places = faiss.knn(self._queries, block, count, metric=faiss.METRIC_INNER_PRODUCT)
        return places, scores


def _search(queries: np.ndarray, faiss: bool | None) -> _Torch | _Faiss:
    import torch

    if faiss is None:
        faiss = importlib.util.find_spec("faiss") is not None and not torch.cuda.is_available()
    return (_Faiss if faiss else _Torch)(np.ascontiguousarray(queries))
