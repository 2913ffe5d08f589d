"""What asks a member's workers to stop: a node of theirs is taken back, or the driver stops."""

from __future__ import annotations

import threading

from ray.train.v2._internal.execution.context import get_train_context

from boom_ray.failures import DRIVER, NOBODY, NODE
from boom_ray.train.word import Word

_LOOK = 1.0  # seconds between two looks for the driver's word


class Asked:
    """Who asks this worker to stop, as a number (the larger one counts); cheap enough to call after every step.

    ``ray.train.get_preemption_info`` would do for nodes, but it is an exchange of all ranks through an actor; here each
    looks at what Ray has told it, and ranks agree in an exchange of their own. One rank listens for the driver.
    """

    def __init__(self, word: Word, listens: bool) -> None:
        self._context, self._word = get_train_context(), word
        self._over, self._heard = threading.Event(), False
        if listens:
            threading.Thread(target=self._listen, name="asked", daemon=True).start()

    def _listen(self) -> None:
        while not (self._heard or self._over.wait(_LOOK)):
            self._heard = self._word.said()

    def __call__(self) -> int:
        if self._context.preemption_context.preemption_info is not None:
            return NODE
        return DRIVER if self._heard else NOBODY

    def close(self) -> None:
        self._over.set()
