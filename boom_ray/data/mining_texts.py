"""The texts of one dataset, each once: what mining embeds, and which text is which in every row.

Queries and passages (positives and negatives) get numbers in the order in which they first occur in the corpus, so that
nothing depends on how many workers read. Texts go to Arrow shards and numbers to memory-mapped arrays; while they are
made, memory holds some 50 bytes per text of one dataset, and no text.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from boom_ray.data.schema import fold_digest

TEXTS_PER_SHARD = 1024  # the unit of embedding, and what a kill can lose: a minute or two of long texts on one core
KINDS = ("queries", "passages")
_TEXT = pa.schema([("text", pa.string())])


@dataclass(frozen=True)
class Index:
    """Which text stands where in a dataset of R rows, Q queries, P passages; memory-mapped, read-only.

    Two texts share a fold number when they are equal after :func:`boom_ray.data.schema.fold`. A pair (a, fold) is kept
    as ``a * folds + fold`` in a sorted array: see :meth:`pair`.

    Attributes:
        query: int32 [R], number of the row's query.
        pos: int32, numbers of all rows' positives, row after row.
        pos_ends: int64 [R + 1]; positives of row r are ``pos[pos_ends[r]:pos_ends[r + 1]]``.
        label: int64 [R], number of the row's label; -1 where it has none.
        query_fold: int64 [Q]. passage_fold: int64 [P].
        equal: int64, pairs (fold of a query, fold of itself or of one of its positives in any row).
        same_label: int64, pairs (label, fold of a text that has it).
    """

    query: np.ndarray
    pos: np.ndarray
    pos_ends: np.ndarray
    label: np.ndarray
    query_fold: np.ndarray
    passage_fold: np.ndarray
    equal: np.ndarray
    same_label: np.ndarray

    @classmethod
    def load(cls, folder: Path) -> Index:
        return cls(*(np.load(folder / f"{field.name}.npy", mmap_mode="r") for field in fields(cls)))

    def save(self, folder: Path) -> None:
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    def pair(self, first: np.ndarray, fold: np.ndarray) -> np.ndarray:
        """The number of a pair; negative where ``first`` is."""
        return _pair(first, fold, len(self.query_fold) + len(self.passage_fold))


def row_shards(corpus: Path) -> list[Path]:
    return sorted(corpus.glob("rows-*.arrow"))


def write_index(corpus: Path, dataset: str, task_type: str, out: Path) -> dict[str, int]:
    """Number the texts of a dataset: ``out``/queries-NNNNN.arrow, passages-NNNNN.arrow and an :class:`Index`.

    A second call finds it done.

    Returns:
        ``{"rows", "queries", "passages"}``, also in ``out``/index.json with the first row of every row shard.
    """
    done = out / "index.json"
    if not done.is_file():
        for leftover in out.parent.glob(f"{out.name}.*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary = out.with_name(f"{out.name}.{uuid.uuid4().hex[:8]}.tmp")
        temporary.mkdir(parents=True)
        _write_index(corpus, dataset, task_type, temporary)
        shutil.rmtree(out, ignore_errors=True)
        os.replace(temporary, out)
    return json.loads(done.read_text())["counts"]


def first_rows(folder: Path) -> dict[str, int]:
    """Number of the dataset's first row in every row shard that has one, by the shard's name."""
    return json.loads((folder / "index.json").read_text())["first_rows"]


def text_shard(folder: Path, kind: str, number: int) -> Path:
    return folder / f"{kind}-{number:07d}.arrow"


def read_texts(file: Path) -> pa.StringArray:
    """The texts of one shard, memory-mapped."""
    return pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0).column(0)


class Texts:
    """Texts by number, out of memory-mapped shards."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._shards = [read_texts(file) for file in sorted(folder.glob(f"{kind}-*.arrow"))]

    def __getitem__(self, number: int) -> str:
        shard, place = divmod(number, TEXTS_PER_SHARD)
        return self._shards[shard][place].as_py()


@dataclass(frozen=True)
class _Row:
    query: str
    pos: list[str]
    neg: list[str]
    label: str | None


def _rows(shard: Path, dataset: str) -> Iterator[_Row]:
    with pa.memory_map(str(shard)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            batch = batch.filter(pc.equal(batch.column("dataset"), dataset))
            columns = [batch.column(name).to_pylist() for name in ("query", "pos", "neg", "label")]
            yield from (_Row(query, pos, neg or [], label) for query, pos, neg, label in zip(*columns, strict=True))


def _write_index(corpus: Path, dataset: str, task_type: str, out: Path) -> None:
    found, starts = _read(corpus, dataset, task_type)
    query, first_query = _numbers(found.queries)
    passage, first_passage = _numbers(found.passages)
    folds = [_write_texts(corpus, dataset, first_query, first_passage, kind, out) for kind in KINDS]
    # fold numbers of queries and passages together: a passage may be equal to a query
    together = np.unique(np.concatenate(folds), return_inverse=True)[1].astype(np.int64)
    query_fold, passage_fold = together[: len(folds[0])], together[len(folds[0]) :]
    pos = passage[found.is_pos]
    row_of_pos = np.repeat(np.arange(len(query)), np.diff(found.pos_ends))
    base = len(query_fold) + len(passage_fold)
    fold_of_row, fold_of_pos = query_fold[query], passage_fold[pos]
    equal = [_pair(query_fold, query_fold, base), _pair(fold_of_row[row_of_pos], fold_of_pos, base)]
    label = np.unique(found.labels, return_inverse=True)[1].astype(np.int64)
    label[found.labels == 0] = -1
    same = np.concatenate([_pair(label, fold_of_row, base), _pair(label[row_of_pos], fold_of_pos, base)])
    Index(
        query=query.astype(np.int32),
        pos=pos.astype(np.int32),
        pos_ends=found.pos_ends,
        label=label,
        query_fold=query_fold,
        passage_fold=passage_fold,
        equal=np.unique(np.concatenate(equal)),
        same_label=np.unique(same[same >= 0]),
    ).save(out)
    counts = {"rows": len(query), "queries": len(query_fold), "passages": len(passage_fold)}
    (out / "index.json").write_text(json.dumps({"counts": counts, "first_rows": starts}) + "\n")


@dataclass(frozen=True)
class _Found:
    """Hashes (uint64) of what the rows hold, in order; passages are a row's positives, then its negatives."""

    queries: np.ndarray
    passages: np.ndarray
    is_pos: np.ndarray
    pos_ends: np.ndarray
    labels: np.ndarray


def _read(corpus: Path, dataset: str, task_type: str) -> tuple[_Found, dict[str, int]]:
    queries, passages, labels = bytearray(), bytearray(), bytearray()
    is_pos, sizes, starts = bytearray(), [0], {}
    for shard in row_shards(corpus):
        before = len(sizes) - 1
        for row in _rows(shard, dataset):
            queries += _hash(row.query)
            passages += b"".join(map(_hash, (*row.pos, *row.neg)))
            is_pos += b"\1" * len(row.pos) + b"\0" * len(row.neg)
            # the positive of a classification row is the name of its class
            own = row.label if row.label is not None or task_type != "classification" else row.pos[0]
            labels += bytes(8) if own is None else _hash(own)
            sizes.append(len(row.pos))
        if len(sizes) - 1 > before:
            starts[shard.name] = before
    hashes = (np.frombuffer(raw, dtype="<u8") for raw in (queries, passages, labels))
    query, passage, label = hashes
    return _Found(query, passage, np.frombuffer(is_pos, dtype=bool), np.cumsum(sizes), label), starts


def _hash(text: str) -> bytes:
    """8 bytes: of 40 million texts two are taken for one with a chance of 1 in 20,000, and then one is not mined."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _numbers(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(number of each text in the order of first occurrence int64 [n], whether it occurs there first bool [n])."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    is_first = np.zeros(len(hashes), dtype=bool)
    is_first[first] = True
    return number[inverse], is_first


def _pair(first: np.ndarray, fold: np.ndarray, base: int) -> np.ndarray:
    return np.asarray(first, dtype=np.int64) * base + np.where(np.asarray(first) < 0, 0, fold)


def _write_texts(
    corpus: Path, dataset: str, first_query: np.ndarray, first_passage: np.ndarray, kind: str, out: Path
) -> np.ndarray:
    """Write every text of a kind where it occurs first; their fold hashes, uint64 in the order of their numbers."""
    folds, pending, written = bytearray(), [], 0
    wanted = first_query if kind == "queries" else first_passage
    position = 0
    for shard in row_shards(corpus):
        for row in _rows(shard, dataset):
            texts = [row.query] if kind == "queries" else [*row.pos, *row.neg]
            for text in _chosen(texts, wanted[position : position + len(texts)]):
                folds += fold_digest(text)[:8]
                pending.append(text)
                if len(pending) == TEXTS_PER_SHARD:
                    _write_shard(text_shard(out, kind, written), pending)
                    written, pending = written + 1, []
            position += len(texts)
    if pending:
        _write_shard(text_shard(out, kind, written), pending)
    return np.frombuffer(folds, dtype="<u8")


def _chosen(texts: Sequence[str], mask: np.ndarray) -> Iterator[str]:
    return (text for text, wanted in zip(texts, mask.tolist(), strict=True) if wanted)


def _write_shard(file: Path, texts: Sequence[str]) -> None:
    with pa.ipc.new_file(str(file), _TEXT) as writer:
        writer.write_batch(pa.record_batch([pa.array(texts, pa.string())], schema=_TEXT))
