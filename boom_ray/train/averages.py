"""Averages of a member's own weights while it trains: an exponential moving average, and the mean of its last looks.

They cost no second run, so they are the controls that a merge of members has to beat. The number of steps is known
before the first, and so is the factor of every look in either average: each is one running sum of float32 tensors, in
the first rank's host memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from boom_ray.config import Averages
from boom_ray.train.gather import rank
from boom_ray.train.loop import Engine

if TYPE_CHECKING:
    from boom_ray.train.checkpoint import Checkpoint

_LEAST = 1e-8  # share of an average that float32 cannot hold beside the others: such a look is not taken


def factors(settings: Averages | None, steps: int) -> dict[str, dict[int, float]]:
    """By name of the average (``ema``, ``last3``), the factors of the looks at the weights, by steps done.

    Looks are ``settings.every`` steps apart and the last is at the end. In ``ema`` a look that is n steps old counts
    ``settings.ema ** n``; the base's weights do not count. Factors sum to 1.
    """
    if settings is None:
        return {}
    looks = range(steps, 0, -settings.every)
    found: dict[str, dict[int, float]] = {}
    if settings.ema is not None:
        found["ema"] = _normalised({done: settings.ema ** (steps - done) for done in looks})
    if settings.last is not None:
        found[f"last{settings.last}"] = _normalised(dict.fromkeys(looks[: settings.last], 1.0))
    return found


def _normalised(raw: Mapping[int, float]) -> dict[int, float]:
    kept = {done: factor for done, factor in raw.items() if factor > _LEAST * max(raw.values())}
    return {done: factor / sum(kept.values()) for done, factor in kept.items()}


class RunningAverages:
    """The sums of one run: call it with every step's number when its update is made.

    Attributes:
        sums: by ``AVERAGE:NAME`` of a backbone's tensor, on the first rank only. Tensors are replaced, never changed,
            so a checkpoint that is being written keeps those it was given.
    """

    def __init__(self, settings: Averages | None, steps: int, engine: Engine) -> None:
        self.factors = factors(settings, steps)
        self.sums: dict[str, torch.Tensor] = {}
        self._engine = engine

    def __call__(self, step: int) -> None:
        here = {name: by_step[step + 1] for name, by_step in self.factors.items() if step + 1 in by_step}
        if not here:
            return
        for tensor_name, tensor in self._engine.tensors():  # an exchange: all ranks take part
            if rank() == 0:
                value = tensor.detach().to("cpu", torch.float32)
                for average, factor in here.items():
                    name = f"{average}:{tensor_name}"
                    before = self.sums.get(name)
                    self.sums[name] = value * factor if before is None else before.add(value, alpha=factor)

    def restore(self, begun: Checkpoint) -> None:
        """Take over the sums of the run that wrote a checkpoint."""
        if rank() == 0:
            self.sums = {name: begun.read(name) for average in self.factors for name in begun.names(average)}

    def tensors(self, average: str) -> Mapping[str, torch.Tensor]:
        """An average's tensors by name, when all looks have been taken; empty on ranks other than the first."""
        prefix = f"{average}:"
        return {name.removeprefix(prefix): value for name, value in self.sums.items() if name.startswith(prefix)}
