"""A command that is told to stop, and one whose cluster goes away under it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from finished_runs import published, take_corpus
from own_cluster import OwnCluster, kill_session


def start(recipe: Path, run_dir: Path, **environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "boom_ray", "run", str(recipe), "--run-dir", str(run_dir)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **streams, **environment)


def wait_for(ready: Callable[[], object], process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def logged(run_dir: Path, member: str) -> list[dict]:
    """The steps that a member has logged."""
    for log in (run_dir / "scratch" / "members").glob(f"{member}-*.jsonl"):
        return [json.loads(line) for line in log.read_text().splitlines()[1:]]
    return []


def test_stopped_twice_and_once(road: Path, tmp_path: Path) -> None:
    """Ctrl-C twice ends at once (130). SIGTERM ends in order (143): a checkpoint, nothing half-written, no process
    left; the run goes on from that checkpoint and publishes what an undisturbed one does."""
    run = tmp_path / "run"
    take_corpus(road / "run", run)
    hasty = start(road / "recipe.yaml", run)
    wait_for(lambda: logged(run, "member-0"), hasty)
    hasty.send_signal(signal.SIGINT)
    time.sleep(0.8)
    hasty.send_signal(signal.SIGINT)
    begun = time.monotonic()
    hasty.communicate(timeout=30)
    assert hasty.returncode == 130
    assert time.monotonic() - begun < 3

    orderly = start(road / "recipe.yaml", run)
    wait_for(lambda: len(logged(run, "member-0")) >= 2, orderly)
    family = psutil.Process(orderly.pid).children(recursive=True)
    orderly.send_signal(signal.SIGTERM)
    out, err = orderly.communicate(timeout=60)
    assert orderly.returncode == 143, out + err
    assert err.strip().splitlines()[-1].startswith("boom-ray: stopped by SIGTERM"), err
    assert "Traceback" not in err
    assert not list(run.rglob(".tmp-*"))
    assert not (run / "lease.json").exists()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    steps = len(logged(run, "member-0"))
    kept = sorted(run.glob("scratch/members/member-0-*/checkpoints/step-*"))
    committed = list(run.glob("members/member-0-*/manifest.json"))
    assert committed or kept[-1].name == f"step-{steps:09d}", "members that train write a checkpoint first"

    last = start(road / "recipe.yaml", run)
    out, err = last.communicate(timeout=200)
    assert last.returncode == 0, out + err
    assert published(run) == published(road / "run")
    assert not list(run.rglob(".tmp-*"))


def test_a_head_that_is_gone_ends_the_driver_with_a_code_that_says_so(road: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    take_corpus(road / "run", run)
    with OwnCluster(nodes=1) as cluster:
        driver = start(road / "recipe.yaml", run, env=cluster.environment)
        wait_for(lambda: list(run.glob("bags/*/manifest.json")), driver)
        kill_session(cluster._head)
        out, err = driver.communicate(timeout=90)
    assert driver.returncode == 3, out + err
    assert "head" in err
    assert "Traceback" not in err
