"""What a worker has done, for a watcher who asks its process from outside (:mod:`boom_ray.train.watchdog`)."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Pulse:
    """How often something was done, what was done last, and for how many seconds nothing has been done since.

    The worker counts the seconds: how late its answer is heard does not matter.
    """

    count: int = 0
    what: str = "starting"
    still: float = 0.0


# of this process, which trains one member: whoever asks from outside has no other way to it
_last = [(Pulse(), time.monotonic())]


def beat(what: str) -> None:
    _last[0] = Pulse(_last[0][0].count + 1, what), time.monotonic()


def felt() -> Pulse:
    pulse, when = _last[0]
    return replace(pulse, still=time.monotonic() - when)
