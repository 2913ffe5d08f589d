"""Run directories in odd places: names that people give, links, places where nothing can be written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from finished_runs import published

pytestmark = pytest.mark.slow


def boom(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "boom_ray", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_run_directory_with_spaces_and_umlauts_behind_a_link_is_gone_on_with(road: Path, tmp_path: Path) -> None:
    """A long name with letters of several scripts; the run goes on there from its members, through a link."""
    place = tmp_path / f"läuft hier, 走る {'x' * 150}" / "my run"
    shutil.copytree(road / "run", place)
    for kind in ("published", "merges"):
        shutil.rmtree(place / kind)
    (tmp_path / "link").symlink_to(place.parent)
    done = boom("run", road / "recipe.yaml", "--run-dir", tmp_path / "link" / "my run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert published(place) == published(road / "run")
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("place", ["/sys/boom", f"/tmp/{'n' * 300}", "/dev/null/boom"])
def test_a_place_that_cannot_be_written_is_named_in_one_message(road: Path, place: str) -> None:
    done = boom("run", road / "recipe.yaml", "--run-dir", place)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("boom-ray: ")
    assert place in done.stderr
    assert "Traceback" not in done.stderr
