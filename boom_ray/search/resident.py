"""Members kept resident: a point goes straight into a model's parameters, with nothing written or reloaded.

The members are memory-mapped (all actors of a node share their pages) and their Gram matrices are cached, so applying
a point costs one pass over the mapped weights, on as many threads as the actor has.
"""

from __future__ import annotations

import time
from typing import Literal

import numpy as np
import torch

from boom_ray.config import BoomError
from boom_ray.encoder import Encoder
from boom_ray.merge.engine import Engine
from boom_ray.merge.gram import Grams
from boom_ray.merge.members import open_members
from boom_ray.search.coefficients import MergeSpec as MergeSpec
from boom_ray.search.coefficients import merge_spec as merge_spec
from boom_ray.search.coefficients import point_coefficients
from boom_ray.search.points import Point

Precision = Literal["float32", "bfloat16"]
_STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class Resident:
    """One model in memory whose parameters become any merge of the members.

    Attributes:
        spec, grams: what is merged; engine: the mapped members; encoder: the model, which starts as the base.
        parameters: its parameters by name.
    """

    def __init__(
        self, spec: MergeSpec, device: str | None = None, *, threads: int = 1, precision: Precision = "float32"
    ) -> None:
        """
        Args:
            threads: that combine tensors; they change no bit.
            precision: what the weights of linear layers are kept in. bfloat16: each is rounded once from the exact sum,
                and :class:`boom_ray.search.objective.Objective` computes with them so; for processors that are quick
                at it.

        Raises:
            BoomError: a tensor of the members is no parameter of the model.
        """
        self.spec = spec
        self.grams = Grams.load(spec.grams)
        self.engine = Engine(open_members(spec.members, spec.base), workers=threads)
        self.encoder = Encoder.load(spec.base, device=device)
        if precision == "bfloat16":
            for module in self.encoder.backbone.modules():
                if isinstance(module, torch.nn.Linear):
                    module.to(torch.bfloat16)
        self.parameters = dict(self.encoder.backbone.named_parameters())
        for name in self.engine.members.floats:
            if name not in self.parameters:
                raise BoomError(
                    f"{spec.base}: tensor '{name}' is no parameter of the model that the directory describes."
                )

    @torch.no_grad()
    def apply(self, point: Point) -> float:
        """Set the model to the merge of this point: the same bits as the merge to disk. Returns the seconds it took.

        Raises:
            BoomError: a point that is not of these members; weights or results that are NaN or infinite.
        """
        started = time.perf_counter()
        self.fill(point_coefficients(self.grams, self.spec, point))
        return time.perf_counter() - started

    @torch.no_grad()
    def fill(self, chosen: dict[str, np.ndarray]) -> None:
        """Set the model to these coefficients over members and base, tensor by tensor."""
        direct = {name: self.parameters[name] for name in chosen if _in_place(self.parameters[name])}
        self.engine.fill(
            {name: chosen[name] for name in direct},
            {name: (tensor.data_ptr(), _STORED[tensor.dtype]) for name, tensor in direct.items()},
        )
        for name in (name for name in chosen if name not in direct):  # on another device, or not in a row
            parameter = self.parameters[name]
            merged = torch.from_numpy(self.engine.combine_into(name, chosen[name])).view(parameter.shape)
            parameter.copy_(merged)


def _in_place(parameter: torch.nn.Parameter) -> bool:
    return parameter.device.type == "cpu" and parameter.is_contiguous() and parameter.dtype in _STORED
