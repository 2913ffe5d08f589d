"""A Ray cluster of processes of this machine, each node in a session of its own: what is killed is certainly ours.

``ray stop`` and Ray's helpers that call it would end every Ray on the machine.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from types import TracebackType

import psutil
import requests

STORE = 128 << 20  # bytes of a node's object store
AGENT = "Agent"  # Ray's own helpers of a node: DashboardAgent, RuntimeEnvAgent
# What `ray start --address` would do; that refuses a second node where servers are bound to 127.0.0.1.
NODE = f"""
import signal, sys
from ray._private.node import Node
from ray._private.parameter import RayParams

place = {{"gcs_address": sys.argv[1], "node_ip_address": "127.0.0.1", "min_worker_port": 0, "max_worker_port": 0}}
# two nodes that start at once would take the same names, and one of them would die of it
place |= {{"plasma_store_socket_name": sys.argv[2] + ".store", "raylet_socket_name": sys.argv[2] + ".raylet"}}
node = Node(
    RayParams(num_cpus=1, num_gpus=0, object_store_memory={STORE}, dashboard_port=None, **place),
    head=False, shutdown_at_exit=False, spawn_reaper=False,
)
open(sys.argv[2] + ".up", "w").close()
while True:
    signal.pause()
"""


def session_of(leader: int) -> list[psutil.Process]:
    """The processes of a session that are alive, also those whose parents are gone."""
    found = []
    for process in psutil.process_iter(["pid", "status"]):
        with suppress(ProcessLookupError, PermissionError, psutil.Error):
            if os.getsid(process.pid) == leader and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill_session(leader: subprocess.Popen[bytes], seconds: float = 30) -> None:
    """End all of it, as a machine that loses its power; what is being started meanwhile, too."""
    deadline = time.monotonic() + seconds
    while (left := session_of(leader.pid)) and time.monotonic() < deadline:
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        leader.poll()
        time.sleep(0.05)
    leader.wait()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1, all different, on which nothing listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def answers(head: subprocess.Popen[bytes], port: int) -> bool:
    """Whether the dashboard of a head that runs answers, with or without asking for a token."""
    assert head.poll() is None, "the head has ended"
    try:
        return requests.get(f"http://127.0.0.1:{port}/api/version", timeout=5).status_code in (200, 401)
    except requests.RequestException:
        return False


class OwnCluster:
    """A head without CPUs and ``nodes`` nodes of one CPU each, token on, all servers on 127.0.0.1.

    ``environment`` is that of a driver.
    """

    def __init__(self, nodes: int) -> None:
        self._folder = tempfile.mkdtemp(prefix="br-", dir="/tmp")  # short: sockets lie in it
        (port,) = free_ports(1)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_ADDRESS": f"127.0.0.1:{port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every server binds to 127.0.0.1
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # other work on the machine would starve them
        }
        self.before: list[str] = []  # a command that starts the next node's, such as unshare
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.ever: list[int] = []  # sessions of all nodes that there have been
        head = ["-m", "ray.scripts.scripts", "start", "--block", "--head", f"--port={port}", "--num-cpus=0"]
        head += ["--node-ip-address=127.0.0.1", "--num-gpus=0", f"--object-store-memory={STORE}"]
        head += ["--include-dashboard=false", "--dashboard-agent-listen-port=0", f"--temp-dir={self._folder}"]
        self._head = self._start(*head)
        self._wait_for(port)
        for _ in range(nodes):
            self.add_node()

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        command = [*self.before, sys.executable, *arguments]
        started = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
        self.ever.append(started.pid)
        return started

    def _wait_for(self, port: int, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self._head.poll() is None, "the head has ended"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.2)
        raise AssertionError(f"no head after {seconds} s")

    def add_node(self) -> None:
        self.nodes.append(self._start("-c", NODE, self.environment["RAY_ADDRESS"], f"{self._folder}/n{len(self.ever)}"))

    def settle(self, seconds: float = 120) -> None:
        """Wait until all nodes are up."""
        deadline = time.monotonic() + seconds
        while len([name for name in os.listdir(self._folder) if name.endswith(".up")]) < len(self.nodes):
            assert time.monotonic() < deadline, f"the nodes are not up after {seconds} s"
            time.sleep(0.2)
            self.keep_up()

    def keep_up(self) -> None:
        """Replace nodes that did not come up, as a machine that is too busy leaves them."""
        for node in [node for node in self.nodes if node.poll() is not None]:
            self.kill_node(node)
            self.add_node()

    def kill_node(self, node: subprocess.Popen[bytes]) -> None:
        kill_session(node)
        self.nodes.remove(node)

    def workers(self) -> list[tuple[psutil.Process, str]]:
        """Processes that run tasks and actors, on all nodes, with what Ray calls them."""
        found = []
        for leader in (self._head, *self.nodes):
            for process in session_of(leader.pid):
                with suppress(psutil.Error, IndexError):
                    if (title := process.cmdline()[0]).startswith("ray::") and not title.endswith(AGENT):
                        found.append((process, title.removeprefix("ray::")))
        return found

    def __enter__(self) -> OwnCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for leader in (*self.nodes, self._head):
            kill_session(leader)
        assert not [process for leader in self.ever for process in session_of(leader)], (
            "a process has outlived its node"
        )
        shutil.rmtree(self._folder, ignore_errors=True)
