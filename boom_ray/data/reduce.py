"""From parts to the corpus: which rows stay, and which of them each shard holds. Only ids and codes are in memory.

Duplicates are found over the ids of all parts in source order, so that the first row stays whatever the number of
workers; the cap takes the lowest hashes, so that the same rows stay whatever the order of the files. Shards are cut
from the kept rows alone, so that they are the same however the sources were split.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from boom_ray.config import BoomError
from boom_ray.data.bagging import derive_seed, membership_hash
from boom_ray.data.parts import BATCH_ROWS, INDEX, ROWS, Part

SHARD_ROWS = 20_480  # also the unit of tokenising: small enough for all cores to have work
KEPT = "kept.bin"  # which rows stay, in the scratch folder
_BUCKET_ROWS = 4 << 20  # sorted at once in the search for duplicates


@dataclass(frozen=True)
class RowIndex:
    """All rows of all parts, in source order: 20 bytes each.

    Attributes:
        ids: uint8 [n, 16].
        codes: int32 [n], index into ``datasets``.
        datasets: ``(name, task type)`` in the order of their first row.
    """

    ids: np.ndarray
    codes: np.ndarray
    datasets: tuple[tuple[str, str], ...]


def read_index(parts: Sequence[Part]) -> RowIndex:
    """Ids and datasets of all rows.

    Raises:
        BoomError: a dataset has rows of two task types.
    """
    total = sum(part.rows for part in parts)
    ids, codes = np.empty((total, 16), np.uint8), np.empty(total, np.int32)
    known: dict[str, tuple[int, str]] = {}
    start = 0
    for part in parts:
        rows = np.fromfile(part.index, dtype=INDEX)
        stop = start + len(rows)
        places = np.array([_place(known, name, task_type) for name, task_type in part.datasets], dtype=np.int32)
        ids[start:stop] = np.ascontiguousarray(rows["id"]).view(np.uint8).reshape(-1, 16)
        codes[start:stop] = places[rows["dataset"]] if len(rows) else 0
        start = stop
    return RowIndex(ids, codes, tuple((name, task_type) for name, (_, task_type) in known.items()))


def first_of_each(ids: np.ndarray) -> np.ndarray:
    """Boolean [n]: true at the first row of each id. ``ids`` is uint8 [n, 16]; exact.

    Ids are spread evenly, so ranges of their first word are sorted one after another: the sort takes a constant memory.
    """
    words = np.ascontiguousarray(ids).view("<u8").reshape(-1, 2)
    first = np.ones(len(ids), dtype=bool)
    buckets = 1 + len(ids) // _BUCKET_ROWS
    limits = [round(2**64 * step / buckets) for step in range(buckets + 1)]
    for low, high in itertools.pairwise(limits):
        rows = np.flatnonzero((words[:, 0] >= np.uint64(low)) & (words[:, 0] <= np.uint64(high - 1)))
        here = words[rows]
        order = np.lexsort((here[:, 1], here[:, 0]))
        ordered = here[order]
        first[rows[order[1:]]] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return first


def under_cap(index: RowIndex, kept: np.ndarray, caps: Mapping[str, int | None], seed: int) -> np.ndarray:
    """Boolean [n]: ``kept`` without what exceeds a dataset's cap; the lowest hashes of (id, seed) stay."""
    kept = kept.copy()
    for code, (name, _) in enumerate(index.datasets):
        cap = caps.get(name)
        if cap is not None:
            rows = np.flatnonzero(kept & (index.codes == code))
            hashes = membership_hash(index.ids[rows], derive_seed(seed, "cap"))
            kept[rows[np.argsort(hashes, kind="stable")[cap:]]] = False
    return kept


@dataclass(frozen=True)
class ShardPlan:
    """One shard of the corpus: rows ``start`` to ``stop`` of all parts less those that ``kept`` (a file) drops.

    Attributes:
        tables: files of the parts concerned; offsets: number of each one's first row.
    """

    target: Path
    kept: Path
    start: int
    stop: int
    tables: tuple[Path, ...]
    offsets: tuple[int, ...]


def plan_shards(parts: Sequence[Part], kept: np.ndarray, work: Path, out: Path) -> list[ShardPlan]:
    """Shards of 20,480 kept rows each (the last has fewer): rows-00000.arrow and so on."""
    mask = work / KEPT
    kept.tofile(mask)
    rows = np.flatnonzero(kept)
    offsets = np.cumsum([0, *(part.rows for part in parts)])
    plans = []
    for number, first in enumerate(range(0, len(rows), SHARD_ROWS)):
        start, stop = int(rows[first]), int(rows[min(first + SHARD_ROWS, len(rows)) - 1]) + 1
        low, high = (int(np.searchsorted(offsets, place, side="right")) - 1 for place in (start, stop - 1))
        tables = tuple(part.table for part in parts[low : high + 1])
        places = tuple(offsets[low : high + 1].tolist())
        plans.append(ShardPlan(out / f"rows-{number:05d}.arrow", mask, start, stop, tables, places))
    return plans


def write_shard(plan: ShardPlan) -> dict[str, Any]:
    """Write one shard, in batches of 2,048 rows."""
    temporary = plan.target.with_name(f"{plan.target.name}.tmp-{uuid.uuid4().hex[:8]}")
    with pa.ipc.new_file(str(temporary), ROWS) as writer:
        waiting: list[pa.RecordBatch] = []
        for batch in _kept_batches(plan):
            waiting.append(batch)
            while sum(map(len, waiting)) >= BATCH_ROWS:
                table = pa.Table.from_batches(waiting, ROWS)
                writer.write_table(_fresh(table.slice(0, BATCH_ROWS)))
                waiting = table.slice(BATCH_ROWS).to_batches()
        if waiting:
            writer.write_table(_fresh(pa.Table.from_batches(waiting, ROWS)))
    os.replace(temporary, plan.target)
    return {}


def _fresh(table: pa.Table) -> pa.Table:
    """A copy whose buffers, and so whose bytes in a file, depend on the values alone and not on how they were cut."""
    return table.combine_chunks().take(pa.array(np.arange(len(table))))


def _kept_batches(plan: ShardPlan) -> Iterator[pa.RecordBatch]:
    kept = np.fromfile(plan.kept, dtype=bool, offset=plan.start, count=plan.stop - plan.start)
    for table, place in zip(plan.tables, plan.offsets, strict=True):
        for batch in read_batches(table):
            low, high = max(plan.start, place), min(plan.stop, place + len(batch))
            if low < high:
                mask = kept[low - plan.start : high - plan.start]
                part = batch.slice(low - place, high - low)
                yield part if mask.all() else part.filter(pa.array(mask))
            place += len(batch)


def read_batches(file: Path) -> Iterator[pa.RecordBatch]:
    """The record batches of an Arrow file, mapped."""
    with pa.memory_map(str(file)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _place(known: dict[str, tuple[int, str]], name: str, task_type: str) -> int:
    place, before = known.setdefault(name, (len(known), task_type))
    if before != task_type:
        raise BoomError(
            f"dataset '{name}' has rows of two task types, {before} and {task_type}. "
            f"A dataset has one: give the sources other names, or set task_type in the recipe."
        )
    return place
