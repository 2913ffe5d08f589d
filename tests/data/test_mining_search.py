"""The search is exact: what it returns is what sorting all inner products gives, ties in the order of passages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from boom_ray.data import mining_search
from boom_ray.data.mining_search import Matrix, nearest, scores_of_pairs

FAISS = importlib.util.find_spec("faiss")


def exact_vectors(rng: np.random.Generator, count: int, width: int = 12) -> np.ndarray:
    """Few distinct values, so that inner products are exact in float32 and ties abound."""
    return (rng.integers(-4, 5, (count, width)) / 8).astype(np.float32)


def on_disk(tmp_path: Path, vectors: np.ndarray, shard: int) -> Matrix:
    files = []
    for start in range(0, len(vectors), shard):
        files.append(tmp_path / f"v-{start:05d}.npy")
        np.save(files[-1], vectors[start : start + shard])
    return Matrix(files)


def by_sorting(queries: np.ndarray, passages: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries.astype(np.float64) @ passages.astype(np.float64).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(scores, order, axis=1)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many shards, blocks and batches of queries although the arrays are small."""
    monkeypatch.setattr(mining_search, "TEXTS_PER_SHARD", 16)
    monkeypatch.setattr(mining_search, "_QUERIES", 8)
    monkeypatch.setattr(mining_search, "_RESCORED", 3)
    monkeypatch.setattr(mining_search, "_SLACK", 200)  # ties at the far edge: as many as there are passages


@pytest.mark.parametrize("faiss", [False, pytest.param(True, marks=pytest.mark.skipif(not FAISS, reason="no faiss"))])
@pytest.mark.parametrize("count", [1, 9, 150, 400])
@pytest.mark.usefixtures("small_shards")
def test_nearest_is_what_sorting_gives(tmp_path: Path, count: int, faiss: bool) -> None:
    rng = np.random.default_rng(count)
    queries, passages = exact_vectors(rng, 21), exact_vectors(rng, 150)
    numbers, scores = nearest(queries, on_disk(tmp_path, passages, 16), count, faiss)
    expected, products = by_sorting(queries, passages, count)
    assert numbers.dtype == np.int32
    np.testing.assert_array_equal(numbers, expected)
    np.testing.assert_array_equal(scores, products.astype(np.float32))


def test_real_vectors_and_any_cut_into_shards_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    queries, passages = (rng.normal(size=(n, 64)).astype(np.float32) for n in (300, 900))
    for vectors in (queries, passages):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = []
    for shard, batch in ((900, 1024), (100, 7), (37, 300)):
        monkeypatch.setattr(mining_search, "TEXTS_PER_SHARD", shard)
        monkeypatch.setattr(mining_search, "_QUERIES", batch)
        folder = tmp_path / str(shard)
        folder.mkdir()
        found.append(nearest(queries, on_disk(folder, passages, shard), 50, False))
    for numbers, scores in found[1:]:
        np.testing.assert_array_equal(numbers, found[0][0])
        np.testing.assert_array_equal(scores, found[0][1])
    np.testing.assert_array_equal(found[0][0], by_sorting(queries, passages, 50)[0])


@pytest.mark.skipif(not FAISS, reason="needs faiss")
def test_faiss_and_torch_give_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    queries, passages = (rng.normal(size=(n, 96)).astype(np.float32) for n in (500, 4000))
    matrix = on_disk(tmp_path, passages, mining_search.TEXTS_PER_SHARD)
    ours, theirs = (nearest(queries, matrix, 210, faiss) for faiss in (False, True))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_take_and_pair_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining_search, "TEXTS_PER_SHARD", 5)
    vectors = exact_vectors(np.random.default_rng(1), 23)
    wanted = np.array([22, 0, 7, 7, 4, 5])
    np.testing.assert_array_equal(on_disk(tmp_path, vectors, 5).take(wanted), vectors[wanted])
    np.testing.assert_array_equal(
        scores_of_pairs(vectors[:3], vectors[wanted].reshape(3, 2, -1)),
        np.array([[vectors[i] @ vectors[j] for j in wanted[2 * i : 2 * i + 2]] for i in range(3)]),
    )
