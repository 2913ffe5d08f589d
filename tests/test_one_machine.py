"""cluster/one-machine.yaml, started for real."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).parent.parent / "cluster"

_JOB = """
import sys, time, ray
ray.init(sys.argv[1], log_to_driver=False)
assert not ray.cluster_resources().get("CPU"), "the head takes no work"

@ray.remote(num_cpus=1)
def where():
    time.sleep(8)
    return ray.get_runtime_context().get_node_id()

head = ray.get_runtime_context().get_node_id()
nodes = set(ray.get([where.remote() for _ in range(2)], timeout=150))
assert head not in nodes and nodes, nodes
print("worked on", len(nodes))
"""


@pytest.mark.slow
def test_one_machine_brings_nodes_up_for_work(tmp_path):
    """A head without CPUs, token on; the autoscaler starts the nodes that two tasks need."""
    port, dashboard, agent = _free_ports(3)
    folder = tempfile.mkdtemp(prefix="br-")  # short: the paths of Ray's sockets have room for a hundred characters
    config = tmp_path / "one-machine.yaml"
    config.write_text((CLUSTER / "one-machine.yaml").read_text().replace("127.0.0.1:6379", f"127.0.0.1:{port}"))
    (tmp_path / "token").write_text(secrets.token_hex(32))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    head_id = yaml.safe_load((CLUSTER / "one-machine.yaml").read_text())["provider"]["head_node_id"]
    provider = {
        "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "RAY_NODE_TYPE_NAME": "ray.head.default",
        "RAY_CLOUD_INSTANCE_ID": head_id, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": head_id,
    }  # fmt: skip
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", "--num-cpus=0",
        "--num-gpus=0", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", f"--autoscaling-config={config}", f"--temp-dir={folder}",
    ]  # fmt: skip
    with open(tmp_path / "head.log", "w") as log:
        head = subprocess.Popen(
            command, env={**os.environ, **token, **provider}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_for(port, head)
        job = [sys.executable, "-c", _JOB, f"127.0.0.1:{port}"]
        done = subprocess.run(job, env={**os.environ, **token}, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "worked on" in done.stdout
    finally:
        os.killpg(head.pid, signal.SIGKILL)  # this head and its nodes; `ray stop` would end every Ray on the machine
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait_for(port: int, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, "the head has ended"
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError(f"no head after {seconds} s")
