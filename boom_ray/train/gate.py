"""A gate before a member's workers: its controller is up, and asks for no worker before it is let in.

To bring up the controller of a Ray Train run takes seconds. Behind a gate that happens while the members before it
still train, so that a freed worker is taken at once, and still nothing is asked for that does not fit.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray.train.v2._internal.execution.callback import WorkerGroupCallback

_LOOK = 0.1  # seconds between two looks


class Gate(WorkerGroupCallback):
    """Open once its file is there. Controllers run on the driver's node, so they see a file that it has made."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def open(self) -> None:
        self._file.touch()

    def remove(self) -> None:
        """Once nobody waits for it any more."""
        self._file.unlink(missing_ok=True)

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        while not self._file.exists():
            time.sleep(_LOOK)
