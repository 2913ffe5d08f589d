"""Losses: pure functions on embeddings. The model is someone else's.

All loss functions see the global batch; how ranks share it is decided in :mod:`boom_ray.train.loop`.
"""

from __future__ import annotations

import torch

NO_IN_BATCH = ("classification", "clustering")  # a batch holds rows of one class more than once (boom.md 1.3)


def allowed_candidates(
    owners: torch.Tensor, query_keys: torch.Tensor, candidate_keys: torch.Tensor, in_batch: bool
) -> torch.Tensor:
    """Boolean [B, C]: which candidates a query is compared with.

    Candidate i < B is the positive of query i and always allowed. With ``in_batch`` false a query sees its own
    candidates only. A candidate whose text equals the query's positive, or the query itself, is a false negative and
    is masked.

    Args:
        owners: [C] query that brought each candidate.
        query_keys: [B], candidate_keys: [C]: hashes of the texts.
    """
    size = len(query_keys)
    queries = torch.arange(size, device=owners.device)
    positive_keys = candidate_keys[:size]
    false_negative = (candidate_keys[None, :] == positive_keys[:, None]) | (
        candidate_keys[None, :] == query_keys[:, None]
    )
    allowed = ~false_negative
    if not in_batch:
        allowed &= owners[None, :] == queries[:, None]
    allowed[queries, queries] = True
    return allowed


def info_nce(
    queries: torch.Tensor, candidates: torch.Tensor, allowed: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean InfoNCE (van den Oord et al. 2018): cross-entropy of cosine / temperature; query i has its positive at i.

    Args:
        queries: [B, D] unit vectors; candidates: [C, D] unit vectors, C >= B; allowed: boolean [B, C].
    """
    logits = queries @ candidates.T / temperature
    logits = logits.masked_fill(~allowed, float("-inf"))
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(queries), device=queries.device))


def cosent(left: torch.Tensor, right: torch.Tensor, scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """CoSENT for graded pairs: log(1 + sum over score_i > score_j of exp((cos_j - cos_i) / temperature)).

    A smooth count of the pairs of pairs that stand in the wrong order (Su 2022; kexue.fm/archives/8847).

    Args:
        left, right: [B, D] unit vectors; scores: [B].
    """
    cosine = (left * right).sum(-1) / temperature
    wrong = cosine[None, :] - cosine[:, None]
    wrong = wrong.masked_fill(scores[:, None] <= scores[None, :], float("-inf"))
    return torch.logsumexp(torch.cat([wrong.new_zeros(1), wrong.flatten()]), dim=0)
