"""A Ray that does not come up on this machine is told as such, with what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_OPEN = """
from boom_ray.cluster.session import ray_session
from boom_ray.exit_codes import Infrastructure
try:
    with ray_session():
        pass
except Infrastructure as error:
    print(error)
"""


def test_a_local_ray_that_does_not_start_is_the_machines_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    clean = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment = {**clean, "RAY_TMPDIR": str(tmp_path / "file")}  # Ray makes its directories below it
    done = subprocess.run([sys.executable, "-c", _OPEN], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith("Ray did not start on this machine: ")
    assert str(tmp_path / "file") in done.stdout
    assert "run the same command again" in done.stdout
