"""Why a start of a member ended: Ray's wrapping taken off what the first of its workers says."""

from __future__ import annotations

from collections.abc import Sequence

from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.train import PreemptionError
from ray.train.v2._internal.exceptions import RayTrainError

from boom_ray.config import BoomError
from boom_ray.data.schedule import Batch
from boom_ray.exit_codes import Infrastructure
from boom_ray.failures import ASKED, NODE, Failure, Hung, Kind, Stopped
from boom_ray.progress import read_state
from boom_ray.train.member import MemberTask

_REASON = 300  # characters of Ray's words that are kept
_LOW_MEMORY = "running low on memory"  # Ray's words where its own watch over a node's memory ends a worker
_ORDER: dict[Kind, int] = {"mistake": 0, "storage": 1, "preempted": 2, "machine": 3, "fault": 4}


def failure_of(error: BaseException, task: MemberTask, batches: Sequence[Batch]) -> Failure:
    """What became of a member, in the words of the worker that failed first, not in Ray's wrapping."""
    kind, reason = cause(error)
    reason = reason.removeprefix(f"{task.name}, ")
    step = read_state(task, "").step
    return Failure(kind, reason, step, batches[step].dataset if step < len(batches) else None)


def cause(error: BaseException) -> tuple[Kind, str]:
    """(kind, reason) of what :meth:`TorchTrainer.fit` raised.

    Of several workers' errors the one that explains the others counts: a mistake is found by all ranks alike, and where
    one worker is lost the others fail because of it.
    """
    if isinstance(error, PreemptionError):
        late = ", and its workers did not end in time" if error.drain_timed_out else ""
        return "preempted", ASKED[NODE] + late
    inner = getattr(error, "controller_failure", error)
    found = [_one_cause(e, f"worker {rank}") for rank, e in (getattr(inner, "worker_failures", None) or {}).items()]
    found = found or [_one_cause(inner, "its controller")]
    return min(found, key=lambda told: _ORDER[told[0]])


def _one_cause(error: BaseException, who: str) -> tuple[Kind, str]:
    error = getattr(error, "health_check_failure", error)
    if isinstance(error, RayTaskError):
        error = error.cause or error
    if isinstance(error, BoomError):
        return "storage" if isinstance(error, Infrastructure) else "mistake", str(error)
    if isinstance(error, Stopped):
        return "preempted", str(error)
    if isinstance(error, Hung):
        return "machine", str(error)
    if isinstance(error, RayActorError) and error.preempted:
        return "preempted", f"{who} went with its node, which was taken back (preemption)"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if isinstance(error, OutOfMemoryError) or _LOW_MEMORY in str(error):
        return "fault", (
            f"{who} ran out of memory: its node had too little left, and Ray ended it. Lower train.chunk_tokens or "
            f"train.graph_tokens, set train.gradient_checkpointing, or give a worker more of a node with "
            f"resources.cpus_per_worker ({lines[0][:_REASON]})"
        )
    if isinstance(error, RayError | RayTrainError) and not isinstance(error, RayTaskError):
        return "machine", f"{who} was lost ({lines[-1][:_REASON]})"
    return "fault", f"{type(error).__name__}: {lines[0][:_REASON]}"
