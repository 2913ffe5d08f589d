"""Tells Ray that this machine is to be taken back: run on every spot node, it hands the cloud's notice on.

    python -m boom_ray.cluster.spot_notice aws|gcp   asks the machine's metadata now and then, until there is a notice
    python -m boom_ray.cluster.spot_notice now       there is one (Kubernetes: as a preStop hook)

Ray knows of no notice by itself. Once it does it gives the node no new work, and members that train here write a
checkpoint and go on elsewhere. Works from the node's own Ray, with the cluster's token where it has one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from datetime import datetime

_EVERY = 5.0  # seconds between two looks, as AWS advises
_TIMEOUT = 2.0  # seconds for an answer of the metadata, which are at hand
_GCP_SECONDS = 30.0  # what Google Cloud promises
_HOSTS = {"aws": "http://169.254.169.254", "gcp": "http://metadata.google.internal"}
_PREEMPTION = 2  # ray.rpc.autoscaler.DrainNodeReason


def asked_aws(host: str = _HOSTS["aws"]) -> float | None:
    """Seconds until AWS takes this instance back; None while there is no notice."""
    token = _fetch(f"{host}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    told = token and _fetch(f"{host}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    if not told:
        return None
    at = datetime.fromisoformat(json.loads(told)["time"].replace("Z", "+00:00"))
    return max(0.0, at.timestamp() - time.time())


def asked_gcp(host: str = _HOSTS["gcp"]) -> float | None:
    """The same of Google Cloud, which says no moment."""
    told = _fetch(f"{host}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return _GCP_SECONDS if told == "TRUE" else None


def _fetch(url: str, headers: Mapping[str, str], method: str = "GET") -> str | None:
    """None where there is nothing, or no answer."""
    request = urllib.request.Request(url, headers=dict(headers), method=method)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            return str(answer.read().decode()).strip()
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return None


def drain_this_node(seconds: float) -> None:
    """Say to Ray that the node which this runs on ends in so many seconds."""
    import ray
    from ray.experimental.internal_kv import internal_kv_get_gcs_client

    ray.init(address="auto", log_to_driver=False, logging_level="error")
    node, deadline = ray.get_runtime_context().get_node_id(), int(1000 * (time.time() + seconds))
    internal_kv_get_gcs_client().drain_node(node, _PREEMPTION, "the cloud takes this machine back", deadline)
    ray.shutdown()


def watch(asked: Callable[[], float | None], drain: Callable[[float], None], every: float = _EVERY) -> float:
    """Wait for a notice, hand it on, and return its seconds."""
    while (seconds := asked()) is None:
        time.sleep(every)
    drain(seconds)
    return seconds


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m boom_ray.cluster.spot_notice", description=__doc__.splitlines()[0])
    parser.add_argument("whose", choices=["aws", "gcp", "now"], help="whose notice to wait for; now: do not wait")
    parser.add_argument("--seconds", type=float, default=25.0, help="until this machine ends, with now (default: 25)")
    given = parser.parse_args(arguments)
    if given.whose == "now":
        drain_this_node(given.seconds)
        time.sleep(given.seconds)  # while the hook runs, the pod lives
    else:
        seconds = watch(asked_aws if given.whose == "aws" else asked_gcp, drain_this_node)
        print(f"this machine is taken back in {seconds:.0f} s: Ray has been told", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
