"""Every method against mergekit's own code, where an interpreter that can import it is given, and where it is right.

mergekit works in float32: agreement is to its rounding. It needs task vectors that are not tiny (several of its
thresholds are absolute), and no weights in karcher, which it does not have.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import SHAPES, draw, write_model
from safetensors.numpy import load_file

from boom_ray.merge.stream import merge

PYTHON = os.environ.get("BOOM_RAY_MERGEKIT_PYTHON")
pytestmark = pytest.mark.skipif(not PYTHON, reason="BOOM_RAY_MERGEKIT_PYTHON names no interpreter with mergekit")
SCRIPT = """
import json, sys, torch
from safetensors.torch import load_file, save_file
from mergekit.merge_methods.api import merge_tensors
for method, members, base, parameters, out in json.load(sys.stdin):
    loaded = [load_file(m + "/model.safetensors") for m in members]
    index = members.index(base) if base else None
    options = {"parameters": parameters, "base_index": index, "dtype": torch.float32}
    result = {k: merge_tensors([t[k] for t in loaded], method, **options) for k in loaded[0]}
    save_file({k: v.contiguous() for k, v in result.items()}, out)
"""
CASES = {
    "linear": (3, False, {"weight": [0.2, 0.3, 0.9]}, {}),
    "linear-sum": (3, False, {"weight": [0.2, 0.3, 0.9]}, {"normalize": False}),
    "task_arithmetic": (3, True, {"weight": [0.2, 0.3, 0.9]}, {"lambda": 0.7}),
    "task_arithmetic-mean": (3, True, {"weight": [0.2, 0.3, 0.9]}, {"normalize": True}),
    "multislerp": (3, False, {"weight": [0.2, 0.3, 0.9]}, {}),
    "multislerp-base": (3, True, {"weight": [0.2, 0.3, 0.9]}, {}),
    "multislerp-sum": (3, True, {"weight": [0.2, 0.3, 0.9]}, {"normalize_weights": False}),
    "nuslerp": (2, False, {"weight": [0.3, 0.9]}, {}),
    "nuslerp-base": (2, True, {"weight": [0.3, 0.9]}, {}),
    "slerp": (1, True, {}, {"t": 0.3}),
    "karcher": (3, False, {}, {}),
    "model_stock": (3, True, {}, {}),
    "ties": (3, True, {"weight": [0.2, 0.3, 0.9]}, {"density": 0.4}),
    "ties-lambda": (3, True, {"weight": [0.2, 0.3, 0.9]}, {"density": 0.7, "normalize": False, "lambda": 1.4}),
    "sce": (3, True, {}, {"select_topk": 0.3}),
    "sce-all": (3, True, {}, {}),
    "passthrough": (1, False, {}, {"scale": 0.5}),
}
SPREAD = 3.0  # of members around the base: far enough apart that mergekit's absolute thresholds play no part


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """One process of mergekit's interpreter for all cases."""
    root = tmp_path_factory.mktemp("parity")
    origin = draw(0, 1.0)
    base = write_model(root / "base", origin)
    members = [write_model(root / f"m{i}", draw(i + 1, SPREAD, origin)) for i in range(3)]
    jobs, out = [], {}
    for case, (count, has_base, weights, parameters) in CASES.items():
        chosen = [str(m) for m in members[:count]] + ([str(base)] if has_base else [])
        out[case] = root / f"{case}.safetensors"
        jobs.append(
            [case.split("-")[0], chosen, str(base) if has_base else None, {**weights, **parameters}, str(out[case])]
        )
    assert PYTHON is not None
    subprocess.run([PYTHON, "-c", SCRIPT], input=json.dumps(jobs), text=True, check=True, timeout=300)
    return root, out


@pytest.mark.parametrize("case", CASES)
def test_equal_to_mergekit_within_its_rounding(
    case: str, results: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    root, out = results
    count, has_base, weights, parameters = CASES[case]
    models = [{"model": str(root / f"m{i}"), "parameters": {k: v[i] for k, v in weights.items()}} for i in range(count)]
    recipe = {"merge_method": case.split("-")[0], "models": models, "parameters": parameters}
    merge(recipe | ({"base_model": str(root / "base")} if has_base else {}), tmp_path / "out")
    ours, theirs = load_file(tmp_path / "out" / "model.safetensors"), load_file(out[case])
    for name in SHAPES:
        error = np.linalg.norm(ours[name] - theirs[name]) / np.linalg.norm(ours[name])
        assert error < (2e-5 if case == "karcher" else 1e-6), name  # karcher: mergekit stops at a tangent of 1e-5


# Where mergekit 0.1.5 is wrong. Each case says what it does there, so that a later version that differs is noticed.

WRONG = """
import json, sys, torch
from mergekit.merge_methods.api import merge_tensors
torch.manual_seed(0)
def run(tensors, method, base=None, **parameters):
    options = {"parameters": parameters, "base_index": base, "dtype": tensors[0].dtype}
    try:
        return merge_tensors(tensors, method, **options)
    except Exception as error:
        return type(error).__name__
def far(a, b):
    return a if isinstance(a, str) else float((a.double() - b.double()).norm() / b.double().norm())
three = [torch.randn(64, 64) for _ in range(3)]
same = run(three, "karcher")
big = torch.randn(33_554_432) * 0.02
print(json.dumps({
    "karcher weights": far(run(three, "karcher", weight=[0.2, 0.3, 0.9]), same),
    "frozen": far(run([three[0]] * 4, "multislerp", 3, weight=[0.2, 0.3, 0.9, 1.0]), three[0]),
    "zeros": far(run([torch.zeros(8, 8)] * 3, "multislerp", weight=[0.2, 0.3, 0.9]), three[0]),
    "zero weights": far(run(three, "multislerp", weight=[0.5, 0.5, -1.0]), three[0]),
    "itself": far(run([big, big], "multislerp", weight=[0.5, 0.5]), big),
}))
"""


@pytest.fixture(scope="module")
def faults() -> dict[str, float | str]:
    assert PYTHON is not None
    done = subprocess.run([PYTHON, "-c", WRONG], capture_output=True, text=True, check=True, timeout=300)
    return json.loads(done.stdout.splitlines()[-1])


def test_karcher_there_knows_no_weights(
    faults: dict[str, float | str], results: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    """It leaves them out (or refuses them); here they move the mean, and a one-hot weight is that member."""
    assert faults["karcher weights"] == 0.0 or isinstance(faults["karcher weights"], str)
    root, out = results
    models = [{"model": str(root / f"m{i}"), "parameters": {"weight": w}} for i, w in enumerate((0.2, 0.3, 0.9))]
    merge({"merge_method": "karcher", "models": models}, tmp_path / "out")
    ours, theirs = load_file(tmp_path / "out" / "model.safetensors"), load_file(out["karcher"])
    name = max(SHAPES, key=lambda n: int(np.prod(SHAPES[n])))
    assert np.linalg.norm(ours[name] - theirs[name]) > 0.01 * np.linalg.norm(theirs[name])


def test_frozen_and_zero_tensors_stop_multislerp_there(faults: dict[str, float | str]) -> None:
    """Here the base and zeros: tests/merge/test_methods.py."""
    assert faults["frozen"] == faults["zeros"] == "ValueError"


def test_weights_that_sum_to_zero_give_nan_there(faults: dict[str, float | str]) -> None:
    """Here they are refused: tests/merge/test_methods.py."""
    found = faults["zero weights"]
    assert found == "ValueError" or (isinstance(found, float) and np.isnan(found))


def test_a_large_tensor_merged_with_itself_is_not_itself_there(faults: dict[str, float | str]) -> None:
    """float32 norms on the processor: off by thousandths at 33 M elements. Here it is: tests/merge/test_large.py."""
    assert isinstance(faults["itself"], float)
    assert faults["itself"] > 1e-3
