"""From parts to the corpus: the driver's half, without Ray. Only ids and dataset codes are held in memory.

Duplicates are found over the ids of all parts in source order, so that the first row stays whatever the number of
workers; the cap takes the lowest hashes, so that the same rows stay whatever the order of the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from boom_ray.config import BoomError
from boom_ray.data.bagging import derive_seed, membership_hash
from boom_ray.data.parts import ROWS

SHARD_ROWS = 20_000  # also the unit of tokenising: small enough for all cores to have work


@dataclass(frozen=True)
class RowIndex:
    """All rows of all parts, in source order.

    Attributes:
        ids: uint8 [n, 16].
        codes: int32 [n], index into ``datasets``.
        datasets: ``(name, task type)`` in the order of their first row.
    """

    ids: np.ndarray
    codes: np.ndarray
    datasets: tuple[tuple[str, str], ...]


def read_index(parts: Sequence[Path]) -> RowIndex:
    """Ids and datasets of all rows.

    Raises:
        BoomError: a dataset has rows of two task types.
    """
    ids, codes = [np.empty((0, 16), np.uint8)], [np.empty(0, np.int32)]
    known: dict[str, tuple[int, str]] = {}
    for batch in _batches(parts):
        ids.append(_fixed_bytes(batch.column("id")))
        names, types = (batch.column(c).dictionary_encode() for c in ("dataset", "task_type"))
        pairs = np.stack([names.indices.to_numpy(), types.indices.to_numpy()])
        places = np.empty(len(names.dictionary), np.int32)
        distinct, first = np.unique(pairs, axis=1, return_index=True)
        for name, task_type in distinct[:, np.argsort(first)].T:
            places[name] = _place(known, names.dictionary[name].as_py(), types.dictionary[task_type].as_py())
        codes.append(places[pairs[0]])
    return RowIndex(np.concatenate(ids), np.concatenate(codes), tuple((n, t) for n, (_, t) in known.items()))


def first_of_each(ids: np.ndarray) -> np.ndarray:
    """Boolean [n]: true at the first row of each id. ``ids`` is uint8 [n, 16]; exact, by a stable sort."""
    words = np.ascontiguousarray(ids).view("<u8").reshape(-1, 2)
    order = np.lexsort((words[:, 1], words[:, 0]))
    ordered = words[order]
    first = np.ones(len(ids), dtype=bool)
    first[order[1:]] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return first


def under_cap(index: RowIndex, kept: np.ndarray, cap: int | None, seed: int) -> np.ndarray:
    """Boolean [n]: ``kept`` without what exceeds ``cap`` rows of a dataset; the lowest hashes of (id, seed) stay."""
    if cap is None:
        return kept
    kept = kept.copy()
    for code in range(len(index.datasets)):
        rows = np.flatnonzero(kept & (index.codes == code))
        hashes = membership_hash(index.ids[rows], derive_seed(seed, "cap"))
        kept[rows[np.argsort(hashes, kind="stable")[cap:]]] = False
    return kept


def write_rows(parts: Sequence[Path], kept: np.ndarray, out: Path) -> list[Path]:
    """Stream the kept rows, in source order, into ``out``/rows-00000.arrow and so on; about 20,000 rows a shard."""
    shards: list[Path] = []
    writer, written, position = None, 0, 0
    try:
        for batch in _batches(parts):
            chosen = batch.filter(pa.array(kept[position : position + len(batch)]))
            position += len(batch)
            if not len(chosen):
                continue
            if writer is None or written + len(chosen) > SHARD_ROWS:
                if writer is not None:
                    writer.close()
                shards.append(out / f"rows-{len(shards):05d}.arrow")
                writer, written = pa.ipc.new_file(str(shards[-1]), ROWS), 0
            writer.write_batch(chosen)
            written += len(chosen)
    finally:
        if writer is not None:
            writer.close()
    return shards


def _batches(parts: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    for part in parts:
        with pa.memory_map(str(part)) as source:
            reader = pa.ipc.open_file(source)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)


def _fixed_bytes(column: pa.Array) -> np.ndarray:
    """A copy of a fixed-size binary column as uint8 [n, 16]; the memory map may go."""
    start = column.offset * 16
    values = np.frombuffer(column.buffers()[1], dtype=np.uint8)
    return values[start : start + len(column) * 16].reshape(-1, 16).copy()


def _place(known: dict[str, tuple[int, str]], name: str, task_type: str) -> int:
    place, before = known.setdefault(name, (len(known), task_type))
    if before != task_type:
        raise BoomError(
            f"dataset '{name}' has rows of two task types, {before} and {task_type}. "
            f"A dataset has one: give the sources other names, or set task_type in the recipe."
        )
    return place
