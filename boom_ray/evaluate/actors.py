"""A crew of Ray actors, each with a device or a share of one."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from boom_ray.config import BoomError
from boom_ray.evaluate.board import Action, Encode, Resume, Start
from boom_ray.evaluate.crew import Encoded, Failed, Lost, Outcome, Ready, packed
from boom_ray.evaluate.downloads import offline
from boom_ray.evaluate.worker import Work, Worker
from boom_ray.exit_codes import Infrastructure
from boom_ray.resources import Bundle, fitting

_PER_GPU = 2  # actors: while mteb computes for one, the other encodes
_PER_NODE = 16  # actors without a GPU
_LIBRARIES = 1.5 * 2**30  # bytes of memory that an actor takes beside its model
_MODELS = 3  # times its weights that a model takes while it encodes
_DEATHS = 3  # of each actor, on the average


def places(nodes: Sequence[Mapping[str, float]], model_bytes: int) -> tuple[int, Bundle]:
    """Actors that fit on the nodes, and what each takes.

    Two share a GPU. Without GPUs one for each core, as far as memory goes (one process per core encodes faster than
    one process with all cores), at most 16 on a node, which then have several cores each.

    Args:
        nodes: resources of each node; ``memory`` in bytes.
        model_bytes: of the largest model's weights.
    """
    here = [node for node in nodes if node.get("CPU", 0) >= 1]
    on_gpus = [node for node in here if node.get("GPU", 0) >= 1]
    if on_gpus:
        cpus = min(math.floor(node["CPU"] / (_PER_GPU * node["GPU"])) for node in on_gpus)
        bundle = Bundle(min(max(1, cpus), 8), 1 / _PER_GPU)
        return fitting(on_gpus, bundle), bundle
    if not here:
        raise BoomError("the cluster has no node with a CPU to score models on.")
    needed = _LIBRARIES + _MODELS * model_bytes
    room = [min(node["CPU"], _PER_NODE, max(1, node.get("memory", math.inf) // needed)) for node in here]
    bundle = Bundle(max(1, min(math.floor(node["CPU"] / most) for node, most in zip(here, room, strict=True))), 0.0)
    return sum(int(min(most, node["CPU"] // bundle.cpus)) for node, most in zip(here, room, strict=True)), bundle


@dataclass(frozen=True)
class _Flight:
    """A call under way: its worker, its action (None: the actor is starting), and where its vectors will lie."""

    worker: int
    action: Action | None
    place: Any = None


class Actors:
    """A crew of Ray actors; one that dies is replaced."""

    def __init__(self, work: Work, count: int, bundle: Bundle) -> None:
        import ray

        self.count = count
        self._bundle = bundle
        self._work = ray.put(work)
        self._actors: dict[int, Any] = {}
        self._flights: dict[Any, _Flight] = {}
        self._deaths = 0
        for worker in range(count):
            self._begin(worker)

    def _begin(self, worker: int) -> None:
        import ray

        options = {"num_cpus": self._bundle.cpus, "num_gpus": self._bundle.gpus, "scheduling_strategy": "SPREAD"}
        actor = ray.remote(_Actor).options(**options).remote(self._work, self._bundle.cpus, offline())
        self._actors[worker] = actor
        self._flights[actor.ready.remote()] = _Flight(worker, None)

    def submit(self, worker: int, action: Action) -> None:
        actor = self._actors[worker]
        if isinstance(action, Start):
            self._flights[actor.start.remote(action.job)] = _Flight(worker, action)
        elif isinstance(action, Resume):
            told = actor.resume.remote(action.job, action.positions, action.rows, *action.places)
            self._flights[told] = _Flight(worker, action)
        else:
            size, vectors = actor.encode_apart.options(num_returns=2).remote(action.part.model, *packed(action))
            self._flights[size] = _Flight(worker, action, vectors)

    def wait(self) -> Iterator[tuple[int, Action | None, Outcome]]:
        """See :class:`Crew`.

        Raises:
            Infrastructure: vectors were lost with a node, or actors die again and again.
        """
        import ray

        ended, _ = ray.wait(list(self._flights), num_returns=1)
        for reference in ended:
            flight = self._flights.pop(reference)
            outcome = self._outcome(reference, flight)
            if isinstance(outcome, Lost):
                ray.kill(self._actors[flight.worker])
                self._begin(flight.worker)
            yield flight.worker, flight.action, outcome

    def _outcome(self, reference: Any, flight: _Flight) -> Outcome:
        import ray
        from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError, RayTaskError

        try:
            value = ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, ObjectLostError):
                raise Infrastructure("a node was lost with vectors on it. Run again: scores so far are kept.") from None
            cause = error.cause if isinstance(error.cause, Exception) else error
            return Failed(BoomError(str(cause)) if isinstance(cause, BoomError) else cause)
        except (ActorDiedError, ActorUnavailableError) as error:
            self._deaths += 1
            if self._deaths > _DEATHS * self.count:
                raise Infrastructure(f"the actors that score models die again and again: {error}") from None
            return Lost()
        if flight.action is None:
            return Ready()
        return Encoded(flight.place, value) if isinstance(flight.action, Encode) else value

    def close(self) -> None:
        """End the actors."""
        import ray

        for actor in self._actors.values():
            ray.kill(actor)


class _Actor(Worker):
    """A worker whose vectors stay in the object store: only their size goes back."""

    def __init__(self, work: Work, threads: int, offline: bool) -> None:
        if offline:  # in the driver's process; here the libraries that read this are not loaded yet
            os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
        super().__init__(work, threads)

    def ready(self) -> None:
        """Answers once the actor runs."""

    def encode_apart(self, model: int, tokens: np.ndarray, lengths: np.ndarray) -> tuple[int, np.ndarray]:
        vectors = self.encode(model, tokens, lengths)
        return vectors.nbytes, vectors
