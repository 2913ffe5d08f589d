"""Members that end before their time: what is started again, and what is final. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["mistake", "storage", "preempted", "machine", "fault"]
# How often in a row a member may fail without having got further than ever before; the last of them is final. What is
# not here is final at once, and its reason says all that there is to say.
_STUCK: dict[Kind, int] = {"preempted": 20, "machine": 3, "fault": 1}

# Who asks members to stop
NOBODY, DRIVER, NODE = range(3)
ASKED = ("nobody", "the driver stops", "its node is taken back (preemption)")


class Stopped(Exception):
    """A member's workers have ended together, with a checkpoint, because they were asked to. Says by whom."""


class Hung(Exception):
    """A member's workers have not done a step for too long. Names who and where their stacks lie."""


@dataclass(frozen=True)
class Failure:
    """How a member ended before its time.

    ``kind``: a mistake of recipe or data, which would only repeat; a disk that is full or a store that has not answered
    any attempt; its node taken back (preempted); a worker, its node or its controller that was lost or hung; or another
    fault of the work. ``step`` is the first that was not done,
    ``dataset`` the one that it trains on.
    """

    kind: Kind
    reason: str
    step: int = 0
    dataset: str | None = None

    def __str__(self) -> str:
        """Reason, with step and dataset where it has not named them itself."""
        if self.kind not in _STUCK:
            return self.reason
        return f"step {self.step}" + (f", dataset {self.dataset}" if self.dataset else "") + f": {self.reason}"


def again(failures: Sequence[Failure]) -> bool:
    """Whether a member that has failed so is started once more.

    A failure that got further than all before it is worth another start, whatever it was: steps bound the number of
    these. One at the same step again repeats itself and is final; lost machines have a little more patience, because
    several can go in a row. Nodes that are taken back are nobody's failure: they are counted apart, and only end a
    member that they never let get further. A mistake is final at once, and so is storage, which was tried again before.
    """
    last = failures[-1]
    if last.kind not in _STUCK:
        return False
    furthest, stuck = 0, 0
    for failure in failures:
        if (failure.kind == "preempted") == (last.kind == "preempted"):
            stuck = 0 if failure.step > furthest else stuck + 1
            furthest = max(furthest, failure.step)
    return stuck < _STUCK[last.kind]
