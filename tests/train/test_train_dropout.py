"""Dropout of a CPU: its share, its gradients by finite differences, attention against the formula."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import BertConfig, BertModel, Qwen3Config, Qwen3Model

from boom_ray.train.dropout import NAME, Dropout, _Attention, attention, fit, kept

SIZE = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.93])
def test_each_element_is_dropped_alike_and_alone(p):
    torch.manual_seed(1)
    keep, share = kept(torch.empty(300, 1001), p)
    assert share == pytest.approx(1 - p, abs=2**-16)
    count = keep.numel()
    assert abs(keep.sum() - share * count) <= 5 * math.sqrt(count * share * (1 - share))
    pairs = (keep[:, 1:] & keep[:, :-1]).float().mean()  # neighbours share a draw of 64 bits, and no bit of it
    assert abs(pairs - share**2) <= 5 * math.sqrt(3 * share**2 * (1 - share**2) / count)
    assert not torch.equal(keep, kept(torch.empty(300, 1001), p)[0]) or p == 0


def test_dropout_keeps_the_mean_and_its_gradient_is_its_factor():
    torch.manual_seed(2)
    values = torch.ones(1000, 50, requires_grad=True)
    out = Dropout(0.1)(values)
    assert set(out.detach().unique().tolist()) == {0.0, out.max().item()}
    assert float(out.detach().mean()) == pytest.approx(1, abs=0.01)
    out.sum().backward()
    assert torch.equal(values.grad, out.detach())
    assert Dropout(0.1).eval()(values) is values


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_the_formula_and_has_its_gradient(masked):
    shape, p = (2, 3, 5, 4), 0.3
    query, key, value = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3))
    allowed = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    allowed[1, :, :, 3:] = not masked

    def ours(*inputs: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return _Attention.apply(*inputs, allowed if masked else None, p, 0.7)

    torch.manual_seed(3)
    keep, share = kept(torch.empty(2, 3, 5, 5), p)
    scores = (0.7 * query @ key.transpose(-1, -2)).masked_fill(~allowed, float("-inf"))
    expected = (scores.softmax(-1) * keep / share) @ value
    assert torch.allclose(ours(query, key, value), expected.transpose(1, 2), atol=1e-12)
    assert torch.autograd.gradcheck(ours, (query, key, value))


def test_without_dropout_attention_is_torchs():
    query, key, value = (torch.randn(2, 3, 5, 4) for _ in range(3))
    module = torch.nn.Module()
    module.is_causal = False
    out, _ = attention(module, query, key, value, None)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert torch.allclose(out, expected.transpose(1, 2), atol=1e-6)


def test_a_fitted_encoder_reads_as_before_and_drops_everywhere():
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SIZE), add_pooling_layer=False).eval()
    ids, mask = torch.randint(1, 60, (3, 7)), torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    before = model(input_ids=ids, attention_mask=mask).last_hidden_state
    described = model.config.to_json_string()
    fit(model)
    after = model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.allclose(after[mask.bool()], before[mask.bool()], atol=1e-6)
    assert model.config._attn_implementation == NAME
    assert model.config.to_json_string() == described  # what is saved does not speak of it
    plain = {name for name, module in model.named_modules() if type(module) is torch.nn.Dropout}
    assert all(name.endswith("self.dropout") for name in plain)  # of BERT's own attention, which does not run
    model.train()
    one, two = (model(input_ids=ids, attention_mask=mask).last_hidden_state for _ in range(2))
    assert not torch.equal(one, two)
    assert (one.detach() - before).norm() < 3 * before.norm()


def test_a_decoder_stays_as_it_is():
    model = Qwen3Model(Qwen3Config(**SIZE, num_key_value_heads=1, head_dim=8))
    fit(model)
    assert model.config._attn_implementation == "sdpa"
