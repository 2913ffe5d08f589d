"""The bound on the drift, measured: merges of the current model and the candidate in memory, on old dev texts."""

from __future__ import annotations

from typing import Any

import numpy as np

from boom_ray.data.tokens import TokenStore
from boom_ray.search.resident import Resident
from boom_ray.update.weights import BoundTask, bounded, largest_step, mean_drift


def find_step(task: BoundTask) -> dict[str, Any]:
    """``{"step", "drift", "limit", "texts"}`` of the largest step whose drift is within the bound.

    Raises:
        BoomError: there is none.
    """
    resident = Resident(task.merge)
    rows = TokenStore(task.tokens).take(task.rows)
    texts = [text for row in rows for text in (row.query, *row.pos[:1])]

    def vectors(step: float) -> np.ndarray:
        resident.apply(bounded(task.target, step))
        return resident.encoder.encode_tokens(texts)

    current = vectors(0.0)
    step, drift = largest_step(lambda step: mean_drift(current, vectors(step)), task.limit)
    return {"step": step, "drift": drift, "limit": task.limit, "texts": len(texts)}
