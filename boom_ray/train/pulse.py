"""What a worker has done, for a watcher who asks its process from outside (:mod:`boom_ray.train.watchdog`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pulse:
    """How often something was done, and what was done last."""

    count: int = 0
    what: str = "starting"


_beats = [Pulse()]  # of this process, which trains one member: whoever asks from outside has no other way to it


def beat(what: str) -> None:
    _beats[0] = Pulse(_beats[0].count + 1, what)


def felt() -> Pulse:
    return _beats[0]
