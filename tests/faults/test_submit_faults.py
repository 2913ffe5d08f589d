"""Jobs on a head of our own, token on: refused, failing, cut, killed, detached, and with the head lost under them."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from cut_proxy import CutProxy
from finished_runs import published, take_corpus
from own_cluster import answers, free_ports, kill_session

from boom_ray.cluster.lease import process_start


@dataclass
class Head:
    """A head of two CPUs: where its dashboard listens, what its clients' environment is."""

    process: subprocess.Popen[bytes]
    port: int
    environment: dict[str, str]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self, job: str) -> str:
        headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        return requests.get(f"{self.address}/api/jobs/{job}/logs", headers=headers, timeout=30).json()["logs"]

    def submit(self, *arguments: object, address: str | None = None, **changes: str) -> subprocess.Popen[str]:
        """``boom-ray submit``; an environment variable that is given empty is taken away."""
        environment = {name: value for name, value in {**self.environment, **changes}.items() if value}
        command = [sys.executable, "-m", "boom_ray", "submit", *map(str, arguments)]
        command += ["--address", address or self.address, "--patience", "40"]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=environment, **streams)


def ended(process: subprocess.Popen[str], seconds: float = 200) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def job_of(err: str) -> str:
    found = re.search(r"boom-ray: (\S+)(: uploading| does this already)", err)
    assert found, err
    return found[1]


def wait_for(ready: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def holder(run_dir: Path) -> int | None:
    """The process that holds a run directory."""
    try:
        return int(json.loads((run_dir / "lease.json").read_text())["pid"])
    except (OSError, ValueError):
        return None


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = tempfile.mkdtemp(prefix="br-", dir="/tmp")  # short: sockets lie in it
    (Path(folder) / "home").mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": f"{folder}/home",
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    gcs, port, agent = free_ports(3)
    command += [f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}", f"--temp-dir={folder}"]
    command += [f"--dashboard-agent-listen-port={agent}", "--num-cpus=2", "--object-store-memory=268435456"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
    one = Head(process, port, environment)
    try:
        wait_for(lambda: answers(process, port))
        yield one
    finally:
        kill_session(process)
        shutil.rmtree(folder, ignore_errors=True)


def test_tokens_and_exit_codes_tell_the_truth(head: Head, road: Path, tmp_path: Path) -> None:
    """Without a token or with another one nothing runs; a job that fails ends with its own code, as does one that
    finds everything done."""
    recipe = road / "recipe.yaml"
    without = head.submit(recipe, RAY_AUTH_TOKEN="", RAY_AUTH_MODE="")
    wrong = head.submit(recipe, RAY_AUTH_TOKEN="wrong" * 8)
    for process, told in ((without, "no token was sent"), (wrong, "another one")):
        code, out, err = ended(process)
        assert (code, out) == (2, ""), err
        assert told in err

    shutil.copytree(road / "run", tmp_path / "run")
    failing = head.submit(recipe, "--run-dir", tmp_path / "new", "--set", "corpus.datasets.0.path=/nowhere.jsonl")
    done = head.submit(recipe, "--run-dir", tmp_path / "run")
    code, out, err = ended(failing)
    assert code == 2, err
    assert "/nowhere.jsonl" in out
    assert "exit code 2: a mistake" in err
    code, out, err = ended(done)
    assert code == 0, out + err
    assert "nothing planned" in out
    assert f"published: {next((tmp_path / 'run' / 'published').glob('*-*'))}" in out
    assert out == head.log(job_of(err))


@pytest.mark.long
def test_driver_killed_stream_cut_client_detached_head_lost(head: Head, road: Path, tmp_path: Path) -> None:
    """A run that all of this befalls resumes each time, and publishes what an undisturbed one does. The last test of
    this head."""
    run = tmp_path / "run"
    take_corpus(road / "run", run)
    with CutProxy(head.port) as proxy:
        killed = head.submit(road / "recipe.yaml", "--run-dir", run, address=proxy.address)
        wait_for(lambda: holder(run) or killed.poll() is not None)
        proxy.cutting(0.7)
        wait_for(lambda: list(run.glob("members/member-*/manifest.json")))
        dead = holder(run)
        assert dead is not None
        os.kill(dead, signal.SIGKILL)
        code, out, err = ended(killed)
    assert code == 137, err
    assert proxy.cuts > 3
    assert out == head.log(job_of(err)), "a line was lost or came twice"
    landed = {p: p.stat().st_mtime_ns for p in run.glob("members/member-*/manifest.json")}

    first = head.submit(road / "recipe.yaml", "--run-dir", run)
    wait_for(lambda: holder(run) not in (None, dead) or first.poll() is not None)
    first.send_signal(signal.SIGINT)
    code, out, err = ended(first, 30)
    assert code == 130, err
    assert "detached" in err
    job, pid = job_of(err), holder(run)
    again = head.submit(road / "recipe.yaml", "--run-dir", run, "--patience", "4")
    assert again.stdout is not None
    assert again.stdout.readline(), "the log from its beginning"
    kill_session(head.process)
    code, _, err = ended(again, 60)
    assert code == 3, err
    assert job_of(err) == job, "the job that ran was attached to"
    assert pid is not None
    wait_for(lambda: process_start(pid) is None, 30)

    local = [sys.executable, "-m", "boom_ray", "run", str(road / "recipe.yaml"), "--run-dir", str(run)]
    done = subprocess.run(local, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert published(run) == published(road / "run")
    assert {p: p.stat().st_mtime_ns for p in landed} == landed, "a finished member was trained again"
    assert not (run / "lease.json").exists()
