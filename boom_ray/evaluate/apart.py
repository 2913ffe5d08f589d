"""A worker in a process of its own: ``python -m boom_ray.evaluate.apart FD`` answers what comes through a pipe.

It ends with the other end of the pipe, also when whoever held that was killed.
"""

from __future__ import annotations

import pickle
import sys
from contextlib import suppress
from multiprocessing.connection import Connection

from boom_ray.evaluate.crew import Failed, Ready, carry_out
from boom_ray.evaluate.worker import Worker


def serve(pipe: Connection) -> None:
    """Take what is to be scored and with how many cores, then carry out one action after another."""
    worker = Worker(*pipe.recv())
    pipe.send(Ready())
    while True:
        outcome = carry_out(worker, pipe.recv())
        pipe.send(Failed(_portable(outcome.error)) if isinstance(outcome, Failed) else outcome)


def _portable(error: Exception) -> Exception:
    """An error that can be sent: its own text where it cannot."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    with suppress(EOFError, OSError):
        serve(Connection(int(sys.argv[1])))
