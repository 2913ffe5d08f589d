"""Is the cluster's head still there? Ray ends a driver a minute after its head was lost, with a code that says nothing;
a thread looks oftener, so that the command ends by itself, with its own code and a line that says what to do."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from boom_ray.cluster import interrupts
from boom_ray.exit_codes import Infrastructure

_LOOK = 3.0  # seconds between two looks
_LOST = 30.0  # seconds without an answer; Ray's own patience is 60
_END = 15.0  # seconds that the command may take to end: without a head, Ray's own shutdown may hang


def answers(address: str) -> bool:
    """Whether something listens at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_LOOK):
            return True
    except OSError:
        return False


def wait_until_lost(
    answer: Callable[[], bool], ended: threading.Event, look: float = _LOOK, lost: float = _LOST
) -> bool:
    """True once nothing has answered for ``lost`` seconds; False where ``ended`` comes first."""
    last = time.monotonic()
    while not ended.wait(look):
        if answer():
            last = time.monotonic()
        elif time.monotonic() - last >= lost:
            return True
    return False


@contextmanager
def watched(address: str) -> Iterator[None]:
    """Stop the command where the head at ``address`` is lost; under another program's signals, nothing is done."""
    stop, ended = interrupts.current(), threading.Event()

    def work() -> None:
        if stop and wait_until_lost(lambda: answers(address), ended):
            reason = Infrastructure(
                f"the head of the Ray cluster ({address}) has not answered for {_LOST:.0f} seconds. Run the same "
                f"command again once there is a cluster: finished steps are kept, members go on from checkpoints."
            )
            stop.because(reason, within=_END)

    thread = threading.Thread(target=work, name="head", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
