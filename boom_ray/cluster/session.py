"""The Ray cluster of a run: the one that the environment names, or this machine's cores on the loopback address."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from boom_ray.cluster import head, interrupts
from boom_ray.cluster.autoscale import node_resources, nodes_with
from boom_ray.config import BoomError
from boom_ray.exit_codes import Infrastructure
from boom_ray.resources import Bundle

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune would take Ctrl-C for itself and end as if it had finished
    "TOKENIZERS_PARALLELISM": "false",
}
# Ray's switch for one-machine clusters: every server binds to 127.0.0.1. `_node_ip_address="127.0.0.1"` does not: Ray
# puts the machine's own address in its place and listens on all interfaces.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# A machine of one's own is not preempted; the actor that would watch for it takes a hundredth of a core all the time.
_LASTING = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
_OBJECT_STORE_BYTES = 256 << 20  # rows never travel through it: descriptors and small results do


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect to ``RAY_ADDRESS`` (set inside a job and on cluster nodes), else start a cluster of this machine.

    A local cluster ends with the block, and by itself if this process is killed. An existing connection is left alone.
    """
    local = not os.environ.get("RAY_ADDRESS")
    for name, value in (_QUIET | (_LOOPBACK | _LASTING if local else {})).items():
        os.environ.setdefault(name, value)
    import ray  # only now: Ray reads its switches when it is imported

    if ray.is_initialized():
        yield
        return
    # Ray's own notes (token mode is on, a dataset has ended) would drown the run's lines; its log files keep them
    for name in ("ray.data", "ray.tune", "ray._private.authentication"):
        logging.getLogger(name).setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    if local:
        options |= {"address": "local", "num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False}
        options |= {"object_store_memory": _OBJECT_STORE_BYTES}
    _connect(options)
    try:
        with head.watched(ray.get_runtime_context().gcs_address):
            yield
    finally:
        ray.shutdown()


def _connect(options: dict[str, Any]) -> None:
    """``ray.init``, which takes SIGTERM for itself.

    Raises:
        BoomError: the cluster wants another token.
        Infrastructure: the cluster that the environment names does not answer, or none starts on this machine.
    """
    import ray
    from ray.exceptions import AuthenticationError

    try:
        ray.init(**options)
    except AuthenticationError as error:
        raise BoomError(f"the Ray cluster refuses the token (RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH): {error}") from None
    except Exception as error:  # Ray raises Exception itself where a node does not come up in time
        if "address" in options:
            raise Infrastructure(
                f"Ray did not start on this machine: {_reason(error).rstrip('.')}. It has 30 seconds for that; where "
                f"other work keeps the machine busy, run the same command again later."
            ) from error
        address = os.environ["RAY_ADDRESS"]
        raise Infrastructure(f"no Ray cluster answers at RAY_ADDRESS={address}: {_reason(error)}") from error
    finally:
        interrupts.keep()


def _reason(error: Exception) -> str:
    """The first line of what Ray says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def running_nodes() -> list[Mapping[str, float]]:
    """:func:`node_resources` of the cluster that ``RAY_ADDRESS`` names or that runs here; starts none.

    Raises:
        BoomError: there is none.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")  # of a head that is gone its address may be left
    import ray

    try:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError) as error:
        raise BoomError(
            f"no Ray cluster answers ({_reason(error)}). Describe one instead, as in --cluster 4x8."
        ) from None
    try:
        return node_resources()
    finally:
        ray.shutdown()


def largest_node() -> int:
    """CPUs of the node that has the most: what one process can have to itself. Waits for a node where none is here."""
    return max(int(node.get("CPU", 0)) for node in nodes_with(Bundle(1, 0.0)))


def off_the_head() -> dict[str, Any]:
    """Options of an actor that takes no CPU of Ray's, and must not run on a head that takes no work."""
    import ray

    for node in ray.nodes():
        if node["Alive"] and "node:__internal_head__" in node["Resources"] and not node["Resources"].get("CPU"):
            return {"label_selector": {"ray.io/node-id": f"!{node['NodeID']}"}}
    return {}


def hardware() -> dict[str, Any]:
    """CPUs, GPUs and memory (GiB) of all nodes together, for the report."""
    import ray

    total = ray.cluster_resources()
    memory = total.get("memory", 0.0) / 2**30
    return {"cpus": int(total.get("CPU", 0)), "gpus": int(total.get("GPU", 0)), "memory_gib": round(memory, 1)}


def get(reference: Any) -> Any:
    """``ray.get``; a user's mistake that surfaced in a worker is raised as itself, not as a traceback."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, BoomError):
            raise type(error.cause)(str(error.cause)) from None
        raise
