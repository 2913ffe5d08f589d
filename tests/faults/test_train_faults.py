"""Members that are killed: what an undisturbed one leaves, a disturbed one leaves byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from boom_ray.config import Averages, Checkpoints, Train
from boom_ray.data.schedule import Batch, batch_shuffle
from boom_ray.data.tokens import TokenStore
from boom_ray.ledger import Key
from boom_ray.train.member import MemberTask

SCRIPT = Path(__file__).with_name("checkpoint_kills.py")
FREE = "attention.self.key.bias"  # moves by rounding alone: see tests/train/test_train_ranks.py


def test_a_kill_at_every_write_boundary_of_a_checkpoint_costs_no_byte(small_tokenizer, small_tokens, tmp_path):
    from small_corpus import MAX_TOKENS

    from boom_ray.base import build_base
    from boom_ray.config import BuildBase

    tiny = BuildBase(layers=1, hidden=16, heads=1, vocab=300, warm_steps=0, learning_rate=1e-3)
    build_base(tiny, small_tokenizer, tmp_path / "base", "mean", MAX_TOKENS, 0)
    (tmp_path / "tokens").symlink_to(small_tokens)
    done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = {what.split()[0] for what, *_ in outcomes}
    assert kinds == {"open", "pwrite", "ftruncate", "fsync", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
    assert len(outcomes) > 60
    assert [outcome for outcome in outcomes if not outcome[2]] == []
    steps = [step for _, step, _ in outcomes[: next(i for i, (what, *_) in enumerate(outcomes) if "rmdir" in what)]]
    assert set(steps) == {0, 2, 4}
    assert steps == sorted(steps), "a newer checkpoint was lost"


@pytest.mark.slow
def test_a_rank_killed_in_mid_step_costs_no_byte(small_base, small_tokens, tmp_path, monkeypatch):
    """Two workers of Ray Train over DeepSpeed; one of them is killed with -9 after step 25 of 60. What it had left then
    is also gone on with by one worker: the same rows, and weights within rounding."""
    from safetensors.torch import load_file

    from boom_ray import records
    from boom_ray.cluster.session import ray_session
    from boom_ray.ledger import Ledger
    from boom_ray.train import checkpoint

    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # never somebody else's cluster
    whole, batches = _work(str(tmp_path / "whole"), small_base(), small_tokens)
    killed, alone = (replace(whole, root=str(tmp_path / name)) for name in ("killed", "alone"))
    begun: list[int] = []

    def at_failure(_: str) -> None:
        found = checkpoint.newest(killed)
        begun.append(found.step if found else 0)
        shutil.copytree(killed.root, alone.root)
        records.forget(Ledger(alone.root), [alone.key])

    with ray_session():
        _fit(whole, batches, 2)
        killer = threading.Thread(target=_kill_a_worker_after, args=(killed.log_file, 25))
        killer.start()
        _fit(killed, batches, 2, at_failure)
        killer.join()
        _fit(alone, batches, 1)
    assert begun == [20]
    assert _left(killed.root) == _left(whole.root)
    assert _rows(killed.log_file, "loss", "grad_norm") == _rows(whole.log_file, "loss", "grad_norm")
    assert not killed.checkpoint_folder.exists()

    assert _rows(alone.log_file) == _rows(whole.log_file)
    manifest = Ledger(alone.root).manifest(alone.key)
    assert (manifest["meta"]["width"], manifest["meta"]["steps"]) == (1, 60)
    one, two = (load_file(Ledger(task.root).path(task.key) / "model.safetensors") for task in (alone, whole))
    base = load_file(small_base() / "model.safetensors")
    used = [name for name in two if not name.endswith(FREE)]
    apart, moved = (sum(float((two[n] - other[n]).norm() ** 2) for n in used) ** 0.5 for other in (one, base))
    assert 0 < apart <= 1e-3 * moved


def _work(root: str, base: Path, tokens: Path) -> tuple[MemberTask, list[Batch]]:
    store = TokenStore(tokens)
    bag = {d["name"]: np.flatnonzero(store.dataset == i) for i, d in enumerate(store.datasets)}
    batches = [b for epoch in range(9) for b in batch_shuffle(bag, dict.fromkeys(bag, 16), 2, 5, epoch).batches][:60]
    train = Train(batch_size=16, learning_rate=1e-3, hard_negatives=2, chunk_tokens=256, averages=Averages(every=4))
    task = MemberTask("member-0", root, Key("members", "member-0", "0" * 16), str(base), str(tokens), train, 60, 3, 1)
    return replace(task, checkpoints=Checkpoints(every=10, keep=2)), batches


def _fit(task: MemberTask, batches: list[Batch], width: int, say: Callable[[str], None] = print) -> None:
    from boom_ray.ledger import Ledger
    from boom_ray.resources import Bundle, Placement
    from boom_ray.train.ensemble import Room, Watcher, train_ensemble

    placements, room = [Placement(task.name, width, 0.0, 1.0)], Room(Bundle(1, 0.0))
    ledger = Ledger.open(task.root, "r")
    assert train_ensemble(ledger, {task.name: (task, batches)}, placements, room, Watcher(say=say)) == {}


def _kill_a_worker_after(log_file: Path, steps: int) -> None:
    """Kill one of this process' training workers as soon as that many steps are logged."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if log_file.is_file() and len(log_file.read_bytes().splitlines()) > steps:
            family = psutil.Process().children(recursive=True)
            workers = [p for p in family if any("RayTrainWorker" in word for word in p.cmdline())]
            os.kill(workers[-1].pid, signal.SIGKILL)
            return
        time.sleep(0.005)


def _left(root: str) -> dict[str, Any]:
    manifests = [json.loads(file.read_text()) for file in sorted(Path(root).glob("members/*/manifest.json"))]
    assert len(manifests) == 3
    return {manifest["label"]: manifest["files"] for manifest in manifests}


def _rows(log_file: Path, *more: str) -> list[tuple[Any, ...]]:
    lines = [json.loads(line) for line in log_file.read_text().splitlines()[1:]]
    return [tuple(line[name] for name in ("step", "dataset", "rows", "digest", *more)) for line in lines]
