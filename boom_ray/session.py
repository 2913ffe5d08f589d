"""The Ray cluster of a run: the one that the environment names, or one of this machine's cores on 127.0.0.1."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "RAY_DEDUP_LOGS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_OBJECT_STORE_BYTES = 256 << 20  # rows never travel through it: descriptors and small results do


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect to ``RAY_ADDRESS`` (set inside a job and on cluster nodes), else start a cluster of this machine.

    A local cluster ends with the block, and by itself if this process is killed. An existing connection is left alone.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    # Ray's own notes (token mode is on, a dataset has ended) would drown the run's lines; its log files keep them
    for name in ("ray.data", "ray.tune", "ray._private.authentication"):
        logging.getLogger(name).setLevel(logging.ERROR)
    options: dict[str, object] = {"log_to_driver": False, "logging_level": "warning"}
    if not os.environ.get("RAY_ADDRESS"):
        cpus = len(os.sched_getaffinity(0))
        local = {"address": "local", "num_cpus": cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        options |= {**local, "object_store_memory": _OBJECT_STORE_BYTES}
    ray.init(**options)
    try:
        yield
    finally:
        ray.shutdown()


def node_resources() -> list[Mapping[str, float]]:
    """Resources of every node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def hardware() -> dict[str, float]:
    """CPUs, GPUs and memory (GiB) of all nodes together, for the report."""
    total = ray.cluster_resources()
    memory = total.get("memory", 0.0) / 2**30
    return {"cpus": int(total.get("CPU", 0)), "gpus": int(total.get("GPU", 0)), "memory_gib": round(memory, 1)}
