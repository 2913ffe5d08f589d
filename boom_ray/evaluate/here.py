"""A crew on this machine, without Ray: threads of this process, which have nothing to start, and processes beside it.

Threads share this process's models, but wait for one another's memory: on two cores the whole in-domain sets take two
threads 306 s. One thread and one process, which joins when it has loaded what it needs, do not wait; and nothing beside
them takes time, as Ray's own processes do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import Pipe
from queue import SimpleQueue

from boom_ray.config import BoomError
from boom_ray.evaluate.board import Action
from boom_ray.evaluate.crew import Failed, Lost, Outcome, Ready, carry_out
from boom_ray.evaluate.downloads import offline
from boom_ray.evaluate.worker import Desk, Work, Worker

_DEATHS = 3  # of each process, on the average


class Here:
    """Workers of this machine: the first are ``threads``, the others ``processes``; each has ``cores`` to compute with.

    Torch's own threads, which share out every operation, are slower together than one for each worker.
    """

    def __init__(self, work: Work, threads: int, processes: int = 0, cores: int | None = None) -> None:
        from threadpoolctl import threadpool_limits

        self.count = threads + processes
        self._work, self._cores = work, cores
        self._limits = threadpool_limits(cores, user_api="blas")  # its idle threads spin on the others' cores
        self._desk = Desk(work)
        self._lock = threading.Lock()
        self._closing = False
        self._deaths, self._bearable = 0, _DEATHS * processes
        self._told: SimpleQueue[tuple[int, Action | None, Outcome]] = SimpleQueue()
        self._given: list[SimpleQueue[Action | None]] = [SimpleQueue() for _ in range(self.count)]
        self._apart = {number: _Process(work, cores) for number in range(threads, self.count)}
        self._threads = [
            threading.Thread(
                target=self._serve if number in self._apart else self._work_here, args=(number,), daemon=True
            )
            for number in range(self.count)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """Those that run now."""
        return [process.running for process in self._apart.values()]

    def submit(self, worker: int, action: Action) -> None:
        self._given[worker].put(action)

    def wait(self) -> Iterator[tuple[int, Action | None, Outcome]]:
        yield self._told.get()

    def close(self) -> None:
        """End the processes at once and the threads after what they are doing: one that still held a model when the
        interpreter ends would abort it."""
        with self._lock:
            self._closing = True
            for process in self._apart.values():
                process.end()
        for given in self._given:
            given.put(None)
        for thread in self._threads:
            thread.join()
        self._limits.restore_original_limits()

    def _work_here(self, number: int) -> None:
        worker = Worker(self._work, self._cores, self._desk)
        self._told.put((number, None, Ready()))
        while (action := self._given[number].get()) is not None:
            self._told.put((number, action, carry_out(worker, action)))

    def _serve(self, number: int) -> None:
        """Hand actions to a process, and to the next one after it died."""
        action: Action | None = None
        while True:
            try:
                self._told.put((number, action, self._apart[number].answer()))
            except (EOFError, OSError):
                if not self._replace(number):
                    return
                self._told.put((number, action, self._lost()))
                action = None
                continue
            if (action := self._given[number].get()) is None:
                return
            self._apart[number].ask(action)

    def _replace(self, number: int) -> bool:
        """Start another process for one that died; False: the crew has been closed."""
        with self._lock:
            if not self._closing:
                self._deaths += 1
                self._apart[number].end()
                self._apart[number] = _Process(self._work, self._cores)
            return not self._closing

    def _lost(self) -> Outcome:
        if self._deaths <= self._bearable:
            return Lost()
        return Failed(BoomError("the processes that score models die again and again: is there enough memory?"))


class _Process:
    """A Python process with a worker in it, and the pipe to it; see :mod:`boom_ray.evaluate.apart`."""

    def __init__(self, work: Work, cores: int | None) -> None:
        self._pipe, theirs = Pipe()
        command = [sys.executable, "-m", "boom_ray.evaluate.apart", str(theirs.fileno())]
        settings = {"PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
        if cores:
            settings["OMP_NUM_THREADS"] = str(cores)
        if offline():  # perhaps said in this process only
            settings |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        with theirs:
            self.running = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(),),
                env=os.environ | settings,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self.ask((work, cores))

    def ask(self, action: object) -> None:
        """Send an action; of one that has died :meth:`answer` will know."""
        with suppress(OSError):
            self._pipe.send(action)

    def answer(self) -> Outcome:
        """What came of the last action; at first, that it is ready.

        Raises:
            EOFError, OSError: it has died.
        """
        told: Outcome = self._pipe.recv()
        return told

    def end(self) -> None:
        self.running.kill()
        self.running.wait()
