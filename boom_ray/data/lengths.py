"""How long the rows of a tokenised corpus are, by dataset."""

from __future__ import annotations

from typing import Any

import numpy as np

from boom_ray.data.tokens import TokenStore


def token_lengths(store: TokenStore) -> dict[str, dict[str, Any]]:
    """Per dataset: ``tokens`` in all, ``longest`` row, and ``histogram``: ``[[upper bound, rows], ...]``.

    A row's length is that of its query, positives and negatives together. Bounds are powers of two: a row of length n
    is counted at the smallest bound that is at least n.
    """
    told = {}
    for index, entry in enumerate(store.datasets):
        lengths = store.lengths(np.flatnonzero(store.dataset == index))
        powers = np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64)
        found, counts = np.unique(powers, return_counts=True)
        told[entry["name"]] = {
            "tokens": int(lengths.sum()),
            "longest": int(lengths.max(initial=0)),
            "histogram": [[2**p, c] for p, c in zip(found.tolist(), counts.tolist(), strict=True)],
        }
    return told
