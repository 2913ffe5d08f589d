"""A finished run that is damaged, or whose data have changed: found by name, and nothing is made of garbage."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from finished_runs import content

pytestmark = pytest.mark.slow


def boom(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "boom_ray", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("also", [(), ("grams", "search")], ids=["before the merges", "before the Gram matrices"])
def test_a_member_of_which_one_bit_has_changed_is_never_merged(
    road: Path, tmp_path: Path, also: tuple[str, ...]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(road / "run", run_dir)
    for kind in ("published", "merges", "scores", *also):
        shutil.rmtree(run_dir / kind)
    (weights,) = run_dir.glob("members/member-0-*/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    done = boom("run", road / "recipe.yaml", "--run-dir", run_dir)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"{weights} is damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [p for kind in ("published", "merges") for p in (run_dir / kind).glob("*")]


def test_changed_data_are_another_run_beside_the_old_one(road: Path, tmp_path: Path) -> None:
    """Identities follow from content: nothing of the old data is used again, and nothing of it is touched."""
    run_dir, corpus = tmp_path / "run", tmp_path / "corpus"
    shutil.copytree(road / "run", run_dir)
    shutil.copytree(road / "corpus", corpus)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((road / "recipe.yaml").read_text().replace(str(road / "corpus"), str(corpus)))
    before = content(run_dir)
    assert "nothing to do" in boom("plan", recipe, "--run-dir", run_dir).stdout  # another place is no change
    row = {"query": "a new row", "pos": ["its answer"], "neg": [], "task_type": "retrieval"}
    with open(corpus / "finding.jsonl", "a") as stream:
        stream.write(json.dumps(row) + "\n")
    shown = boom("plan", recipe, "--run-dir", run_dir)
    assert shown.returncode == 0, shown.stderr
    states = {line[2:].split()[0]: line[0] for line in shown.stdout.splitlines() if line[:2] in ("x ", "- ")}
    assert {states[name] for name in ("corpus", "tokens", "member-0", "member-1", "publish")} == {"-"}
    assert content(run_dir) == before
