"""Ctrl-C and SIGTERM: the first one stops a command in order, the next one ends it at once.

In order means: the main thread gets a ``KeyboardInterrupt`` (Ray's blocking calls let no other exception through),
members that train write a checkpoint, actors end, half-written artifacts are removed, the lease is given back.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from boom_ray.config import BoomError
from boom_ray.exit_codes import code_of, of_signal

_BOTH = (signal.SIGINT, signal.SIGTERM)
_SAME = 0.5  # seconds: `timeout` and some supervisors send a signal twice
_GRACE = 25.0  # seconds that members may take for a checkpoint: Kubernetes kills after 30


class Stop:
    """The handler of both signals, which remembers the first.

    Attributes:
        signal: the first that came.
        reason: of the program's own, where it stops itself (:meth:`because`).
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, end: Callable[[int], object] = os._exit) -> None:
        self._clock, self._end = clock, end
        self._first: float | None = None
        self.signal: int | None = None
        self.reason: BoomError | None = None

    @property
    def code(self) -> int | None:
        """What the command ends with; None while nothing has stopped it."""
        if self.reason is not None:
            return code_of(self.reason)
        return None if self.signal is None else of_signal(self.signal)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
            raise KeyboardInterrupt

    def came(self, number: int) -> None:
        """One of the two signals has come; the second ends the process here and now."""
        if self._first is None:
            self._first = self._clock()
        elif self._clock() - self._first > _SAME:
            self._end(of_signal(number))

    def listen(self, pipe: int) -> None:
        """Read the numbers of signals as they come, in a thread: the main one may be inside a library for long."""
        while number := os.read(pipe, 1):
            if number[0] in _BOTH:
                self.came(number[0])
        os.close(pipe)

    def because(self, reason: BoomError, within: float | None = None) -> None:
        """Stop the main thread from another one; at once and hard if it has not ended ``within`` seconds."""
        if self.code is not None:
            return
        self.reason = reason
        if within is not None:
            hard = threading.Timer(within, self._give_up, [reason])
            hard.daemon = True
            hard.start()
        signal.pthread_kill(_main(), signal.SIGINT)

    def _give_up(self, reason: BoomError) -> None:
        os.write(2, f"boom-ray: {reason}\n".encode())
        self._end(code_of(reason))


@contextmanager
def handled() -> Iterator[Stop]:
    """Handle both signals in the block; does nothing outside the main thread."""
    stop = Stop()
    if threading.get_ident() != _main():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in _BOTH}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _BOTH)  # Ray blocks SIGINT for the commands of its jobs
    out, into = os.pipe()
    os.set_blocking(into, False)
    threading.Thread(target=stop.listen, args=[out], name="signals", daemon=True).start()
    woken = signal.set_wakeup_fd(into, warn_on_full_buffer=False)
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(woken)
        os.close(into)
        for number, handler in before.items():
            signal.signal(number, handler)


def current() -> Stop | None:
    """The handler in charge; None where signals do what they do by default, as under another program."""
    handler = signal.getsignal(signal.SIGINT)
    return handler if isinstance(handler, Stop) else None


def keep() -> None:
    """Take SIGTERM back from a library that has taken it, as ``ray.init`` does."""
    stop = current()
    if stop is not None and threading.get_ident() == _main():
        signal.signal(signal.SIGTERM, stop)


def received() -> int | None:
    """The signal that has stopped this command, if one has."""
    stop = current()
    return stop.signal if stop is not None and stop.reason is None else None


def grace() -> float:
    """Seconds that a command in the course of stopping may wait for its members' checkpoints.

    None at all where it stops for a reason of its own: it has lost its lease, or its cluster.
    """
    return _GRACE if received() is not None else 0.0


def _main() -> int:
    ident = threading.main_thread().ident
    assert ident is not None
    return ident
