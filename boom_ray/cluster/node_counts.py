"""How many nodes a run had, over time: counted by its driver, kept in the run directory, drawn in the report."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from boom_ray.cluster.autoscale import node_resources
from boom_ray.cluster.session import hardware
from boom_ray.ledger import Ledger

FILE = "nodes.jsonl"
_LOOK = 2.0  # seconds between two looks

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Sample:
    """Worker nodes from a moment on (seconds since 1970): those with GPUs and those without. ``begins``: it is the
    first of a driver, and the time before it is unknown."""

    at: float
    cpu_nodes: int
    gpu_nodes: int
    begins: bool = False

    @classmethod
    def of(cls, nodes: Sequence[Resources], at: float, begins: bool = False) -> Sample:
        """A node without CPUs, such as a head that takes no work, does not count."""
        workers = [node for node in nodes if node.get("CPU", 0) >= 1]
        gpus = sum(node.get("GPU", 0) > 0 for node in workers)
        return cls(at, len(workers) - gpus, gpus, begins)

    @property
    def counts(self) -> tuple[int, int]:
        return self.cpu_nodes, self.gpu_nodes


def read_counts(ledger: Ledger) -> list[Sample]:
    """What all drivers of a run have counted, in order; nothing where the number of nodes never changed."""
    file = ledger.root / FILE
    return [Sample(**json.loads(line)) for line in file.read_text().splitlines()] if file.is_file() else []


@contextmanager
def counted_nodes(ledger: Ledger) -> Iterator[None]:
    """Count nodes while the block runs, and keep the largest hardware that there was in hardware.json."""
    over = threading.Event()
    counter = Counter(ledger)
    counter.look(node_resources(), time.time(), hardware())
    thread = threading.Thread(target=_count, args=(counter, over), name="nodes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=10)


def _count(counter: Counter, over: threading.Event) -> None:
    """Until it is over, or the cluster or the run directory is lost: others tell of that."""
    try:
        while not over.wait(_LOOK):
            counter.look(node_resources(), time.time(), hardware())
        counter.end(time.time())
    except Exception:
        return


class Counter:
    """Writes what changes."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._before = read_counts(ledger)
        self._samples: list[Sample] = []
        self._hardware: dict[str, Any] = {}

    def look(self, nodes: Sequence[Resources], at: float, machine: Mapping[str, Any]) -> None:
        sample = Sample.of(nodes, at, begins=not self._samples)
        if not self._samples or sample.counts != self._samples[-1].counts:
            self._samples.append(sample)
            self._write()
        most = {name: max(value, self._hardware.get(name, 0)) for name, value in machine.items()}
        if most != self._hardware:
            self._hardware = most
            self._ledger.write_text("hardware.json", json.dumps(most) + "\n")

    def end(self, at: float) -> None:
        """The last count held until now."""
        last = self._samples[-1]
        self._samples.append(Sample(at, *last.counts))
        self._write()

    def _write(self) -> None:
        """Nothing is written of a cluster that never changes."""
        if self._before or len({sample.counts for sample in self._samples}) > 1:
            lines = [json.dumps(asdict(sample)) for sample in (*self._before, *self._samples)]
            self._ledger.write_text(FILE, "\n".join(lines) + "\n")
