"""Two ranks are one: gradients, and 20 steps of DeepSpeed at ZeRO 0 to 3 against plain torch on the whole batch. The
runs keep different numbers of graphs: all, none, or some.

All figures come from two groups of processes (one rank; two ranks) that run beside each other: imports dominate.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import CASES, EXTRAS, HAS_FLOAT16, STAGES

SCRIPT = Path(__file__).with_name("ranks.py")
# A key's bias shifts all scores of a query alike, so its gradient is zero: what is left is rounding, and Adam divides
# rounding by rounding. These entries move at random by up to the learning rate, and no embedding depends on them.
FREE = "attention.self.key.bias"


@pytest.fixture(scope="module")
def results(small_base, small_tokens, tmp_path_factory) -> dict[int, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "base").symlink_to(small_base())
    (folder / "tokens").symlink_to(small_tokens)
    processes = []
    for world in (1, 2):
        for rank in range(world):
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}
            command = [sys.executable, str(SCRIPT), str(rank), str(world), str(folder)]
            log = open(folder / f"log-{world}-{rank}", "w")  # noqa: SIM115  (lives as long as the process)
            processes.append((subprocess.Popen(command, env=environment, stdout=log, stderr=log), log))
    try:
        for process, log in processes:
            code = process.wait(timeout=300)
            assert code == 0, Path(log.name).read_text()[-3000:]
    finally:
        for process, log in processes:
            process.kill()
            process.wait()
            log.close()
    return {world: torch.load(folder / f"out-{world}.pt") for world in (1, 2)}


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: "{}-{}".format(*CASES[i]))
def test_gradients_of_two_ranks_are_those_of_the_whole_batch(results, case):
    one, two = (results[world]["gradients"][case] for world in (1, 2))
    assert one["digest"] == two["digest"]
    assert two["loss"][0] == two["loss"][1]  # every rank knows the loss of the global batch
    assert float(two["loss"][0]) == pytest.approx(float(one["loss"][0]), rel=1e-6, abs=1e-7)
    scale = torch.cat([g.flatten() for g in one["gradients"].values()]).norm()
    for name, gradient in one["gradients"].items():
        assert (two["gradients"][name] - gradient).norm() <= 2e-6 * scale + 1e-9, name


def _compare(left: dict[str, Any], right: dict[str, Any], tolerance: float) -> None:
    """Losses and norms of every step, and all parameters after the last: |left - right| / |right - base|."""
    assert left["rows"] == right["rows"]
    assert left["losses"] == pytest.approx(right["losses"], rel=1e-5, abs=1e-6)
    norms, others = ([norm for norm in run["norms"] if norm is not None] for run in (left, right))
    assert norms == pytest.approx(others, rel=1e-5, abs=1e-6)
    names = [name for name in left["moved"] if FREE not in name]
    apart = torch.cat([(left["moved"][n] - right["moved"][n]).flatten() for n in names]).norm()
    moved = torch.cat([right["moved"][n].flatten() for n in names]).norm()
    assert moved > 0.05
    assert apart <= tolerance * moved


@pytest.mark.parametrize("stage", STAGES)
def test_deepspeed_takes_the_steps_of_plain_torch(results, stage):
    plain = results[1]["plain"]
    assert any(norm > 9.0 for norm in plain["norms"])  # some steps are clipped,
    assert any(1.0 < norm < 9.0 for norm in plain["norms"])  # some are not
    _compare(results[1][f"zero-{stage}"], plain, 1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_of_deepspeed_take_the_steps_of_one(results, stage):
    """Sums in another order: Adam enlarges the rounding of entries whose gradients are near zero."""
    assert min(results[2][f"zero-{stage}"]["rows"])[0] == 1  # a rank without rows takes part too
    _compare(results[2][f"zero-{stage}"], results[1]["plain"], 2e-4)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", EXTRAS)
def test_accumulation_adapters_and_offload_compute_what_plain_torch_does(results, name, world):
    """Three global batches in an update and one in the last; optimiser and weights in host memory or not."""
    plain = results[1]["adapted" if name.startswith("adapted") else "accumulated"]
    found = results[world][name]
    _compare(found, plain, 1e-5 if world == 1 else 2e-4)
    updates = [norm is not None for norm in found["norms"]]
    assert updates == ([True] * 7 if name.startswith("adapted") else [False, False, True] * 2 + [True])


@pytest.mark.skipif(not HAS_FLOAT16, reason="this CPU does not compute in float16")
@pytest.mark.parametrize("world", [1, 2])
def test_float16_moves_as_float32_does(results, world):
    assert None not in results[world]["float16"]["norms"]
    assert _alike(results[world]["float16"], results[1]["plain"]) > 0.97


@pytest.mark.skipif(not HAS_FLOAT16, reason="this CPU does not compute in float16")
@pytest.mark.parametrize("world", [1, 2])
def test_float16_skips_updates_until_its_loss_scale_fits(results, world):
    run = results[world]["overflow"]
    skipped = [norm is None for norm in run["norms"] if norm != 0]  # a batch of one row has nothing to learn from
    assert skipped[:2] == [True, True]
    assert skipped[-2:] == [False, False]
    assert all(0 <= norm < 100 for norm in run["norms"] if norm is not None)  # without the scale


def _alike(left: dict[str, Any], right: dict[str, Any]) -> float:
    """Cosine of what two runs changed."""
    names = [name for name in left["moved"] if FREE not in name]
    moved = (torch.cat([run["moved"][n].flatten() for n in names]) for run in (left, right))
    return float(torch.cosine_similarity(*moved, dim=0))


def test_an_unused_pooler_stays_what_the_base_says(results):
    for world, name in [(1, "plain"), *((world, f"zero-{stage}") for world in (1, 2) for stage in STAGES)]:
        moved = results[world][name]["moved"]
        assert {n for n, change in moved.items() if not change.any()} == {"pooler.dense.weight", "pooler.dense.bias"}


@pytest.mark.parametrize("world", [1, 2])
def test_a_bfloat16_member_is_saved_from_its_float32_weights(results, world):
    """Whole at ZeRO 1 and 3; what is not trained keeps its bits, although the model was rounded."""
    for run in (results[world]["bfloat16-1"], results[world]["bfloat16-3"]):
        weights = torch.cat([w.flatten() for w in run["weights"].values()])
        assert (weights != weights.bfloat16()).float().mean() > 0.9
        assert _alike(run, results[1]["plain"]) > 0.97
        assert not run["moved"]["pooler.dense.weight"].any()


def test_deepspeed_compiles_nothing(tmp_path):
    """A machine with Python and pip has neither ninja nor a C++ compiler."""
    script = (
        "import torch, torch.distributed as dist\n"
        "from boom_ray.config import Train\n"
        "from boom_ray.train.cache import BatchEncoder, Budget\n"
        "from boom_ray.train.engine import DeepSpeedEngine\n"
        f"dist.init_process_group('gloo', init_method='file://{tmp_path}/meet', rank=0, world_size=1)\n"
        "model = BatchEncoder(torch.nn.Linear(2, 1), 'mean', 0, Budget(64))\n"
        "DeepSpeedEngine(model, Train()).step(model.backbone(torch.ones(1, 2)).sum(), 0.1)\n"
    )
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path), "DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (tmp_path / ".cache" / "torch_extensions").exists()
