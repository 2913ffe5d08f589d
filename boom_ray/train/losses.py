"""Losses: pure functions on embeddings. The model is someone else's.

All loss functions see the global batch; how ranks share it is decided in :mod:`boom_ray.train.loop`.
"""

from __future__ import annotations

import torch


def allowed_candidates(
    owners: torch.Tensor,
    query_keys: torch.Tensor,
    candidate_keys: torch.Tensor,
    in_batch: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    """Boolean [B, C]: which candidates a query is compared with.

    Candidate i < B is the positive of query i and always allowed. A query whose ``in_batch`` is false sees its own
    candidates only. Masked as false negatives are: a candidate whose text equals the query's positive or the query
    itself, and one whose text is the query or the positive of a row of the same label.

    Args:
        owners: [C] query that brought each candidate.
        query_keys: [B], candidate_keys: [C]: hashes of the texts.
        in_batch: boolean [B].
        labels: [B]; 0: none.
    """
    size = len(query_keys)
    queries = torch.arange(size, device=owners.device)
    is_query = candidate_keys[None, :] == query_keys[:, None]
    is_text_of = (candidate_keys[None, :] == candidate_keys[:size, None]) | is_query  # [row, candidate]
    allowed = ~is_text_of & (in_batch[:, None] | (owners[None, :] == queries[:, None]))
    if (labels != 0).any():
        alike = (labels[:, None] == labels[None, :]) & (labels != 0)[:, None]
        allowed &= (alike.float() @ is_text_of.float()) == 0
    allowed[queries, queries] = True
    return allowed


def not_above_positive(queries: torch.Tensor, candidates: torch.Tensor, margin: float) -> torch.Tensor:
    """Boolean [B, C]: candidates whose cosine is above that of the query's positive by at most ``margin``.

    What is above it is taken for a false negative. The comparison carries no gradient.
    """
    with torch.no_grad():
        cosine = queries @ candidates.T
        return cosine <= cosine.diagonal()[:, None] + margin


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


def cosent(
    left: torch.Tensor, right: torch.Tensor, scores: torch.Tensor, datasets: torch.Tensor, temperature: float
) -> torch.Tensor:
    """CoSENT for graded pairs: log(1 + sum over score_i > score_j of exp((cos_j - cos_i) / temperature)).

    A smooth count of the pairs of pairs that stand in the wrong order (Su 2022; kexue.fm/archives/8847). Scores of two
    datasets have two scales: they are never compared.

    Args:
        left, right: [B, D] unit vectors; scores, datasets: [B].
    """
    cosine = (left * right).sum(-1) / temperature
    wrong = cosine[None, :] - cosine[:, None]
    above = (scores[:, None] > scores[None, :]) & (datasets[:, None] == datasets[None, :])
    wrong = wrong.masked_fill(~above, float("-inf"))
    return torch.logsumexp(torch.cat([wrong.new_zeros(1), wrong.flatten()]), dim=0)
