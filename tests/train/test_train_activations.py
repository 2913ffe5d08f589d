"""Feed-forward parts that keep their input alone: the same numbers and gradients, less kept."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import BertConfig, BertModel, Qwen3Config, Qwen3Model

from boom_ray.train.activations import GeluLinear, _GeluLinear, fit

SIZE = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def test_gradients_are_those_of_the_formula():
    shapes = ((2, 3, 5), (4, 5), (4,))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    expected = torch.nn.functional.linear(torch.nn.functional.gelu(inputs[0]), *inputs[1:])
    assert torch.equal(_GeluLinear.apply(*inputs), expected)
    assert torch.autograd.gradcheck(_GeluLinear.apply, inputs)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_fitted_encoder_has_the_same_outputs_gradients_and_names(frozen):
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SIZE), add_pooling_layer=False).eval()
    if frozen:
        model.encoder.layer[1].output.dense.requires_grad_(False)
    fitted = copy.deepcopy(model)
    fit(fitted)
    assert sum(isinstance(module, GeluLinear) for module in fitted.modules()) == 2
    ids = torch.randint(1, 60, (3, 7))
    outputs, kept = [], []
    for one in (model, fitted):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
            outputs.append(one(input_ids=ids).last_hidden_state)
        outputs[-1].square().sum().backward()
        kept.append(sum(size for size in sizes if size == 3 * 7 * 24))
    assert torch.allclose(*outputs, atol=1e-6)
    assert kept[0] == kept[1] * (1.5 if frozen else 2)
    assert fitted.state_dict().keys() == model.state_dict().keys()
    for (name, p), q in zip(model.named_parameters(), fitted.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        assert p.grad is None or torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-5), name


def test_weights_are_shared_and_not_copied():
    layer = torch.nn.Linear(3, 2)
    assert GeluLinear.of(layer).weight is layer.weight


def test_another_activation_and_a_decoder_stay_as_they_are():
    models = [
        BertModel(BertConfig(**SIZE, hidden_act="relu")),
        Qwen3Model(Qwen3Config(**SIZE, num_key_value_heads=1, head_dim=8)),
    ]
    for model in models:
        fit(model)
        assert not any(isinstance(module, GeluLinear) for module in model.modules())
