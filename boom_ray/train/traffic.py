"""What a plan moves over the network, on paper: between the workers of each member, and from and to storage. Light.

Exchanges are counted as ring algorithms do them: to give ``n`` bytes to each of ``w`` workers costs ``(w - 1) n`` bytes
in all, a sum over workers that all receive twice that. Left out, because they are small beside these: embeddings and
losses of a batch, gradients of adapters, tokens (each is read once a step), and checkpoints (weights and moments, as
often as ``checkpoints.every`` says).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from boom_ray.config import Recipe, Train
from boom_ray.plan import MERGES
from boom_ray.resources import Placement

STORED = 4  # bytes of a weight in a model's file
_EXCHANGED = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Sizes:
    """Of what is trained: parameters of the model, tokens of a row (all its texts).

    ``at_most``: the tokens are not known, and those of texts as long as ``base.max_tokens`` stand for them.
    """

    parameters: float
    row_tokens: float
    at_most: bool = False

    @classmethod
    def assumed(cls, recipe: Recipe, parameters: float, row_tokens: float | None) -> Sizes:
        texts = 2 + recipe.train.hard_negatives
        return cls(parameters, row_tokens or float(texts * recipe.base.max_tokens), row_tokens is None)


@dataclass(frozen=True)
class Traffic:
    """Bytes of a whole ensemble. ``workers``: received by all workers from one another; ``peak``: by each worker of the
    member that exchanges most, per second; ``read`` and ``written``: of storage, weights alone."""

    workers: float
    peak: float
    read: float
    written: float
    at_most: bool


def step_bytes(train: Train, width: int, sizes: Sizes) -> float:
    """Bytes that the workers of a member receive from one another in one step, all together.

    Up to ZeRO 2 gradients are summed once an update, and what was updated is given to all. ZeRO 3 gathers the weights
    for every chunk of texts, forwards and backwards, and where activations are not kept once more in between.
    """
    model = sizes.parameters * _EXCHANGED[train.precision]
    if train.zero_stage < 3:
        trained = 0.0 if train.lora else model
        return 2 * (width - 1) * trained / train.accumulation
    chunks = math.ceil(train.batch_size / width * sizes.row_tokens / train.chunk_tokens)
    passes = 3 if train.gradient_checkpointing else 2
    return (width - 1) * model * (passes * chunks + (0 if train.lora else 1 / train.accumulation))


def traffic(recipe: Recipe, placements: Sequence[Placement], rows: Mapping[str, float], sizes: Sizes) -> Traffic:
    """Of the members of a plan, whose times are seconds; ``rows`` that each is trained on, by its name."""
    moved, peak = 0.0, 0.0
    for p in placements:
        member = step_bytes(recipe.train, p.width, sizes) * rows[p.name] / recipe.train.batch_size
        moved += member
        peak = max(peak, member / p.width / (p.end - p.start))
    file, members, merges = STORED * sizes.parameters, len(placements), len(MERGES)
    scored = 1 + merges + (members if recipe.evaluate.members else 0)
    read = sum(p.width for p in placements) + (1 + merges) * (members + 1) + scored + 1  # the last: what is published
    return Traffic(moved, peak, file * read, file * (members + merges + 1), sizes.at_most)
