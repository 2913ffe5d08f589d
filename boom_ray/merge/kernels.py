"""The compiled inner loops: Gram of a range of elements, and the sum Σ c_i t_i written in place.

They run without the interpreter lock on memory-mapped members, so that threads use all cores. The order of every
addition is fixed by ``LANES`` and not by the width of the machine's vectors: any number of workers, any processor, and
the numpy twins in :mod:`boom_ray.merge.plain` give the same bits.

A *source* is one row of an int64 array: address of a tensor's first element, type code. A *sink* is the row address
(0: a file), file descriptor, byte offset of the tensor, type code.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from boom_ray.merge.vectors import (
    LANES,
    WIDE,
    add_products,
    compiled,
    fetch,
    item_bytes,
    narrow,
    pointer,
    scaled_sums,
    widen,
)

BLOCK = 32768  # elements written at once
NEAR = 1 << 12  # float64 steps from the middle of two results within which a sum is computed again
WRITE_FAILED = -1
_NARROW = 256  # elements summed at once; few enough that all members stream from memory side by side
_LINE = 64  # bytes fetched ahead at once

_pwrite = types.ExternalFunction("pwrite64", types.intp(types.intc, types.voidptr, types.uintp, types.int64))


@compiled
def _write(descriptor: int, address: int, count: int, offset: int) -> bool:
    """Write ``count`` bytes of memory to a place in a file, going on after short writes."""
    done = 0
    while done < count:
        moved = _pwrite(descriptor, pointer(address + done), count - done, offset + done)
        if moved <= 0:
            return False
        done += moved
    return True


@compiled
def gram_piece(sources: np.ndarray, pairs: np.ndarray, base: int, start: int, count: int, gram: np.ndarray) -> None:
    """Inner products of vectors over elements ``start : start + count``, in float64.

    Args:
        sources: (K, 2); pairs: (P, 2) of indices into them; base: index of the source that is subtracted from all
            others (the difference is rounded to float32, which near the base is exact), or -1; gram: (P,), filled.
    """
    vectors = sources.shape[0]
    wide = np.zeros((vectors, WIDE))
    bits = np.empty(WIDE, np.uint32)
    sums = np.zeros((pairs.shape[0], LANES))
    fetches = _fetch_plan(sources, pairs.shape[0])
    total, row = np.int64(sums.ctypes.data), np.int64(wide.ctypes.data)
    for at in range(start, start + count, WIDE):
        n = min(WIDE, start + count - at)
        for k in range(vectors):
            widen(wide[k], sources[k, 0] + at * item_bytes(sources[k, 1]), sources[k, 1], n, bits)
        if n < WIDE:
            wide[:, n:] = 0.0
        if base >= 0:
            _subtract(wide, base)
        for p in range(pairs.shape[0]):
            place = sources[fetches[p, 0], 0] + at * item_bytes(sources[fetches[p, 0], 1])
            for ahead in range(fetches[p, 1], fetches[p, 2], _LINE):
                fetch(place + ahead)
            add_products(total + p * LANES * 8, row + pairs[p, 0] * WIDE * 8, row + pairs[p, 1] * WIDE * 8)
    for p in range(pairs.shape[0]):
        gram[p] = 0.0
        for l in range(LANES):  # noqa: E741
            gram[p] += sums[p, l]


@compiled
def _fetch_plan(sources: np.ndarray, pairs: int) -> np.ndarray:
    """Per pair: which vector's bytes to ask for, from and to which byte past the present place, so that the memory
    works while products are computed: together, the next but one step of all vectors."""
    plan = np.zeros((pairs, 3), np.int64)
    if pairs == 0:
        return plan
    vectors = sources.shape[0]
    shares = max(1, pairs // vectors)
    for p in range(min(pairs, shares * vectors)):
        step = WIDE * item_bytes(sources[p // shares, 1])
        plan[p, 0] = p // shares
        plan[p, 1] = 2 * step + step * (p % shares) // shares // _LINE * _LINE
        plan[p, 2] = 2 * step + step * (p % shares + 1) // shares // _LINE * _LINE
    return plan


@compiled
def _subtract(wide: np.ndarray, base: int) -> None:
    origin = wide[base]
    for k in range(wide.shape[0]):
        if k != base:
            row = wide[k]
            for l in range(WIDE):  # noqa: E741
                row[l] = np.float32(row[l] - origin[l])


@compiled
def combine_piece(sources: np.ndarray, coefficients: np.ndarray, sink: np.ndarray, start: int, count: int) -> int:
    """Write Σ c_k t_k of elements ``start : start + count``, correctly rounded.

    Summed in float64; where that lies so near the middle of two results that its own rounding may decide (decimal
    weights make that one element in some thousands, round ones one in five), the sum is computed again in twice the
    precision.

    Returns: how many stored results are NaN or infinite, or ``WRITE_FAILED``.
    """
    buffer = np.empty(BLOCK, np.uint32)
    total = np.empty(_NARROW)
    work = np.empty((3, _NARROW))
    bits = np.empty(_NARROW, np.uint32)
    single = sink[3] == 0 and sources[:, 1].max() == 0
    rows = np.empty((sources.shape[0], 2), np.int64)
    rows[:, 1] = coefficients.view(np.int64)
    out_item = item_bytes(sink[3])
    wrong = 0
    for block in range(start, start + count, BLOCK):
        length = min(BLOCK, start + count - block)
        target = np.int64(buffer.ctypes.data)
        if sink[0] != 0:
            target = sink[0] + sink[2] + block * out_item
        for at in range(0, length, _NARROW):
            n = min(_NARROW, length - at)
            place = target + at * out_item
            if single and n == _NARROW:
                rows[:, 0] = sources[:, 0] + 4 * (block + at)
                found = scaled_sums(
                    np.int64(rows.ctypes.data),
                    rows.shape[0],
                    _NARROW // LANES,
                    np.int64(total.ctypes.data),
                    place,
                    NEAR,
                )
                if found < 1 << 32:  # all rounded, none near a middle
                    wrong += found
                    continue
            else:
                for k in range(sources.shape[0]):
                    _add_scaled(total, coefficients[k], k == 0, sources[k], block + at, n, work[0], bits)
            _settle(total, n, sources, coefficients, block + at, sink[3], work, bits)
            wrong += narrow(total, place, sink[3], n, bits)
        if sink[0] == 0 and not _write(sink[1], target, length * out_item, sink[2] + block * out_item):
            return WRITE_FAILED
    return wrong


@compiled
def _settle(
    total: np.ndarray,
    count: int,
    sources: np.ndarray,
    coefficients: np.ndarray,
    start: int,
    code: int,
    work: np.ndarray,
    bits: np.ndarray,
) -> None:
    """Compute sums near the middle of two stored values again, more exactly, and leave them rounded to odd."""
    dropped = np.uint64(29 if code == 0 else 45 if code == 1 else 42)
    mask = (np.uint64(1) << dropped) - np.uint64(1)
    shift = np.uint64(NEAR) - (np.uint64(1) << (dropped - np.uint64(1)))
    pattern = total.view(np.uint64)
    near = 0
    for k in range(count):
        near += ((pattern[k] + shift) & mask) <= np.uint64(2 * NEAR)
    if near == 0:
        return
    high, low = work[1], work[2]
    _sum_twice(high, low, count, sources, coefficients, start, work[0], bits)
    for k in range(count):
        rounded = high[k] + low[k]
        low[k] -= rounded - high[k]
        high[k] = rounded
    again = high.view(np.uint64)
    for k in range(count):
        near_middle = ((pattern[k] + shift) & mask) <= np.uint64(2 * NEAR)
        to_odd = (low[k] != 0.0) & ((again[k] & np.uint64(1)) == np.uint64(0))
        step = np.uint64(1) if (low[k] > 0.0) == (high[k] > 0.0) else ~np.uint64(0)
        pattern[k] = again[k] + (step if to_odd else np.uint64(0)) if near_middle else pattern[k]


@compiled
def _sum_twice(
    high: np.ndarray,
    low: np.ndarray,
    count: int,
    sources: np.ndarray,
    coefficients: np.ndarray,
    start: int,
    wide: np.ndarray,
    bits: np.ndarray,
) -> None:
    """Σ c_m t_m as an unevaluated sum of two float64, by exact products and Knuth's two-sum."""
    high[:count] = 0.0
    low[:count] = 0.0
    for m in range(sources.shape[0]):
        widen(wide, sources[m, 0] + start * item_bytes(sources[m, 1]), sources[m, 1], count, bits)
        large = coefficients[m] * 16777217.0  # splits into 29 and 24 bits, whose products are exact
        upper = large - (large - coefficients[m])
        for factor in (upper, coefficients[m] - upper):
            for k in range(count):
                product = factor * wide[k]
                added = high[k] + product
                back = added - high[k]
                low[k] += (high[k] - (added - back)) + (product - back)
                high[k] = added


@compiled
def _add_scaled(
    total: np.ndarray,
    factor: float,
    first: bool,
    source: np.ndarray,
    start: int,
    count: int,
    wide: np.ndarray,
    bits: np.ndarray,
) -> None:
    """Add ``factor`` times stored elements to ``total``; the first term starts it, so that -0.0 stays -0.0."""
    place = source[0] + start * item_bytes(source[1])
    for ahead in range(0, count * item_bytes(source[1]), _LINE):
        fetch(place + 4 * count * item_bytes(source[1]) + ahead)
    widen(wide, place, source[1], count, bits)
    for k in range(count):
        total[k] = factor * wide[k] if first else total[k] + factor * wide[k]


@compiled
def count_nonfinite(source: np.ndarray, start: int, count: int) -> int:
    """NaN and infinite elements of one source in ``start : start + count``."""
    place = source[0] + start * item_bytes(source[1])
    wrong = 0
    if source[1] == 0:
        single = numba.carray(pointer(place), count, np.uint32)
        for k in range(count):
            wrong += (single[k] & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
        return wrong
    mask = np.uint16(0x7F80) if source[1] == 1 else np.uint16(0x7C00)
    half = numba.carray(pointer(place), count, np.uint16)
    for k in range(count):
        wrong += (half[k] & mask) == mask
    return wrong


@compiled
def count_bits(bits: np.ndarray, high: int, counts: np.ndarray) -> None:
    """Histogram of uint32: of the upper 16 bits (``high`` < 0), or of the lower 16 where the upper are ``high``.

    Args: bits: (n,) uint32; counts: (65536,) int64, added to.
    """
    if high < 0:
        for k in range(bits.size):
            counts[bits[k] >> np.uint32(16)] += 1
    else:
        for k in range(bits.size):
            if bits[k] >> np.uint32(16) == high:
                counts[bits[k] & np.uint32(0xFFFF)] += 1
