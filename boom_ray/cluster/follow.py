"""Following a job to its end: its log, every line once, and its true exit code, whatever becomes of the connection.

A stream that ends says nothing about the job: a proxy, a forwarded port or the job agent may have cut it. The truth is
the job's state, and its log, which every new stream tells from the beginning: what was shown already is passed over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from boom_ray.exit_codes import DONE, INFRASTRUCTURE, TERMINATED, Infrastructure, of_signal

_MOST_IDLE = 4  # doublings
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class Away(Exception):
    """The cluster does not answer now; it may later."""


@dataclass(frozen=True)
class State:
    """What a cluster says of a job. ``exit_code`` is of its command, where that has ended by itself."""

    status: str
    exit_code: int | None = None
    message: str = ""

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def code(self) -> int:
        """What who waited for the job ends with."""
        if self.status == "STOPPED":
            return TERMINATED
        if self.exit_code is None:
            return DONE if self.status == "SUCCEEDED" else INFRASTRUCTURE
        return self.exit_code if self.exit_code >= 0 else of_signal(-self.exit_code)


class Jobs(Protocol):
    """A cluster's jobs. All calls may raise :class:`Away`."""

    def state(self, job: str) -> State: ...

    def log(self, job: str) -> str:
        """All of it."""

    def tail(self, job: str) -> AsyncIterator[str]:
        """All of it from the beginning, and what comes, in pieces."""


@dataclass(frozen=True)
class Pace:
    """Seconds: until a cluster that does not answer is given up, between two looks at a job, until a stream that is
    silent is opened anew, and before the next stream; the last two double while nothing new comes."""

    patience: float = 300.0
    look: float = 10.0
    silence: float = 60.0
    pause: float = 1.0


class Shown:
    """What has been shown of a log; every stream begins at its beginning."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self.characters = 0

    def stream(self) -> Callable[[str], None]:
        """Takes the pieces of one stream."""
        passed = 0

        def take(piece: str) -> None:
            nonlocal passed
            new = piece[max(0, self.characters - passed) :]
            passed += len(piece)
            if new:
                self.characters += len(new)
                self._show(new)

        return take


async def follow(jobs: Jobs, job: str, show: Callable[[str], None], say: Callable[[str], None], pace: Pace) -> State:
    """Show the log of a job until it has ended.

    Args:
        show: receives text of the log; say: receives a line about the connection.

    Raises:
        Infrastructure: the cluster has not answered for ``pace.patience`` seconds.
    """
    shown, idle, away = Shown(show), 0, 0.0
    while True:
        before = shown.characters
        try:
            with suppress(Away):  # the state tells whether it is the stream alone
                await _one_stream(jobs, job, shown.stream(), pace, pace.silence * 2**idle)
            state = await asyncio.to_thread(jobs.state, job)
            if state.ended:
                await _rest(jobs, job, shown, say)
                return state
            if away:
                say("the cluster answers again")
            away = 0.0
        except Away as error:
            if not away:
                away = time.monotonic()
                say(f"the cluster does not answer ({error}); trying for {pace.patience:.0f} seconds")
            elif time.monotonic() - away > pace.patience:
                raise _given_up(job, pace.patience) from None
        idle = 0 if shown.characters > before else min(idle + 1, _MOST_IDLE)
        await asyncio.sleep(pace.pause * 2**idle)


async def _one_stream(jobs: Jobs, job: str, take: Callable[[str], None], pace: Pace, silence: float) -> None:
    """Until it ends, or says nothing for ``silence`` seconds, or the job has ended and it does not notice.

    Raises:
        Away: it was cut, or the cluster does not answer.
    """
    stream = jobs.tail(job)
    piece: asyncio.Task[str | None] | None = None
    heard = time.monotonic()
    try:
        while time.monotonic() - heard < silence:
            piece = piece or asyncio.create_task(_next(stream))
            await asyncio.wait({piece}, timeout=pace.look)
            if not piece.done():
                if (await asyncio.to_thread(jobs.state, job)).ended:
                    await asyncio.wait({piece}, timeout=pace.pause)
                    if not piece.done():
                        return
                continue
            text, piece = piece.result(), None
            if text is None:
                return
            heard = time.monotonic()
            take(text)
    finally:
        if piece is not None:
            piece.cancel()
            await asyncio.wait({piece})
        await stream.aclose()  # type: ignore[attr-defined]


async def _next(stream: AsyncIterator[str]) -> str | None:
    """None at the end: an iterator's own signal cannot leave a task."""
    return await anext(stream, None)


async def _rest(jobs: Jobs, job: str, shown: Shown, say: Callable[[str], None]) -> None:
    """What the last stream did not bring."""
    try:
        shown.stream()(await asyncio.to_thread(jobs.log, job))
    except Away as error:
        say(f"the end of the log cannot be read ({error})")


def _given_up(job: str, patience: float) -> Infrastructure:
    return Infrastructure(
        f"the cluster has not answered for {patience:.0f} seconds. If only the connection was lost, job {job} goes on "
        f"there: the same command attaches to it. If the cluster was lost, submit again to another: the run resumes."
    )
