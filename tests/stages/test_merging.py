"""One merge on several nodes: the same bytes as on one, and Gram matrices that grow as members land."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.config import BoomError
from boom_ray.ledger import Key, Ledger, file_sha256

ray = pytest.importorskip("ray")
from boom_ray.merge.gram import Grams, gram  # noqa: E402
from boom_ray.merge.methods import coefficients  # noqa: E402
from boom_ray.merge.stream import MergeOptions, plan_coefficients, write  # noqa: E402
from boom_ray.stages.merging import FILE, GramTask, GrowingGrams, cut, known_grams, make_grams, merge_on_cluster  # noqa: E402

SHAPES = {f"encoder.layer.{k}.weight": (64, 96 + k) for k in range(40)}
WEIGHTS = [0.2, 0.6, 1.0]


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 12))
def test_parts_hold_every_tensor_once_in_order(sizes: list[int], count: int) -> None:
    names = [str(k) for k in range(len(sizes))]
    parts = cut(names, dict(zip(names, sizes, strict=True)), count)
    assert [name for part in parts for name in part] == names
    assert all(parts)
    most = sum(sizes) / count
    assert all(len(part) == 1 or sum(sizes[int(n)] for n in part) <= most for part in parts)
    assert len(parts) <= 2 * count + 1


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Three nodes of one CPU each, as processes of this machine."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=1)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
        nodes.wait_for_nodes()
        yield
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture
def task(tmp_path: Path) -> GramTask:
    """A ledger with a base and three members of random weights."""
    from safetensors.numpy import save_file

    ledger = Ledger.open(tmp_path / "run", "merging")
    rng = np.random.default_rng(3)
    origin = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    keys = [Key("base", "base", "b" * 16), *(Key("members", f"member-{k}", str(k) * 16) for k in range(3))]
    for key in keys:
        change = 0.0 if key.kind == "base" else 0.1
        weights = {n: (t + change * rng.standard_normal(t.shape)).astype(np.float32) for n, t in origin.items()}
        with ledger.stage(key) as stage:
            save_file(weights, stage.path / "model.safetensors")
            (stage.path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return GramTask(str(ledger.root), tuple(keys[1:]), keys[0], Key("grams", "all", "a" * 16))


def digests(directory: Path) -> dict[str, str]:
    return {f.relative_to(directory).as_posix(): file_sha256(f) for f in sorted(directory.rglob("*")) if f.is_file()}


@pytest.mark.slow
def test_nodes_share_a_merge_and_write_the_same_bytes(cluster: None, task: GramTask, tmp_path: Path) -> None:
    members, base = task.paths()
    values = coefficients("multislerp", gram(members, base), WEIGHTS, task_vectors=True)
    write(plan_coefficients(values, members, base, tmp_path / "alone"))
    plan = plan_coefficients(values, members, base, tmp_path / "shared", options=MergeOptions(workers=1))

    merge = ray.remote(num_cpus=1)(merge_on_cluster)
    shares = ray.get(merge.remote(plan))  # in a process that holds its node's CPU, as the final actor does
    assert sum(shares.values()) == len(SHAPES)
    assert len(shares) == 3, shares
    assert digests(tmp_path / "shared") == digests(tmp_path / "alone")


@pytest.mark.slow
def test_a_broken_member_is_named_wherever_it_is_read(cluster: None, task: GramTask, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    members, base = task.paths()
    values = coefficients("multislerp", gram(members, base), WEIGHTS, task_vectors=True)
    weights = load_file(members[1] / "model.safetensors")
    for name in list(SHAPES)[10:]:
        weights[name][0, :3] = np.nan
    save_file(weights, members[1] / "model.safetensors")
    plan = plan_coefficients(values, members, base, tmp_path / "broken", options=MergeOptions(workers=1))
    with pytest.raises(BoomError, match=r"members/member-1-1+: tensor 'encoder.layer.\d+.weight' has 3 NaN"):
        merge_on_cluster(plan)
    with pytest.raises(BoomError, match="damaged or missing"):
        make_grams(task)


@pytest.mark.slow
def test_grams_grow_as_members_land(cluster: None, task: GramTask, tmp_path: Path) -> None:
    """In whatever order they land; the last pass computes only what is new, and the bits are those of one pass."""
    ledger = Ledger(task.root)
    away = tmp_path / "away"
    away.mkdir()
    for key in task.members:
        ledger.path(key).rename(away / key.name)
    growing = GrowingGrams(task)
    growing.grow()  # nothing has landed
    order = list(task.members)
    random.Random(1).shuffle(order)
    for key in order[:2]:
        (away / key.name).rename(ledger.path(key))
        growing.grow()
    growing.wait()
    landed = [len(manifest["inputs"]["members"]) for _, manifest in ledger.manifests("grams")]
    assert sorted(landed) == [1, 2]

    (away / order[2].name).rename(ledger.path(order[2]))
    known = known_grams(ledger, task)
    assert known is not None
    assert known.members == 2
    make_grams(task)
    members, base = task.paths()
    whole, grown = gram(members, base), Grams.load(ledger.path(task.key) / FILE)
    assert set(whole.matrices) == set(grown.matrices)
    assert all(whole.matrices[n].tobytes() == grown.matrices[n].tobytes() for n in whole.matrices)


@pytest.mark.slow
def test_a_copied_run_computes_its_grams_anew(cluster: None, task: GramTask, tmp_path: Path) -> None:
    """Files of other times are other files: what was cached is left alone."""
    make_grams(task)
    shutil.copytree(task.root, tmp_path / "copy", copy_function=shutil.copyfile)
    copied = GramTask(str(tmp_path / "copy"), task.members[:2], task.base, Key("grams", "two", "c" * 16))
    assert known_grams(Ledger(copied.root), copied) is None
    make_grams(copied)
    assert Ledger(copied.root).has(copied.key)
