"""The compiled kernels equal their numpy twins bit for bit, and both equal exact arithmetic where it can be had."""

from __future__ import annotations

from fractions import Fraction
from types import ModuleType

import numpy as np
import pytest

from boom_ray.merge import plain

kernels = pytest.importorskip("boom_ray.merge.kernels")
N = 70_001  # no multiple of any block
RNG = np.random.default_rng(5)
STORED = [
    RNG.standard_normal(N).astype(np.float32),
    (RNG.standard_normal(N).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16),
    (RNG.standard_normal(N) * 1e-5).astype(np.float16),  # many subnormals
    RNG.standard_normal(N).astype(np.float32),
]
SOURCES = np.array([[a.ctypes.data, c] for a, c in zip(STORED, (0, 1, 2, 0), strict=True)])
VALUES = np.stack([plain.load(source, 0, N) for source in SOURCES]).astype(np.float64)
PAIRS = np.array([(i, j) for i in range(4) for j in range(i + 1)])


def gram(module: ModuleType, base: int, start: int, count: int) -> np.ndarray:
    out = np.empty(len(PAIRS))
    module.gram_piece(SOURCES, PAIRS, base, start, count, out)
    return out


@pytest.mark.parametrize("base", [-1, 3])
@pytest.mark.parametrize(("start", "count"), [(0, N), (7, N - 7), (0, 1), (3, 511), (512, 513)])
def test_gram_of_compiled_and_plain_have_equal_bits(base: int, start: int, count: int) -> None:
    ours, twin = gram(kernels, base, start, count), gram(plain, base, start, count)
    assert ours.tobytes() == twin.tobytes()


def test_gram_is_the_matrix_of_inner_products() -> None:
    vectors = VALUES.copy()
    vectors[:3] = (vectors[:3] - vectors[3]).astype(np.float32)
    exact = vectors @ vectors.T
    assert np.allclose(gram(kernels, 3, 0, N), exact[tuple(PAIRS.T)], rtol=1e-13, atol=1e-9)


def combined(module: ModuleType, factors: list[float], code: int) -> tuple[np.ndarray, int]:
    out = np.zeros(N, np.float32 if code == 0 else np.uint16)
    sink = np.array([out.ctypes.data, 0, 0, code])
    return out, module.combine_piece(SOURCES, np.array(factors), sink, 0, N)


@pytest.mark.parametrize("code", [0, 1, 2])
@pytest.mark.parametrize("factors", [[0.3, -0.2, 0.7, 1e-3], [1e-6, 2e-6, 0.5, -1e-6], [3e4, 0.0, 0.0, 1e4]])
def test_sums_of_compiled_and_plain_have_equal_bits(code: int, factors: list[float]) -> None:
    ours, twin = combined(kernels, factors, code), combined(plain, factors, code)
    finite = plain.load(np.array([ours[0].ctypes.data, code]), 0, N)
    assert ours[1] == twin[1] == np.count_nonzero(~np.isfinite(finite))
    assert ours[0].tobytes() == twin[0].tobytes()


@pytest.mark.parametrize("factors", [[0.3, -0.2, 0.7, 1e-3], [0.2, 0.2, 0.2, 0.4], [1 / 3, 1 / 3, 1 / 3, 0.0]])
def test_every_sum_is_the_exact_sum_correctly_rounded(factors: list[float]) -> None:
    """Against rational arithmetic. Sums of float64 alone miss it in one element of some thousands: ties of decimals."""
    ours, wrong = combined(kernels, factors, 0)
    assert wrong == 0
    exact = np.array(factors) @ VALUES
    nearest = exact.astype(np.float32)
    between = np.abs(exact - nearest) / np.spacing(np.abs(nearest))
    doubtful = np.flatnonzero((np.abs(between - 0.5) < 1e-4) | (ours != nearest))
    assert len(doubtful) < N / 10
    for k in doubtful:
        truth = sum(Fraction(c) * Fraction(float(v)) for c, v in zip(factors, VALUES[:, k], strict=True))
        neighbours = (ours[k], np.nextafter(ours[k], np.float32(9)), np.nextafter(ours[k], np.float32(-9)))
        distances = [abs(Fraction(float(n)) - truth) for n in neighbours]
        assert distances[0] == min(distances)


def test_the_order_of_vectors_changes_no_bit() -> None:
    out = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
        stored = np.zeros(N, np.float32)
        sink = np.array([stored.ctypes.data, 0, 0, 0])
        kernels.combine_piece(np.ascontiguousarray(SOURCES[order]), np.full(4, 0.2), sink, 0, N)
        out.append(stored.tobytes())
    assert out[0] == out[1] == out[2]


@pytest.mark.parametrize(("code", "mask"), [(1, 0x7F80), (2, 0x7C00)])
def test_every_16_bit_value_survives_coefficient_one(code: int, mask: int) -> None:
    stored = np.arange(1 << 16, dtype=np.uint16)
    source, out = np.array([[stored.ctypes.data, code]]), np.zeros(1 << 16, np.uint16)
    finite = (stored & mask) != mask
    wrong = kernels.combine_piece(source, np.ones(1), np.array([out.ctypes.data, 0, 0, code]), 0, 1 << 16)
    assert wrong == (~finite).sum() == kernels.count_nonfinite(source[0], 0, 1 << 16)
    assert (out[finite] == stored[finite]).all()


def test_bfloat16_is_rounded_once_not_twice() -> None:
    """Just above half way between two bfloat16: rounding to float32 first would fall on the tie, then to even."""
    above = np.float32(1.0) + np.float32(2**-8)
    values = np.array([above, 2.0**-40], np.float64).astype(np.float32)
    a, b = np.full(1, values[0]), np.full(1, values[1])
    sources = np.array([[a.ctypes.data, 0], [b.ctypes.data, 0]])
    for module in (kernels, plain):
        out = np.zeros(1, np.uint16)
        module.combine_piece(sources, np.ones(2), np.array([out.ctypes.data, 0, 0, 1]), 0, 1)
        assert out[0] == 0x3F81  # 1 + 2**-7; the tie 1 + 2**-8 alone would go to 0x3F80


def test_histograms_count_every_score_once() -> None:
    bits = np.abs(STORED[0]).view(np.uint32)
    for high in (-1, int(bits[0] >> 16)):
        ours, twin = np.zeros(1 << 16, np.int64), np.zeros(1 << 16, np.int64)
        kernels.count_bits(bits, high, ours)
        plain.count_bits(bits, high, twin)
        assert (ours == twin).all()
        assert ours.sum() == (N if high < 0 else (bits >> 16 == high).sum())
