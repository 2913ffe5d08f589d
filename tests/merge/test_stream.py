"""Whole merges on disk: the bytes, the files, the refusals, and that nothing depends on how they run."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SHAPES, draw, write_model
from safetensors.numpy import load_file, save_file

from boom_ray.config import BoomError
from boom_ray.merge import job, plain
from boom_ray.merge.engine import Engine
from boom_ray.merge.gram import Grams, gram
from boom_ray.merge.members import open_members
from boom_ray.merge.methods import coefficients
from boom_ray.merge.stream import MergeOptions, combine_into, merge, plan_coefficients, write

WEIGHTS = (0.2, 0.6, 1.0)


def recipe(members: list[Path], base: Path | None, method: str = "multislerp", **more: Any) -> dict[str, Any]:
    models = [{"model": str(m), "parameters": {"weight": w}} for m, w in zip(members, WEIGHTS, strict=False)]
    return {"merge_method": method, "models": models, **({"base_model": str(base)} if base else {}), **more}


def digest(directory: Path) -> dict[str, str]:
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def large(tmp_path: Path) -> tuple[list[Path], Path]:
    """Members of several pieces, one tensor larger than the window of the smallest memory, with odd sizes."""
    shapes = {
        "embed.weight": (3001, 701),
        "layers.0.weight": (700, 803),
        "layers.0.bias": (7,),
        "layers.1.weight": (0, 4),
    }
    rng = np.random.default_rng(0)
    origin = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    base = write_model(tmp_path / "big-base", origin)
    members = []
    for i in range(3):
        moved = {n: v + 0.1 * rng.standard_normal(v.shape).astype(np.float32) for n, v in origin.items()}
        members.append(write_model(tmp_path / f"big-{i}", moved))
    return members, base


@pytest.mark.parametrize("method", ["multislerp", "karcher", "linear", "ties", "sce"])
def test_workers_window_and_memory_change_no_byte(large: tuple[list[Path], Path], tmp_path: Path, method: str) -> None:
    config = recipe(*large, method=method) | ({"parameters": {"density": 0.3}} if method == "ties" else {})
    found = set()
    for i, options in enumerate(
        (
            MergeOptions(workers=1, mmap=True),
            MergeOptions(workers=2, memory="17MB"),
            MergeOptions(workers=4, memory="40MB", durable=False),
        )
    ):
        out = merge(config, tmp_path / f"out-{i}", options)
        found.add((out / "model.safetensors").read_bytes())
    assert len(found) == 1


def test_streamed_equals_the_formula_in_memory(large: tuple[list[Path], Path], tmp_path: Path) -> None:
    members, base = large
    ours = load_file(merge(recipe(members, base), tmp_path / "out") / "model.safetensors")
    loaded, origin = [load_file(m / "model.safetensors") for m in members], load_file(base / "model.safetensors")
    weights = np.array(WEIGHTS) / sum(WEIGHTS)
    for name, value in ours.items():
        if not value.size:
            continue
        start = origin[name].astype(np.float64)
        shifted = [m[name] - start for m in loaded]
        lengths = np.array([np.linalg.norm(d) for d in shifted])
        mean = sum(w * d / (n + 1e-8) for w, d, n in zip(weights, shifted, lengths, strict=True))
        exact = start + (weights @ lengths) * mean / np.linalg.norm(mean)
        assert np.linalg.norm(value - exact) / np.linalg.norm(exact) < 3e-8


def test_numpy_alone_gives_the_same_bytes(
    large: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = merge(recipe(*large), tmp_path / "compiled")
    monkeypatch.setattr("boom_ray.merge.engine.load_kernels", lambda: plain)
    again = merge(recipe(*large), tmp_path / "plain")
    assert digest(first) == digest(again)


def test_cached_grams_and_growing_ones_give_the_same_bytes(family: tuple[list[Path], Path], tmp_path: Path) -> None:
    members, base = family
    gram(members[:2], base).save(tmp_path / "two.npz")
    grown = gram(members, base, known=Grams.load(tmp_path / "two.npz"))
    whole = gram(members, base, workers=2, window=40_000_000)
    assert all(grown.matrices[n].tobytes() == whole.matrices[n].tobytes() for n in whole.matrices)
    values = coefficients("multislerp", grown, WEIGHTS, task_vectors=True)
    write(plan_coefficients(values, members, base, tmp_path / "cached"))
    direct = merge(recipe(members, base), tmp_path / "direct")
    assert digest(tmp_path / "cached") == {k: v for k, v in digest(direct).items() if k != "mergekit_config.yml"}
    for name, vector in values.items():
        assert (combine_into(name, vector, members, base) == load_file(direct / "model.safetensors")[name]).all()
    for some in ([members[2]], [members[2], members[0]]):  # in whatever order they landed
        other = gram(members, base, known=gram(some, base))
        assert all(other.matrices[n].tobytes() == whole.matrices[n].tobytes() for n in whole.matrices)
    for known in (gram(members[:2]), gram(members[:2], members[2]), gram([base], base)):
        with pytest.raises(BoomError, match="other members"):
            gram(members, base, known=known)


def test_grams_give_raw_and_task_vector_geometry(family: tuple[list[Path], Path]) -> None:
    members, base = family
    grams = gram(members, base)
    loaded, origin = [load_file(m / "model.safetensors") for m in members], load_file(base / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    rows = np.stack([m[name].ravel() for m in loaded]).astype(np.float64)
    shifted = rows - origin[name].ravel()
    assert np.allclose(grams.of(name, False), rows @ rows.T, rtol=1e-12)
    assert np.allclose(grams.of(name, True), shifted @ shifted.T, rtol=1e-6)
    whole = np.stack([np.concatenate([(m[n] - origin[n]).ravel() for n in SHAPES]) for m in loaded]).astype(np.float64)
    lengths = np.linalg.norm(whole, axis=1)
    assert np.allclose(grams.cosine(), whole @ whole.T / np.outer(lengths, lengths), atol=1e-6)


def test_one_hot_weights_give_the_member_bit_for_bit(family: tuple[list[Path], Path], tmp_path: Path) -> None:
    members, base = family
    special = load_file(members[1] / "model.safetensors")
    special["pooler.dense.weight"][0, :4] = [-0.0, 1e-42, np.float32(3e38), 0.0]
    save_file(special, members[1] / "model.safetensors")
    for method in ("multislerp", "karcher", "linear"):
        for k, origin in enumerate((None, base)):
            config = recipe(members, origin, method)
            for i, entry in enumerate(config["models"]):
                entry["parameters"]["weight"] = float(i == 1)
            out = merge(config, tmp_path / f"{method}-{k}")
            assert all(v.tobytes() == special[n].tobytes() for n, v in load_file(out / "model.safetensors").items())


def test_permuted_members_give_the_same_bytes(family: tuple[list[Path], Path], tmp_path: Path) -> None:
    members, base = family
    first = recipe(members, base)
    other = {**first, "models": [first["models"][i] for i in (2, 0, 1)]}
    a, b = merge(first, tmp_path / "a"), merge(other, tmp_path / "b")
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


def test_frozen_tensors_stay_the_base_bit_for_bit(family: tuple[list[Path], Path], tmp_path: Path) -> None:
    members, base = family
    origin = load_file(base / "model.safetensors")
    for member in members:
        tensors = load_file(member / "model.safetensors")
        save_file(tensors | {"pooler.dense.weight": origin["pooler.dense.weight"]}, member / "model.safetensors")
    for method in ("multislerp", "karcher", "model_stock", "ties", "sce"):
        out = merge(recipe(members, base, method), tmp_path / method)
        merged = load_file(out / "model.safetensors")["pooler.dense.weight"]
        assert merged.tobytes() == origin["pooler.dense.weight"].tobytes()


def test_the_directory_is_complete(family: tuple[list[Path], Path], tmp_path: Path) -> None:
    members, base = family
    (members[0] / "README.md").write_text("of the member")
    (members[0] / "optimizer.pt").write_text("state")
    config = tmp_path / "recipe.yml"
    config.write_text(json.dumps(recipe(members, base)))
    out = merge(config, tmp_path / "out")
    copied = {"1_Pooling/config.json", "config.json", "modules.json", "tokenizer.json"}
    assert set(digest(out)) == {*copied, "model.safetensors", "mergekit_config.yml"}
    assert all((out / name).read_bytes() == (members[0] / name).read_bytes() for name in copied)
    assert (out / "mergekit_config.yml").read_text() == config.read_text()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_output_types_and_shards(family: tuple[list[Path], Path], tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch

    members, base = family
    wide = load_torch(merge(recipe(members, base), tmp_path / "wide") / "model.safetensors")
    out = merge(recipe(members, base, out_dtype=dtype), tmp_path / "out", MergeOptions(shard_size="1KB"))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        value = load_torch(out / file)[name]
        assert value.dtype == getattr(torch, dtype)
        assert torch.allclose(value.float(), wide[name], rtol=2**-8, atol=1e-6)
    assert index["metadata"]["total_size"] == sum(v.numel() * 2 for v in wide.values())


def test_names_may_differ_by_a_leading_model(family: tuple[list[Path], Path], tmp_path: Path) -> None:
    members, base = family
    expected = merge(recipe(members, base), tmp_path / "plain")
    tensors = load_file(members[1] / "model.safetensors")
    save_file({f"model.{name}": value for name, value in tensors.items()}, members[1] / "model.safetensors")
    out = merge(recipe(members, base), tmp_path / "out")
    assert (out / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()


def edit(file: Path, **change: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def change_tensors(member: Path, **change: Any) -> None:
    tensors = load_file(member / "model.safetensors")
    tensors.update({k.replace("__", "."): v for k, v in change.items()})
    save_file({k: v for k, v in tensors.items() if v is not None}, member / "model.safetensors")


DAMAGES = {
    "pooling": (lambda m: edit(m / "1_Pooling" / "config.json", pooling_mode_cls_token=True), "pooling_mode_cls_token"),
    "config": (lambda m: edit(m / "config.json", hidden_size=32), "hidden_size"),
    "tokenizer": (lambda m: edit(m / "tokenizer.json", model={"vocab": {"b": 0}}), "tokenizer.json differs"),
    "no modules": (lambda m: (m / "modules.json").unlink(), "modules.json"),
    "one more": (lambda m: change_tensors(m, extra=np.ones(3, np.float32)), "'extra'"),
    "one less": (lambda m: change_tensors(m, pooler__dense__weight=None), "lacks 'pooler.dense.weight'"),
    "shape": (lambda m: change_tensors(m, pooler__dense__weight=np.ones((2, 2), np.float32)), r"shape \[2, 2\]"),
    "nan": (lambda m: change_tensors(m, pooler__dense__weight=np.full((16, 16), np.nan, np.float32)), "256 NaN or inf"),
    "inf": (lambda m: change_tensors(m, pooler__dense__weight=np.full((16, 16), np.inf, np.float32)), "256 NaN or inf"),
    "float64": (lambda m: change_tensors(m, pooler__dense__weight=np.ones((16, 16))), "F64"),
}  # fmt: skip


@pytest.mark.parametrize("method", ["multislerp", "linear"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_members_that_do_not_fit_are_refused(
    family: tuple[list[Path], Path], tmp_path: Path, damage: str, method: str
) -> None:
    members, base = family
    change, message = DAMAGES[damage]
    change(members[1])
    with pytest.raises(BoomError, match=message):
        merge(recipe(members, base, method), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_broken_member_of_weight_zero_is_refused_too(family: tuple[list[Path], Path], tmp_path: Path) -> None:
    members, base = family
    DAMAGES["nan"][0](members[1])
    for method in ("linear", "multislerp", "task_arithmetic"):
        config = recipe(members, base, method)
        config["models"][1]["parameters"]["weight"] = 0.0
        with pytest.raises(BoomError, match="256 NaN or infinite"):
            merge(config, tmp_path / "out")


def test_results_too_large_for_the_type_are_refused(family: tuple[list[Path], Path], tmp_path: Path) -> None:
    members, base = family
    config = recipe(members, base, "task_arithmetic", out_dtype="float16", parameters={"lambda": 1e9})
    with pytest.raises(BoomError, match="too large for F16"):
        merge(config, tmp_path / "out")


def test_integer_tensors_are_taken_over_and_must_agree(family: tuple[list[Path], Path], tmp_path: Path) -> None:
    members, base = family
    for path in (*members, base):
        change_tensors(path, embeddings__position_ids=np.arange(9)[None])
    out = merge(recipe(members, base), tmp_path / "out")
    assert (load_file(out / "model.safetensors")["embeddings.position_ids"] == np.arange(9)).all()
    change_tensors(members[2], embeddings__position_ids=np.ones((1, 9), np.int64))
    with pytest.raises(BoomError, match="not a float tensor and differs"):
        merge(recipe(members, base), tmp_path / "again")


def test_an_existing_output_is_refused_or_swapped(family: tuple[list[Path], Path], tmp_path: Path) -> None:
    members, base = family
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(BoomError, match="exists"):
        merge(recipe(members, base), out)
    assert (out / "mine.txt").read_text() == "mine"
    merge(recipe(members, base), out, MergeOptions(overwrite=True))
    assert not (out / "mine.txt").exists()
    assert (out / "model.safetensors").is_file()


def test_too_little_disk_is_said_before_a_byte_is_written(
    family: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(BoomError, match="GB are free"):
        merge(recipe(*family), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_any_process_can_merge_any_tensors_of_a_plan(family: tuple[list[Path], Path], tmp_path: Path) -> None:
    members, base = family
    values = coefficients("multislerp", gram(members, base), WEIGHTS, task_vectors=True)
    plan = plan_coefficients(values, members, base, tmp_path / "shared")
    pending = job.prepare(plan)
    assert pending == list(SHAPES) or set(pending) == set(SHAPES)
    code = "import pickle, sys; from boom_ray.merge import job; job.merge_tensors(*pickle.load(sys.stdin.buffer))"
    for names in (pending[1::2], pending[::2]):
        with pytest.raises(BoomError, match="not merged yet"):
            job.finish(plan)
        subprocess.run([sys.executable, "-c", code], input=pickle.dumps((plan, names)), check=True)
    job.finish(plan)
    write(plan_coefficients(values, members, base, tmp_path / "alone"))
    assert digest(tmp_path / "shared") == digest(tmp_path / "alone")


def test_merging_imports_neither_torch_nor_ray(family: tuple[list[Path], Path], tmp_path: Path) -> None:
    code = (
        "import json, sys; from boom_ray.merge.stream import merge; merge(*json.load(sys.stdin));"
        "print([m for m in ('torch', 'ray', 'transformers', 'mteb', 'deepspeed') if m in sys.modules])"
    )
    text = json.dumps([recipe(*family), str(tmp_path / "out")])
    done = subprocess.run([sys.executable, "-c", code], input=text, text=True, check=True, capture_output=True)
    assert done.stdout.strip() == "[]"


def test_too_little_memory_is_said(family: tuple[list[Path], Path], tmp_path: Path) -> None:
    with pytest.raises(BoomError, match="need a memory of at least"):
        merge(recipe(*family), tmp_path / "out", MergeOptions(memory="1MB"))
    with pytest.raises(BoomError, match="is no size"):
        merge(recipe(*family), tmp_path / "out", MergeOptions(memory="much"))


def test_resident_sums_come_from_one_open_engine(family: tuple[list[Path], Path]) -> None:
    members, base = family
    with Engine(open_members(members, base), workers=1) as engine:
        for name, shape in SHAPES.items():
            found = engine.combine_into(name, np.array([0.5, 0.25, 0.25, 0.0]))
            assert found.shape == shape
            assert found.dtype == np.float32
    assert draw(0).keys() == SHAPES.keys()


def test_tied_weights_stay_tied(family: tuple[list[Path], Path], tmp_path: Path) -> None:
    """A head that is a stored copy of the embedding is merged like it; stored by some members only, it is left out."""
    members, base = family
    embedding = "embeddings.word_embeddings.weight"
    expected = load_file(merge(recipe(members, base), tmp_path / "untied") / "model.safetensors")
    change_tensors(members[1], lm_head__weight=load_file(members[1] / "model.safetensors")[embedding])
    merged = load_file(merge(recipe(members, base), tmp_path / "one") / "model.safetensors")
    assert {n: v.tobytes() for n, v in merged.items()} == {n: v.tobytes() for n, v in expected.items()}
    for path in (members[0], members[2], base):
        change_tensors(path, lm_head__weight=load_file(path / "model.safetensors")[embedding])
    config = recipe(members, base)
    config["models"][0]["parameters"]["weight"] = [{"filter": "lm_head", "value": 9}, {"value": WEIGHTS[0]}]
    merged = load_file(merge(config, tmp_path / "all") / "model.safetensors")
    assert merged["lm_head.weight"].tobytes() == merged[embedding].tobytes() == expected[embedding].tobytes()
    change_tensors(members[1], lm_head__weight=None)
    change_tensors(members[0], lm_head__weight=np.ones((40, 16), np.float32))
    with pytest.raises(BoomError, match=r"lm_head\.weight"):
        merge(config, tmp_path / "untied-head")


def test_remote_members_are_staged_once_after_a_look_at_their_size(
    family: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members, base = family
    monkeypatch.setenv("BOOM_RAY_HOME", str(tmp_path / "home"))
    local = merge(recipe(members, base), tmp_path / "local")
    remote = recipe(members, base)
    for entry in remote["models"]:
        entry["model"] = f"file://{entry['model']}"
    out = merge(remote, tmp_path / "out")
    staged = sorted((tmp_path / "home" / "staged").iterdir())
    assert (out / "model.safetensors").read_bytes() == (local / "model.safetensors").read_bytes()
    merge(remote, tmp_path / "again")
    assert sorted((tmp_path / "home" / "staged").iterdir()) == staged
    assert len(staged) == 3
    with pytest.raises(BoomError, match="write hf://owner/name"):
        merge(recipe([Path("owner/name")], None) | {"models": [{"model": "owner/name"}]}, tmp_path / "none")
    with pytest.raises(BoomError, match="cannot be listed"):
        merge({**remote, "base_model": f"file://{tmp_path}/nowhere"}, tmp_path / "none")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    monkeypatch.setenv("BOOM_RAY_HOME", str(tmp_path / "small"))
    with pytest.raises(BoomError, match="GB free"):
        merge(remote, tmp_path / "none")
