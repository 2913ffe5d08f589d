"""What of an engine outlives its process: the float32 weights that are trained, Adam's moments and its counts, each
tensor whole, whatever ZeRO cut it into. So a state can be taken from two ranks and given to one, or to another stage.

Moments exist from the start, as the zeros that Adam would make in its first step: a fresh and a restored engine are
alike. That also mends DeepSpeed 0.19, which ties moments to parameters after the first group's first step and misses
those of the groups that follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist

MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = ("weights", *MOMENTS)
# of DeepSpeed's dynamic loss scale
_SCALER = {"cur_scale": float, "cur_iter": int, "last_overflow_iter": int, "cur_hysteresis": int}

Counters = dict[str, float]


class State(Protocol):
    """A kind of tensor (of ``KINDS``) for every trained parameter, by the name it has in the backbone."""

    @property
    def names(self) -> tuple[str, ...]:
        """The same on all ranks, in the same order."""
        ...

    def read(self, kind: str, name: str) -> torch.Tensor:
        """Whole, in float32; an exchange, so all ranks ask alike. It may be the engine's own: copy it."""
        ...

    def write(self, kind: str, name: str, value: torch.Tensor) -> None:
        """Replace a tensor of which every rank has the whole ``value``."""
        ...

    def counters(self) -> Counters:
        """Updates made and the loss scale, where there is one."""
        ...

    def count(self, counters: Counters) -> None:
        """Go on counting from there."""
        ...


class PlainState:
    """Of an AdamW that holds the parameters themselves, as on plain torch and at ZeRO 0.

    Args:
        masters: the float32 tensor that the optimiser holds, by parameter name.
    """

    def __init__(self, masters: Mapping[str, torch.Tensor], adam: torch.optim.Optimizer, scaler: Any = None) -> None:
        self._masters, self._adam, self._scaler = masters, adam, scaler
        self.names = tuple(masters)
        _begin(adam, masters.values())

    def read(self, kind: str, name: str) -> torch.Tensor:
        master = self._masters[name]
        return master.detach() if kind == "weights" else self._adam.state[master][kind]

    def write(self, kind: str, name: str, value: torch.Tensor) -> None:
        self.read(kind, name).copy_(value)

    def counters(self) -> Counters:
        return _counters(self._adam, self._scaler)

    def count(self, counters: Counters) -> None:
        _count(self._adam, self._scaler, counters)


class ZeroState:
    """Of DeepSpeed's ZeRO 1 to 3: ``zero`` is its optimiser, ``parameters`` the trained ones by name.

    The weights that the model computes with are not written: give them to the model before DeepSpeed gets it.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], zero: Any) -> None:
        self._parameters, self._zero = parameters, zero
        self.names = tuple(parameters)
        self._in_parts = hasattr(zero, "fp32_partitioned_groups_flat")  # ZeRO 3
        flats = zero.fp32_partitioned_groups_flat if self._in_parts else zero.single_partition_of_fp32_groups
        _begin(zero.optimizer, flats)
        if not self._in_parts:
            zero._lazy_init_hp_params_optimizer_state()

    def read(self, kind: str, name: str) -> torch.Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        parameter = self._parameters[name]
        if kind == "weights":
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, kind)

    def write(self, kind: str, name: str, value: torch.Tensor) -> None:
        parameter: Any = self._parameters[name]
        if self._in_parts:
            self._write_part(kind, parameter, value)
        else:
            parameter.set_full_hp_param(value, None if kind == "weights" else kind)

    def _write_part(self, kind: str, parameter: Any, value: torch.Tensor) -> None:
        """DeepSpeed's own call for whole values fails where the last rank's part is padded, so this rank's part is cut
        here."""
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        size = parameter.partition_numel()
        padded = torch.nn.functional.pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
        part = padded.narrow(0, size * dist.get_rank(), size)
        if kind == "weights":
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, kind)

    def counters(self) -> Counters:
        return _counters(self._zero.optimizer, self._zero.loss_scaler)

    def count(self, counters: Counters) -> None:
        _count(self._zero.optimizer, self._zero.loss_scaler, counters)


def _begin(adam: torch.optim.Optimizer, held: Iterable[torch.Tensor]) -> None:
    """The state that Adam makes of each tensor before its first update."""
    on_device = adam.defaults.get("fused") or adam.defaults.get("capturable")
    for tensor in held:
        step = torch.zeros((), dtype=torch.float32, device=tensor.device if on_device else "cpu")
        moments = {kind: torch.zeros_like(tensor, requires_grad=False) for kind in MOMENTS}
        adam.state[tensor] = {"step": step, **moments}


def _counters(adam: torch.optim.Optimizer, scaler: Any) -> Counters:
    updates = {int(state["step"]) for state in adam.state.values()}
    assert len(updates) == 1, f"parameters have been updated {sorted(updates)} times"
    told = {name: float(getattr(scaler, name)) for name in _SCALER if hasattr(scaler, name)}
    return {"updates": float(updates.pop()), **told}


def _count(adam: torch.optim.Optimizer, scaler: Any, counters: Counters) -> None:
    for state in adam.state.values():
        state["step"].fill_(counters["updates"])
    for name, kind in _SCALER.items():
        if hasattr(scaler, name):
            setattr(scaler, name, kind(counters[name]))
