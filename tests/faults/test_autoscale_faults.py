"""A run on cluster/one-machine.yaml: a head that takes no work, nodes that Ray's autoscaler starts and takes away."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from own_cluster import answers, free_ports, kill_session, session_of
from road_data import recipe_text, write_corpus, write_sets

pytestmark = pytest.mark.long
CONFIG = Path(__file__).parents[2] / "cluster" / "one-machine.yaml"
IDLE = 15  # seconds after which an idle node goes

# What a driver asks on the empty cluster, and what it is told.
_ASK = """
import time
from boom_ray.cluster.autoscale import autoscaled, granted, node_resources, nodes_with, release
from boom_ray.resources import Bundle, fitting
from boom_ray.cluster.session import off_the_head, ray_session

with ray_session():
    import ray
    assert autoscaled()
    assert not ray.cluster_resources().get("CPU"), "the head takes no work"
    assert off_the_head()
    began = time.monotonic()
    print("granted", granted(Bundle(1, 0.0), 5), "with GPUs", granted(Bundle(1, 1.0), 1), flush=True)
    granted(Bundle(1, 0.0), 2)
    nodes_with(Bundle(1, 0.0))
    while fitting(node_resources(), Bundle(1, 0.0)) < 2 and time.monotonic() < began + 120:
        time.sleep(0.5)
    print("nodes", fitting(node_resources(), Bundle(1, 0.0)), flush=True)
    release()
"""


@dataclass
class Cluster:
    head: subprocess.Popen[bytes]
    dashboard: int
    environment: dict[str, str]

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=400)

    @property
    def raylets(self) -> int:
        """Nodes, the head among them."""
        return sum(bool(re.search(r"raylet/raylet\b", _command(process))) for process in session_of(self.head.pid))


def _command(process) -> str:
    try:
        return " ".join(process.cmdline()[:1])
    except Exception:
        return ""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    port, dashboard, agent = free_ports(3)
    folder = tempfile.mkdtemp(prefix="br-", dir="/tmp")  # short: sockets lie in it
    config = yaml.safe_load(CONFIG.read_text().replace("127.0.0.1:6379", f"127.0.0.1:{port}"))
    config["idle_timeout_minutes"] = IDLE / 60
    (tmp_path / "one-machine.yaml").write_text(yaml.safe_dump(config))
    head_id = config["provider"]["head_node_id"]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every server binds to 127.0.0.1
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    provider = {
        "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "RAY_NODE_TYPE_NAME": "ray.head.default",
        "RAY_CLOUD_INSTANCE_ID": head_id, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": head_id,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", "--num-cpus=0",
        "--num-gpus=0", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", f"--autoscaling-config={tmp_path / 'one-machine.yaml'}",
        f"--temp-dir={folder}", "--object-store-memory=134217728",
    ]  # fmt: skip
    with open(tmp_path / "head.log", "w") as log:
        head = subprocess.Popen(command, env=environment | provider, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(lambda: answers(head, dashboard), "dashboard", 90)
        yield Cluster(head, dashboard, {**environment, "RAY_ADDRESS": f"127.0.0.1:{port}"})
    finally:
        kill_session(head)  # this head and its nodes; `ray stop` would end every Ray on the machine
        shutil.rmtree(folder, ignore_errors=True)


def _wait(ready: Callable[[], object], what: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"no {what} after {seconds} s"
        time.sleep(0.5)


def test_a_run_grows_its_cluster_and_lets_it_go(cluster, tmp_path):
    """Nothing is there at first. What can be granted is found out, nodes come for the corpus and for two members at
    once, and are gone soon after; the report shows their number."""
    asked = cluster.python("-c", _ASK)
    assert asked.returncode == 0, asked.stderr[-3000:]
    assert asked.stdout.splitlines() == ["granted 2 with GPUs 0", "nodes 2"]
    _wait(lambda: cluster.raylets == 1, "end of the nodes", 4 * IDLE + 60)

    corpus, sets, run = write_corpus(tmp_path / "corpus"), write_sets(tmp_path / "eval"), tmp_path / "run"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text(corpus, sets).replace("trials: 16", "trials: 4"))
    address = f"http://127.0.0.1:{cluster.dashboard}"
    done = cluster.python("-m", "boom_ray", "submit", str(recipe), "--address", address, "--run-dir", str(run))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert list((run / "published").glob("*/_SUCCESS"))
    counts = [json.loads(line)["cpu_nodes"] for line in (run / "nodes.jsonl").read_text().splitlines()]
    assert max(counts) == 2
    assert len(set(counts)) > 1
    summary = json.loads((run / "report" / "summary.json").read_text())
    first, second = (member["started"] for member in summary["members"])
    assert max(first, second) < min(member["finished"] for member in summary["members"]), "one after the other"
    assert summary["hardware"]["cpus"] == 2
    assert "Worker nodes of the cluster" in (run / "report" / "index.html").read_text()

    _wait(lambda: cluster.raylets == 1, "end of the nodes", 4 * IDLE + 60)
    names = [_command(process) for process in session_of(cluster.head.pid)]
    assert not [name for name in names if "TrainWorker" in name or "TrainController" in name], names
