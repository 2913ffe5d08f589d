"""Points and tensor groups: what is refused, what survives JSON, which tensors go together."""

from __future__ import annotations

import json
import math

import pytest

from boom_ray.config import BoomError
from boom_ray.search.groups import group_names, layer_number, tensor_groups
from boom_ray.search.points import Point, even_point, normalised


def test_a_point_survives_json():
    point = Point("karcher", {"early": (0.1, 0.9), "late": (1 / 3, 2 / 3)}, 1.1, 0.25)
    assert Point.from_json(json.loads(json.dumps(point.to_json()))) == point
    assert point.members == 2
    assert point.grouped
    assert point.of("late") == (1 / 3, 2 / 3)
    assert point.mean_weights() == pytest.approx([(0.1 + 1 / 3) / 2, (0.9 + 2 / 3) / 2])


def test_one_group_serves_all_tensors():
    point = even_point("linear", [1, 3])
    assert point.of("all") == point.of("embeddings") == (0.25, 0.75)
    assert not point.grouped
    with pytest.raises(BoomError, match="no weights for tensor group 'late'"):
        Point("linear", {"early": (1.0,), "norms": (1.0,)}).of("late")


@pytest.mark.parametrize(
    ("weights", "scale", "base", "message"),
    [
        ({"all": (0.0, 0.0)}, 1, 0, "sum to zero"),
        ({"all": (0.5, 0.6)}, 1, 0, "outside the simplex"),
        ({"all": (-0.5, 1.5)}, 1, 0, "at least 0"),
        ({"all": (math.nan, 1.0)}, 1, 0, "finite"),
        ({}, 1, 0, "needs weights"),
        ({"all": ()}, 1, 0, "one weight per member"),
        ({"a": (1.0,), "b": (0.5, 0.5)}, 1, 0, "one weight per member"),
        ({"all": (1.0,)}, 0, 0, "scale"),
        ({"all": (1.0,)}, math.inf, 0, "scale"),
        ({"all": (1.0,)}, 1, 1, "share"),
        ({"all": (1.0,)}, 1, -0.1, "share"),
    ],
)
def test_what_is_no_point(weights, scale, base, message):
    with pytest.raises(BoomError, match=message):
        Point("linear", weights, scale, base)


@pytest.mark.parametrize("raw", [{}, {"method": "linear", "weights": 3, "scale": 1}, {"method": "x", "weights": {}}])
def test_json_that_is_no_point(raw):
    with pytest.raises(BoomError):
        Point.from_json(raw)


@pytest.mark.parametrize(("weights", "message"), [([0, 0], "sum to zero"), ([-1, 2], "at least 0"), ([], "finite")])
def test_weights_that_cannot_be_normalised(weights, message):
    with pytest.raises(BoomError, match=message):
        normalised(weights)


NAMES = {
    "bert": ["embeddings.word_embeddings.weight", "embeddings.LayerNorm.weight", "encoder.layer.0.self.q.weight",
             "encoder.layer.5.output.LayerNorm.bias", "encoder.layer.5.output.dense.weight", "pooler.dense.weight"],
    "qwen": ["embed_tokens.weight", "norm.weight", "layers.0.mlp.up_proj.weight", "layers.5.input_layernorm.weight",
             "layers.5.self_attn.q_proj.weight", "rotary.inv_freq"],
    "gpt": ["wte.weight", "ln_f.weight", "h.0.attn.c_attn.weight", "h.5.ln_1.weight", "h.5.mlp.weight", "head.weight"],
    "t5": ["shared.weight", "encoder.final_layer_norm.weight", "encoder.block.0.layer.0.SelfAttention.q.weight",
           "encoder.block.5.layer.1.layer_norm.weight", "encoder.block.5.layer.1.Dense.wi.weight", "lm_head.weight"],
    "modern": ["embeddings.tok_embeddings.weight", "final_norm.weight", "layers.0.attn.Wqkv.weight",
               "layers.5.mlp_norm.weight", "layers.5.mlp.Wi.weight", "classifier.weight"],
    "wrapped": ["0.auto_model.embeddings.word_embeddings.weight", "0.auto_model.embeddings.LayerNorm.weight",
                "0.auto_model.encoder.layer.0.q.weight", "0.auto_model.encoder.layer.5.LayerNorm.weight",
                "0.auto_model.encoder.layer.5.k.weight", "2.linear.weight"],
}  # fmt: skip


@pytest.mark.parametrize("family", list(NAMES))
def test_groups_of_any_naming(family):
    names = NAMES[family]
    coarse = tensor_groups(names, "coarse")
    assert list(coarse.values()) == ["embeddings", "norms", "early", "norms", "late", "rest"]
    layers = list(tensor_groups(names, "layers").values())
    assert layers[2:5] == ["layer-00", "layer-05", "layer-05"]
    assert layers[5] == "rest"
    assert set(tensor_groups(names, "none").values()) == {"all"}
    assert [layer_number(n) for n in names] == [None, None, 0, 5, 5, None]


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [
        (1, "m"),
        (2, "el"),
        (3, "eml"),
        (4, "emml"),
        (6, "eemmll"),
        (12, "eeeemmmmllll"),
        (22, "e" * 7 + "m" * 8 + "l" * 7),
    ],
)
def test_thirds_of_the_depth(depth, blocks):
    groups = tensor_groups([f"encoder.layer.{i}.w" for i in range(depth)], "coarse")
    assert "".join(group[0] for group in groups.values()) == blocks


def test_order_and_bad_kinds():
    names = [*NAMES["bert"], *(f"encoder.layer.{i}.x.weight" for i in range(1, 5))]
    assert group_names(tensor_groups(names, "coarse")) == ["embeddings", "early", "middle", "late", "norms", "rest"]
    expected = ["embeddings", *(f"layer-0{i}" for i in range(6)), "rest"]
    assert group_names(tensor_groups(names, "layers")) == expected
    with pytest.raises(BoomError, match="no tensor name has a layer number"):
        tensor_groups(["a.weight", "b.weight"], "layers")
    with pytest.raises(BoomError, match="none, coarse or layers"):
        tensor_groups(names, "fine")
