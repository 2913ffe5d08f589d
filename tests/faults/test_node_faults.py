"""Nodes that are taken back or lost, and workers that hang, under two members that train: who is hit starts again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from members_driver import EVERY, STEPS
from own_cluster import OwnCluster, session_of

pytestmark = pytest.mark.long
DRIVER = Path(__file__).with_name("members_driver.py")


class Driver:
    """The driver of two members, what it has said so far, and their step logs."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._run = folder / "run"
        command = [sys.executable, str(DRIVER), str(folder)]
        with open(folder / "driver.log", "w") as log:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
            self._process = subprocess.Popen(command, env=environment, text=True, **pipes)
        self.told: list[dict[str, Any]] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):
                self.told.append(json.loads(line))

    @property
    def said(self) -> list[str]:
        return [told["said"].strip() for told in self.told if "said" in told]

    def order(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def steps(self, member: str) -> list[int]:
        files = list((self._run / "scratch" / "members").glob(f"{member}-*.jsonl"))
        lines = files[0].read_text().splitlines()[1:] if files else []
        return [json.loads(line)["step"] for line in lines if line.endswith("}")]

    def until(self, ready: Callable[[], object], what: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert self._process.poll() is None or ready(), f"the driver ended before {what}: {self.told[-5:]}"
            assert time.monotonic() < deadline, f"no {what} in {seconds} s: {self.told[-5:]}"
            time.sleep(0.1)

    def end(self) -> dict[str, str]:
        """The members that failed for good."""
        self._process.wait(timeout=240)
        return dict(self.told[-1]["failed"])

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnCluster]:
    with OwnCluster(nodes=2) as found:
        found.settle()
        yield found


def _rank_on(node: subprocess.Popen[bytes]) -> psutil.Process | None:
    """The process of a rank that trains on a node."""
    for process in session_of(node.pid):
        if any("RayTrainWorker" in part for part in _command(process)[:1]):
            return process
    return None


def _socket_of(node: subprocess.Popen[bytes]) -> str:
    flag = "--raylet_socket_name="
    found = (part for process in session_of(node.pid) for part in _command(process) if part.startswith(flag))
    return next(found).removeprefix(flag)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() or [""]
    except psutil.Error:
        return [""]


def test_nodes_taken_back_and_lost_and_a_worker_that_hangs(cluster, small_base, small_tokens, tmp_path):
    """A node is to be taken back in half a minute: its member checkpoints at once and goes on elsewhere. Then the
    other's node is lost, and the first one's worker is stopped: its stacks are kept, both go on. Nobody fails."""
    (tmp_path / "base").symlink_to(small_base())
    (tmp_path / "tokens").symlink_to(small_tokens)
    quick = {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1"}
    driver = Driver(tmp_path, {**cluster.environment, **quick})
    try:
        driver.until(lambda: all(len(driver.steps(name)) > 30 for name in ("left", "right")), "step of both")
        first, second = cluster.nodes
        driver.order(f"drain {_socket_of(first)} 30")
        cluster.add_node()
        driver.until(lambda: driver.said, "word of the node that is taken back")
        hit = driver.said[0].split(",")[0]
        other = "right" if hit == "left" else "left"
        assert "its node is taken back (preemption)" in driver.said[0]
        stopped = int(driver.said[0].partition("step ")[2].partition(",")[0])
        assert stopped % EVERY, "no checkpoint was due"
        cluster.kill_node(first)  # its time is over
        driver.until(lambda: _rank_on(cluster.nodes[-1]) and len(driver.steps(hit)) > stopped + 5, "step elsewhere")
        assert len(driver.said) == 1, "the other member was disturbed"

        begun = len(driver.steps(other))
        worker = _rank_on(cluster.nodes[-1])
        assert worker
        worker.send_signal(signal.SIGSTOP)
        cluster.kill_node(second)
        cluster.add_node()
        driver.until(lambda: len(driver.said) == 3, "word of both")
        told = {line.split(",")[0]: line for line in driver.said[1:]}
        assert set(told) == {hit, other}
        assert "hung: rank 0" in told[hit], told
        assert f"process {worker.pid}" in told[hit]
        assert "was lost" in told[other] or "taken back" in told[other], told
        assert begun >= EVERY or "step 0" not in told[other]
        stacks = list((tmp_path / "run").glob(f"scratch/members/{hit}-*/stacks-*.txt"))
        assert len(stacks) == 1
        assert str(stacks[0]) in told[hit]
        assert "rank 0" in stacks[0].read_text()
        assert "train" in stacks[0].read_text()
        psutil.wait_procs([worker], timeout=10)
        assert not worker.is_running(), "a stopped worker has outlived its gang"
        assert driver.end() == {}
        for name in ("left", "right"):
            assert driver.steps(name) == list(range(STEPS))
        assert len(driver.said) == 3
    finally:
        driver.kill()
