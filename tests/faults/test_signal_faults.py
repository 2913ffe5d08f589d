"""A command that is told to stop, and one whose cluster goes away under it."""

from __future__ import annotations

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


def training(run_dir: Path, since: float) -> tuple[str, int] | None:
    """The member that has logged last, if it has since then, and its steps; two of them at least."""
    logs = sorted((run_dir / "scratch" / "members").glob("member-*.jsonl"), key=lambda log: log.stat().st_mtime)
    if not logs or logs[-1].stat().st_mtime < since:
        return None
    steps = len(logs[-1].read_text().splitlines()) - 1
    return (logs[-1].stem, steps) if steps > 1 else None


def test_stopped_twice_and_once(road: Path, tmp_path: Path) -> None:
    """Ctrl-C twice ends at once (130). SIGTERM ends in order (143): a checkpoint, nothing half-written, no process
    left; the run goes on from that checkpoint and publishes what an undisturbed one does."""
    run = tmp_path / "run"
    take_corpus(road / "run", run)
    hasty = start(road / "recipe.yaml", run)
    wait_for(lambda: training(run, 0.0), hasty)
    hasty.send_signal(signal.SIGINT)
    time.sleep(0.8)
    hasty.send_signal(signal.SIGINT)
    begun = time.monotonic()
    hasty.communicate(timeout=30)
    assert hasty.returncode == 130
    assert time.monotonic() - begun < 3

    since = time.time()
    orderly = start(road / "recipe.yaml", run)
    wait_for(lambda: training(run, since), orderly)
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
    member, steps = training(run, since) or ("", 0)
    kept = sorted((run / "scratch" / "members" / member / "checkpoints").glob("step-*"))
    if not (run / "members" / member / "manifest.json").exists():
        assert kept[-1].name == f"step-{steps:09d}", "a member that trains writes a checkpoint first"

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
