"""Kill a command in the middle, with all that it started, as when the machine goes down."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import psutil


def kill_when(
    ready: Callable[[], object],
    command: Sequence[str],
    seconds: float,
    pause: float = 0.0,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Start a command and kill it ``pause`` seconds after ``ready`` is true, which has to be within ``seconds``.

    Ray's own agents would take a minute or two to notice, so they are killed, too.
    """
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + seconds
    while not ready():
        assert driver.poll() is None, "the command ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(pause)
    family = kill_driver(driver)
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def kill_driver(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Kill the command alone; what it had started then."""
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    return family
