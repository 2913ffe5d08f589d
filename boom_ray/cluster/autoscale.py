"""Nodes that come and go: what a stage will need is asked of Ray's autoscaler ahead, and let go of when it is over.

A wish goes to the coordinator that Ray Train and Ray Data ask as well: it adds all wishes up and hands the sum to
``ray.autoscaler.sdk.request_resources``, which knows one wish at a time and would forget ours within seconds. A wish
that is not repeated expires, so a driver that is killed keeps no node. A cluster that does not grow is never asked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from boom_ray.config import Resources
from boom_ray.exit_codes import Infrastructure
from boom_ray.resources import Bundle, fitting, slots

PATIENCE = 1800.0  # seconds to wait for a node while nothing else can be done: a spot market may be empty for a while
_LOOK = 0.5  # seconds between two looks
_REPEAT = 20.0  # seconds between two repetitions of a wish
_EXPIRES = 600.0  # seconds after which a wish that is not repeated is forgotten: nodes may take minutes to boot
_ANSWER = 60.0  # seconds that the autoscaler may take to look at a wish; it looks every five
_PIECES = 4  # of like work that make a CPU worth starting
_MOST_CPUS = 1024  # that are asked for at once
_HEAD = "node:__internal_head__"

Nodes = list[Mapping[str, float]]


def node_resources() -> Nodes:
    """Resources of every node that is alive and is to stay: those that are taken back get no new work."""
    import ray
    from ray._private.state import state

    leaving = state.get_draining_nodes()
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]


def autoscaled() -> bool:
    """Whether this cluster can grow: Ray's autoscaler (v2) runs, and whoever started the head told it node types."""
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    if not is_autoscaler_v2(fetch_from_server=True):
        return False
    heads = (node for node in _status().cluster_resource_state.node_states if _HEAD in node.total_resources)
    return any(node.ray_node_type_name for node in heads)


def ask(bundles: Sequence[Mapping[str, float]]) -> None:
    """Have the autoscaler see to it that these fit beside what Ray Train and Ray Data ask for; the last call counts.

    More than the cluster may ever hold brings nothing at all: see :func:`granted`.
    """
    import ray
    from ray.data._internal.cluster_autoscaler import ResourceRequestPriority

    wish = {"resources": [dict(bundle) for bundle in bundles], "expire_after_s": _EXPIRES}
    told = _coordinator().request_resources.remote(_name(), priority=ResourceRequestPriority.HIGH, **wish)
    ray.get(told, timeout=_ANSWER)


def release() -> None:
    """Ask for nothing more; nodes that are idle may leave."""
    import ray

    ray.get(_coordinator().cancel_request.remote(_name()), timeout=_ANSWER)


def granted(needed: Bundle, count: int) -> int:
    """How many bundles the nodes that are here and those that may come can hold at once, ``count`` at most; the wish
    for these stands afterwards."""

    def fits(number: int) -> bool:
        ask([needed.per_worker] * number)
        return _feasible()

    found = most(count, fits)
    ask([needed.per_worker] * found)
    return found


def most(count: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``count`` that fits, 0 where 1 does not; what fits a number fits all below it. Pure."""
    if count < 1 or fits(count):
        return max(0, count)
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def nodes_with(*kinds: Bundle) -> Nodes:
    """The nodes, once one of them has room for a bundle of one of these kinds: of the first kind that the cluster has,
    or may have if it grows. Where no node is here at all, one is waited for.

    Raises:
        BoomError: no node ever has room for any of them.
        Infrastructure: none came.
    """
    here = node_resources()
    wanted = next((kind for kind in kinds if fitting(here, kind)), None)
    if wanted == kinds[0]:
        return here
    if autoscaled():
        wanted = next((kind for kind in kinds if fitting(here, kind) or granted(kind, 1)), None)
        if wanted is None:
            release()
    elif wanted is None and not any(node.get("CPU", 0) >= 1 for node in here):
        wanted = kinds[-1]
    if wanted is None:
        slots(here, kinds[-1])  # raises
    assert wanted is not None
    with wish(wanted) as repeat:
        return _awaited(wanted, repeat)


def _awaited(needed: Bundle, repeat: Callable[[int], None]) -> Nodes:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        here = node_resources()
        if fitting(here, needed):
            return here
        repeat(1)
        time.sleep(_LOOK)
    raise Infrastructure(
        f"no node with room for {needed.cpus} CPUs and {needed.gpus:g} GPUs came in {PATIENCE / 60:.0f} minutes. Look "
        f"at what the autoscaler says (`ray status`), then run again."
    )


@contextmanager
def wish(needed: Bundle) -> Iterator[Callable[[int], None]]:
    """For the block a wish for some bundles beside those that hold workers already: tell it their number as often as
    you like. It is over with the block, and does nothing where the cluster does not grow."""
    if not autoscaled():
        yield lambda count: None
        return
    last, at = -1, 0.0

    def repeat(count: int) -> None:
        nonlocal last, at
        if count != last or time.monotonic() - at > _REPEAT:
            ask([needed.per_worker] * count)
            last, at = count, time.monotonic()

    try:
        yield repeat
    finally:
        release()


@contextmanager
def cpus_ahead(pieces: int) -> Iterator[int]:
    """CPUs for so many like pieces of work, as many as are worth starting: those that are here or on their way, one of
    them here."""
    needed, wanted = Bundle(1, 0.0), min(math.ceil(pieces / _PIECES), _MOST_CPUS)
    here = fitting(node_resources(), needed)
    if here >= wanted or not autoscaled():
        yield fitting(nodes_with(needed), needed)
        return
    try:
        coming = granted(needed, wanted)
        _awaited(needed, lambda count: None)
        yield max(here, coming)
    finally:
        release()


def grown_nodes(resources: Resources, widths: Sequence[int]) -> Nodes:
    """The nodes to plan workers of members on: those that are here, and the room that an autoscaler has granted beside
    them, one worker of it a node. The wish for these stands: a :func:`wish` takes over.

    Args:
        widths: of the members, 1 where it is not decided; so much is asked for, unless the recipe says how much.

    Raises:
        BoomError, Infrastructure: as :func:`nodes_with`.
    """
    wanted = resources.workers or sum(sorted(widths)[-(resources.max_concurrent or len(widths)) :])
    here, grows = node_resources(), autoscaled()
    for needed in _kinds(resources):
        count = fitting(here, needed)
        if count < wanted and grows:
            count = max(count, granted(needed, wanted))
        if count:
            return [*here, *[needed.per_worker] * (count - fitting(here, needed))]
    return nodes_with(*_kinds(resources))


def _kinds(resources: Resources) -> Sequence[Bundle]:
    """What a worker may take, best first."""
    gpus = (1.0, 0.0) if resources.gpus_per_worker is None else (resources.gpus_per_worker,)
    return [Bundle(resources.cpus_per_worker, number) for number in gpus]


def workers_ahead(waiting: Sequence[int], held: Sequence[int], room: int) -> int:
    """Workers to ask for beside those of members that have theirs, or whose own controller asks: as many as members
    wait for and the plan has room for. Widths of members. Pure."""
    return max(0, min(sum(waiting), room - sum(held)))


def _feasible() -> bool:
    """Whether the autoscaler, having looked at what is wished for now, says that the cluster can hold it."""
    now = _status().cluster_resource_state.cluster_resource_state_version
    end = time.monotonic() + _ANSWER
    while time.monotonic() < end:
        told = _status().autoscaling_state
        if told.last_seen_cluster_resource_state_version > now:
            return not told.infeasible_cluster_resource_constraints
        time.sleep(_LOOK)
    raise Infrastructure(f"Ray's autoscaler has not looked at the cluster for {_ANSWER:.0f} s. Is the head in order?")


def _status() -> Any:
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
    from ray.experimental.internal_kv import internal_kv_get_gcs_client

    return GetClusterStatusReply.FromString(internal_kv_get_gcs_client().get_cluster_status())


def _coordinator() -> Any:
    from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator

    return get_or_create_autoscaling_coordinator()


def _name() -> str:
    import ray

    return f"boom_ray-{ray.get_runtime_context().get_job_id()}"
