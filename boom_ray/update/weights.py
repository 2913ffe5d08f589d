"""The weights that a new member joins with, and the step towards them that a bound on the drift allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boom_ray.chain import mass_share
from boom_ray.config import BoomError
from boom_ray.data.bagging import Draw, dev_rows, membership_hash
from boom_ray.plan import Keys
from boom_ray.search.coefficients import MergeSpec, merge_spec
from boom_ray.search.points import Point, even_point
from boom_ray.update.task import Job

_STEPS = 10  # halvings: the step is found to a thousandth


def target_point(job: Job, added: int) -> Point:
    """Where the merge would go without a bound: weights of the current model and of the candidate.

    Args:
        added: rows of the new member's bag.
    """
    settings = job.settings
    if settings.weights == "searched":
        return Point.from_json(job.ledger.manifest(job.keys.search)["meta"]["point"])
    shares = {"fixed": settings.share, "mass": mass_share(job.stand.behind, added), "ensemble": 1.0}
    share = shares[settings.weights]
    return even_point(job.recipe.merge.method, (1.0 - share, share))


def bounded(target: Point, step: float) -> Point:
    """The point at ``step`` in [0, 1] of the way from the current model (0) to the target (1)."""
    if step == 1.0:
        return target
    shares = {group: step * weights[1] for group, weights in target.weights.items()}
    weights = {group: (1.0 - share, share) for group, share in shares.items()}
    return Point(target.method, weights, 1.0 + (target.scale - 1.0) * step, step * target.base)


def largest_step(drift: Callable[[float], float], limit: float) -> tuple[float, float]:
    """The largest step whose drift is at most ``limit``, and that drift, by halving; drift grows with the step.

    Raises:
        BoomError: not even a thousandth of the way is.
    """
    whole = drift(1.0)
    if whole <= limit:
        return 1.0, whole
    low, high, found = 0.0, 1.0, 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        moved = drift(middle)
        if moved <= limit:
            low, found = middle, moved
        else:
            high = middle
    if low == 0.0:
        raise BoomError(
            f"update.max_drift {limit:g} leaves the new member no weight: the whole merge drifts by {whole:.3g}, and a "
            f"thousandth of it by more than the bound. Raise update.max_drift."
        )
    return low, found


@dataclass(frozen=True)
class BoundTask:
    """What the bound is measured with: the pair, the point without a bound, and rows of old texts."""

    merge: MergeSpec
    target: Point
    tokens: Path
    rows: np.ndarray
    limit: float


def bound_task(job: Job, pair: Keys, target: Point) -> BoundTask:
    """The task of a job whose pair of models has its Gram matrices."""
    assert job.settings.max_drift is not None
    return BoundTask(
        merge=merge_spec(job.ledger, pair, job.recipe),
        target=target,
        tokens=job.path(job.stand.tokens).resolve(),
        rows=probe_rows(job),
        limit=job.settings.max_drift,
    )


def probe_rows(job: Job) -> np.ndarray:
    """Row numbers of old dev rows (half A), ``update.probe`` at most, as even over datasets as they allow."""
    from boom_ray.data.membership import corpus_rows

    rows = corpus_rows(job.path(job.stand.tokens))
    drawn = Draw.from_json(job.ledger.read_json(job.keys.bags, "draw.json"))
    ordered = [
        where[np.argsort(membership_hash(rows.ids[where], drawn.dev_seed), kind="stable")]
        for where in dev_rows(rows, drawn, "a").values()
    ]
    turns: list[Any] = [found[turn] for turn in range(max(map(len, ordered), default=0)) for found in ordered
                        if turn < len(found)]  # fmt: skip
    if not turns:
        raise BoomError("update.max_drift is measured on dev rows, and the run has none: raise corpus.dev.min_rows.")
    return np.sort(np.array(turns[: job.settings.probe], np.int64))


def mean_drift(old: np.ndarray, new: np.ndarray) -> float:
    """Mean of 1 - cosine between unit vectors [N, D] of the same texts."""
    return float(np.mean(1.0 - np.sum(old.astype(np.float64) * new.astype(np.float64), axis=1)))
