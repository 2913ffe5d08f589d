"""Resident members: a weight vector in memory gives the bits of the merge on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from boom_ray.config import BoomError
from boom_ray.encoder import Encoder
from boom_ray.merge.gram import Grams, gram
from boom_ray.merge.methods import coefficients
from boom_ray.merge.stream import plan_coefficients, write
from boom_ray.search.resident import MergeSpec, Resident

POINTS = [([0.4, 0.6, 1.0], 1.0), ([1.0, 1.0, 1.0], 1.3), ([0.0, 0.7, 0.1], 0.8), ([0.0, 0.0, 1.0], 1.0)]
METHODS = [("multislerp", False), ("multislerp", True), ("linear", False), ("karcher", True)]


@pytest.fixture(scope="module")
def members(small_base) -> tuple[Path, ...]:
    return tuple(small_base(seed) for seed in (1, 2, 3))


@pytest.fixture(scope="module")
def grams(small_base, members, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("grams") / "grams.npz"
    gram(list(members), small_base(0)).save(file)
    return file


def _state(resident: Resident) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in resident.encoder.backbone.state_dict().items()}


@pytest.mark.parametrize(("method", "task_vectors"), METHODS)
def test_the_same_bits_as_the_merge_to_disk(small_base, members, grams, tmp_path, method, task_vectors):
    resident = Resident(MergeSpec(members, small_base(0), grams, method, task_vectors), device="cpu")
    for number, (weights, scale) in enumerate(POINTS):  # one after the other in the same model: nothing is left over
        resident.apply(weights, scale)
        out = tmp_path / str(number)
        chosen = coefficients(method, Grams.load(grams), weights, scale=scale, task_vectors=task_vectors)
        write(plan_coefficients(chosen, members, small_base(0), out))
        written = load_file(out / "model.safetensors")
        in_memory = _state(resident)
        assert written.keys() <= in_memory.keys()
        assert {n for n, _ in resident.encoder.backbone.named_parameters()} == written.keys()
        for name, value in written.items():
            assert torch.equal(in_memory[name], value), name
        texts = ["redcat blueship", "oldtree"]
        assert np.array_equal(resident.encoder.encode(texts), Encoder.load(out, device="cpu").encode(texts))


@pytest.mark.parametrize(("method", "task_vectors"), METHODS)
@pytest.mark.parametrize("member", [0, 1, 2])
def test_one_hot_weights_give_the_member(small_base, members, grams, method, task_vectors, member):
    resident = Resident(MergeSpec(members, small_base(0), grams, method, task_vectors), device="cpu")
    weights = [0.0, 0.0, 0.0]
    weights[member] = 0.5
    resident.apply(weights, 1.0)
    state = _state(resident)
    for name, value in load_file(members[member] / "model.safetensors").items():
        ulp = np.spacing(value.abs().numpy())
        assert (np.abs(state[name].numpy() - value.numpy()) <= ulp).all(), name


def test_scale_multiplies_what_was_added_to_the_base(small_base, members, grams):
    resident = Resident(MergeSpec(members, small_base(0), grams, "linear", False), device="cpu")
    resident.apply([1.0, 2.0, 1.0], 1.2)
    state = _state(resident)
    base, *files = (load_file(d / "model.safetensors") for d in (small_base(0), *members))
    for name, value in base.items():
        origin = value.double()
        mean = (files[0][name].double() + 2 * files[1][name].double() + files[2][name].double()) / 4
        assert torch.allclose(state[name].double(), origin + 1.2 * (mean - origin), rtol=1e-6, atol=1e-8), name


def test_before_any_weights_the_model_is_the_base(small_base, members, grams):
    resident = Resident(MergeSpec(members, small_base(0), grams, "multislerp", False), device="cpu")
    base = load_file(small_base(0) / "model.safetensors")
    assert all(torch.equal(_state(resident)[name], value) for name, value in base.items())


def test_weights_that_sum_to_zero_are_refused(small_base, members, grams):
    resident = Resident(MergeSpec(members, small_base(0), grams, "multislerp", False), device="cpu")
    with pytest.raises(BoomError, match="sum to zero"):
        resident.apply([0.0, 0.0, 0.0], 1.0)
