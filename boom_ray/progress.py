"""What a person sees while members train: a live table on a terminal, plain lines elsewhere.

It reads the members' scratch logs, so it costs the workers nothing and needs no service.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

_PLAIN_EVERY = 15.0  # seconds between plain lines
_WINDOW = 20  # steps that speed and loss are averaged over


class Watched(Protocol):
    """What the table needs to know of a member."""

    @property
    def name(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def log_file(self) -> Path: ...


@dataclass(frozen=True)
class State:
    """One member's line: steps done of all, mean of the last losses, texts and tokens per second, share of the time
    that it waited for data, seconds left."""

    name: str
    bag: str
    step: int
    steps: int
    loss: float | None
    speed: float | None
    left: float | None
    tokens: float | None = None
    waited: float | None = None


def read_state(member: Watched, bag: str) -> State:
    """A member's state from its log; a line that is being written is left for the next look."""
    records: list[dict[str, Any]] = []
    if member.log_file.is_file():
        lines = member.log_file.read_text(encoding="utf-8").splitlines()[1:]
        for line in lines[-_WINDOW:]:
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    if not records:
        return State(member.name, bag, 0, member.steps, None, None, None)
    done = records[-1]["step"] + 1
    seconds = sum(r["seconds"] for r in records[1:]) or records[0]["seconds"]
    counted = records[1:] or records
    speed = sum(r["texts"] for r in counted) / max(seconds, 1e-9)
    loss = sum(r["loss"] for r in records) / len(records)
    tokens, waited = (sum(r[key] for r in counted) / max(seconds, 1e-9) for key in ("tokens", "waited"))
    left = (member.steps - done) * seconds / len(counted)
    return State(member.name, bag, done, member.steps, loss, speed, left, tokens, waited)


class Watch:
    """Call :meth:`tick` about once a second."""

    def __init__(self, members: Sequence[tuple[Watched, str]]) -> None:
        self._members = members
        self._live: Any = None
        self._last = 0.0

    def tick(self) -> None:
        if self._live is not None:
            self._live.update(self._table())
        elif time.monotonic() - self._last >= _PLAIN_EVERY:
            self._last = time.monotonic()
            states = [read_state(*m) for m in self._members]
            line = "; ".join(_plain(s) for s in states if 0 < s.step < s.steps)
            if line:
                print(f"  {line}", flush=True)

    def _table(self) -> Any:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for column in ("member", "bag", "step", "loss", "texts/s", "tokens/s", "waiting", "left"):
            table.add_column(column, justify="left" if column in ("member", "bag") else "right")
        for state in (read_state(*m) for m in self._members):
            done = f"{state.step}/{state.steps}"
            waited = "-" if state.waited is None else f"{100 * state.waited:.1f} %"
            speeds = (_number(state.speed), "-" if state.tokens is None else f"{state.tokens:,.0f}", waited)
            table.add_row(state.name, state.bag, done, _number(state.loss), *speeds, _clock(state.left))
        return table


@contextmanager
def watch(members: Sequence[tuple[Watched, str]]) -> Iterator[Watch]:
    """Show members while they train; a table on a terminal, plain lines elsewhere."""
    watcher = Watch(members)
    if not sys.stdout.isatty():
        yield watcher
        return
    from rich.live import Live

    with Live(refresh_per_second=2) as live:
        watcher._live = live
        yield watcher
        watcher.tick()


def _plain(state: State) -> str:
    loss, speed = _number(state.loss), _number(state.speed)
    return f"{state.name} {state.step}/{state.steps} loss {loss} {speed} texts/s left {_clock(state.left)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _clock(seconds: float | None) -> str:
    return "-" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
