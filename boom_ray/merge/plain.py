"""The numpy twins of :mod:`boom_ray.merge.kernels`: the same arithmetic in the same order, so the same bits.

They are what the tests compare the compiled kernels with, and what runs where numba cannot be imported. They read by
mapping or ``pread`` through the same sources.
"""

from __future__ import annotations

import ctypes
import os

import numpy as np

LANES = 128
BLOCK = 32768
_WIDE = 4 * LANES
READ_FAILED = -1
WRITE_FAILED = -(1 << 40)
_STORED = (np.dtype("<f4"), np.dtype("<u2"), np.dtype("<f2"))


def _load(source: np.ndarray, start: int, count: int) -> np.ndarray | None:
    """Elements as float64 (exact), or None when the file ends early or cannot be read."""
    address, descriptor, offset, code = (int(v) for v in source)
    stored = _STORED[code]
    size, place = count * stored.itemsize, offset + start * stored.itemsize
    try:
        data = ctypes.string_at(address + place, size) if address else os.pread(descriptor, size, place)
    except OSError:
        return None
    if len(data) != size:
        return None
    values = np.frombuffer(data, stored)
    if code == 1:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)


def gram_piece(sources: np.ndarray, pairs: np.ndarray, base: int, start: int, count: int, gram: np.ndarray) -> int:
    """See :func:`boom_ray.merge.kernels.gram_piece`."""
    sums = np.zeros((len(pairs), LANES))
    for block in range(start, start + count, BLOCK):
        length = min(BLOCK, start + count - block)
        wide = np.zeros((len(sources), -(-length // _WIDE) * _WIDE))
        for k, source in enumerate(sources):
            values = _load(source, block, length)
            if values is None:
                return READ_FAILED - k
            wide[k, :length] = values
        if base >= 0:
            others = [k for k in range(len(sources)) if k != base]
            wide[others] -= wide[base]
        rows = wide.reshape(len(sources), -1, 4, LANES)
        with np.errstate(all="ignore"):
            for p, (i, j) in enumerate(pairs):
                products = rows[i] * rows[j]
                quads = (products[:, 0] + products[:, 1]) + (products[:, 2] + products[:, 3])
                for quad in quads:
                    sums[p] += quad
    gram[:] = sums.cumsum(axis=1)[:, -1]  # cumsum adds strictly from left to right, sum does not
    return 0


def combine_piece(sources: np.ndarray, coefficients: np.ndarray, sink: np.ndarray, start: int, count: int) -> int:
    """See :func:`boom_ray.merge.kernels.combine_piece`."""
    address, descriptor, offset, code = (int(v) for v in sink)
    item = _STORED[code].itemsize
    wrong = 0
    for block in range(start, start + count, BLOCK):
        length = min(BLOCK, start + count - block)
        total: np.ndarray | None = None
        for k, source in enumerate(sources):
            values = _load(source, block, length)
            if values is None:
                return READ_FAILED - k
            term = coefficients[k] * values
            total = term if total is None else total + term
        assert total is not None
        data, bad = round_once(total, code)
        wrong += bad
        place = offset + block * item
        if address:
            ctypes.memmove(address + place, data, len(data))
        else:
            try:
                os.pwrite(descriptor, data, place)
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
            bits |= (single.astype(np.float64) != exact).astype(np.uint32)
            bits += np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))
            half = (bits >> 16).astype(np.uint16)
            half[np.isnan(exact)] = 0x7FC0
            return half.tobytes(), int(((half & 0x7F80) == 0x7F80).sum())
        stored = exact.astype(_STORED[code])
        return stored.tobytes(), int((~np.isfinite(stored)).sum())


def count_nonfinite(source: np.ndarray, start: int, count: int) -> int:
    """See :func:`boom_ray.merge.kernels.count_nonfinite`."""
    wrong = 0
    for block in range(start, start + count, BLOCK):
        values = _load(source, block, min(BLOCK, start + count - block))
        if values is None:
            return READ_FAILED
        wrong += int((~np.isfinite(values)).sum())
    return wrong
