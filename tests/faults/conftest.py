"""The run that nobody disturbs: most fault tests compare with one or begin with one, so it is made once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from road_data import recipe_text, write_corpus, write_sets


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``recipe.yaml``, its ``corpus`` and ``eval`` sets, and ``run``, the finished run. Only to be read.

    Two members, one at a time, so that the second is certainly under way when the first has been committed.
    """
    root = tmp_path_factory.mktemp("undisturbed")
    text = recipe_text(write_corpus(root / "corpus"), write_sets(root / "eval")).replace("trials: 16", "trials: 4")
    (root / "recipe.yaml").write_text(text.replace("{max_width: 1}", "{max_width: 1, max_concurrent: 1}"))
    command = [sys.executable, "-m", "boom_ray", "run", str(root / "recipe.yaml"), "--run-dir", str(root / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    return root
