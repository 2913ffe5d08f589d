"""The compiled inner loops: Gram of a range of elements, and the sum Σ c_i t_i written in place.

They run without the interpreter lock on memory-mapped members, so that threads use all cores. The order of every
addition is fixed by ``LANES`` and not by the width of the machine's vectors: any number of workers, any processor, and
the numpy twins in :mod:`boom_ray.merge.plain` give the same bits.

A *source* is one row of an int64 array: address of a tensor's first element, type code. A *sink* is the row address
(0: a file), file descriptor, byte offset of the tensor, type code.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

CODES = {"F32": 0, "BF16": 1, "F16": 2}
LANES = 32  # partial sums per pair of vectors: lane l adds up the products of elements l, l + LANES, l + 2 LANES ...
BLOCK = 32768  # elements written at once
_WIDE = 16 * LANES  # elements of every vector in the first-level cache at once
_NARROW = 256  # elements summed at once; few enough that all members stream from memory side by side
_LINE = 64  # bytes fetched ahead at once
NEAR = 1 << 12  # float64 steps from the middle of two results within which a sum is computed again
WRITE_FAILED = -1

_pwrite = types.ExternalFunction("pwrite64", types.intp(types.intc, types.voidptr, types.uintp, types.int64))


@intrinsic
def _pointer(typingctx: Any, address: Any) -> Any:
    """An address as a pointer that ``carray`` and the C library take."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def _fetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at ``address``, which need not be mapped: the hardware does not look far enough ahead."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(function, [builder.inttoptr(arguments[0], byte), word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def _add_products(typingctx: Any, sums: Any, x: Any, y: Any) -> Any:
    """Add the products of ``_WIDE`` float64 at addresses ``x`` and ``y`` to the ``LANES`` sums at ``sums``.

    Written as vectors because a loop would either be added up one by one or in an order of the compiler's choice. Every
    product of two float32 values is exact in float64, so multiply-add in one instruction or two gives the same bits.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, word = ir.VectorType(ir.DoubleType(), 8), ir.IntType(64)
        totals, left, right = (builder.inttoptr(a, vector.as_pointer()) for a in arguments)
        parts = range(LANES // 8)

        def load(pointer: Any, index: Any) -> Any:
            return builder.load(builder.gep(pointer, [index]), align=8)

        before, start = builder.block, [load(totals, word(k)) for k in parts]
        loop, after = builder.append_basic_block(), builder.append_basic_block()
        builder.branch(loop)
        builder.position_at_end(loop)
        step, carried = builder.phi(word), [builder.phi(vector) for _ in parts]
        places = [builder.add(builder.mul(step, word(len(parts))), word(k)) for k in parts]
        products = [builder.fmul(load(left, p), load(right, p), flags=("contract",)) for p in places]
        added = [builder.fadd(c, p, flags=("contract",)) for c, p in zip(carried, products, strict=True)]
        following = builder.add(step, word(1))
        step.add_incoming(word(0), before)
        step.add_incoming(following, loop)
        for k in parts:
            carried[k].add_incoming(start[k], before)
            carried[k].add_incoming(added[k], loop)
        builder.cbranch(builder.icmp_signed("<", following, word(_WIDE // LANES)), loop, after)
        builder.position_at_end(after)
        for k in parts:
            builder.store(added[k], builder.gep(totals, [word(k)]), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


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
def _write(descriptor: int, address: int, count: int, offset: int) -> bool:
    """Write ``count`` bytes of memory to a place in a file, going on after short writes."""
    done = 0
    while done < count:
        moved = _pwrite(descriptor, _pointer(address + done), count - done, offset + done)
        if moved <= 0:
            return False
        done += moved
    return True


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
def gram_piece(sources: np.ndarray, pairs: np.ndarray, base: int, start: int, count: int, gram: np.ndarray) -> None:
    """Inner products of vectors over elements ``start : start + count``, in float64.

    Args:
        sources: (K, 2); pairs: (P, 2) of indices into them; base: index of the source that is subtracted from all
            others (the difference is rounded to float32, which near the base is exact), or -1; gram: (P,), filled.
    """
    vectors = sources.shape[0]
    wide = np.zeros((vectors, _WIDE))
    bits = np.empty(_WIDE, np.uint32)
    sums = np.zeros((pairs.shape[0], LANES))
    fetches = _fetch_plan(sources, pairs.shape[0])
    total, row = np.int64(sums.ctypes.data), np.int64(wide.ctypes.data)
    for at in range(start, start + count, _WIDE):
        n = min(_WIDE, start + count - at)
        for k in range(vectors):
            _widen(wide[k], sources[k, 0] + at * _item(sources[k, 1]), sources[k, 1], n, bits)
        if n < _WIDE:
            wide[:, n:] = 0.0
        if base >= 0:
            _subtract(wide, base)
        for p in range(pairs.shape[0]):
            place = sources[fetches[p, 0], 0] + at * _item(sources[fetches[p, 0], 1])
            for ahead in range(fetches[p, 1], fetches[p, 2], _LINE):
                _fetch(place + ahead)
            _add_products(total + p * LANES * 8, row + pairs[p, 0] * _WIDE * 8, row + pairs[p, 1] * _WIDE * 8)
    for p in range(pairs.shape[0]):
        gram[p] = 0.0
        for l in range(LANES):  # noqa: E741
            gram[p] += sums[p, l]


@_compiled
def _fetch_plan(sources: np.ndarray, pairs: int) -> np.ndarray:
    """Per pair: which vector's bytes to ask for, from and to which byte past the present place, so that the memory
    works while products are computed: together, the next but one step of all vectors."""
    plan = np.zeros((pairs, 3), np.int64)
    if pairs == 0:
        return plan
    vectors = sources.shape[0]
    shares = max(1, pairs // vectors)
    for p in range(min(pairs, shares * vectors)):
        step = _WIDE * _item(sources[p // shares, 1])
        plan[p, 0] = p // shares
        plan[p, 1] = 2 * step + step * (p % shares) // shares // _LINE * _LINE
        plan[p, 2] = 2 * step + step * (p % shares + 1) // shares // _LINE * _LINE
    return plan


@_compiled
def _subtract(wide: np.ndarray, base: int) -> None:
    origin = wide[base]
    for k in range(wide.shape[0]):
        if k != base:
            row = wide[k]
            for l in range(_WIDE):  # noqa: E741
                row[l] = np.float32(row[l] - origin[l])


@_compiled
def combine_piece(sources: np.ndarray, coefficients: np.ndarray, sink: np.ndarray, start: int, count: int) -> int:
    """Write Σ c_k t_k of elements ``start : start + count``, correctly rounded.

    Summed in float64; where that lies so near the middle of two results that its own rounding may decide (decimal
    weights make that one element in some thousands), the sum is computed again in twice the precision.

    Returns: how many stored results are NaN or infinite, or ``WRITE_FAILED``.
    """
    buffer = np.empty(BLOCK, np.uint32)
    wide = np.empty(_NARROW)
    total = np.empty(_NARROW)
    bits = np.empty(_NARROW, np.uint32)
    out_item = _item(sink[3])
    wrong = 0
    for block in range(start, start + count, BLOCK):
        length = min(BLOCK, start + count - block)
        target = np.int64(buffer.ctypes.data)
        if sink[0] != 0:
            target = sink[0] + sink[2] + block * out_item
        for at in range(0, length, _NARROW):
            n = min(_NARROW, length - at)
            for k in range(sources.shape[0]):
                item = _item(sources[k, 1])
                place = sources[k, 0] + (block + at) * item
                for line in range(0, _NARROW * item, _LINE):
                    _fetch(place + 4 * _NARROW * item + line)
                _add_scaled(total, coefficients[k], k == 0, place, sources[k, 1], n, wide, bits)
            _settle(total, n, sources, coefficients, block + at, sink[3], wide, bits)
            wrong += _narrow(total, target + at * out_item, sink[3], n, bits)
        if sink[0] == 0 and not _write(sink[1], target, length * out_item, sink[2] + block * out_item):
            return WRITE_FAILED
    return wrong


@_compiled
def _settle(
    total: np.ndarray,
    count: int,
    sources: np.ndarray,
    coefficients: np.ndarray,
    start: int,
    code: int,
    wide: np.ndarray,
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
    for k in range(count):
        if ((pattern[k] + shift) & mask) <= np.uint64(2 * NEAR) and np.isfinite(total[k]):
            high, low = 0.0, 0.0
            for m in range(sources.shape[0]):
                item = _item(sources[m, 1])
                _widen(wide, sources[m, 0] + (start + k) * item, sources[m, 1], 1, bits)
                large = coefficients[m] * 16777217.0  # splits into 29 and 24 bits, whose products are exact
                upper = large - (large - coefficients[m])
                for part in range(2):
                    product = (upper if part == 0 else coefficients[m] - upper) * wide[0]
                    added = high + product
                    back = added - high
                    low += (high - (added - back)) + (product - back)
                    high = added
            total[k] = high + low
            rest = low - (total[k] - high)
            if rest != 0.0 and (pattern[k] & np.uint64(1)) == np.uint64(0):
                if (rest > 0.0) == (total[k] > 0.0):
                    pattern[k] += np.uint64(1)
                else:
                    pattern[k] -= np.uint64(1)


@_compiled
def _add_scaled(
    total: np.ndarray,
    factor: float,
    first: bool,
    address: int,
    code: int,
    count: int,
    wide: np.ndarray,
    bits: np.ndarray,
) -> None:
    """Add ``factor`` times stored elements to ``total``; the first term starts it, so that -0.0 stays -0.0."""
    if code != 0:
        _widen(wide, address, code, count, bits)
        for k in range(count):
            total[k] = factor * wide[k] if first else total[k] + factor * wide[k]
        return
    single = numba.carray(_pointer(address), count, np.float32)
    if first:
        for k in range(count):
            total[k] = factor * single[k]
    else:
        for k in range(count):
            total[k] += factor * single[k]


@_compiled
def count_nonfinite(source: np.ndarray, start: int, count: int) -> int:
    """NaN and infinite elements of one source in ``start : start + count``."""
    place = source[0] + start * _item(source[1])
    wrong = 0
    if source[1] == 0:
        single = numba.carray(_pointer(place), count, np.uint32)
        for k in range(count):
            wrong += (single[k] & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
        return wrong
    mask = np.uint16(0x7F80) if source[1] == 1 else np.uint16(0x7C00)
    half = numba.carray(_pointer(place), count, np.uint16)
    for k in range(count):
        wrong += (half[k] & mask) == mask
    return wrong


@_compiled
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
