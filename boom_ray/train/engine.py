"""Engines: who owns the optimiser. Plain torch on one device, or DeepSpeed; the only module that knows DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from boom_ray.config import Train
from boom_ray.encoder import embed
from boom_ray.train.cache import BatchEncoder
from boom_ray.train.state import PlainState, State, ZeroState


class PlainEngine:
    """AdamW on plain torch, one process."""

    def __init__(self, model: BatchEncoder, train: Train) -> None:
        self.model = model
        self.shapes = _shapes(model.backbone)
        self._max_norm = train.max_grad_norm
        self._optimizer = torch.optim.AdamW(
            parameter_groups(model, train.weight_decay), lr=train.learning_rate, fused=True
        )
        self.state: State = PlainState(trained_parameters(model.backbone), self._optimizer)

    def step(self, loss: torch.Tensor, learning_rate: float) -> float:
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._max_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.model.backbone.state_dict().items()


class DeepSpeedEngine:
    """The same update through DeepSpeed, ZeRO stage 0 to 3, inside an initialised process group."""

    def __init__(self, model: BatchEncoder, train: Train) -> None:
        import deepspeed

        # On CPUs DeepSpeed would compile a collective of its own at the start (half a minute, ninja, a C++ compiler);
        # only its inference uses it, so it is declared not to fit this machine.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._backbone = model.backbone
        self.shapes = _shapes(model.backbone)
        trained = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
        state = model.backbone.state_dict()
        # what is not trained is lost otherwise: rounded to bfloat16, or cut into parts
        self._untrained = {name: tensor.cpu().clone() for name, tensor in state.items() if name not in trained}
        groups = parameter_groups(model, train.weight_decay)
        self._engine, *_ = deepspeed.initialize(model=model, model_parameters=groups, config=deepspeed_config(train))
        kind = ZeroState if self._engine.zero_optimization() else PlainState
        self.state: State = kind(trained_parameters(model.backbone), self._engine.optimizer)

    @property
    def model(self) -> torch.nn.Module:
        return self._engine

    def step(self, loss: torch.Tensor, learning_rate: float) -> float:
        # The learning rate is a pure function of the step, so it is set here and no scheduler has a state to restore.
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.backward(loss)
        # without ZeRO the gradients are whole and averaged here, and DeepSpeed tells no norm of them
        whole = (
            []
            if self._engine.zero_optimization()
            else [p.grad for p in self._backbone.parameters() if p.grad is not None]
        )
        own = torch.nn.utils.get_total_norm(whole)
        self._engine.step()
        told = self._engine.get_global_grad_norm()
        return float(own if told is None else told)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """From the float32 masters where the model is bfloat16; each is whole on a rank only while it is asked for."""
        from deepspeed.utils import safe_get_full_fp32_param

        yield from self._untrained.items()
        for name, parameter in self._backbone.named_parameters():
            if name not in self._untrained:
                master = safe_get_full_fp32_param(parameter)
                whole = parameter.detach() if master is None else master
                yield name, whole.reshape(self.shapes[name])


def trained_parameters(backbone: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in backbone.named_parameters() if p.requires_grad}


def _shapes(backbone: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}


def deepspeed_config(train: Train) -> dict[str, Any]:
    """The DeepSpeed settings of a recipe. One forward and backward per step: every stage sums rightly."""
    import torch.distributed as dist

    world = dist.get_world_size()
    return {
        # DeepSpeed only checks this product; the loop feeds whole global batches itself
        "train_batch_size": world,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.max_grad_norm,
        "zero_optimization": {"stage": train.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": train.precision == "bfloat16"},
        "optimizer": {"type": "AdamW", "params": {"lr": train.learning_rate, "torch_adam": True}},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay, biases and norms do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


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
