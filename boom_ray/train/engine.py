"""Engines: who owns the optimiser. Plain torch on one device, or DeepSpeed, which only this module and `state` know."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from boom_ray.config import BoomError, Train
from boom_ray.encoder import embed
from boom_ray.train.cache import BatchEncoder
from boom_ray.train.gather import rank
from boom_ray.train.lora import Origin, fold, origins
from boom_ray.train.state import PlainState, State, ZeroState

# Torch's and DeepSpeed's defaults are these; the paper's stack trains with them, so they are not left to a release.
_ADAM: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "fused": True}
_NO_FLOAT16 = "train.precision float16 {}: its range is small. Set train.precision to bfloat16 or float32."


class PlainEngine:
    """AdamW on plain torch, one process; with bfloat16, float32 weights whose layers compute in bfloat16.

    Raises:
        BoomError: float16 is asked for: it needs a loss scale.
    """

    def __init__(self, model: BatchEncoder, train: Train) -> None:
        if train.precision == "float16":
            raise BoomError(_NO_FLOAT16.format("needs a loss scale, which only DeepSpeed has here"))
        self.model = model
        self.model.compute = torch.bfloat16 if train.precision == "bfloat16" else None
        self._origins = origins(model.backbone)
        self.shapes = _shapes(model.backbone, self._origins)
        self._max_norm = train.max_grad_norm
        groups = parameter_groups(model, train.weight_decay)
        self._optimizer = torch.optim.AdamW(groups, lr=train.learning_rate, **_ADAM)
        self.state: State = PlainState(trained_parameters(model.backbone), self._optimizer)

    def step(self, loss: torch.Tensor, learning_rate: float, update: bool = True) -> float | None:
        loss.backward()
        if not update:
            return None
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._max_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        state = self.model.backbone.state_dict()
        for name, origin in self._origins.items():
            yield name, fold(origin, state.__getitem__)


class DeepSpeedEngine:
    """The same update through DeepSpeed, ZeRO stage 0 to 3, inside an initialised process group.

    Raises:
        BoomError: float16 on a device that does not compute in it.
    """

    def __init__(self, model: BatchEncoder, train: Train) -> None:
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        if train.precision == "float16" and not get_accelerator().is_fp16_supported():
            raise BoomError(_NO_FLOAT16.format("is not what this device computes in"))
        # On CPUs DeepSpeed would compile a collective of its own at the start (half a minute, ninja, a C++ compiler);
        # only its inference uses it, so it is declared not to fit this machine.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._backbone = model.backbone
        self._origins = origins(model.backbone)
        self.shapes = _shapes(model.backbone, self._origins)
        self._untrained = _untrained(model.backbone)
        self._trained = trained_parameters(model.backbone)
        self._sizes = {name: parameter.shape for name, parameter in self._trained.items()}  # ZeRO 3 empties them
        groups = parameter_groups(model, train.weight_decay)
        self._engine, *_ = deepspeed.initialize(model=model, model_parameters=groups, config=deepspeed_config(train))
        kind = ZeroState if self._engine.zero_optimization() else PlainState
        self.state: State = kind(self._trained, self._engine.optimizer)
        self._loss_scale = self._engine.optimizer.loss_scaler if train.precision == "float16" else None
        if self._loss_scale is not None:
            self._loss_scale.raise_error_at_min_scale = False  # the loop says what is wrong

    @property
    def model(self) -> torch.nn.Module:
        return self._engine

    def step(self, loss: torch.Tensor, learning_rate: float, update: bool = True) -> float | None:
        # The learning rate is a pure function of the step, so it is set here and no scheduler has a state to restore.
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.set_gradient_accumulation_boundary(update)
        self._engine.backward(loss, scale_wrt_gas=False)
        if not update:
            self._engine.step()
            return None
        # without ZeRO the gradients are whole and averaged here, and DeepSpeed tells no norm of them
        whole = (
            []
            if self._engine.zero_optimization()
            else [p.grad for p in self._backbone.parameters() if p.grad is not None]
        )
        own = torch.nn.utils.get_total_norm(whole)
        scale = self._loss_scale
        can_fall = scale is not None and scale.cur_scale > scale.min_scale
        self._engine.step()
        if not self._engine.was_step_applied():  # a gradient is not finite: by the loss scale, as long as that can fall
            return None if can_fall else math.inf
        told = self._engine.get_global_grad_norm()
        return float(own if told is None else told)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """From the float32 masters where the model is in 16 bits; each is whole on a rank only while it is asked for.

        What is not trained is known to the first rank, which writes: others yield zeros in its place.
        """
        for name, origin in self._origins.items():
            yield name, fold(origin, self._whole)

    def _whole(self, name: str) -> torch.Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        if name in self._untrained:
            return self._untrained[name]
        master = safe_get_full_fp32_param(self._trained[name])
        whole = self._trained[name].detach() if master is None else master
        return whole.reshape(self._sizes[name])


def _untrained(backbone: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What is not trained, by name, before DeepSpeed rounds it to 16 bits or cuts it into parts; on other ranks than
    the first, zeros that take no memory."""
    trained = trained_parameters(backbone)
    state = {name: tensor for name, tensor in backbone.state_dict().items() if name not in trained}
    if rank() == 0:
        return {name: tensor.cpu().clone() for name, tensor in state.items()}
    return {name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for name, tensor in state.items()}


def trained_parameters(backbone: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """By name."""
    return {name: p for name, p in backbone.named_parameters() if p.requires_grad}


def _shapes(backbone: torch.nn.Module, plain: dict[str, Origin]) -> dict[str, tuple[int, ...]]:
    state = backbone.state_dict()
    return {name: tuple(state[origin.name].shape) for name, origin in plain.items()}


def deepspeed_config(train: Train) -> dict[str, Any]:
    """The DeepSpeed settings of a recipe. One forward and backward per global batch: every stage sums rightly."""
    import torch.distributed as dist

    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    offload = {"offload_optimizer": host} if train.offload != "none" else {}
    offload |= {"offload_param": host} if train.offload == "weights" else {}
    return {
        # DeepSpeed only checks this product; the loop feeds whole global batches itself, and says when to update
        "train_batch_size": dist.get_world_size() * train.accumulation,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": train.accumulation,
        "gradient_clipping": train.max_grad_norm,
        "zero_optimization": {"stage": _stage(train, dist.get_world_size()), **offload},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": train.precision == "bfloat16"},
        # a loss scale that falls when a gradient overflows, which costs that update, and rises again; as the paper's
        "fp16": {"enabled": train.precision == "float16", "loss_scale": 0, "initial_scale_power": 10},
        # torch's, which needs no compiler where DeepSpeed's own for a CPU would be built
        "optimizer": {"type": "AdamW", "params": {"lr": train.learning_rate, "torch_adam": True, **_ADAM}},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def _stage(train: Train, workers: int) -> int:
    """The ZeRO stage that is used. A worker alone has nobody to share with, and in float32 its weights are the masters:
    ZeRO would only copy them and their gradients (a fifth of a second a step for 22 million weights on two cores). A
    checkpoint is the same at every stage, so the member may go on beside others."""
    alone = workers == 1 and train.precision == "float32" and train.offload == "none"
    return 0 if alone else train.zero_stage


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in at most two groups: matrices decay, biases and norms do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices, others = ([p for p in trainable if (p.ndim >= 2) == wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def freeze_unused(model: torch.nn.Module, pooling: str, pad_id: int) -> list[str]:
    """Stop training parameters that no embedding depends on (BERT's pooler), and name them.

    ZeRO flattens parameters and would decay them although they have no gradient; plain torch would not. Frozen, they
    stay what the base says under both.
    """
    model.zero_grad(set_to_none=True)
    embed(model, [np.arange(4, dtype=np.int64)], pooling, pad_id, 64).sum().backward()
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    for name, parameter in model.named_parameters():
        if name in unused:
            parameter.requires_grad_(False)
    model.zero_grad(set_to_none=True)
    return unused
