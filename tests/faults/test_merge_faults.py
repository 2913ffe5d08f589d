"""A merge that is killed at any moment leaves no partial directory and ends with the same bytes when it runs again."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from boom_ray.config import BoomError
from boom_ray.merge.stream import merge

CODE = """
import json, sys
from boom_ray.merge.kernels import gram_piece  # compiled before the clock starts
from boom_ray.merge.stream import MergeOptions, merge
config, out = json.load(sys.stdin)
print("ready", flush=True)
merge(config, out, MergeOptions(workers=2, memory="12MB"))
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Two members of 40 tensors, 42 MB each."""
    root = tmp_path_factory.mktemp("members")
    rng = np.random.default_rng(0)
    models = []
    for i in range(2):
        (root / str(i)).mkdir()
        tensors = {f"layers.{k}.weight": rng.standard_normal((512, 512), dtype=np.float32) for k in range(40)}
        save_file(tensors, root / str(i) / "model.safetensors")
        models.append({"model": str(root / str(i)), "parameters": {"weight": 1.0 + i}})
    return {"merge_method": "multislerp", "models": models}


def run(config: dict[str, object], out: Path, kill_after: float | None) -> float | None:
    """Merge in a process of its own; seconds that it took once it could start, None when it was killed before."""
    process = subprocess.Popen([sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([config, str(out)]).encode())
    process.stdin.close()
    assert process.stdout.readline() == b"ready\n"
    ready = time.monotonic()
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(process.pid, signal.SIGKILL)
    return time.monotonic() - ready if process.wait() == 0 else None


def digest(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(directory.iterdir()) if p.is_file()}


@pytest.mark.slow
def test_killed_at_twenty_random_moments(config: dict[str, object], tmp_path: Path) -> None:
    expected = digest(merge(config, tmp_path / "undisturbed"))
    whole = run(config, tmp_path / "timed", None)
    assert whole is not None
    moments = random.Random(7)
    kills = 0
    for attempt in range(60):
        out = tmp_path / f"out-{attempt}"
        while not out.exists() and kills < 20:
            finished = run(config, out, moments.uniform(0, whole)) is not None
            kills += not finished
            assert out.exists() or not finished
            if not finished and moments.random() < 0.3:
                break  # the next run of this output is not killed
        if not out.exists():
            assert run(config, out, None) is not None
        assert digest(out) == expected
        with pytest.raises(BoomError, match="exists"):
            merge(config, out)  # tidies what a kill after the last rename may have left
        if kills >= 20:
            break
    assert kills >= 20
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_resumed_merge_does_not_write_finished_tensors_again(
    config: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from boom_ray.merge.engine import Engine

    written: list[str] = []
    combine = Engine.combine

    def stopping(self: Engine, chosen: dict[str, np.ndarray], *rest: object) -> None:
        combine(self, chosen, *rest)  # type: ignore[arg-type]
        written.extend(chosen)
        if len(written) == 32:
            raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "combine", stopping)
    with pytest.raises(KeyboardInterrupt):
        merge(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge(config, tmp_path / "out")
    assert len(written) < 80
    assert set(written) == {f"layers.{k}.weight" for k in range(40)}
    assert digest(tmp_path / "out") == digest(merge(config, tmp_path / "whole"))


def test_notes_of_another_boot_are_not_trusted(tmp_path: Path) -> None:
    """What was written but not flushed may be lost with the machine, although the note of it is not."""
    from boom_ray.merge import job

    (tmp_path / "state").mkdir(parents=True)
    notes = tmp_path / "state" / "done-host-1"
    notes.write_text(f'["a", null]\n["b", "{job._boot()}"]\n["c", "another boot"]\n["d", nul')
    assert job._done(tmp_path / "state") == {"a", "b"}


def test_a_member_cut_while_merging_is_said(config: dict[str, object], tmp_path: Path) -> None:
    from boom_ray.merge.engine import Engine
    from boom_ray.merge.members import open_members

    rng = np.random.default_rng(1)
    (tmp_path / "m").mkdir()
    save_file({"a": rng.standard_normal(5000, dtype=np.float32)}, tmp_path / "m" / "model.safetensors")
    with Engine(open_members([tmp_path / "m"], None)) as engine:
        os.truncate(tmp_path / "m" / "model.safetensors", 500)
        with pytest.raises(BoomError, match="was cut"):
            engine.combine_into("a", np.ones(1))


def test_two_merges_into_one_output_do_not_mix(config: dict[str, object], tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    second = subprocess.Popen([sys.executable, "-c", CODE], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    for process in (first, second):
        assert process.stdin is not None
        process.stdin.write(json.dumps([config, str(tmp_path / "out")]).encode())
        process.stdin.close()
    codes = sorted([first.wait(), second.wait()])
    assert codes[0] == 0
    assert digest(tmp_path / "out") == digest(merge(config, tmp_path / "alone"))
