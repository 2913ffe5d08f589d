"""A driver that is killed: what an undisturbed run publishes, the same command called again publishes byte for byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
from driver_kills import kill_driver_when
from finished_runs import published


def committed_members(run_dir: Path) -> dict[str, int]:
    """Members in the ledger, with the time of their manifest."""
    return {p.parent.name: p.stat().st_mtime_ns for p in (run_dir / "members").glob("member-*/manifest.json")}


def test_killed_driver_then_the_same_command_publishes_the_same_bytes(road: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "boom_ray", "run", str(road / "recipe.yaml"), "--run-dir", str(run_dir)]
    family = kill_driver_when(lambda: committed_members(run_dir), command, 400)
    finished = committed_members(run_dir)
    assert len(finished) == 1

    done = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = committed_members(run_dir)
    assert {name: kept[name] for name in finished} == finished, "a finished member was trained again"
    assert published(run_dir) == published(road / "run")
    assert not list(run_dir.rglob(".tmp-*")), "temporary files are left"
    _, alive = psutil.wait_procs(family, timeout=180)  # Ray's agents give up on a dead head after a minute or two
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], "Ray outlived its driver"
