"""Members that are killed: what an undisturbed one leaves, a disturbed one leaves byte for byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

SCRIPT = Path(__file__).with_name("checkpoint_kills.py")


def test_a_kill_at_every_write_boundary_of_a_checkpoint_costs_no_byte(small_tokenizer, small_tokens, tmp_path):
    from small_corpus import MAX_TOKENS

    from boom_ray.base import build_base
    from boom_ray.config import BuildBase

    tiny = BuildBase(layers=1, hidden=16, heads=1, vocab=300, warm_steps=0, learning_rate=1e-3)
    build_base(tiny, small_tokenizer, tmp_path / "base", "mean", MAX_TOKENS, 0)
    (tmp_path / "tokens").symlink_to(small_tokens)
    done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, timeout=200)
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
    """Two workers of Ray Train over DeepSpeed; one of them is killed with -9 after step 25 of 60."""
    from boom_ray.config import Averages, Checkpoints, Train
    from boom_ray.data.schedule import batch_shuffle
    from boom_ray.data.tokens import TokenStore
    from boom_ray.ledger import Key, Ledger
    from boom_ray.resources import Bundle, Placement
    from boom_ray.session import ray_session
    from boom_ray.train import checkpoint
    from boom_ray.train.ensemble import Room, Watcher, train_ensemble
    from boom_ray.train.member import MemberTask

    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # never somebody else's cluster
    store = TokenStore(small_tokens)
    bag = {d["name"]: np.flatnonzero(store.dataset == i) for i, d in enumerate(store.datasets)}
    batches = [b for epoch in range(9) for b in batch_shuffle(bag, dict.fromkeys(bag, 16), 2, 5, epoch).batches][:60]
    train = Train(batch_size=16, learning_rate=1e-3, hard_negatives=2, chunk_tokens=256, averages=Averages(every=4))
    key = Key("members", "member-0", "0" * 16)
    paths = (str(small_base()), str(small_tokens))
    whole = MemberTask("member-0", str(tmp_path / "whole"), key, *paths, train, 60, 3, 1)
    whole = replace(whole, checkpoints=Checkpoints(every=10, keep=2))
    killed = replace(whole, root=str(tmp_path / "killed"))
    begun: list[Any] = []

    def fit(task: MemberTask) -> None:
        say = Watcher(say=lambda line: begun.append((checkpoint.newest(task), line)))
        ledger = Ledger.open(task.root, "r")
        placement = [Placement("member-0", 2, 0.0, 1.0)]
        assert train_ensemble(ledger, {"member-0": (task, batches)}, placement, Room(Bundle(1, 0.0)), say) == {}

    with ray_session():
        fit(whole)
        killer = threading.Thread(target=_kill_a_worker_after, args=(killed.log_file, 25))
        killer.start()
        fit(killed)
        killer.join()
    ((found, _),) = begun
    assert found is not None
    assert found.step == 20
    assert _left(killed.root) == _left(whole.root)
    assert _rows(killed.log_file) == _rows(whole.log_file)
    assert not killed.checkpoint_folder.exists()


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


def _rows(log_file: Path) -> list[tuple[Any, ...]]:
    lines = [json.loads(line) for line in log_file.read_text().splitlines()[1:]]
    return [tuple(line[name] for name in ("step", "dataset", "digest", "loss", "grad_norm")) for line in lines]
