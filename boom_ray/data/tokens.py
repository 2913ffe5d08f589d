"""Token shards: every text tokenised once, memory-mapped by all who train, and taken row by row in microseconds.

A shard is an uncompressed Arrow IPC file, so a batch is a random take out of the page cache: nothing is decoded, and
the processes of a node share one copy.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from boom_ray.config import BoomError
from boom_ray.data.encoding import Ragged, TextEncoder
from boom_ray.stores.mirrors import fetch

TOKENS = pa.schema(
    [
        ("id", pa.binary(16)),
        ("dataset", pa.int16()),
        ("query", pa.list_(pa.int32())),
        ("pos", pa.list_(pa.list_(pa.int32()))),
        ("neg", pa.list_(pa.list_(pa.int32()))),
        ("score", pa.float32()),
        ("label", pa.int64()),
    ]
)


@dataclass(frozen=True)
class TokenRow:
    """One row's token ids (int32, special tokens included); ``score`` is NaN and ``label`` 0 where the row has none."""

    id: bytes
    query: np.ndarray
    pos: list[np.ndarray]
    neg: list[np.ndarray]
    score: float
    label: int = 0


class TokenStore:
    """The token shards of a directory, memory-mapped. Row numbers run over all shards in order.

    Attributes:
        datasets: the entries of datasets.json.
        ids: uint8 [n, 16].
        dataset: int16 [n], index into ``datasets``.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = fetch(directory)
        if not (self.directory / "datasets.json").is_file():
            raise BoomError(f"{directory} holds no token shards. `boom-ray run` makes what is missing.")
        self.datasets: list[dict[str, Any]] = json.loads((self.directory / "datasets.json").read_text(encoding="utf-8"))
        self._blocks = [b for file in sorted(self.directory.glob("tokens-*.arrow")) for b in _read_blocks(file)]
        self._starts = np.cumsum([0, *(len(b.dataset) for b in self._blocks)])
        self.ids = np.concatenate([np.empty((0, 16), np.uint8), *(b.ids for b in self._blocks)])
        self.dataset = np.concatenate([np.empty(0, np.int16), *(b.dataset for b in self._blocks)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __reduce__(self) -> tuple[type[TokenStore], tuple[Path]]:
        return TokenStore, (self.directory,)  # another process maps the files for itself

    def take(self, rows: np.ndarray) -> list[TokenRow]:
        """The rows of these numbers (int64 [k]), in the order asked for. Arrays are read-only views of the files.

        Raises:
            IndexError: a number is not in [0, n).
        """
        blocks = self._block_of(rows)
        return [self._blocks[b].row(int(r - self._starts[b])) for r, b in zip(rows, blocks, strict=True)]

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """int64 [k]: the tokens of each row's query, positives and negatives together."""
        rows = np.asarray(rows, dtype=np.int64)
        blocks = self._block_of(rows)
        total = np.empty(len(rows), dtype=np.int64)
        for block in np.unique(blocks):
            here = blocks == block
            total[here] = self._blocks[block].lengths(rows[here] - self._starts[block])
        return total

    def _block_of(self, rows: np.ndarray) -> np.ndarray:
        if len(rows) and not (np.min(rows) >= 0 and np.max(rows) < len(self)):
            raise IndexError(f"row numbers must lie in [0, {len(self)})")
        return np.searchsorted(self._starts, rows, side="right") - 1


@dataclass(frozen=True)
class _Nested:
    """A list<list<int32>> column as numpy views: rows[r] .. rows[r + 1] are texts, texts[t] .. texts[t + 1] tokens."""

    rows: np.ndarray
    texts: np.ndarray
    tokens: np.ndarray

    def row(self, row: int) -> list[np.ndarray]:
        ends = self.texts[self.rows[row] : self.rows[row + 1] + 1].tolist()
        return [self.tokens[a:b] for a, b in itertools.pairwise(ends)]

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        return self.texts[self.rows[rows + 1]] - self.texts[self.rows[rows]]


@dataclass(frozen=True)
class _Block:
    """One record batch of a shard as numpy views."""

    ids: np.ndarray
    dataset: np.ndarray
    query_ends: np.ndarray
    query: np.ndarray
    pos: _Nested
    neg: _Nested
    score: np.ndarray
    label: np.ndarray

    def row(self, row: int) -> TokenRow:
        query = self.query[self.query_ends[row] : self.query_ends[row + 1]]
        score, label = float(self.score[row]), int(self.label[row])
        return TokenRow(self.ids[row].tobytes(), query, self.pos.row(row), self.neg.row(row), score, label)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        queries = self.query_ends[rows + 1] - self.query_ends[rows]
        return queries + self.pos.lengths(rows) + self.neg.lengths(rows)


def _read_blocks(file: Path) -> Iterator[_Block]:
    reader = pa.ipc.open_file(pa.memory_map(str(file)))
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        query = batch.column("query")
        pos, neg = (_nested(batch.column(name)) for name in ("pos", "neg"))
        ids = np.frombuffer(batch.column("id").buffers()[1], dtype=np.uint8)[: len(batch) * 16].reshape(-1, 16)
        dataset, score, label = (batch.column(name).to_numpy() for name in ("dataset", "score", "label"))
        yield _Block(ids, dataset, query.offsets.to_numpy(), query.values.to_numpy(), pos, neg, score, label)


def _nested(column: pa.ListArray) -> _Nested:
    texts = column.values
    return _Nested(column.offsets.to_numpy(), texts.offsets.to_numpy(), texts.values.to_numpy())


def save_effective_tokenizer(tokenizer_dir: Path, max_tokens: int, file: Path) -> None:
    """What ``AutoTokenizer`` makes of a directory, truncation included, as one file that ``tokenizers`` reads.

    Workers then need no transformers, and no rule of a model's tokenizer class is lost.

    Raises:
        BoomError: there is no tokenizer, or none that ``tokenizers`` runs.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            tokenizer_dir, use_fast=True, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise BoomError(f"{tokenizer_dir} has no tokenizer that can be loaded: {error}") from None
    if not tokenizer.is_fast:
        raise BoomError(f"{tokenizer_dir} has no tokenizer.json. Save the base once with a fast tokenizer.")
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(max_tokens, direction=tokenizer.truncation_side)
    backend.no_padding()
    backend.save(str(file))


@dataclass(frozen=True)
class TokenJob:
    """What a worker needs to tokenise a row shard: the tokenizer's file, datasets.json, and where to write."""

    tokenizer: Path
    datasets: Path
    out: Path

    def target(self, rows: Path) -> Path:
        """The token shard of the same number."""
        return self.out / rows.name.replace("rows-", "tokens-")

    def files(self, rows: Path) -> list[Path]:
        """What :func:`tokenise_shard` writes."""
        return [self.target(rows), self.target(rows).with_suffix(".json")]

    def finished(self, shards: Sequence[Path]) -> dict[Path, dict[str, int]]:
        """What :func:`tokenise_shard` returned, by row shard, for those that are done."""
        there = set(os.listdir(self.out))
        files = {rows: self.target(rows).with_suffix(".json") for rows in shards if self.target(rows).name in there}
        return {rows: json.loads(file.read_text("utf-8")) for rows, file in files.items() if file.name in there}


def tokenise_shard(rows: Path, job: TokenJob) -> dict[str, int]:
    """Tokenise one row shard; returns how many rows, texts, tokens and cut texts it holds. Whole, or not there."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # in a worker, which has one core: the units are the parallelism
    encoder, known = _encoder(job.tokenizer, job.tokenizer.stat().st_mtime_ns), _known(job.datasets)
    target, totals = job.target(rows), {"rows": 0, "texts": 0, "tokens": 0, "cut": -encoder.cut}
    temporary = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex[:8]}")
    with pa.memory_map(str(rows)) as source, pa.ipc.new_file(str(temporary), TOKENS) as writer:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            batch = _tokenised(reader.get_batch(number), encoder, known)
            writer.write_batch(batch)
            totals["rows"] += len(batch)
            for name in ("pos", "neg"):
                totals["texts"] += len(batch.column(name).values)
                totals["tokens"] += len(batch.column(name).values.values)
            totals["texts"] += len(batch)
            totals["tokens"] += len(batch.column("query").values)
    totals["cut"] += encoder.cut
    done = temporary.with_suffix(".json")
    done.write_text(json.dumps(totals), encoding="utf-8")
    os.replace(temporary, target)
    os.replace(done, target.with_suffix(".json"))
    return totals


def label_key(dataset: str, label: str | None) -> int:
    """A 64-bit number that is the same for rows of one class of one dataset; 0: the row has no label."""
    if label is None:
        return 0
    digest = hashlib.blake2b(f"{dataset}\0{label}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1


def _known(datasets: Path) -> dict[str, tuple[int, dict[str, str]]]:
    entries = json.loads(datasets.read_text("utf-8"))
    return {entry["name"]: (place, entry["instruction"]) for place, entry in enumerate(entries)}


def _tokenised(
    batch: pa.RecordBatch, encoder: TextEncoder, known: dict[str, tuple[int, dict[str, str]]]
) -> pa.RecordBatch:
    names = batch.column("dataset").to_pylist()
    prefixes = [known[name][1] for name in names]
    queries = _prefixed(batch.column("query"), [p["query"] for p in prefixes])
    passages = [p["passage"] for p in prefixes]
    labels = batch.column("label").to_pylist()
    columns = [
        batch.column("id"),
        pa.array([known[name][0] for name in names], pa.int16()),
        _list_array(encoder(queries)),
        *(_nested_array(batch.column(name), passages, encoder) for name in ("pos", "neg")),
        batch.column("score").fill_null(np.nan).cast(pa.float32()),
        pa.array([label_key(*pair) for pair in zip(names, labels, strict=True)], pa.int64()),
    ]
    return pa.record_batch(columns, schema=TOKENS)


def _prefixed(column: pa.Array, prefixes: Sequence[str]) -> list[str]:
    texts = column.to_pylist()
    return [p + t for p, t in zip(prefixes, texts, strict=True)] if any(prefixes) else texts


def _nested_array(column: pa.ListArray, prefixes: Sequence[str], encoder: TextEncoder) -> pa.ListArray:
    """The token ids of all texts of a list column, each with its row's prefix."""
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    texts = _prefixed(column.flatten(), np.repeat(prefixes, lengths).tolist() if any(prefixes) else ())
    return pa.ListArray.from_arrays(_offsets(lengths), _list_array(encoder(texts)))


def _list_array(tokens: Ragged) -> pa.ListArray:
    return pa.ListArray.from_arrays(_offsets(tokens.lengths), pa.array(tokens.values, pa.int32()))


def _offsets(lengths: np.ndarray) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


@functools.lru_cache(maxsize=1)
def _encoder(tokenizer: Path, changed: int) -> TextEncoder:
    """One per worker process, so that the words of one shard are known in the next; ``changed`` is the file's time."""
    return TextEncoder(tokenizer)


def train_tokenizer(corpus_dir: Path, vocab: int, max_tokens: int, out: Path) -> None:
    """See ``wordpiece.train_tokenizer``."""
    from boom_ray.data import wordpiece

    wordpiece.train_tokenizer(corpus_dir, vocab, max_tokens, out)
