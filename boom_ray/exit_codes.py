"""How a command ends. The one place of its exit codes: for the command, for jobs, for docs/operations.md."""

from __future__ import annotations

import signal

from boom_ray.config import BoomError

DONE = 0
FAILED = 1
MISTAKE = 2
INFRASTRUCTURE = 3
HELD = 4
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM

MEANING = {
    DONE: "done",
    FAILED: "the run failed; its last lines say why",
    MISTAKE: "a mistake in the recipe, the data or the arguments: mend it, then run again",
    INFRASTRUCTURE: "cluster, head or storage cannot be reached or were lost: run the same command again",
    HELD: "another driver holds the run directory: wait for it, or stop it",
    INTERRUPTED: "stopped by Ctrl-C: run the same command again to go on",
    TERMINATED: "stopped by SIGTERM: run the same command again to go on",
}
_FAULTS_OF_THE_WORK = {"RayTaskError", "OutOfMemoryError", "TaskCancelledError"}


class Failed(BoomError):
    """The work itself failed, although recipe and data are in order as far as can be told."""


class Infrastructure(BoomError):
    """The cluster, its head or the storage cannot be reached or was lost. The same command goes on later."""


class Held(BoomError):
    """Another driver holds the run directory, or has taken it over."""


class Stopped(BoomError):
    """By the user; the text says what goes on and what to do."""


_CODES = (
    (Held, HELD),
    (Infrastructure, INFRASTRUCTURE),
    (Failed, FAILED),
    (Stopped, INTERRUPTED),
    (BoomError, MISTAKE),
)


def code_of(error: BaseException) -> int:
    """The exit code of a command that ended with ``error``.

    Of Ray's own errors those that tell of a lost process, node or head are the infrastructure's; ray is not imported.
    """
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    names = {kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith("ray.")}
    return INFRASTRUCTURE if "RayError" in names and not names & _FAULTS_OF_THE_WORK else FAILED


def of_signal(number: int) -> int:
    """What a shell makes of a process that a signal has ended, and what ours end with when they stop in order."""
    return 128 + number
