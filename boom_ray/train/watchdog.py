"""A watch over a member's workers: who has done nothing for too long is hung, and no collective ever tells.

It runs in the member's controller, beside what Ray Train looks at (whether a worker answers at all, for ten minutes).
Every worker is asked for its pulse. When one does not answer any more, or their slowest has stood still for too long,
the stacks of all are written down, all are ended, and the driver starts the member again from its last checkpoint.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from boom_ray.failures import Hung
from boom_ray.ledger import Ledger
from boom_ray.train.pulse import Pulse, felt

_SILENT = 300.0  # seconds without an answer, at most: an interpreter that is held so long does not come back
_LOOKS = 4  # in the time that is allowed
_DUMP = 10.0  # seconds that stacks may take


@dataclass
class Rank:
    """What is known of one worker: when it last answered, and its pulse then."""

    answered: float
    pulse: Pulse = field(default_factory=Pulse)


@dataclass(frozen=True)
class Found:
    """Ranks that are hung, for how many seconds, and how that shows."""

    ranks: tuple[int, ...]
    seconds: float
    how: str


def verdict(ranks: Sequence[Rank], now: float, patience: float) -> Found | None:
    """Who is hung; None while all is well. Pure.

    Those that do not answer; else, when even the last that did something did it too long before it answered, those that
    have done least: the others wait for them.
    """
    silence = min(patience, _SILENT)
    silent = [number for number, rank in enumerate(ranks) if now - rank.answered > silence]
    if silent:
        return Found(tuple(silent), max(now - ranks[number].answered for number in silent), "does not answer")
    still = min(rank.pulse.still for rank in ranks)
    if still <= patience:
        return None
    least = min(rank.pulse.count for rank in ranks)
    behind = tuple(number for number, rank in enumerate(ranks) if rank.pulse.count == least)
    return Found(behind, still, "has done nothing")


class Watchdog(WorkerGroupCallback):
    """Of one member, called ``name``; ``folder`` below the run directory ``root`` takes the stacks."""

    def __init__(self, name: str, root: str, folder: str, patience: float) -> None:
        self._name, self._root, self._folder, self._patience = name, root, folder, patience
        self._workers: list[Any] = []
        self._ranks: list[Rank] = []
        self._asked: dict[int, Any] = {}
        self._last = 0.0

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        now = time.monotonic()
        self._workers = list(worker_group.get_workers())
        self._ranks = [Rank(now) for _ in self._workers]
        self._asked, self._last = {}, now

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        now = time.monotonic()
        if worker_group_status.errors or now - self._last < min(self._patience, _SILENT) / _LOOKS:
            return
        self._last = now
        self._ask(now)
        if found := verdict(self._ranks, now, self._patience):
            raise self._end(found)

    def _ask(self, now: float) -> None:
        """Hear who has answered since the last look, and ask these again; who has died is Ray Train's to tell."""
        for number, answer in _answers(self._asked, 0).items():
            del self._asked[number]
            self._ranks[number] = Rank(now, answer if isinstance(answer, Pulse) else self._ranks[number].pulse)
        for number, worker in enumerate(self._workers):
            if number not in self._asked:
                self._asked[number] = worker.execute_async(felt)

    def _end(self, found: Found) -> Hung:
        """Write down all stacks and end all workers; what the driver is to be told."""
        texts = [f"== rank {number}, {self._where(number)}\n{text}\n" for number, text in self._stacks().items()]
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        file = Ledger(self._root).write_text(f"{self._folder}/stacks-{stamp}.txt", "\n".join(texts))
        for worker in self._workers:
            ray.kill(worker.actor)
        who = ", ".join(f"rank {number} ({self._where(number)})" for number in found.ranks)
        last = self._ranks[found.ranks[0]].pulse.what
        return Hung(
            f"hung: {who} {found.how} for {found.seconds:.0f} s, last heard after {last}. All its workers were ended; "
            f"their stacks lie in {file}"
        )

    def _where(self, number: int) -> str:
        meta = self._workers[number].metadata
        return f"process {meta.pid} on {meta.node_ip}"

    def _stacks(self) -> dict[int, str]:
        """The stacks of all ranks, by themselves; of those that do not answer from outside, and these are killed: a
        process that is stopped would outlive its actor."""
        asked = {number: worker.execute_async(own_stacks) for number, worker in enumerate(self._workers)}
        found = _answers(asked, _DUMP)
        outside = {}
        for number in asked.keys() - found.keys():
            meta = self._workers[number].metadata
            there = NodeAffinitySchedulingStrategy(meta.node_id, soft=False)
            task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(end_from_outside)
            outside[number] = task.remote(meta.pid)
        found |= _answers(outside, 2 * _DUMP)
        return {number: str(found.get(number, "no stacks: its node does not answer")) for number in asked}


def _answers(asked: Mapping[int, Any], seconds: float) -> dict[int, Any]:
    """Of those that have answered in time, the answer, or Ray's error."""
    if not asked:
        return {}
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=seconds)
    answers: dict[int, Any] = {}
    for number, reference in asked.items():
        if reference in ready:
            try:
                answers[number] = ray.get(reference)
            except RayError as error:
                answers[number] = error
    return answers


def own_stacks() -> str:
    """What every thread of this process is doing."""
    return "\n".join("".join(traceback.format_stack(frame)) for frame in sys._current_frames().values())


def end_from_outside(pid: int) -> str:
    """The stacks of another process of this node, if that is a worker of Ray; it is killed."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
        state = re.search(r"State:\s+(.*)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        title, state = b"", None
    if b"ray::" not in title:
        return "no stacks: its process is gone"
    told = _spied(pid)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return f"(its state was {state[1] if state else 'unknown'}; it was killed)\n{told}"


def _spied(pid: int) -> str:
    tool = shutil.which("py-spy", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if tool is None:
        return "no stacks: py-spy is not installed on its node"
    command = [tool, "dump", "--nonblocking", "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DUMP, check=False)
    except subprocess.TimeoutExpired:
        return "no stacks: py-spy took too long"
    return done.stdout if done.returncode == 0 else f"no stacks: {done.stderr.strip()}"
