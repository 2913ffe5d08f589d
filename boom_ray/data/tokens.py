"""Token shards: every text tokenised once, memory-mapped by all who train, and taken row by row in microseconds.

A shard is an uncompressed Arrow IPC file, so a batch is a random take out of the page cache: nothing is decoded, and
the processes of a node share one copy.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from boom_ray.config import BoomError

TOKENS = pa.schema(
    [
        ("id", pa.binary(16)),
        ("dataset", pa.int16()),
        ("query", pa.list_(pa.int32())),
        ("pos", pa.list_(pa.list_(pa.int32()))),
        ("neg", pa.list_(pa.list_(pa.int32()))),
        ("score", pa.float32()),
    ]
)


@dataclass(frozen=True)
class TokenRow:
    """One row's token ids (int32, special tokens included); ``score`` is NaN where the row has none."""

    id: bytes
    query: np.ndarray
    pos: list[np.ndarray]
    neg: list[np.ndarray]
    score: float


class TokenStore:
    """The token shards of a directory, memory-mapped. Row numbers run over all shards in order.

    Attributes:
        datasets: the entries of datasets.json.
        ids: uint8 [n, 16].
        dataset: int16 [n], index into ``datasets``.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
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

    def row(self, row: int) -> TokenRow:
        query = self.query[self.query_ends[row] : self.query_ends[row + 1]]
        score = float(self.score[row])
        return TokenRow(self.ids[row].tobytes(), query, self.pos.row(row), self.neg.row(row), score)

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
        dataset, score = batch.column("dataset").to_numpy(), batch.column("score").to_numpy()
        yield _Block(ids, dataset, query.offsets.to_numpy(), query.values.to_numpy(), pos, neg, score)


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
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir, use_fast=True, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BoomError(f"{tokenizer_dir} has no tokenizer that can be loaded: {error}") from None
    if not tokenizer.is_fast:
        raise BoomError(f"{tokenizer_dir} has no tokenizer.json. Save the base once with a fast tokenizer.")
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(max_tokens, direction=tokenizer.truncation_side)
    backend.no_padding()
    backend.save(str(file))


def tokenise_shard(rows: Path, tokenizer: Path, datasets: Path, out: Path) -> dict[str, int]:
    """Tokenise one row shard into the token shard of the same number; a text that occurs often is encoded once."""
    from tokenizers import Tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # in a worker, which has one core: the units are the parallelism
    encoder = Tokenizer.from_file(str(tokenizer))
    known = {d["name"]: (place, d["instruction"]) for place, d in enumerate(json.loads(datasets.read_text("utf-8")))}
    target = out / rows.name.replace("rows-", "tokens-")
    totals = {"rows": 0, "texts": 0, "tokens": 0}
    with pa.memory_map(str(rows)) as source, pa.ipc.new_file(f"{target}.tmp", TOKENS) as writer:
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
    os.replace(f"{target}.tmp", target)
    return totals


def _tokenised(batch: pa.RecordBatch, encoder: Any, known: dict[str, tuple[int, dict[str, str]]]) -> pa.RecordBatch:
    names = batch.column("dataset").to_pylist()
    prefixes = [known[name][1] for name in names]
    queries = [p["query"] + q for p, q in zip(prefixes, batch.column("query").to_pylist(), strict=True)]
    lists = {}
    for name in ("pos", "neg"):
        texts = batch.column(name).to_pylist()
        lists[name] = [[p["passage"] + t for t in row] for p, row in zip(prefixes, texts, strict=True)]
    texts = list(dict.fromkeys([*queries, *(t for rows in lists.values() for row in rows for t in row)]))
    encoded = encoder.encode_batch_fast(texts)
    tokens = {text: np.asarray(e.ids, dtype=np.int32) for text, e in zip(texts, encoded, strict=True)}
    columns = [
        batch.column("id"),
        pa.array([known[name][0] for name in names], pa.int16()),
        _list_array([tokens[q] for q in queries]),
        *(_nested_array([[tokens[t] for t in row] for row in lists[name]]) for name in ("pos", "neg")),
        pa.array(np.array([np.nan if s is None else s for s in batch.column("score").to_pylist()], np.float32)),
    ]
    return pa.record_batch(columns, schema=TOKENS)


def _list_array(arrays: Sequence[np.ndarray]) -> pa.ListArray:
    values = np.concatenate([np.empty(0, np.int32), *arrays])
    return pa.ListArray.from_arrays(_offsets(arrays), pa.array(values, pa.int32()))


def _nested_array(rows: Sequence[Sequence[np.ndarray]]) -> pa.ListArray:
    return pa.ListArray.from_arrays(_offsets(rows), _list_array([text for row in rows for text in row]))


def _offsets(items: Sequence[Any]) -> pa.Array:
    return pa.array(np.cumsum([0, *map(len, items)]), pa.int32())


def train_tokenizer(corpus_dir: Path, vocab: int, max_tokens: int, out: Path) -> None:
    """See ``wordpiece.train_tokenizer``."""
    from boom_ray.data import wordpiece

    wordpiece.train_tokenizer(corpus_dir, vocab, max_tokens, out)
