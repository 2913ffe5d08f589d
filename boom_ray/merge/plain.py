"""The numpy twins of :mod:`boom_ray.merge.kernels`: the same arithmetic in the same order, so the same bits.

They are what the tests compare the compiled kernels with, and what runs where numba cannot be imported.
"""

from __future__ import annotations

import ctypes
import os
from fractions import Fraction
from typing import Any

import numpy as np

LANES = 32
BLOCK = 32768
NEAR = 1 << 12
WRITE_FAILED = -1
_STORED: tuple[np.dtype[Any], ...] = (np.dtype("<f4"), np.dtype("<u2"), np.dtype("<f2"))


def load(source: np.ndarray, start: int, count: int) -> np.ndarray:
    """Stored elements as float32 (exact for all three types); a view of the mapping where the type is float32."""
    address, code = (int(v) for v in source)
    stored = _STORED[code]
    place = address + start * stored.itemsize
    data = memoryview((ctypes.c_char * (count * stored.itemsize)).from_address(place))
    values: np.ndarray = np.frombuffer(data, stored)
    if code == 1:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values if code == 0 else values.astype(np.float32)


def gram_piece(sources: np.ndarray, pairs: np.ndarray, base: int, start: int, count: int, gram: np.ndarray) -> None:
    """See :func:`boom_ray.merge.kernels.gram_piece`."""
    sums = np.zeros((len(pairs), LANES))
    for block in range(start, start + count, BLOCK):
        length = min(BLOCK, start + count - block)
        wide = np.zeros((len(sources), -(-length // LANES) * LANES))
        for k, source in enumerate(sources):
            wide[k, :length] = load(source, block, length)
        with np.errstate(all="ignore"):
            if base >= 0:
                others = [k for k in range(len(sources)) if k != base]
                wide[others] = (wide[others] - wide[base]).astype(np.float32)
            rows = wide.reshape(len(sources), -1, LANES)
            for p, (i, j) in enumerate(pairs):
                for products in rows[i] * rows[j]:
                    sums[p] += products
    gram[:] = sums.cumsum(axis=1)[:, -1]  # cumsum adds strictly from left to right, sum does not


def combine_piece(sources: np.ndarray, coefficients: np.ndarray, sink: np.ndarray, start: int, count: int) -> int:
    """See :func:`boom_ray.merge.kernels.combine_piece`."""
    wrong = 0
    for block in range(start, start + count, BLOCK):
        length = min(BLOCK, start + count - block)
        total = coefficients[0] * load(sources[0], block, length).astype(np.float64)
        for factor, source in zip(coefficients[1:], sources[1:], strict=True):
            total = total + factor * load(source, block, length).astype(np.float64)
        _settle(total, sources, coefficients, block, int(sink[3]))
        bad = store(total, sink, block)
        if bad < 0:
            return WRITE_FAILED
        wrong += bad
    return wrong


def _settle(total: np.ndarray, sources: np.ndarray, coefficients: np.ndarray, start: int, code: int) -> None:
    """Sums near the middle of two stored values, computed again as fractions and rounded to odd."""
    dropped = (29, 45, 42)[code]
    pattern = total.view(np.uint64)
    shift = np.full(1, (1 << 64) + NEAR - (1 << dropped - 1), np.uint64)
    distance = (pattern + shift) & np.uint64((1 << dropped) - 1)
    for k in np.flatnonzero((distance <= 2 * NEAR) & np.isfinite(total)):
        values = [Fraction(float(load(source, start + int(k), 1)[0])) for source in sources]
        exact = sum((Fraction(float(c)) * v for c, v in zip(coefficients, values, strict=True)), Fraction(0))
        total[k] = float(exact)
        rest = exact - Fraction(float(total[k]))
        if rest and not int(pattern[k]) & 1:
            pattern[k] = int(pattern[k]) + (1 if (rest > 0) == (exact > 0) else -1)


def store(exact: np.ndarray, sink: np.ndarray, start: int) -> int:
    """Write float64 values at element ``start`` of a sink, rounded once; how many are not finite, or WRITE_FAILED."""
    address, descriptor, offset, code = (int(v) for v in sink)
    data, wrong = round_once(exact, code)
    place = offset + start * _STORED[code].itemsize
    if address:
        ctypes.memmove(address + place, data, len(data))
        return wrong
    try:
        written = 0
        while written < len(data):
            written += os.pwrite(descriptor, data[written:], place + written)
    except OSError:
        return WRITE_FAILED
    return wrong


def round_once(exact: np.ndarray, code: int) -> tuple[bytes, int]:
    """float64 values as stored bytes of a type code, each rounded once to nearest even, and how many are not finite."""
    with np.errstate(all="ignore"):
        if code == 1:
            single = exact.astype(np.float32)
            bits = single.view(np.uint32).copy()
            bits -= (np.abs(single.astype(np.float64)) > np.abs(exact)).astype(np.uint32)
            bits |= (single.astype(np.float64) != exact).astype(np.uint32)  # to odd: rounding again is one rounding
            bits += np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))
            half = (bits >> 16).astype(np.uint16)
            half[np.isnan(exact)] = 0x7FC0
            return half.tobytes(), int(((half & 0x7F80) == 0x7F80).sum())
        stored = exact.astype(_STORED[code])
        return stored.tobytes(), int((~np.isfinite(stored)).sum())


def count_nonfinite(source: np.ndarray, start: int, count: int) -> int:
    """See :func:`boom_ray.merge.kernels.count_nonfinite`."""
    return int((~np.isfinite(load(source, start, count))).sum())


def count_bits(bits: np.ndarray, high: int, counts: np.ndarray) -> None:
    """See :func:`boom_ray.merge.kernels.count_bits`."""
    upper = bits >> np.uint32(16)
    chosen = upper if high < 0 else bits[upper == high] & np.uint32(0xFFFF)
    counts += np.bincount(chosen, minlength=len(counts))
