"""The compiled inner loops: Gram of a range of elements, and the sum Σ c_i t_i written in place.

Both run without the interpreter lock, reading by ``pread`` into blocks that fit the second-level cache or straight
from a mapping, so that threads use all cores. The order of every addition is fixed by ``LANES`` and ``BLOCK`` and not
by the width of the machine's vectors: any number of workers, either way of reading, any processor, and the numpy
twins in :mod:`boom_ray.merge.plain` give the same bits.

A *source* is one row of an int64 array: address of the mapping's first byte (0: read with ``pread``), file descriptor,
byte offset of the tensor in the file, type code. A *sink* is such a row too; an address there means memory.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

CODES = {"F32": 0, "BF16": 1, "F16": 2}
LANES = 128  # partial sums per pair; the lanes of all pairs of six vectors fit the first-level cache
BLOCK = 32768  # elements read at once per source
_WIDE = 4 * LANES
READ_FAILED = -1
WRITE_FAILED = -(1 << 40)

_pread = types.ExternalFunction("pread64", types.intp(types.intc, types.voidptr, types.uintp, types.int64))
_pwrite = types.ExternalFunction("pwrite64", types.intp(types.intc, types.voidptr, types.uintp, types.int64))


@intrinsic
def _pointer(typingctx: Any, address: Any) -> Any:
    """An address as a pointer that ``carray`` and the C library take."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


def _compiled(function: Any) -> Any:
    """``function`` compiled without interpreter lock, kept on disk where a cache directory can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba finds no directory for its cache: compile in every process
        return numba.njit(nogil=True)(function)


@_compiled
def _item(code: int) -> int:
    return 4 if code == 0 else 2


@_compiled
def _transfer(read: bool, descriptor: int, address: int, count: int, offset: int) -> bool:
    """Move ``count`` bytes between memory and a file, going on after short transfers; False: error or early end."""
    done = 0
    while done < count:
        if read:
            moved = _pread(descriptor, _pointer(address + done), count - done, offset + done)
        else:
            moved = _pwrite(descriptor, _pointer(address + done), count - done, offset + done)
        if moved <= 0:
            return False
        done += moved
    return True


@_compiled
def _locate(source: np.ndarray, start: int, count: int, buffer: np.ndarray) -> Any:
    """Address of elements ``start : start + count`` of a source: in its mapping, or read into ``buffer``; 0: failed."""
    item = _item(source[3])
    offset = source[2] + start * item
    if source[0] != 0:
        return source[0] + offset
    address = np.int64(buffer.ctypes.data)
    return address if _transfer(True, source[1], address, count * item, offset) else np.int64(0)


@_compiled
def _widen(target: np.ndarray, address: int, code: int, count: int, bits: np.ndarray) -> None:
    """``count`` stored elements at ``address`` as float64 into ``target``; exact."""
    if code == 0:
        single = numba.carray(_pointer(address), count, np.float32)
        for k in range(count):
            target[k] = single[k]
        return
    half = numba.carray(_pointer(address), count, np.uint16)
    value = bits.view(np.float32)
    if code == 1:
        for k in range(count):
            bits[k] = np.uint32(half[k]) << np.uint32(16)
            target[k] = value[k]
        return
    for k in range(count):
        stored = np.uint32(half[k])
        magnitude = (stored & np.uint32(0x7FFF)) << np.uint32(13)
        if (stored & np.uint32(0x7C00)) == np.uint32(0x7C00):
            magnitude |= np.uint32(0x7F800000)
        bits[k] = magnitude | ((stored & np.uint32(0x8000)) << np.uint32(16))
        scale = 1.0 if (stored & np.uint32(0x7C00)) == np.uint32(0x7C00) else 5.192296858534828e33  # 2**112
        target[k] = np.float64(value[k]) * scale


@_compiled
def _odd(exact: float, single: np.ndarray, bits: np.ndarray) -> np.uint32:
    """Bits of ``exact`` as float32 rounded to odd, so that rounding again to 16 bits is one rounding."""
    single[0] = exact
    rounded = np.float64(single[0])
    found = bits[0]
    if abs(rounded) > abs(exact):
        found -= np.uint32(1)
    if rounded != exact:
        found |= np.uint32(1)
    return found


@_compiled
def _half(found: np.uint32, single: np.ndarray, bits: np.ndarray) -> np.uint16:
    """IEEE half of the float32 with these bits (rounded to odd before), to nearest, ties to even."""
    sign = (found >> np.uint32(16)) & np.uint32(0x8000)
    magnitude = found & np.uint32(0x7FFFFFFF)
    if magnitude >= np.uint32(0x47800000):
        magnitude = np.uint32(0x7C00)
    elif magnitude < np.uint32(0x38800000):  # subnormal: adding 1/2 leaves multiples of 2**-24 in the low bits
        bits[0] = magnitude
        single[0] = np.float32(single[0] + np.float32(0.5))
        magnitude = bits[0] - np.uint32(0x3F000000)
    else:
        lowest = (magnitude >> np.uint32(13)) & np.uint32(1)
        magnitude = (magnitude - np.uint32(0x38000000) + np.uint32(0xFFF) + lowest) >> np.uint32(13)
    return np.uint16(sign | magnitude)


@_compiled
def _narrow(exact: np.ndarray, address: int, code: int, count: int, bits: np.ndarray) -> int:
    """Store float64 values, each rounded once to nearest even; returns how many are NaN or infinite as stored."""
    wrong = 0
    if code == 0:
        single = numba.carray(_pointer(address), count, np.float32)
        stored = numba.carray(_pointer(address), count, np.uint32)
        for k in range(count):
            single[k] = exact[k]
        for k in range(count):
            wrong += (stored[k] & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
        return wrong
    half = numba.carray(_pointer(address), count, np.uint16)
    value = bits.view(np.float32)
    for k in range(count):
        if not np.isfinite(exact[k]):
            wrong += 1
            continue
        found = _odd(exact[k], value, bits)
        if code == 1:
            found += np.uint32(0x7FFF) + ((found >> np.uint32(16)) & np.uint32(1))
            half[k] = np.uint16(found >> np.uint32(16))
            wrong += (half[k] & 0x7F80) == 0x7F80
        else:
            half[k] = _half(found, value, bits)
            wrong += (half[k] & 0x7C00) == 0x7C00
    return wrong


@_compiled
def gram_piece(sources: np.ndarray, pairs: np.ndarray, base: int, start: int, count: int, gram: np.ndarray) -> int:
    """Inner products of vectors over elements ``start : start + count``, in float64.

    Args:
        sources: (K, 4); pairs: (P, 2) of indices into them; base: index of the source that is subtracted from all
            others, or -1; gram: (P,) float64, filled.

    Returns: 0, or ``READ_FAILED - k`` when source k cannot be read.
    """
    vectors = sources.shape[0]
    buffers = np.empty((vectors, BLOCK), np.uint32)
    wide = np.zeros((vectors, _WIDE))
    bits = np.empty(_WIDE, np.uint32)
    sums = np.zeros((pairs.shape[0], LANES))
    address = np.empty(vectors, np.int64)
    for block in range(start, start + count, BLOCK):
        length = min(BLOCK, start + count - block)
        for k in range(vectors):
            address[k] = _locate(sources[k], block, length, buffers[k])
            if address[k] == 0:
                return READ_FAILED - k
        for at in range(0, length, _WIDE):
            n = min(_WIDE, length - at)
            for k in range(vectors):
                _widen(wide[k], address[k] + at * _item(sources[k, 3]), sources[k, 3], n, bits)
                wide[k, n:] = 0.0
            if base >= 0:
                for k in range(vectors):
                    if k != base:
                        row, origin = wide[k], wide[base]
                        for l in range(_WIDE):  # noqa: E741
                            row[l] -= origin[l]
            _accumulate(wide, pairs, sums)
    for p in range(pairs.shape[0]):
        total = 0.0
        for l in range(LANES):  # noqa: E741
            total += sums[p, l]
        gram[p] = total
    return 0


@_compiled
def _accumulate(wide: np.ndarray, pairs: np.ndarray, sums: np.ndarray) -> None:
    for p in range(pairs.shape[0]):
        x, y, total = wide[pairs[p, 0]], wide[pairs[p, 1]], sums[p]
        for l in range(LANES):  # noqa: E741
            total[l] += (x[l] * y[l] + x[l + LANES] * y[l + LANES]) + (
                x[l + 2 * LANES] * y[l + 2 * LANES] + x[l + 3 * LANES] * y[l + 3 * LANES]
            )


@_compiled
def combine_piece(sources: np.ndarray, coefficients: np.ndarray, sink: np.ndarray, start: int, count: int) -> int:
    """Write Σ c_k t_k of elements ``start : start + count``: summed in float64 in the order given, rounded once.

    Returns: how many stored results are NaN or infinite, ``READ_FAILED - k``, or ``WRITE_FAILED``.
    """
    vectors = sources.shape[0]
    buffers = np.empty((vectors + 1, BLOCK), np.uint32)
    wide = np.empty(_WIDE)
    total = np.empty(_WIDE)
    bits = np.empty(_WIDE, np.uint32)
    address = np.empty(vectors, np.int64)
    out_item = _item(sink[3])
    wrong = 0
    for block in range(start, start + count, BLOCK):
        length = min(BLOCK, start + count - block)
        for k in range(vectors):
            address[k] = _locate(sources[k], block, length, buffers[k])
            if address[k] == 0:
                return READ_FAILED - k
        target = np.int64(buffers[vectors].ctypes.data)
        if sink[0] != 0:
            target = sink[0] + sink[2] + block * out_item
        for at in range(0, length, _WIDE):
            n = min(_WIDE, length - at)
            for k in range(vectors):
                _widen(wide, address[k] + at * _item(sources[k, 3]), sources[k, 3], n, bits)
                factor = coefficients[k]
                if k == 0:
                    for l in range(n):  # noqa: E741
                        total[l] = factor * wide[l]
                else:
                    for l in range(n):  # noqa: E741
                        total[l] += factor * wide[l]
            wrong += _narrow(total, target + at * out_item, sink[3], n, bits)
        if sink[0] == 0 and not _transfer(False, sink[1], target, length * out_item, sink[2] + block * out_item):
            return WRITE_FAILED
    return wrong


@_compiled
def count_nonfinite(source: np.ndarray, start: int, count: int) -> int:
    """NaN and infinite elements of one source in ``start : start + count``, or ``READ_FAILED``."""
    buffer = np.empty(BLOCK, np.uint32)
    wrong = 0
    for block in range(start, start + count, BLOCK):
        length = min(BLOCK, start + count - block)
        address = _locate(source, block, length, buffer)
        if address == 0:
            return READ_FAILED
        if source[3] == 0:
            single = numba.carray(_pointer(address), length, np.uint32)
            for k in range(length):
                wrong += (single[k] & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
        else:
            mask = np.uint16(0x7F80) if source[3] == 1 else np.uint16(0x7C00)
            half = numba.carray(_pointer(address), length, np.uint16)
            for k in range(length):
                wrong += (half[k] & mask) == mask
    return wrong
