"""Two ranks over DeepSpeed that end in between and go on leave the bytes of two that did not; one goes on from two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from boom_ray.data.tokens import TokenStore
from boom_ray.train.member import train_plain

SCRIPT = Path(__file__).with_name("checkpoint_ranks.py")
FREE = "attention.self.key.bias"  # moves by rounding alone: see test_train_ranks.py


def _script() -> Any:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import checkpoint_ranks
    finally:
        sys.path.pop(0)
    return checkpoint_ranks


RANKS = _script()
CASES, ALONE = RANKS.CASES, RANKS.ALONE


@pytest.fixture(scope="module")
def folder(small_tokenizer: Path, small_tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from small_corpus import MAX_TOKENS

    from boom_ray.base import build_base
    from boom_ray.config import BuildBase

    folder = tmp_path_factory.mktemp("checkpoint_ranks")
    odd = BuildBase(layers=1, hidden=27, heads=3, vocab=301, warm_steps=0, learning_rate=1e-3)  # no tensor halves well
    build_base(odd, small_tokenizer, folder / "base", "mean", MAX_TOKENS, 0)
    (folder / "tokens").symlink_to(small_tokens)
    processes = []
    for rank in (0, 1):
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}
        log = open(folder / f"log-{rank}", "w")  # noqa: SIM115  (lives as long as the process)
        command = [sys.executable, str(SCRIPT), str(rank), str(folder)]
        processes.append((subprocess.Popen(command, env=environment, stdout=log, stderr=log), log))
    try:
        for process, log in processes:
            assert process.wait(timeout=300) == 0, Path(log.name).read_text()[-3000:]
    finally:
        for process, log in processes:
            process.kill()
            process.wait()
            log.close()
    return folder


def _member(folder: Path, root: str, name: str) -> Path:
    return folder / root / "members" / f"{name}-{'0' * 16}"


def _rows(folder: Path, root: str, case: str) -> list[tuple[Any, ...]]:
    lines = (folder / root / "scratch" / "members" / f"{case}-{'0' * 16}.jsonl").read_text().splitlines()[1:]
    return [tuple(json.loads(line)[name] for name in ("step", "dataset", "rows", "digest")) for line in lines]


@pytest.mark.parametrize("case", list(CASES))
def test_two_ranks_that_go_on_leave_the_bytes_of_two_that_did_not_end(folder, case):
    whole, halves = (_member(folder, root, case) for root in ("whole", "halves"))
    for one in (whole, halves):
        assert json.loads((one / "manifest.json").read_text())["meta"]["width"] == 2
    assert (whole / "model.safetensors").read_bytes() == (halves / "model.safetensors").read_bytes()
    assert _rows(folder, "whole", case) == _rows(folder, "halves", case)
    metas = [json.loads((one / "manifest.json").read_text())["meta"] for one in (whole, halves)]
    assert metas[0]["losses"] == metas[1]["losses"]
    assert metas[0]["order"] == metas[1]["order"]


@pytest.mark.parametrize("case", list(RANKS.ASKED))
def test_what_one_rank_is_asked_stops_both_after_the_same_step_and_costs_no_byte(folder, case):
    """The script asserts that both stop, and with which checkpoint."""
    whole, asked = (_member(folder, root, case) for root in ("whole", "asked"))
    assert (whole / "model.safetensors").read_bytes() == (asked / "model.safetensors").read_bytes()
    assert _rows(folder, "whole", case) == _rows(folder, "asked", case)


@pytest.mark.skipif("float16-3" not in CASES, reason="this CPU does not compute in float16")
def test_float16_goes_on_with_the_scale_that_it_has_found(folder):
    """Some updates are left out, because the loss scale is too large at first: they are not counted as updates."""
    log = folder / "halves" / "scratch" / "members" / f"float16-3-{'0' * 16}.jsonl"
    made = [json.loads(line)["grad_norm"] is not None for line in log.read_text().splitlines()[1:]]
    assert not made[0]
    assert made[-1]


@pytest.mark.parametrize("average", ["ema", "last2"])
def test_their_averages_are_the_same_too(folder, average):
    found = [sorted((folder / root / "members").glob(f"{ALONE}-{average}-*")) for root in ("whole", "halves")]
    whole, halves = ([(path / "model.safetensors").read_bytes() for path in paths] for paths in found)
    assert len(whole) == 1
    assert whole == halves


def test_one_process_goes_on_from_two(folder):
    """On plain torch. The same rows in the same order; weights as far apart as the order of additions makes them."""
    from safetensors.torch import load_file

    task = RANKS.task_of(folder, ALONE, "alone")
    train_plain(task, RANKS.schedule(TokenStore(folder / "tokens")))
    assert _rows(folder, "alone", ALONE) == _rows(folder, "whole", ALONE)
    one, two = (load_file(_member(folder, root, ALONE) / "model.safetensors") for root in ("alone", "whole"))
    base = load_file(folder / "base" / "model.safetensors")
    used = [name for name in two if not name.endswith(FREE) and not name.startswith("pooler.")]
    apart = torch.cat([(one[name] - two[name]).flatten() for name in used]).norm()
    moved = torch.cat([(two[name] - base[name]).flatten() for name in used]).norm()
    assert moved > 0
    assert apart <= 1e-3 * moved
    meta = json.loads((_member(folder, "alone", ALONE) / "manifest.json").read_text())["meta"]
    assert (meta["width"], meta["steps"]) == (1, RANKS.STEPS)
