"""What ranks tell one another of a batch: who its rows are, by which rules, and their embeddings.

Works alike without a process group, where the only rank has everything.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from boom_ray.data.batches import TrainBatch, order_digest
from boom_ray.data.schedule import global_order

_COLUMNS = ("query_keys", "positive_keys", "labels", "datasets", "in_batch", "row_keys", "scores", "tokens")


@dataclass(frozen=True)
class GlobalRows:
    """The B rows of a global batch and their H hard negatives, rank after rank; known to every rank.

    Attributes:
        counts: rows by rank.
        query_keys, positive_keys, labels, datasets: int64 [B]; in_batch: bool [B]; row_keys: uint64 [B];
            scores: float32 [B], NaN where a row is not graded.
        tokens: int64 [B], of query and positive.
        owners, negative_keys, negative_tokens: int64 [H]; owners are numbers of the B rows.
    """

    counts: list[int]
    query_keys: np.ndarray
    positive_keys: np.ndarray
    labels: np.ndarray
    datasets: np.ndarray
    in_batch: np.ndarray
    row_keys: np.ndarray
    scores: np.ndarray
    tokens: np.ndarray
    owners: np.ndarray
    negative_keys: np.ndarray
    negative_tokens: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(texts, tokens) of the batch."""
        return 2 * len(self.query_keys) + len(self.owners), int(self.tokens.sum() + self.negative_tokens.sum())

    @property
    def digest(self) -> str:
        """Names the rows of the batch in their order, the same for any number of ranks."""
        return order_digest(self.row_keys[global_order(self.counts)])


def gather_rows(batch: TrainBatch) -> GlobalRows:
    """Every rank's rows, in two exchanges of small tables."""
    size = len(batch.queries)
    tokens = np.array([len(text) for text in batch.queries + batch.candidates], dtype=np.int64)
    columns = [
        batch.query_keys,
        batch.candidate_keys[:size],
        batch.labels,
        batch.datasets,
        batch.in_batch.astype(np.int64),
        batch.row_keys.view(np.int64),
        batch.scores.view(np.int32).astype(np.int64),
        tokens[:size] + tokens[size : 2 * size],
    ]
    rows, counts = _gather_table(np.stack(columns, axis=1))
    brings = [batch.owners[size:], batch.candidate_keys[size:], tokens[2 * size :]]
    negatives, brought = _gather_table(np.stack(brings, axis=1))
    first = np.repeat(np.cumsum([0, *counts[:-1]]), brought)  # of the rank that a negative lies on
    table = dict(zip(_COLUMNS, (np.ascontiguousarray(column) for column in rows.T), strict=True))
    table["in_batch"] = table["in_batch"].astype(bool)
    table["row_keys"] = table["row_keys"].view(np.uint64)
    table["scores"] = table["scores"].astype(np.int32).view(np.float32)
    owners, keys, lengths = (np.ascontiguousarray(column) for column in negatives.T)
    return GlobalRows(counts, **table, owners=owners + first, negative_keys=keys, negative_tokens=lengths)


def world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def agreed_number() -> int:
    """A number that all ranks of this process group know, and hardly any other group."""
    number = torch.tensor([secrets.randbits(62)], device=_exchanged_on())
    if world() > 1:
        dist.broadcast(number, 0)
    return int(number)


def highest(number: int) -> int:
    """The largest number that a rank brings: all ranks agree on it, and none goes on before all have come."""
    if world() == 1:
        return number
    here = torch.tensor([number], device=_exchanged_on())
    dist.all_reduce(here, dist.ReduceOp.MAX)
    return int(here)


def _exchanged_on() -> str:
    """Where tensors lie that ranks exchange."""
    return "cuda" if world() > 1 and dist.get_backend() == "nccl" else "cpu"


def gather(local: torch.Tensor) -> torch.Tensor:
    """Rows of all ranks, [sum of sizes, D], in rank order; only this rank's rows carry a gradient."""
    return _gather(local)[0]


def _gather(local: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    if world() == 1:
        return local, [len(local)]
    mine = torch.tensor([len(local)], device=local.device)
    told = [torch.zeros_like(mine) for _ in range(world())]
    dist.all_gather(told, mine)
    sizes = [int(size) for size in told]
    padded = local.new_zeros((max(sizes), *local.shape[1:]))
    padded[: len(local)] = local.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    rows = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    rows[rank()] = local
    return torch.cat(rows), sizes


def _gather_table(table: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Rows of all ranks, and how many each brought."""
    if world() == 1:
        return table, [len(table)]
    rows, sizes = _gather(torch.from_numpy(np.ascontiguousarray(table)).to(_exchanged_on()))
    return rows.cpu().numpy(), sizes
