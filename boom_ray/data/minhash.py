"""Near-duplicates by MinHash (Broder 1997) over word shingles, found by bands of equal hashes (LSH).

Two rows of a dataset are near when their queries and their positives are: the estimated Jaccard similarity of each
pair of shingle sets is at least the threshold. Signatures lie on disk; in memory is one band at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from boom_ray.data.schema import Example
from boom_ray.data.shingles import WordHasher, Words, shingles

PERMUTATIONS = 128  # standard error of a similarity of 0.8: 0.035
_SHINGLE_WORDS = 3
_RECALL = 0.9  # of pairs exactly at the threshold; nearer ones are found more surely
_PAIRS = 8192  # candidates whose signatures are in memory at once
_MASK = np.uint64(0xFFFF)


def band_rows(threshold: float) -> int:
    """Values per band: the most (so the fewest chance candidates) that still find a pair at the threshold."""
    for rows in (16, 8, 4, 2):
        if 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= _RECALL:
            return rows
    return 1


def schema(threshold: float) -> pa.Schema:
    """One row per example: band keys of the query's signature, then both signatures (128 values of 16 bits each)."""
    bands = [(f"band{number}", pa.uint64()) for number in range(PERMUTATIONS // band_rows(threshold))]
    return pa.schema([*bands, ("query", pa.binary(2 * PERMUTATIONS)), ("pos", pa.binary(2 * PERMUTATIONS))])


def signature_batch(examples: Sequence[Example], threshold: float, hasher: WordHasher) -> pa.RecordBatch:
    """Signatures and band keys of examples."""
    queries = signatures(hasher([e.query for e in examples]))
    positives = signatures(hasher(["\n".join(e.pos) for e in examples]))
    keys = _band_keys(queries, band_rows(threshold))
    columns = [pa.array(key) for key in keys]
    for values in (queries, positives):
        raw = pa.py_buffer(np.ascontiguousarray(values).tobytes())
        columns.append(pa.FixedSizeBinaryArray.from_buffers(pa.binary(2 * PERMUTATIONS), len(values), [None, raw]))
    return pa.record_batch(columns, schema=schema(threshold))


def signatures(words: Words) -> np.ndarray:
    """uint16 [n, 128]: the low bits of the smallest hash of a text's shingles under each permutation.

    A permutation is multiply-shift: the high half of a x + b modulo 2^64 (Dietzfelbinger et al. 1997). Texts without a
    word have all values 0 and are near to one another.
    """
    hashes, count = shingles(words, _SHINGLE_WORDS), len(words.ends)
    result = np.zeros((PERMUTATIONS, count), dtype=np.uint16)
    starts = np.concatenate([[0], words.ends[:-1]]).astype(np.int64) if count else words.ends
    filled = words.ends > starts
    if not filled.any():
        return result.T
    rng = np.random.default_rng(0x5EED)
    factors, shifts = rng.integers(0, 2**64, (2, PERMUTATIONS), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for number in range(PERMUTATIONS):
            mixed = (hashes * (factors[number] | np.uint64(1)) + shifts[number]) >> np.uint64(32)
            result[number, filled] = np.minimum.reduceat(mixed, starts[filled]) & _MASK
    return result.T


def near_rows(files: Sequence[Path], codes: np.ndarray, candidates: np.ndarray, threshold: float) -> np.ndarray:
    """Boolean [n]: rows that are near an earlier row of the same dataset (``codes``), both among ``candidates``.

    Of every band's rows of equal key, each is compared with the first. The answer depends on the order of the rows
    alone.
    """
    batches = [batch for file in files for batch in _batches(file)]
    starts = np.cumsum([0, *(b.num_rows for b in batches)])
    near = np.zeros(len(codes), dtype=bool)
    if not batches:
        return near
    salt = codes.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for number in range(PERMUTATIONS // band_rows(threshold)):
        keys = np.concatenate([b.column(number).to_numpy() for b in batches]) ^ salt
        rows = np.flatnonzero(candidates & ~near)
        firsts, seconds = _first_and_others(rows, keys[rows])
        for start in range(0, len(firsts), _PAIRS):
            pair = slice(start, start + _PAIRS)
            alike = _alike(batches, starts, (firsts[pair], seconds[pair]), threshold)
            near[seconds[pair][alike]] = True
    return near


def _first_and_others(rows: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every row that shares its key with an earlier one, paired with the first row of that key."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    new = np.ones(len(keys), dtype=bool)
    new[1:] = ordered[1:] != ordered[:-1]
    first = np.flatnonzero(new)[np.cumsum(new) - 1]
    return rows[order[first[~new]]], rows[order[~new]]


def _alike(
    batches: Sequence[pa.RecordBatch], starts: np.ndarray, pair: tuple[np.ndarray, np.ndarray], threshold: float
) -> np.ndarray:
    alike = np.ones(len(pair[0]), dtype=bool)
    for name in ("query", "pos"):
        left, right = (_values(batches, starts, rows, name) for rows in pair)
        alike &= (left == right).mean(axis=1) >= threshold
    return alike


def _values(batches: Sequence[pa.RecordBatch], starts: np.ndarray, rows: np.ndarray, name: str) -> np.ndarray:
    """uint16 [k, 128]: signatures of rows, by their number over all batches."""
    values = np.empty((len(rows), PERMUTATIONS), dtype=np.uint16)
    places = np.searchsorted(starts, rows, side="right") - 1
    for place in np.unique(places):
        here = places == place
        column = np.frombuffer(batches[place].column(name).buffers()[1], np.uint16).reshape(-1, PERMUTATIONS)
        values[here] = column[rows[here] - starts[place]]
    return values


def _band_keys(values: np.ndarray, rows: int) -> list[np.ndarray]:
    """uint64 [n] per band: its values, mixed."""
    keys = []
    with np.errstate(over="ignore"):
        for start in range(0, PERMUTATIONS, rows):
            key = np.full(len(values), start, dtype=np.uint64)
            for column in range(start, start + rows):
                key = (key ^ values[:, column]) * np.uint64(0x100000001B3)  # FNV-1a
                key ^= key >> np.uint64(29)
            keys.append(key)
    return keys


def _batches(file: Path) -> list[pa.RecordBatch]:
    reader = pa.ipc.open_file(pa.memory_map(str(file)))
    return [reader.get_batch(number) for number in range(reader.num_record_batches)]
