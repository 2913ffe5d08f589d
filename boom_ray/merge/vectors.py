"""What the kernels are made of: addresses as pointers, vectors of fixed width, and the three stored types.

The width of the vectors is part of every result's definition, not the machine's: the same bits on any processor.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

LANES = 32  # partial sums per pair of vectors: lane l adds up the products of elements l, l + LANES, l + 2 LANES ...
_AHEAD = 4096  # bytes that sums fetch ahead of their place in every source
WIDE = 16 * LANES  # elements of every vector in the first-level cache at once


@intrinsic
def pointer(typingctx: Any, address: Any) -> Any:
    """An address as a pointer that ``carray`` and the C library take."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def fetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at ``address``, which need not be mapped: the hardware does not look far enough ahead."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(function, [builder.inttoptr(arguments[0], byte), word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def add_products(typingctx: Any, sums: Any, x: Any, y: Any) -> Any:
    """Add the products of ``WIDE`` float64 at addresses ``x`` and ``y`` to the ``LANES`` sums at ``sums``.

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
        builder.cbranch(builder.icmp_signed("<", following, word(WIDE // LANES)), loop, after)
        builder.position_at_end(after)
        for k in parts:
            builder.store(added[k], builder.gep(totals, [word(k)]), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def scaled_sums(typingctx: Any, place: Any, count: Any, steps: Any, total: Any, target: Any, tie: Any) -> Any:
    """Σ c_k t_k of float32 sources, ``steps`` times ``LANES`` elements: float64 to ``total``, rounded to ``target``.

    Args (all int64):
        place: address of ``count`` rows of two words, address of a source's first element and bits of its coefficient.
        total, target: addresses of float64 and float32 elements.
        tie: half the width of the band around the middle of two results.

    Returns: how many results are NaN or infinite, plus 2**32 for each sum inside the band.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, half_word, parts = ir.IntType(64), ir.IntType(32), range(LANES // 8)
        wide, single = ir.VectorType(ir.DoubleType(), 8), ir.VectorType(ir.FloatType(), 8)
        longs, ints = ir.VectorType(word, 8), ir.VectorType(half_word, 8)
        byte = ir.IntType(8).as_pointer()
        fetch_type = ir.FunctionType(ir.VoidType(), [byte, half_word, half_word, half_word])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], fetch_type)
        rows, terms, many, sums, results, band = arguments

        def splat(kind: Any, value: Any) -> Any:
            filled = ir.Constant(ir.VectorType(kind, 8), ir.Undefined)
            for lane in range(8):
                filled = builder.insert_element(filled, value, half_word(lane))
            return filled

        def term(k: Any, at: Any) -> list[Any]:
            row = builder.add(rows, builder.mul(k, word(16)))
            address = builder.load(builder.inttoptr(row, word.as_pointer()))
            factor = builder.load(builder.inttoptr(builder.add(row, word(8)), ir.DoubleType().as_pointer()))
            here = builder.add(address, builder.mul(at, word(4 * LANES)))
            for line in range(0, 4 * LANES, 64):
                ahead = builder.inttoptr(builder.add(here, word(_AHEAD + line)), byte)
                builder.call(prefetch, [ahead, half_word(0), half_word(3), half_word(1)])
            pointer = builder.inttoptr(here, single.as_pointer())
            loaded = [builder.load(builder.gep(pointer, [word(p)]), align=4) for p in parts]
            scale = splat(ir.DoubleType(), factor)
            return [builder.fmul(builder.fpext(v, wide), scale, flags=("contract",)) for v in loaded]

        before = builder.block
        outer, inner, close, after = (builder.append_basic_block(n) for n in ("outer", "inner", "close", "after"))
        builder.branch(outer)
        builder.position_at_end(outer)
        at, found = builder.phi(word), builder.phi(longs)
        at.add_incoming(word(0), before)
        found.add_incoming(ir.Constant(longs, [0] * 8), before)
        first = term(word(0), at)
        builder.cbranch(builder.icmp_signed("<", word(1), terms), inner, close)
        start = builder.block
        builder.position_at_end(inner)
        k, carried = builder.phi(word), [builder.phi(wide) for _ in parts]
        added = [builder.fadd(c, t, flags=("contract",)) for c, t in zip(carried, term(k, at), strict=True)]
        following = builder.add(k, word(1))
        k.add_incoming(word(1), start)
        k.add_incoming(following, inner)
        for p in parts:
            carried[p].add_incoming(first[p], start)
            carried[p].add_incoming(added[p], inner)
        builder.cbranch(builder.icmp_signed("<", following, terms), inner, close)
        builder.position_at_end(close)
        exact = [builder.phi(wide) for _ in parts]
        out64 = builder.inttoptr(builder.add(sums, builder.mul(at, word(8 * LANES))), wide.as_pointer())
        out32 = builder.inttoptr(builder.add(results, builder.mul(at, word(4 * LANES))), single.as_pointer())
        shift = splat(word, builder.sub(band, word(1 << 28)))
        width = splat(word, builder.mul(band, word(2)))
        counted = found
        for p in parts:
            exact[p].add_incoming(first[p], start)
            exact[p].add_incoming(added[p], inner)
        for p in parts:
            rounded = builder.fptrunc(exact[p], single)
            builder.store(exact[p], builder.gep(out64, [word(p)]), align=8)
            builder.store(rounded, builder.gep(out32, [word(p)]), align=4)
            pattern = builder.add(builder.bitcast(exact[p], longs), shift)
            distance = builder.and_(pattern, ir.Constant(longs, [(1 << 29) - 1] * 8))
            near = builder.zext(builder.icmp_unsigned("<=", distance, width), longs)
            exponent = ir.Constant(ints, [0x7F800000] * 8)
            wrong = builder.icmp_unsigned("==", builder.and_(builder.bitcast(rounded, ints), exponent), exponent)
            counted = builder.add(counted, builder.shl(near, ir.Constant(longs, [32] * 8)))
            counted = builder.add(counted, builder.zext(wrong, longs))
        done = builder.add(at, word(1))
        at.add_incoming(done, close)
        found.add_incoming(counted, close)
        builder.cbranch(builder.icmp_signed("<", done, many), outer, after)
        builder.position_at_end(after)
        lanes = [builder.extract_element(counted, half_word(lane)) for lane in range(8)]
        whole = lanes[0]
        for lane in lanes[1:]:
            whole = builder.add(whole, lane)
        return whole

    return types.int64(*(types.int64,) * 6), generate


def compiled(function: Any) -> Any:
    """``function`` compiled without interpreter lock, kept on disk where a cache directory can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba finds no directory for its cache: compile in every process
        return numba.njit(nogil=True)(function)


@compiled
def item_bytes(code: int) -> int:
    return 4 if code == 0 else 2


@compiled
def widen(target: np.ndarray, address: int, code: int, count: int, bits: np.ndarray) -> None:
    """``count`` stored elements at ``address`` as float64 into ``target``; exact."""
    if code == 0:
        single = numba.carray(pointer(address), count, np.float32)
        for k in range(count):
            target[k] = single[k]
        return
    half = numba.carray(pointer(address), count, np.uint16)
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


@compiled
def to_odd(exact: float, single: np.ndarray, bits: np.ndarray) -> np.uint32:
    """Bits of ``exact`` as float32 rounded to odd, so that rounding again to 16 bits is one rounding."""
    single[0] = exact
    rounded = np.float64(single[0])
    found = bits[0]
    if abs(rounded) > abs(exact):
        found -= np.uint32(1)
    if rounded != exact:
        found |= np.uint32(1)
    return found


@compiled
def to_half(found: np.uint32, single: np.ndarray, bits: np.ndarray) -> np.uint16:
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


@compiled
def narrow(exact: np.ndarray, address: int, code: int, count: int, bits: np.ndarray) -> int:
    """Store float64 values, each rounded once to nearest even; returns how many are NaN or infinite as stored."""
    wrong = 0
    if code == 0:
        single = numba.carray(pointer(address), count, np.float32)
        stored = numba.carray(pointer(address), count, np.uint32)
        for k in range(count):
            single[k] = exact[k]
        for k in range(count):
            wrong += (stored[k] & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
        return wrong
    half = numba.carray(pointer(address), count, np.uint16)
    value = bits.view(np.float32)
    for k in range(count):
        if not np.isfinite(exact[k]):
            wrong += 1
            continue
        found = to_odd(exact[k], value, bits)
        if code == 1:
            found += np.uint32(0x7FFF) + ((found >> np.uint32(16)) & np.uint32(1))
            half[k] = np.uint16(found >> np.uint32(16))
            wrong += (half[k] & 0x7F80) == 0x7F80
        else:
            half[k] = to_half(found, value, bits)
            wrong += (half[k] & 0x7C00) == 0x7C00
    return wrong
