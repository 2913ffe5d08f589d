"""The merge on a cluster: Gram matrices that grow while members train, and the tensors of one merge on several nodes.

Workers read the members and write each tensor at its place in files on storage that all nodes share. Through Ray's
object store go names, and of Gram matrices kilobytes. Nothing here decides a byte: any worker writes any tensor alike.
"""

from __future__ import annotations

import socket
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from boom_ray.cluster.session import get
from boom_ray.config import BoomError
from boom_ray.ledger import Key, Ledger, identity
from boom_ray.merge.engine import Engine
from boom_ray.merge.gram import Grams, gram_of
from boom_ray.merge.job import MergePlan, finish, merge_tensors, prepare
from boom_ray.merge.members import open_members
from boom_ray.stores import mirrors

FILE = "grams.npz"
_PARTS_PER_SLOT = 4  # so that a slow node delays the end by a small part


def merge_on_cluster(plan: MergePlan) -> dict[str, int]:
    """Carry out a plan in its directory with this process' threads and the free CPUs of all other nodes.

    A call after a kill goes on at the first tensor that is not done. A node that is lost costs its tensors' time.

    Returns: tensors merged by each node.

    Raises:
        BoomError: NaN or infinite weights or results; too little disk; a directory that a node cannot see.
    """
    alone = mirrors.locate(plan.directory) is not None  # other nodes do not see what lies in a mirror
    pending, slots = prepare(plan), 0 if alone else _slots_elsewhere()
    if not slots:
        merge_tensors(plan, pending, durable=False)
        finish(plan)
        return {_here(): len(pending)}
    merged: Counter[str] = Counter()

    def here(names: Sequence[str]) -> str:
        merge_tensors(plan, names)
        return _here()

    there = replace(plan, workers=1)
    parts = cut(pending, plan.opened.floats, _PARTS_PER_SLOT * (slots + 1))
    for names, node in _share(parts, here, lambda names: _merge_there.remote(there, names), slots):
        merged[node] += len(names)
    finish(plan)
    return dict(merged)


def cut(names: Sequence[str], sizes: Mapping[str, int], count: int) -> list[list[str]]:
    """``names`` in order, as at most ``count`` runs of about equal size and one for each tensor larger than that."""
    most = sum(sizes[name] for name in names) / max(1, count)
    parts: list[list[str]] = []
    filled = 0.0
    for name in names:
        if not parts or filled + sizes[name] > most:
            parts.append([])
            filled = 0.0
        parts[-1].append(name)
        filled += sizes[name]
    return parts


def _share(
    parts: Sequence[list[str]], here: Callable[[list[str]], Any], there: Callable[[list[str]], Any], slots: int
) -> list[tuple[list[str], Any]]:
    """Every part with its result, done by whoever is free: this process or one of ``slots`` tasks at a time."""
    waiting, running, done = deque(parts), dict[Any, list[str]](), list[tuple[list[str], Any]]()
    while waiting or running:
        while waiting and len(running) < slots:
            names = waiting.popleft()
            running[there(names)] = names
        if waiting:
            names = waiting.popleft()
            done.append((names, here(names)))
        ready, _ = ray.wait(list(running), num_returns=len(running), timeout=0 if waiting else 0.05)
        done += [(running.pop(reference), get(reference)) for reference in ready]
    return done


def _slots_elsewhere() -> int:
    """CPUs of the other nodes."""
    here = ray.get_runtime_context().get_node_id()
    nodes = (node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here)
    return sum(int(node["Resources"].get("CPU", 0)) for node in nodes)


def _here() -> str:
    return f"{socket.gethostname()}/{ray.get_runtime_context().get_node_id()[:8]}"


@ray.remote(num_cpus=1, max_retries=3, scheduling_strategy="SPREAD")
def _merge_there(plan: MergePlan, names: list[str]) -> str:
    if not plan.directory.is_dir():
        raise BoomError(f"{_here()} does not see {plan.directory}. Put the run directory on storage that nodes share.")
    merge_tensors(plan, names)
    return _here()


@dataclass(frozen=True)
class GramTask:
    """What the Gram matrices of a run are made of: keys of its members and of the base, in the ledger at ``root``."""

    root: str
    members: tuple[Key, ...]
    base: Key
    key: Key

    def part(self, members: Sequence[Key]) -> GramTask:
        """The same for some of the members."""
        name = identity(["grams of", [member.identity for member in members], self.base.identity])
        return replace(self, members=tuple(members), key=Key("grams", "some", name))

    @property
    def inputs(self) -> dict[str, Any]:
        return {"members": [member.identity for member in self.members], "base": self.base.identity}

    def paths(self) -> tuple[list[Path], Path]:
        ledger = Ledger(self.root)
        return [ledger.path(member) for member in self.members], ledger.path(self.base)


class GrowingGrams:
    """Grows the Gram matrix of the members that have landed, in tasks of one CPU, one after the other."""

    def __init__(self, task: GramTask) -> None:
        self._task = task
        self._last: Any = None

    def grow(self) -> None:
        """Start to take in what has landed. Returns at once; what goes wrong comes up in :func:`make_grams`."""
        ledger = Ledger(self._task.root)
        landed = [key for key in self._task.members if ledger.has(key)]
        if landed and len(landed) < len(self._task.members):
            self._last = _grow.remote(self._task.part(landed), self._last)

    def wait(self) -> None:
        if self._last is not None:
            ray.wait([self._last])


@ray.remote(num_cpus=1, max_retries=3)
def _grow(task: GramTask, after: Any) -> None:
    ledger = Ledger(task.root)
    if not ledger.has(task.key):
        _commit(ledger, task, [_gram_part(task, None, known_grams(ledger, task))])


def make_grams(task: GramTask) -> None:
    """Commit the Gram matrices of all members; what smaller sets of them have in the ledger is taken over.

    Tensors are shared among the cluster's CPUs, and so are members while their checksums are compared.

    Raises:
        BoomError: members that do not match, damaged files, NaN or infinite weights.
    """
    ledger = Ledger(task.root)
    get([_verify.remote(task.root, key) for key in (*task.members, task.base) if ledger.has(key)])
    known = known_grams(ledger, task)
    members, base = task.paths()
    sizes = open_members(members, base).floats
    slots = max(1, int(ray.cluster_resources().get("CPU", 1)))
    parts = cut(list(sizes), sizes, slots)
    shared = ray.put(known)
    _commit(ledger, task, get([_gram_there.remote(task, part, shared) for part in parts]))


@ray.remote(num_cpus=1, max_retries=3, scheduling_strategy="SPREAD")
def _verify(root: str, key: Key) -> None:
    Ledger(root).verify(key)


@ray.remote(num_cpus=1, max_retries=3, scheduling_strategy="SPREAD")
def _gram_there(task: GramTask, names: list[str], known: Grams | None) -> Grams:
    return _gram_part(task, names, known)


def _gram_part(task: GramTask, names: list[str] | None, known: Grams | None) -> Grams:
    members, base = task.paths()
    opened = open_members(members, base)
    with Engine(opened, workers=1) as engine:
        return gram_of(engine, list(opened.floats) if names is None else names, known)


def _commit(ledger: Ledger, task: GramTask, parts: Sequence[Grams]) -> None:
    with ledger.stage(task.key, inputs=task.inputs) as stage:
        Grams.joined(parts).save(stage.path / FILE)


def known_grams(ledger: Ledger, task: GramTask) -> Grams | None:
    """The Gram matrices in the ledger that cover most of these members with this base, if any do."""
    wanted, best, most = set(task.inputs["members"]), None, 0
    for path, manifest in ledger.manifests("grams"):
        inputs = manifest["inputs"]
        common = len(wanted & set(inputs.get("members", ())))
        if inputs.get("base") == task.base.identity and common > most:
            best, most = path, common
    if best is None:
        return None
    grams = Grams.load(mirrors.fetch(best) / FILE)
    members, base = task.paths()
    return grams if grams.fits(open_members(members, base).fingerprints) else None
