"""Kill a command in the middle, with all that it started, as when the machine goes down."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import psutil


def kill_driver_when(
    ready: Callable[[], object],
    command: Sequence[str],
    seconds: float,
    pause: float = 0.0,
    environment: Mapping[str, str] | None = None,
) -> list[psutil.Process]:
    """Start a command and kill it ``pause`` seconds after ``ready`` is true, which has to be within ``seconds``;
    returns what it had started, which is left to notice by itself."""
    with tempfile.TemporaryFile("w+") as said:
        driver = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        deadline = time.monotonic() + seconds
        while not ready():
            late = time.monotonic() > deadline
            if late or driver.poll() is not None:
                said.seek(0)
                raise AssertionError(f"{'no sign of it' if late else 'the command ended'}: {said.read()[-3000:]}")
            time.sleep(0.01)
    time.sleep(pause)
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    return family


def kill_when(
    ready: Callable[[], object],
    command: Sequence[str],
    seconds: float,
    pause: float = 0.0,
    environment: Mapping[str, str] | None = None,
) -> None:
    """The same, and kill what it had started: Ray's own agents would take a minute or two to notice."""
    for process in kill_driver_when(ready, command, seconds, pause, environment):
        with suppress(psutil.NoSuchProcess):
            process.kill()
