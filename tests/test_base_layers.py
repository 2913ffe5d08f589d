"""``base.layers``: the first layers of a model as a base of its own."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from boom_ray.base import import_base
from boom_ray.config import BoomError, parse_recipe
from boom_ray.encoder import Encoder, pool
from boom_ray.plan import World, derive_keys

TEXTS = ["red cat", "a long text about old ships and new towns", "big tree"]


def test_the_base_is_the_hidden_state_behind_its_layers(small_base, tmp_path):
    import_base(small_base(), tmp_path / "one", None, 24, layers=1)
    whole, cut = Encoder.load(small_base(), device="cpu"), Encoder.load(tmp_path / "one", device="cpu")
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["num_hidden_layers"] == 1
    assert not [name for name in cut.backbone.state_dict() if "layer.1." in name]
    for text in TEXTS:
        ids = torch.from_numpy(whole.tokenize([text])[0].astype(np.int64))[None]
        with torch.inference_mode():
            states = whole.backbone(input_ids=ids, output_hidden_states=True).hidden_states
        expected = pool(states[1], torch.ones_like(ids), "mean").numpy()
        np.testing.assert_allclose(cut.encode([text]), expected, atol=1e-6)
        assert np.abs(cut.encode([text]) - whole.encode([text])).max() > 1e-3


def test_all_layers_are_the_model_itself(small_base, tmp_path):
    import_base(small_base(), tmp_path / "all", None, 24, layers=2)
    import_base(small_base(), tmp_path / "plain", None, 24)
    same = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("all", "plain")]
    assert same[0] == same[1]


def test_a_model_with_fewer_layers_is_refused(small_base, tmp_path):
    with pytest.raises(BoomError, match=r"base\.layers is 3, but .* has 2 layers\. Lower it"):
        import_base(small_base(), tmp_path / "out", None, 24, layers=3)


def test_layers_are_part_of_the_base_only_where_they_are_given():
    def start(**base: object) -> str:
        raw = {"name": "x", "base": {"model": "m", **base}, "corpus": {"datasets": [{"path": "x"}]}}
        return derive_keys(parse_recipe(raw), World(("s",), "b", ())).start.identity

    assert start() == start(layers=None)
    assert len({start(), start(layers=3), start(layers=2)}) == 3


def test_a_base_that_is_built_has_its_own_number_of_layers():
    with pytest.raises(BoomError, match=r"build\.layers says how many"):
        parse_recipe({"name": "x", "base": {"build": {}, "layers": 2}, "corpus": {"datasets": [{"path": "x"}]}})
