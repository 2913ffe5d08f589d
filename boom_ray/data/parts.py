"""One unit of a source becomes one part on disk: the worker's half of the corpus, without Ray.

Read, validate, quarantine, normalise, name by content, decontaminate. A part is an Arrow IPC file of final rows; what
was rejected stands beside it as jsonl. Memory is bounded by one batch of rows, whatever the size of the file.
"""

from __future__ import annotations

import functools
import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from boom_ray.config import FilesSource
from boom_ray.data.schema import Example, RowError, dataset_of, fold_digest, parse_row, row_id
from boom_ray.data.sources import BadRow, dataset_stem, read_rows

ROWS = pa.schema(
    [
        ("id", pa.binary(16)),
        ("dataset", pa.string()),
        ("task_type", pa.string()),
        ("query", pa.string()),
        ("pos", pa.list_(pa.string())),
        ("neg", pa.list_(pa.string())),
        ("score", pa.float64()),
    ]
)
BATCH_ROWS = 2048
COUNTS = ("rows_in", "rejected", "duplicates", "decontaminated", "negatives_decontaminated", "capped", "rows")
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Unit:
    """One file of one source; ``index`` is its place in the source order."""

    index: int
    file: Path
    source: FilesSource


def part_path(folder: Path, index: int) -> Path:
    return folder / f"part-{index:05d}.arrow"


def quarantine_path(folder: Path, index: int) -> Path:
    return folder / f"quarantine-{index:05d}.jsonl"


def write_part(unit: Unit, folder: Path) -> dict[str, dict[str, int]]:
    """Write the part and the quarantine of a unit below ``folder``; a second call writes the same again.

    ``folder/evaluation.bin`` holds the sorted digests of the folded evaluation texts.

    Returns:
        ``{dataset: {count: n}}``, datasets in the order of their first row.

    Raises:
        BoomError: the file cannot be opened.
    """
    counts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COUNTS, 0))
    evaluation = folder / "evaluation.bin"
    forbidden = _evaluation_digests(evaluation, evaluation.stat().st_mtime_ns)
    part, quarantine = part_path(folder, unit.index), quarantine_path(folder, unit.index)
    with (
        pa.OSFile(f"{part}.tmp", "wb") as sink,
        pa.ipc.new_file(sink, ROWS) as writer,
        open(f"{quarantine}.tmp", "w", encoding="utf-8") as rejects,
    ):
        batch: list[Example] = []
        for example in _examples(unit, counts, rejects):
            clean = decontaminate(example, forbidden, counts[example.dataset])
            if clean is not None:
                batch.append(clean)
            if len(batch) == BATCH_ROWS:
                writer.write_batch(_record_batch(batch))
                batch.clear()
        if batch:
            writer.write_batch(_record_batch(batch))
    os.replace(f"{part}.tmp", part)
    os.replace(f"{quarantine}.tmp", quarantine)
    return dict(counts)


def decontaminate(example: Example, forbidden: Collection[bytes], counts: dict[str, int]) -> Example | None:
    """The example without negatives that are evaluation texts; None where its query or a positive is one.

    Positives and negatives of a classification row are names of classes, no texts: they are left alone.
    """
    if not forbidden:
        return example
    labels = example.task_type == "classification"
    if any(fold_digest(text) in forbidden for text in (example.query, *(() if labels else example.pos))):
        counts["decontaminated"] += 1
        return None
    if labels or not example.neg:
        return example
    kept = tuple(text for text in example.neg if fold_digest(text) not in forbidden)
    counts["negatives_decontaminated"] += len(example.neg) - len(kept)
    return example if len(kept) == len(example.neg) else replace(example, neg=kept)


def _examples(unit: Unit, counts: dict[str, dict[str, int]], rejects: Any) -> Iterator[Example]:
    """The good rows; the bad ones are counted for their dataset and written to the quarantine."""
    name = unit.source.name or dataset_stem(unit.file)
    for line, raw in read_rows(unit.file):
        try:
            if isinstance(raw, BadRow):
                raise RowError(raw.reason)
            example = parse_row(raw, unit.source, name)
        except RowError as error:
            dataset = _dataset_or(name, raw, unit)
            counts[dataset]["rows_in"] += 1
            counts[dataset]["rejected"] += 1
            rejects.write(json.dumps({"file": str(unit.file), "line": line, "reason": str(error)}) + "\n")
            continue
        counts[example.dataset]["rows_in"] += 1
        yield example


def _dataset_or(name: str, raw: Any, unit: Unit) -> str:
    try:
        return dataset_of(raw, unit.source, name)
    except RowError:
        return name


def _record_batch(examples: list[Example]) -> pa.RecordBatch:
    columns = [
        [row_id(e.dataset, e.query, e.pos) for e in examples],
        [e.dataset for e in examples],
        [e.task_type for e in examples],
        [e.query for e in examples],
        [e.pos for e in examples],
        [e.neg for e in examples],
        [e.score for e in examples],
    ]
    return pa.record_batch([pa.array(c, t) for c, t in zip(columns, ROWS.types, strict=True)], schema=ROWS)


@functools.lru_cache(maxsize=1)
def _evaluation_digests(file: Path, changed: int) -> frozenset[bytes]:
    """Read once per worker process; ``changed`` tells another file of the same name apart."""
    raw = file.read_bytes()
    return frozenset(raw[i : i + DIGEST_BYTES] for i in range(0, len(raw), DIGEST_BYTES))
