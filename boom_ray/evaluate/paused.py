"""Work that stops where it asks for something and goes on when it is given that, as a generator does.

mteb's code cannot yield, so it runs in a thread of its own; of that thread and its owner only one runs at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any


@dataclass(frozen=True)
class Ended:
    """The work has returned ``value``."""

    value: Any


class Paused:
    """``work(ask)`` in a thread; ``ask(question)`` inside it waits for the answer."""

    def __init__(self, work: Callable[[Callable[[Any], Any]], Any]) -> None:
        self._work = work
        self._told: SimpleQueue[Any] = SimpleQueue()
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)

    def begin(self) -> Any:
        """Run up to the first question: that, or :class:`Ended`.

        Raises:
            Whatever the work raised.
        """
        self._thread.start()
        return self._next()

    def answer(self, value: Any) -> Any:
        """Go on up to the next question, as :meth:`begin`."""
        self._answers.put(value)
        return self._next()

    def _next(self) -> Any:
        told = self._told.get()
        if isinstance(told, BaseException):
            raise told
        return told

    def _run(self) -> None:
        try:
            self._told.put(Ended(self._work(self._ask)))
        except BaseException as error:  # raised again where somebody waits for it
            self._told.put(error)

    def _ask(self, question: Any) -> Any:
        self._told.put(question)
        return self._answers.get()
