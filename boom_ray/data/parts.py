"""One span of a source file becomes one part on disk: the worker's half of the corpus, without Ray.

Read, validate, quarantine, normalise, name by content, decontaminate, batch by batch. A part is a folder that appears
by one rename when it is whole, so that the run after a kill finds it. Memory is bounded by one batch of rows, whatever
the size of the file.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from boom_ray.config.corpus import Columns, FilesSource
from boom_ray.data import minhash
from boom_ray.data.decontaminate import Evaluation, decontaminate
from boom_ray.data.known import Known, drop_known
from boom_ray.data.layouts import to_boom
from boom_ray.data.schema import Example, RowError, dataset_of, parse_row, row_id
from boom_ray.data.shingles import WordHasher
from boom_ray.data.sources import BadRow, SourceFile, Span, dataset_stem, read_rows, spans

ROWS = pa.schema(
    [
        ("id", pa.binary(16)),
        ("dataset", pa.string()),
        ("task_type", pa.string()),
        ("query", pa.string()),
        ("pos", pa.list_(pa.string())),
        ("neg", pa.list_(pa.string())),
        ("score", pa.float64()),
        ("label", pa.string()),
    ]
)
INDEX = np.dtype([("id", "V16"), ("dataset", "<i4")])  # of every row of a part: all that the driver reads of them
BATCH_ROWS = 2048
_BATCH_CHARACTERS = 32 << 20  # long texts make a batch of fewer rows
COUNTS = (
    "rows_in",
    "rejected",
    "duplicates",
    "near_duplicates",
    "decontaminated",
    "negatives_decontaminated",
    "capped",
    "rows",
)
_FIRST_BYTES = 16 << 20
_DONE = "part.json"
_DEFAULT_COLUMNS = Columns()


@dataclass(frozen=True)
class Unit:
    """One span of a file: ``index`` is its place in the source order, ``place`` that of its file."""

    index: int
    place: int
    file: SourceFile
    span: Span
    source: FilesSource


@dataclass(frozen=True)
class Part:
    """A finished part: where it lies, and what is in it.

    Attributes:
        counts: ``{dataset: {count: n}}``, datasets in the order of their first row, good or bad.
        datasets: ``[name, task type]`` of the good rows, by their code in the index.
        lines: lines (or rows) of the span; with_negatives: good rows that bring negatives, by dataset.
    """

    folder: Path
    counts: dict[str, dict[str, int]]
    datasets: list[list[str]]
    with_negatives: dict[str, int]
    lines: int
    rows: int

    @classmethod
    def of(cls, work: Path, index: int, result: Mapping[str, Any]) -> Part:
        """The part that :func:`write_part` has written with this result."""
        return cls(part_folder(work, index), **result)

    @property
    def table(self) -> Path:
        return self.folder / "rows.arrow"

    @property
    def index(self) -> Path:
        return self.folder / "index.bin"

    @property
    def signatures(self) -> Path:
        return self.folder / "near.arrow"

    @property
    def quarantine(self) -> Path:
        return self.folder / "quarantine.jsonl"


@dataclass
class _Tally:
    """What a worker counts while it reads."""

    counts: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: dict.fromkeys(COUNTS, 0)))
    datasets: dict[tuple[str, str], int] = field(default_factory=dict)
    with_negatives: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    lines: int = 0
    rows: int = 0


def part_folder(work: Path, index: int) -> Path:
    return work / f"part-{index:06d}"


def read_part(work: Path, index: int) -> Part:
    """The finished part of a unit: it is finished when its folder is there."""
    return Part.of(work, index, json.loads((part_folder(work, index) / _DONE).read_text("utf-8")))


def write_part(unit: Unit, work: Path, near: float | None = None) -> dict[str, Any]:
    """Write the part of a unit below ``work``, which holds what ``Evaluation`` and ``Known`` read; twice gives the same
    bytes.

    Args:
        near: threshold of near-duplicates; their signatures are written, too.

    Returns:
        The fields of ``Part``, less its folder.

    Raises:
        BoomError: the file cannot be opened.
    """
    target, tally = part_folder(work, unit.index), _Tally()
    temporary = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    part = Part(temporary, {}, [], {}, 0, 0)
    evaluation, known, hasher = Evaluation.of(work), Known.of(work), WordHasher()
    with ExitStack() as stack:
        rejects = stack.enter_context(open(part.quarantine, "w", encoding="utf-8"))
        index = stack.enter_context(open(part.index, "wb"))
        table = stack.enter_context(pa.ipc.new_file(str(part.table), ROWS))
        signatures = stack.enter_context(pa.ipc.new_file(str(part.signatures), minhash.schema(near))) if near else None
        for examples in _batches(_examples(unit, tally, rejects)):
            clean = drop_known(decontaminate(examples, evaluation, hasher, tally.counts), known, tally.counts)
            if not clean:
                continue
            batch = record_batch(clean)
            table.write_batch(batch)
            index.write(_index(batch, clean, tally).tobytes())
            if signatures is not None and near:
                signatures.write_batch(minhash.signature_batch(clean, near, hasher))
    result = _result(tally)
    (temporary / _DONE).write_text(json.dumps(result), encoding="utf-8")
    try:
        os.rename(temporary, target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(temporary)  # another worker was given the same unit and was faster
    return result


def _result(tally: _Tally) -> dict[str, Any]:
    return {
        "counts": dict(tally.counts),
        "datasets": [list(pair) for pair in tally.datasets],
        "with_negatives": dict(tally.with_negatives),
        "lines": tally.lines,
        "rows": tally.rows,
    }


def _batches(examples: Iterator[Example]) -> Iterator[list[Example]]:
    batch: list[Example] = []
    characters = 0
    for example in examples:
        batch.append(example)
        characters += len(example.query) + sum(map(len, example.pos)) + sum(map(len, example.neg))
        if len(batch) == BATCH_ROWS or characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def first_example(file: SourceFile, source: FilesSource) -> Example | None:
    """The first usable row of a file, None where there is none.

    Raises:
        BoomError: the file cannot be opened.
    """
    units = (Unit(0, 0, file, span, source) for span in spans(file, _FIRST_BYTES))
    return next((e for unit in units for e in _examples(unit, _Tally(), io.StringIO())), None)


def _examples(unit: Unit, tally: _Tally, rejects: IO[str]) -> Iterator[Example]:
    """The good rows; the bad ones are counted for their dataset and written to the quarantine."""
    name, source, counts = unit.source.name or dataset_stem(unit.file), unit.source, tally.counts
    rows = read_rows(unit.file, unit.span)
    for line, raw in rows:
        try:
            example = _example(raw, source, name)
        except RowError as error:
            dataset = _dataset_or(name, raw, source)
            counts[dataset]["rows_in"] += 1
            counts[dataset]["rejected"] += 1
            rejects.write(json.dumps({"file": str(unit.file), "line": line, "reason": str(error)}) + "\n")
            continue
        counts[example.dataset]["rows_in"] += 1
        yield example
    tally.lines = rows.lines


def _example(raw: Any, source: FilesSource, name: str) -> Example:
    if isinstance(raw, BadRow):
        raise RowError(raw.reason)
    if source.layout != "boom" or source.columns == _DEFAULT_COLUMNS:
        raw = to_boom(raw, source.layout)  # a boom row that looks like another tool's says which layout to set
    return parse_row(raw, source, name)


def _dataset_or(name: str, raw: Any, source: FilesSource) -> str:
    try:
        return dataset_of(raw, source, name)
    except RowError:
        return name


def _index(batch: pa.RecordBatch, examples: Sequence[Example], tally: _Tally) -> np.ndarray:
    """The index rows of a batch; names its datasets in the tally."""
    index = np.empty(len(examples), dtype=INDEX)
    index["id"] = np.frombuffer(batch.column("id").buffers()[1], dtype="V16", count=len(examples))
    known, codes = tally.datasets, []
    for example in examples:
        codes.append(known.setdefault((example.dataset, example.task_type), len(known)))
        if example.neg:
            tally.with_negatives[example.dataset] += 1
    index["dataset"] = codes
    tally.rows += len(examples)
    return index


def record_batch(examples: Sequence[Example]) -> pa.RecordBatch:
    """Examples as Arrow columns, each with its id."""
    ids = b"".join([row_id(e.dataset, e.query, e.pos) for e in examples])
    datasets, types, queries, pos, neg, scores, labels = zip(*examples, strict=True)
    columns = [
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(examples), [None, pa.py_buffer(ids)]),
        *(pa.array(column, pa.string()) for column in (datasets, types, queries)),
        *(pa.array(column, pa.list_(pa.string())) for column in (pos, neg)),
        pa.array(scores, pa.float64()),
        pa.array(labels, pa.string()),
    ]
    return pa.record_batch(columns, schema=ROWS)
