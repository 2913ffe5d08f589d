"""Methods by rank: thresholds equal a full sort, ties go to the first, and a new method is one class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import write_model
from safetensors.numpy import load_file

from boom_ray.config import BoomError
from boom_ray.merge.elementwise import Cut, find_bin
from boom_ray.merge.registry import METHODS, method
from boom_ray.merge.stream import MergeOptions, merge

SHAPE = (1301, 900)  # three pieces
WEIGHTS = np.array([0.3, 0.5, 0.8])


@pytest.fixture
def coarse(tmp_path: Path) -> tuple[list[Path], Path, np.ndarray]:
    """Members whose changes take few values, so that thousands share the score at the cut, and a frozen tensor."""
    rng = np.random.default_rng(0)
    base = write_model(tmp_path / "base", {"w": np.zeros(SHAPE, np.float32), "frozen": np.ones(9, np.float32)})
    changes = np.stack([rng.integers(-9, 10, SHAPE), rng.integers(-200, 200, SHAPE), rng.integers(-2, 3, SHAPE)])
    changes = changes.astype(np.float32) * np.float32(2**-6)
    models = [
        write_model(tmp_path / f"m{i}", {"w": change, "frozen": np.ones(9, np.float32)})
        for i, change in enumerate(changes)
    ]
    return models, base, changes.reshape(3, -1)


def largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Mask of the ``count`` largest; of equal ones the first."""
    mask = np.zeros(len(scores), bool)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask


def run(models: list[Path], base: Path, name: str, out: Path, **parameters: float) -> np.ndarray:
    entries = [{"model": str(m), "parameters": {"weight": w}} for m, w in zip(models, WEIGHTS.tolist(), strict=True)]
    recipe = {"merge_method": name, "base_model": str(base), "models": entries, "parameters": parameters}
    found = load_file(merge(recipe, out, MergeOptions(workers=2, memory="30MB")) / "model.safetensors")
    assert (found["frozen"] == 1).all()
    return found["w"].ravel()


@pytest.mark.parametrize("density", [0.0, 1e-6, 0.1, 0.55, 0.999999, 1.0])
def test_ties_equals_a_full_sort(coarse: tuple[list[Path], Path, np.ndarray], tmp_path: Path, density: float) -> None:
    models, base, changes = coarse
    count = 0 if density == 0 else max(1, int(density * changes.shape[1]))
    masks = np.stack([largest(np.abs(change), count) for change in changes])
    terms = np.where(masks, changes, 0) * WEIGHTS[:, None]
    sign = np.where(terms.sum(axis=0) >= 0, 1, -1)
    agree = np.sign(terms) == sign
    shares = np.where(agree, WEIGHTS[:, None], 0).sum(axis=0)
    expected = np.where(agree, terms, 0).sum(axis=0) / np.where(shares == 0, 1, shares)
    assert (run(models, base, "ties", tmp_path / "out", density=density) == expected.astype(np.float32)).all()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_sce_equals_a_full_sort(coarse: tuple[list[Path], Path, np.ndarray], tmp_path: Path, share: float) -> None:
    models, base, changes = coarse
    variance = changes.astype(np.float64).var(axis=0).astype(np.float32)
    kept = largest(variance, int(np.count_nonzero(variance) * share)) if share < 1 else np.ones(len(variance), bool)
    chosen = np.where(kept, changes, 0).astype(np.float64)
    energy = (chosen**2).sum(axis=1)
    weights = energy / energy.sum() if energy.any() else np.full(3, 1 / 3)
    agree = np.sign(chosen) == np.where(chosen.sum(axis=0) >= 0, 1, -1)
    shares = np.where(agree, weights[:, None], 0).sum(axis=0)
    expected = np.where(agree, chosen * weights[:, None], 0).sum(axis=0) / np.where(shares == 0, 1, shares)
    assert np.allclose(run(models, base, "sce", tmp_path / "out", select_topk=share), expected, rtol=1e-6, atol=0)


def test_a_cut_splits_equal_scores_by_place() -> None:
    cut = Cut(bits=5, ties=3, equal=6)
    scores = np.array([5, 9, 5, 1, 5, 5, 7], np.uint32)
    assert cut.mask(scores, 0).tolist() == [True, True, True, False, True, False, True]
    assert cut.mask(scores, 2).tolist() == [True, True, False, False, False, False, True]
    counts = np.array([4, 0, 3, 2])
    assert [find_bin(counts, k) for k in (1, 2, 3, 5, 6, 9)] == [(3, 1), (3, 2), (2, 1), (2, 3), (0, 1), (0, 4)]


@pytest.fixture
def loudest() -> Iterator[str]:
    """A new method, written by somebody who knows nothing of files, windows and threads."""

    @method("loudest", space="elementwise", gram=False)
    class Loudest:
        """Per element, the largest change, where it is among the ``density`` largest of all."""

        def __init__(self, weights: np.ndarray, *, density: float = 1.0) -> None:
            self.density = density

        def scores(self, deltas: np.ndarray) -> np.ndarray:
            return np.abs(deltas).max(axis=0, keepdims=True)

        def kept(self, size: int, nonzero: np.ndarray) -> list[int]:
            return [int(self.density * size)]

        def measure(self, deltas: np.ndarray, masks: np.ndarray) -> np.ndarray:
            return np.empty(0)

        def merged(self, deltas: np.ndarray, masks: np.ndarray, totals: np.ndarray) -> np.ndarray:
            first = np.take_along_axis(deltas, np.abs(deltas).argmax(axis=0)[None], axis=0)[0]
            return np.where(masks[0], first, 0).astype(np.float64)

    yield "loudest"
    del METHODS["loudest"]


def test_a_new_method_needs_no_change_of_the_engine(
    coarse: tuple[list[Path], Path, np.ndarray], tmp_path: Path, loudest: str
) -> None:
    models, base, changes = coarse
    first = np.take_along_axis(changes, np.abs(changes).argmax(axis=0)[None], axis=0)[0]
    expected = np.where(largest(np.abs(changes).max(axis=0), int(0.25 * changes.shape[1])), first, 0)
    assert (run(models, base, loudest, tmp_path / "out", density=0.25) == expected).all()
    with pytest.raises(BoomError, match="did you mean 'density'"):
        run(models, base, loudest, tmp_path / "other", densty=0.25)
