"""Members kept resident: merge weights go straight into a model's parameters, with nothing written or reloaded.

The members are memory-mapped (all actors of a node share their pages) and their Gram matrices are cached, so applying
a weight vector costs one pass over the mapped weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from boom_ray.config import BoomError, Recipe
from boom_ray.encoder import Encoder
from boom_ray.ledger import Ledger
from boom_ray.merge.engine import Engine
from boom_ray.merge.gram import Grams
from boom_ray.merge.members import open_members
from boom_ray.merge.methods import coefficients
from boom_ray.plan import Keys


@dataclass(frozen=True)
class MergeSpec:
    """What is merged and how; everything but weights and scale."""

    members: tuple[Path, ...]
    base: Path
    grams: Path
    method: str
    task_vectors: bool


def merge_spec(ledger: Ledger, keys: Keys, recipe: Recipe) -> MergeSpec:
    return MergeSpec(
        members=tuple(ledger.path(key).resolve() for key in keys.ensemble.values()),
        base=ledger.path(keys.base).resolve(),
        grams=(ledger.path(keys.grams) / "grams.npz").resolve(),
        method=recipe.merge.method,
        task_vectors=recipe.merge.task_vectors,
    )


class Resident:
    """One model in memory whose parameters become any merge of the members."""

    def __init__(self, spec: MergeSpec, device: str | None = None) -> None:
        self._spec = spec
        self._grams = Grams.load(spec.grams)
        self._engine = Engine(open_members(spec.members, spec.base), workers=1)
        self.encoder = Encoder.load(spec.base, device=device)
        self._parameters = dict(self.encoder.backbone.named_parameters())

    @torch.no_grad()
    def apply(self, weights: Sequence[float], scale: float) -> None:
        """Set the model to the merge with these weights and this scale: the same bits as the merge to disk.

        Raises:
            BoomError: a tensor of the members is no parameter of the model.
        """
        spec = self._spec
        chosen = coefficients(spec.method, self._grams, weights, scale=scale, task_vectors=spec.task_vectors)
        for name, values in chosen.items():
            if name not in self._parameters:
                raise BoomError(
                    f"{spec.base}: tensor '{name}' is no parameter of the model that the directory describes."
                )
            parameter = self._parameters[name]
            merged = torch.from_numpy(self._engine.combine_into(name, values)).view(parameter.shape)
            parameter.copy_(merged)
