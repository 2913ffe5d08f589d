"""From row numbers to a training batch: tokens of queries and candidates, with who owns and who matches what.

Pure: the same (rows, seed, epoch) gives the same batch on any worker, because the draw of a positive and of hard
negatives depends on the row's id and not on its neighbours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from boom_ray.data.bagging import derive_seed
from boom_ray.data.rules import DatasetRule, dataset_rules
from boom_ray.data.schedule import Batch, rank_rows
from boom_ray.data.tokens import TokenRow, TokenStore


@dataclass(frozen=True)
class TrainBatch:
    """One worker's part of a global batch of B rows; b rows are here, with C candidate passages.

    Attributes:
        step: number of the global step.
        dataset: of all rows, or ``mixed``.
        queries: b token sequences.
        candidates: C token sequences; the first b are the rows' positives, hard negatives follow.
        owners: int64 [C], the query whose row brought the candidate.
        query_keys: int64 [b], and candidate_keys: int64 [C]: hashes of the tokens; equal keys are equal texts.
        labels: int64 [b]; rows of equal label are no negatives of each other; 0: no label.
        datasets: int64 [b], place of the rows' datasets in the corpus; scores of two are not compared.
        in_batch: bool [b], whether a row is compared with the candidates of other rows.
        scores: float32 [b], NaN where a row is not graded.
        row_keys: uint64 [b], the first 8 bytes of the rows' ids.
        global_rows: B.
    """

    step: int
    dataset: str
    queries: list[np.ndarray]
    candidates: list[np.ndarray]
    owners: np.ndarray
    query_keys: np.ndarray
    candidate_keys: np.ndarray
    labels: np.ndarray
    datasets: np.ndarray
    in_batch: np.ndarray
    scores: np.ndarray
    row_keys: np.ndarray
    global_rows: int

    @property
    def texts(self) -> int:
        return len(self.queries) + len(self.candidates)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.queries)) + sum(map(len, self.candidates))


@dataclass(frozen=True)
class DrawSettings:
    """How positives and negatives are drawn: at most ``hard_negatives`` per row, anew in every epoch."""

    seed: int
    hard_negatives: int


@dataclass(frozen=True)
class Slice:
    """What one worker is to take for one global step: row numbers (int64 [b]) of a batch of ``global_rows``."""

    step: int
    epoch: int
    dataset: str
    rows: np.ndarray
    global_rows: int
    in_batch: bool = True


def slice_of(batch: Batch, step: int, rank: int = 0, width: int = 1) -> Slice:
    """A rank's slice of a global batch."""
    rows = rank_rows(batch.rows, rank, width)
    return Slice(step, batch.epoch, batch.dataset, rows, len(batch.rows), batch.in_batch)


class BatchReader:
    """Turns slices into batches: the rows of a store, by the rules of their datasets."""

    def __init__(self, store: TokenStore, settings: DrawSettings) -> None:
        self._store = store
        self._settings = settings
        self._rules = list(dataset_rules(store.datasets).values())

    def __call__(self, part: Slice) -> TrainBatch:
        rules = [self._rules[d] for d in self._store.dataset[part.rows].tolist()]
        return assemble(part, self._store.take(part.rows), rules, self._settings)


def assemble(part: Slice, rows: Sequence[TokenRow], rules: Sequence[DatasetRule], settings: DrawSettings) -> TrainBatch:
    """Draw one positive and the hard negatives of every row and lay them out; ``rules`` are the rows' datasets'."""
    positives, negatives, owners = [], [], list(range(len(rows)))
    for index, (row, rule) in enumerate(zip(rows, rules, strict=True)):
        positive, hard = _draw(row, _negatives(row, rule, settings), part.epoch, settings.seed)
        positives.append(positive)
        negatives += hard
        owners += [index] * len(hard)
    return TrainBatch(
        step=part.step,
        dataset=part.dataset,
        queries=[r.query for r in rows],
        candidates=positives + negatives,
        owners=np.asarray(owners, dtype=np.int64),
        query_keys=text_keys([r.query for r in rows]),
        candidate_keys=text_keys(positives + negatives),
        labels=np.array([r.label for r in rows], dtype=np.int64),
        datasets=np.array([rule.place for rule in rules], dtype=np.int64),
        in_batch=np.array([part.in_batch and rule.in_batch for rule in rules], dtype=bool),
        scores=np.array([r.score if q.graded else np.nan for r, q in zip(rows, rules, strict=True)], dtype=np.float32),
        row_keys=row_keys(np.frombuffer(b"".join(r.id for r in rows), dtype=np.uint8).reshape(-1, 16)),
        global_rows=part.global_rows,
    )


def _negatives(row: TokenRow, rule: DatasetRule, settings: DrawSettings) -> int:
    """How many hard negatives a row may bring: a graded one brings none, its loss compares pairs."""
    if rule.graded and not np.isnan(row.score):
        return 0
    return settings.hard_negatives if rule.hard_negatives is None else rule.hard_negatives


def _draw(row: TokenRow, most: int, epoch: int, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Without replacement; a row that has fewer negatives than asked brings those it has."""
    if len(row.pos) == 1 and len(row.neg) <= most:
        return row.pos[0], list(row.neg)
    rng = np.random.default_rng(derive_seed(seed, "row", row.id.hex(), epoch))
    positive = row.pos[int(rng.integers(len(row.pos)))]
    return positive, [row.neg[i] for i in rng.permutation(len(row.neg))[:most]]


def text_keys(sequences: Sequence[np.ndarray]) -> np.ndarray:
    """int64 [n]: 64-bit hashes of token sequences."""
    digests = b"".join(hashlib.blake2b(s.tobytes(), digest_size=8).digest() for s in sequences)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)


def row_keys(ids: np.ndarray) -> np.ndarray:
    """uint64 [n]: the first 8 bytes of row ids (uint8 [n, 16])."""
    return np.ascontiguousarray(ids).view("<u8").reshape(-1, 2)[:, 0].astype(np.uint64)


def order_digest(keys: np.ndarray) -> str:
    """16 hexadecimal digits that name the rows of a global batch, in order, by their ``row_keys``."""
    return hashlib.blake2b(keys.astype("<u8").tobytes(), digest_size=8).hexdigest()


def run_digest(digests: Iterable[str]) -> str:
    """16 hexadecimal digits that name the rows of a whole run, by the digests of its steps."""
    return hashlib.blake2b("".join(digests).encode(), digest_size=8).hexdigest()


def local_feed(
    batches: Sequence[Batch], store: TokenStore, settings: DrawSettings, start: int = 0
) -> Iterator[TrainBatch]:
    """The same batches for one process without Ray, from step ``start`` on: nothing before it is read."""
    read = BatchReader(store, settings)
    for step in range(start, len(batches)):
        yield read(slice_of(batches[step], step))
