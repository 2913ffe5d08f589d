"""GELU that is computed again instead of kept: a third of what a layer of an encoder keeps for its backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import gelu, linear


def fit(backbone: torch.nn.Module) -> None:
    """Let the feed-forward parts of a BERT, RoBERTa or XLM-R on a CPU keep their input and not also its GELU, in place.

    Names and values of the weights stay what they are.
    """
    config: Any = backbone.config
    on_cpu = next(backbone.parameters()).device.type == "cpu"
    if not on_cpu or config.model_type not in ("bert", "roberta", "xlm-roberta") or config.hidden_act != "gelu":
        return
    for layer in backbone.modules():
        inner, outer = (getattr(layer, name, None) for name in ("intermediate", "output"))
        dense = getattr(outer, "dense", None)
        if inner is not None and outer is not None and type(dense) is torch.nn.Linear:
            inner.intermediate_act_fn = torch.nn.Identity()
            outer.dense = GeluLinear.of(dense)


class GeluLinear(torch.nn.Linear):
    """A linear layer of the GELU of its input."""

    @classmethod
    def of(cls, layer: torch.nn.Linear) -> GeluLinear:
        """With the weights of ``layer``, not a copy of them."""
        with torch.device("meta"):
            made = cls(layer.in_features, layer.out_features)
        made.weight, made.bias = layer.weight, layer.bias
        return made

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _GeluLinear.apply(input, self.weight, self.bias)


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx: Any, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(values, weight)
        return linear(gelu(values), weight, bias)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # in the precision of the forward pass
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        gradient = gradients[0]
        for_values = torch.ops.aten.gelu_backward(gradient @ weight, values)
        rows = gradient.flatten(0, -2)
        for_weight = rows.T @ gelu(values).flatten(0, -2) if ctx.needs_input_grad[1] else None
        return for_values, for_weight, rows.sum(0) if ctx.needs_input_grad[2] else None
