"""From row numbers to a training batch: tokens of queries and candidates, with who owns and who matches what.

Pure: the same (rows, seed, epoch) gives the same batch on any worker, because the draw of a positive and of hard
negatives depends on the row's id and not on its neighbours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from boom_ray.data.bagging import derive_seed
from boom_ray.data.schedule import Batch
from boom_ray.data.tokens import TokenRow, TokenStore


@dataclass(frozen=True)
class TrainBatch:
    """One worker's part of a global batch of B rows; b rows are here, with C candidate passages.

    Attributes:
        step: number of the global step.
        dataset, task_type: of all rows.
        queries: b token sequences.
        candidates: C token sequences; the first b are the rows' positives, hard negatives follow.
        owners: int64 [C], the query whose row brought the candidate.
        query_keys: int64 [b], and candidate_keys: int64 [C]: hashes of the tokens; equal keys are equal texts.
        scores: float32 [b] of graded sts rows, else None.
        global_rows: B.
    """

    step: int
    dataset: str
    task_type: str
    queries: list[np.ndarray]
    candidates: list[np.ndarray]
    owners: np.ndarray
    query_keys: np.ndarray
    candidate_keys: np.ndarray
    scores: np.ndarray | None
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


def assemble(
    step: int, dataset: tuple[str, str], rows: Sequence[TokenRow], epoch: int, settings: DrawSettings, global_rows: int
) -> TrainBatch:
    """Draw one positive and the hard negatives of every row and lay them out; ``dataset`` is (name, task type)."""
    positives, negatives, owners = [], [], list(range(len(rows)))
    for index, row in enumerate(rows):
        positive, hard = _draw(row, epoch, settings)
        positives.append(positive)
        negatives += hard
        owners += [index] * len(hard)
    scores = np.array([r.score for r in rows], dtype=np.float32)
    # also for a rank without rows (a tail smaller than the width): all ranks must take the same loss
    graded = dataset[1] == "sts" and not np.isnan(scores).any()
    return TrainBatch(
        step=step,
        dataset=dataset[0],
        task_type=dataset[1],
        queries=[r.query for r in rows],
        candidates=positives + negatives,
        owners=np.asarray(owners, dtype=np.int64),
        query_keys=text_keys([r.query for r in rows]),
        candidate_keys=text_keys(positives + negatives),
        scores=scores if graded else None,
        global_rows=global_rows,
    )


def _draw(row: TokenRow, epoch: int, settings: DrawSettings) -> tuple[np.ndarray, list[np.ndarray]]:
    """Without replacement; a row that has fewer negatives than asked brings those it has."""
    if len(row.pos) == 1 and len(row.neg) <= settings.hard_negatives:
        return row.pos[0], list(row.neg)
    rng = np.random.default_rng(derive_seed(settings.seed, "row", row.id.hex(), epoch))
    positive = row.pos[int(rng.integers(len(row.pos)))]
    chosen = rng.permutation(len(row.neg))[: settings.hard_negatives]
    return positive, [row.neg[i] for i in chosen]


def text_keys(sequences: Sequence[np.ndarray]) -> np.ndarray:
    """int64 [n]: 64-bit hashes of token sequences."""
    digests = b"".join(hashlib.blake2b(s.tobytes(), digest_size=8).digest() for s in sequences)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)


def local_feed(batches: Sequence[Batch], store: TokenStore, settings: DrawSettings) -> Iterator[TrainBatch]:
    """The same batches for one process without Ray."""
    task_types = {d["name"]: d["task_type"] for d in store.datasets}
    for step, batch in enumerate(batches):
        rows = store.take(batch.rows)
        yield assemble(step, (batch.dataset, task_types[batch.dataset]), rows, batch.epoch, settings, len(batch.rows))
