"""Resident members: a point in memory gives the bits of the merge on disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from boom_ray.config import BoomError
from boom_ray.encoder import Encoder
from boom_ray.ledger import Key
from boom_ray.merge.gram import Grams, gram
from boom_ray.merge.stream import in_directory, merge, plan_coefficients, write
from boom_ray.search.coefficients import MergeSpec, effective_scale, groups_of, point_coefficients
from boom_ray.search.groups import group_names, tensor_groups
from boom_ray.search.points import Point, even_point
from boom_ray.search.resident import Resident
from boom_ray.stages.final import mergekit_recipe

METHODS = [("multislerp", False), ("multislerp", True), ("linear", False), ("karcher", True), ("model_stock", False)]


@pytest.fixture(scope="module")
def members(small_base) -> tuple[Path, ...]:
    return tuple(small_base(seed) for seed in (1, 2, 3))


@pytest.fixture(scope="module")
def grams(small_base, members, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("grams") / "grams.npz"
    gram(list(members), small_base(0)).save(file)
    return file


@pytest.fixture
def spec(small_base, members, grams):
    def make(task_vectors: bool = False) -> MergeSpec:
        return MergeSpec(members, small_base(0), grams, "multislerp", task_vectors)

    return make


def grouped(method: str, names: list[str], kind: str, seed: int = 0) -> Point:
    rng = np.random.default_rng(seed)
    groups = group_names(tensor_groups(names, kind))
    return Point(method, {g: even_point(method, rng.dirichlet(np.ones(3)).tolist()).of("all") for g in groups}, 1.1)


def points(method: str, names: list[str]) -> list[Point]:
    return [
        even_point(method, [0.4, 0.6, 1.0]),
        even_point(method, [1.0, 1.0, 1.0], 1.3, base=0.25),
        even_point(method, [0.0, 0.7, 0.1], 0.8),
        even_point(method, [0.0, 0.0, 1.0]),
        grouped(method, names, "coarse"),
        grouped(method, names, "layers"),
    ]


def state(resident: Resident) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in resident.encoder.backbone.state_dict().items()}


@pytest.mark.parametrize(("method", "task_vectors"), METHODS)
def test_the_same_bits_as_the_merge_to_disk(spec, tmp_path, method, task_vectors):
    one, two = (Resident(spec(task_vectors), device="cpu", threads=threads) for threads in (1, 2))
    for number, point in enumerate(points(method, list(one.grams.matrices))):  # in one model: nothing is left over
        assert one.apply(point) > 0
        two.apply(point)
        out = tmp_path / str(number)
        chosen = point_coefficients(one.grams, one.spec, point)
        write(plan_coefficients(chosen, one.spec.members, one.spec.base, out))
        written, in_memory = load_file(out / "model.safetensors"), state(one)
        assert set(one.parameters) == written.keys()
        for name, value in written.items():
            assert torch.equal(in_memory[name], value), name
            assert torch.equal(two.parameters[name], value), name
        texts = ["redcat blueship", "oldtree"]
        assert np.array_equal(one.encoder.encode(texts), Encoder.load(out, device="cpu").encode(texts))


@pytest.mark.parametrize(("method", "task_vectors"), METHODS[:4])
@pytest.mark.parametrize("member", [0, 1, 2])
def test_one_hot_weights_give_the_member(spec, members, method, task_vectors, member):
    resident = Resident(spec(task_vectors), device="cpu")
    weights = [0.0, 0.0, 0.0]
    weights[member] = 0.5
    resident.apply(even_point(method, weights))
    found = state(resident)
    for name, value in load_file(members[member] / "model.safetensors").items():
        ulp = np.spacing(value.abs().numpy())
        assert (np.abs(found[name].numpy() - value.numpy()) <= ulp).all(), name


def test_scale_and_base_share_by_hand(spec, small_base, members):
    resident = Resident(spec(), device="cpu")
    base, *files = (load_file(d / "model.safetensors") for d in (small_base(0), *members))
    for share in (0.0, 0.3):
        resident.apply(even_point("linear", [1.0, 2.0, 1.0], 1.2, base=share))
        for name, origin in base.items():
            mean = (files[0][name].double() + 2 * files[1][name].double() + files[2][name].double()) / 4
            merged = origin.double() + 1.2 * (mean - origin.double())
            expected = (1 - share) * merged + share * origin.double()
            assert torch.allclose(resident.parameters[name].double(), expected, rtol=1e-6, atol=1e-8), name


def test_every_group_takes_its_own_weights(spec, members):
    """One member per group: each tensor is that member's."""
    resident = Resident(spec(), device="cpu")
    names = list(resident.grams.matrices)
    groups = tensor_groups(names, "coarse")
    owner = {group: place % 3 for place, group in enumerate(group_names(groups))}
    assert len(set(owner.values())) == 3
    weights = {group: tuple(float(i == place) for i in range(3)) for group, place in owner.items()}
    resident.apply(Point("linear", weights))
    files = [load_file(d / "model.safetensors") for d in members]
    for name in names:
        assert torch.equal(resident.parameters[name], files[owner[groups[name]]][name]), name


def test_equal_weights_in_all_groups_are_no_groups(spec):
    resident = Resident(spec(), device="cpu")
    names = group_names(tensor_groups(list(resident.grams.matrices), "layers"))
    plain, spread = (even_point("multislerp", [1, 2, 3], 1.2, groups=g) for g in (("all",), names))
    one, other = (point_coefficients(resident.grams, resident.spec, p) for p in (plain, spread))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_bfloat16_layers_hold_the_merge_rounded_once(spec):
    exact, rounded = Resident(spec(), device="cpu"), Resident(spec(), device="cpu", precision="bfloat16")
    point = even_point("multislerp", [1.0, 2.0, 3.0], 1.1)
    exact.apply(point)
    rounded.apply(point)
    kinds = {tensor.dtype for tensor in rounded.parameters.values()}
    assert kinds == {torch.float32, torch.bfloat16}
    for name, value in exact.parameters.items():
        found = rounded.parameters[name]
        if found.dtype == torch.float32:
            assert torch.equal(found, value), name
        else:  # by at most half a step: rounding the float32 again may break a tie otherwise
            step = value.abs() * 2.0**-7
            assert ((found.float() - value).abs() <= 0.5 * step + 1e-9).all(), name


def test_before_any_point_the_model_is_the_base(spec, small_base):
    resident = Resident(spec(), device="cpu")
    base = load_file(small_base(0) / "model.safetensors")
    assert all(torch.equal(state(resident)[name], value) for name, value in base.items())


def test_points_that_do_not_fit_are_refused(spec, grams, tmp_path):
    resident = Resident(spec(), device="cpu")
    with pytest.raises(BoomError, match="2 merge weights for 3 members"):
        resident.apply(even_point("linear", [1.0, 1.0]))
    with pytest.raises(BoomError, match="sum to zero"):
        even_point("linear", [0.0, 0.0, 0.0])
    with pytest.raises(BoomError, match="every element by itself"):
        resident.apply(even_point("ties", [1.0, 1.0, 1.0]))
    with pytest.raises(BoomError, match="no weights for tensor group"):
        resident.apply(Point("linear", {"embeddings": (1.0, 0.0, 0.0)}))


def test_a_member_that_broke_is_named(spec, members, small_base, grams, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(members[0], broken)
    weights = load_file(broken / "model.safetensors")
    name = next(n for n in weights if n.endswith("dense.weight"))
    weights[name][0, :2] = float("nan")
    from safetensors.torch import save_file

    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    resident = Resident(MergeSpec((broken, *members[1:]), small_base(0), grams, "linear", False), device="cpu")
    with pytest.raises(BoomError, match=f"{name}' has 2 NaN"):
        resident.apply(even_point("linear", [1.0, 1.0, 1.0]))


@pytest.mark.parametrize("kind", ["none", "coarse"])
def test_the_mergekit_recipe_of_a_point_makes_the_same_model(spec, small_base, members, grams, tmp_path, kind):
    """What a run writes beside a searched merge, read by `boom-ray merge`: the same bytes of weights."""
    keys = [Key("members", f"member-{k}", str(k) * 16) for k in range(3)]
    base = Key("base", "base", "b" * 16)
    for key, directory in zip([*keys, base], [*members, small_base(0)], strict=True):
        shutil.copytree(directory, tmp_path / key.kind / key.name)
    names = list(Grams.load(grams).matrices)
    point = even_point("multislerp", [1, 2, 4], 1.2, base=0.1) if kind == "none" else grouped("linear", names, kind)
    merges = SimpleNamespace(merge=SimpleNamespace(task_vectors=False))
    task = SimpleNamespace(keys=SimpleNamespace(ensemble=dict(enumerate(keys)), base=base), recipe=merges)
    recipe = mergekit_recipe(task, point, groups_of(point, names))
    assert recipe["parameters"]["scale"] == pytest.approx(effective_scale(point))
    merge(in_directory(recipe, tmp_path), tmp_path / "out")
    resident = Resident(spec(), device="cpu")
    resident.apply(point)
    for name, value in load_file(tmp_path / "out" / "model.safetensors").items():
        assert torch.equal(resident.parameters[name], value), name
