"""Low-rank adapters: a member trains them instead of its weights, and leaves plain weights behind.

A linear layer of weight W computes (W + alpha / rank * B A) x, with A random and B zero at first, so that training
starts at the base (Hu et al. 2021, arXiv 2106.09685). The layers are peft's. Folding happens tensor by tensor while a
member is read, never in the model that trains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from boom_ray.config import BoomError, Lora

_NAME = "default"  # peft's for an adapter that has none of its own
_BASE = ".base_layer"  # where peft keeps the layer that it wraps


@dataclass(frozen=True)
class Update:
    """``scale`` x left @ right: names of B [out, rank] and A [rank, in] in the backbone that trains."""

    left: str
    right: str
    scale: float


@dataclass(frozen=True)
class Origin:
    """Where a tensor of the plain model comes from: the name that it has in the backbone that trains."""

    name: str
    update: Update | None = None


def adapt(backbone: torch.nn.Module, lora: Lora, seed: int) -> None:
    """Put adapters beside the linear layers that ``lora`` names, in place; nothing else of the backbone is trained.

    Raises:
        BoomError: a name that no linear layer has.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = [name for name, module in backbone.named_modules() if isinstance(module, torch.nn.Linear)]
    known = sorted({name.rpartition(".")[2] for name in linear})
    if unknown := [name for name in lora.targets if name not in known]:
        raise BoomError(
            f"train.lora.targets: no linear module is named {', '.join(unknown)}; this backbone has {', '.join(known)}."
        )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=[name for name in linear if name.rpartition(".")[2] in lora.targets],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, backbone)


def origins(backbone: torch.nn.Module) -> dict[str, Origin]:
    """Of every tensor that the backbone has without its adapters, by its plain name."""
    found: dict[str, Origin] = {}
    for name in backbone.state_dict():
        module, _, leaf = name.rpartition(".")
        if not module.endswith(_BASE):
            if ".lora_" not in name:
                found[name] = Origin(name)
            continue
        layer = module.removesuffix(_BASE)
        adapted: Any = backbone.get_submodule(layer)
        left, right = (f"{layer}.{factor}.{_NAME}.weight" for factor in ("lora_B", "lora_A"))
        update = Update(left, right, adapted.scaling[_NAME])
        found[f"{layer}.{leaf}"] = Origin(name, update if leaf == "weight" else None)
    return found


def fold(origin: Origin, whole: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """A tensor of the plain model; ``whole`` gives those of the backbone that trains, by name, in float32."""
    tensor = whole(origin.name)
    if origin.update is None:
        return tensor
    left, right = whole(origin.update.left), whole(origin.update.right)
    return torch.addmm(tensor.to(left.device), left, right, alpha=origin.update.scale)
