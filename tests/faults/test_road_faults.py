"""Kills and jobs on the whole road: what an undisturbed run publishes, a disturbed one publishes byte for byte."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from driver_kills import kill_driver_when
from road_data import recipe_text, write_corpus, write_sets

REPOSITORY = Path(__file__).parents[2]
TIMED = ("README.md", "boom_manifest.json", "_SUCCESS")  # card, times and costs; the marker is the manifest's checksum


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faults")
    corpus, sets = write_corpus(root / "corpus", rows=400), write_sets(root / "eval")
    # one member at a time, so that the second is certainly under way when the first has been committed
    recipe = recipe_text(corpus, sets, "[0.5, 1.0]").replace("trials: 16", "trials: 4")
    text = recipe.replace("{max_width: 1}", "{max_width: 1, max_concurrent: 1}")
    (root / "recipe.yaml").write_text(text)
    return root


def command(recipe: Path, run_dir: Path) -> list[str]:
    return [sys.executable, "-m", "boom_ray", "run", str(recipe), "--run-dir", str(run_dir)]


def run(inputs: Path, name: str) -> None:
    arguments = command(inputs / "recipe.yaml", inputs / name)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr


def published(run_dir: Path) -> dict[str, bytes]:
    (folder,) = (run_dir / "published").glob("*-*")
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: content for name, content in files.items() if name not in TIMED}


def committed_members(run_dir: Path) -> dict[str, int]:
    """Members in the ledger, with the time of their manifest."""
    return {p.parent.name: p.stat().st_mtime_ns for p in (run_dir / "members").glob("member-*/manifest.json")}


def test_killed_driver_then_the_same_command_publishes_the_same_bytes(inputs: Path) -> None:
    run(inputs, "a")
    family = kill_driver_when(
        lambda: committed_members(inputs / "b"), command(inputs / "recipe.yaml", inputs / "b"), 400
    )
    finished = committed_members(inputs / "b")
    assert len(finished) == 1

    run(inputs, "b")
    kept = committed_members(inputs / "b")
    assert {name: kept[name] for name in finished} == finished, "a finished member was trained again"
    assert published(inputs / "b") == published(inputs / "a")
    assert not list((inputs / "b").rglob(".tmp-*")), "temporary files are left"
    _, alive = psutil.wait_procs(family, timeout=180)  # Ray's agents give up on a dead head after a minute or two
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], "Ray outlived its driver"


@pytest.fixture
def head() -> Iterator[dict[str, str]]:
    """A head with token authentication on free ports of the loopback address; yields the environment of its clients."""
    token, ports = secrets.token_hex(32), [_free_port() for _ in range(3)]
    sessions = tempfile.mkdtemp(prefix="br", dir="/tmp")  # of its own, and short: sockets lie in it
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": sessions,
    }
    arguments = ["--head", "--node-ip-address=127.0.0.1", f"--port={ports[0]}", "--dashboard-host=127.0.0.1"]
    arguments += [f"--dashboard-port={ports[1]}", f"--dashboard-agent-listen-port={ports[2]}"]
    arguments += ["--num-cpus=2", "--object-store-memory=268435456", "--block"]
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "ray"), "start", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    family = psutil.Process(process.pid)
    try:
        _wait_for_port(ports[1])
        time.sleep(15)  # the job agent needs a moment after the dashboard answers
        yield {**environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports[1]}"}
    finally:
        for child in [*family.children(recursive=True), family]:
            child.kill()
        shutil.rmtree(sessions, ignore_errors=True)


def submit(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Submit a run. A job sees the cluster's environment, not the client's: BOOM_RAY_HOME goes along."""
    ray = str(Path(sys.executable).parent / "ray")
    runtime = json.dumps({"env_vars": {"BOOM_RAY_HOME": environment["JOB_HOME"]}})
    full = [ray, "job", "submit", "--working-dir", ".", "--runtime-env-json", runtime]
    full += ["--", "python", "jobs/run.py", *arguments]
    return subprocess.run(full, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=560)


def test_submitted_job_publishes_and_its_exit_code_tells_the_truth(
    inputs: Path, head: dict[str, str], tmp_path: Path
) -> None:
    environment = {**head, "JOB_HOME": str(tmp_path)}
    without_token = {k: v for k, v in environment.items() if k not in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE")}
    refused = submit({**without_token, "HOME": str(tmp_path)}, str(inputs / "recipe.yaml"))
    assert refused.returncode != 0

    wrong = submit(environment, str(inputs / "recipe.yaml"), "--set", "train.batch_sise=3")
    assert wrong.returncode != 0
    assert "batch_size" in wrong.stdout + wrong.stderr

    relative = submit(environment, str(inputs / "recipe.yaml"), "--run-dir", "runs/here")
    assert relative.returncode != 0
    assert "relative" in relative.stdout + relative.stderr

    done = submit(environment, str(inputs / "recipe.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    published = list((tmp_path / "road" / "published").glob("*/_SUCCESS"))
    assert len(published) == 1
    assert f"published: {published[0].parent}" in done.stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_port(port: int, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise TimeoutError(f"nothing listens on 127.0.0.1:{port}")
