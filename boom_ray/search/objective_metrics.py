"""The metric of each task type on judged rows, from their vectors, kept row by row so that intervals can be drawn.

A row is compared with what the training loss compares it with: its own candidates and, where its dataset's rule says
so, those of the other rows, without false negatives. So nothing but what the loss needs is encoded.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from boom_ray.data.batches import TrainBatch, order_digest
from boom_ray.evaluate.samples import Samples
from boom_ray.train.losses import allowed_candidates

_AT = 10  # of nDCG
_FEWEST_PAIRS = 3  # graded pairs of a correlation


class RowMetric:
    """What one dataset's rows are scored by; everything but the vectors is settled when it is made.

    retrieval and reranking: nDCG@10 or the reciprocal rank of the row's positive among its candidates, one positive
    per row; classification and clustering: whether the positive stands above every negative; sts: Spearman's
    correlation of cosine and score. A candidate that ties with the positive counts as above it, so that a model that
    maps everything to one vector does not look perfect. A row without any other candidate says nothing and is left
    out.
    """

    def __init__(self, batch: TrainBatch, task_type: str, ranking: Literal["ndcg", "mrr"]) -> None:
        self._texts = order_digest(batch.row_keys)
        self._rows = len(batch.queries)
        graded = ~np.isnan(batch.scores)
        self._graded = np.flatnonzero(graded)
        self._scores = batch.scores[graded].astype(np.float64)
        self._ranking = ranking if task_type in ("retrieval", "reranking") else "first"
        self._allowed = _others(batch)
        self._compared = self._allowed.any(1)

    @property
    def known(self) -> bool:
        """Whether these rows can be scored: graded pairs whose scores differ, or rows with something to be above."""
        if len(self._graded):
            return len(self._graded) >= _FEWEST_PAIRS and len(set(self._scores.tolist())) > 1
        return bool(self._compared.any())

    def samples(self, vectors: torch.Tensor) -> Samples:
        """From vectors [b + C, D] in the order queries, candidates; ``score()`` of the result is the metric."""
        queries, candidates = vectors[: self._rows].float(), vectors[self._rows :].float()
        if len(self._graded):
            own = (queries * candidates[: self._rows]).sum(-1).cpu().numpy().astype(np.float64)
            return Samples("spearman", self._texts, own[self._graded], self._scores)
        values = _gains(self._ranks(queries, candidates), self._ranking)
        return Samples("mean", self._texts, values)

    def _ranks(self, queries: torch.Tensor, candidates: torch.Tensor) -> np.ndarray:
        """Ranks, from 1, of the positives of the rows that are compared with anything."""
        cosine = queries @ candidates.T
        above = (cosine >= cosine.diagonal()[:, None]) & self._allowed.to(cosine.device)
        ranks: np.ndarray = 1 + above.sum(1)[self._compared.to(cosine.device)].cpu().numpy()
        return ranks


def _others(batch: TrainBatch) -> torch.Tensor:
    """Boolean [b, C]: the candidates that stand beside each row's own positive."""
    columns = (batch.owners, batch.query_keys, batch.candidate_keys, batch.in_batch, batch.labels)
    allowed = allowed_candidates(*(torch.from_numpy(np.ascontiguousarray(column)) for column in columns))
    places = torch.arange(len(batch.queries))
    allowed[places, places] = False
    return allowed


def _gains(ranks: np.ndarray, ranking: str) -> np.ndarray:
    """What a single relevant candidate at each rank is worth, in [0, 1]."""
    if ranking == "ndcg":
        return np.where(ranks <= _AT, 1 / np.log2(1.0 + ranks), 0.0)
    return 1.0 / ranks if ranking == "mrr" else (ranks == 1).astype(np.float64)
