"""Kills during a search of merge weights: the trials and the best of an undisturbed search, and no resource is lost."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from driver_kills import kill_when
from small_run import make_run

from boom_ray.plan import derive_keys
from boom_ray.search.trial_log import TrialLog
from boom_ray.weight_search import search_run, write_models

TRIALS = 20


def _command(root: Path) -> list[str]:
    return [sys.executable, "-m", "boom_ray", "search", "weights", str(root)]


def _finish(root: Path) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, bytes]]:
    """Run the command to its end; what the search left, without the times that it took and the code that took them."""
    done = subprocess.run(_command(root), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (root / "search").glob("small-*")
    trials = [t.to_json() | {"seconds": None, "code": None} for t in TrialLog(folder / "trials.jsonl").read()]
    found = json.loads((folder / "search.json").read_text())
    baselines = [{k: v for k, v in entry.items() if k != "seconds"} for entry in found["baselines"]]
    timeless = {k: v for k, v in found.items() if "seconds" not in k} | {"baselines": baselines}
    rows = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.npz")}
    return trials, timeless, rows


def _lines(root: Path) -> int:
    return sum(len(file.read_bytes().splitlines()) for file in root.glob("scratch/search/*/*.jsonl"))


def _killed_at(root: Path, lines: int) -> None:
    """Start the command and kill it, with all that it started, once its logs have so many lines."""
    kill_when(lambda: _lines(root) >= lines, _command(root), 200)
    assert not list((root / "search").glob("small-*"))


def test_killed_at_random_moments_a_search_ends_as_if_left_alone(small_tokens, small_base, tmp_path) -> None:
    settings = {"trials": TRIALS, "round": 4, "actors": 2, "scale": [0.5, 1.5], "max_rows": 12}
    for name in ("a", "b"):
        make_run(tmp_path / name, small_tokens, small_base, **settings)
    chance = random.Random(7)
    for earliest in (1, 12):  # among members and baselines, then among trials
        _killed_at(tmp_path / "b", earliest + chance.randrange(8))
    kept = _lines(tmp_path / "b")
    assert kept >= 12
    (log,) = (tmp_path / "b").glob("scratch/search/*/trials.jsonl")
    log.write_bytes(log.read_bytes()[:-7])  # as a kill in the middle of a line leaves it
    trials, found, rows = _finish(tmp_path / "b")
    expected = _finish(tmp_path / "a")
    assert len(trials) == TRIALS
    assert (trials, found) == expected[:2]
    assert rows == expected[2]
    assert not list((tmp_path / "b").rglob(".tmp-*"))


@pytest.fixture
def one_cpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    from boom_ray.cluster.session import ray_session

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})  # a cluster of one CPU
    with ray_session():
        import ray

        yield ray


def _actors() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            title = " ".join(process.cmdline())  # its class between two steps, the trial's in one
            found += [process] if "MergeTrial" in title or "ResourceTrainable" in title else []
    return found


def test_a_killed_trial_gives_its_cpu_back_within_ten_seconds(small_tokens, small_base, tmp_path, one_cpu) -> None:
    """The cluster has one CPU: the next actor can only start once that of the killed one is free."""
    from boom_ray.search.trials import search_weights

    settings = {"trials": 40, "round": 4, "actors": 2, "scale": [0.5, 1.5], "max_rows": 12}
    recipe, ledger, keys = make_run(tmp_path / "run", small_tokens, small_base, **settings)
    seen: dict[str, float] = {}

    def kill() -> None:
        while _lines(ledger.root) < 15 or not (found := _actors()):
            time.sleep(0.02)
        (victim,) = found
        victim.kill()
        started = time.monotonic()
        while not [p for p in _actors() if p.pid != victim.pid] and time.monotonic() - started < 60:
            time.sleep(0.05)
        seen["free"] = time.monotonic() - started

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    out = tmp_path / "out"
    out.mkdir()
    found = search_weights(recipe, ledger, keys, out)
    ended = time.monotonic()
    killer.join(timeout=60)
    trials = TrialLog(out / "trials.jsonl").read()
    assert [t.number for t in trials] == list(range(40))
    assert all(t.value is not None for t in trials), "the killed trial was not made again"
    assert found["value"] == min(t.value for t in trials)
    assert seen["free"] < 10, "the killed trial held on to its CPU"
    while one_cpu.available_resources().get("CPU", 0) < 1:
        assert time.monotonic() - ended < 10, "the CPU of the search is not free ten seconds after its end"
        time.sleep(0.1)


@pytest.mark.long
def test_the_command_writes_table_and_models(small_tokens, small_base, tmp_path) -> None:
    recipe, ledger, keys = make_run(tmp_path / "run", small_tokens, small_base, trials=6, actors=1)
    options = ["--trials", "5", "--members", "0,2", "--write", str(tmp_path / "models")]
    done = subprocess.run([*_command(ledger.root), *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (ledger.root / "search").glob("small-*")
    found = json.loads((folder / "search.json").read_text())
    trials = TrialLog(folder / "trials.jsonl").read()
    assert [t.number for t in trials] == list(range(5))
    assert found["members"] == ["member-0", "member-2"]
    assert found["best"] == min((t.value, t.number) for t in trials)[1]
    assert all(t.seconds["encode"] > 0 for t in trials)
    assert len({t.code for t in trials}) == 1
    for entry in found["baselines"][2:]:
        low, high = entry["b_interval"][1:]
        assert low <= entry["b_interval"][0] <= high
        assert f"\n{entry['name']:14} " in done.stdout
    assert {p.name for p in (tmp_path / "models").iterdir()} == {
        *("ratio", "uniform", "best-member", "cocktail", "model-stock", "greedy-soup", "searched"),
    }
    again = search_run(ledger.root, overrides=("search.trials=5",), members=[0, 2])
    assert not again.new
    assert write_models(again, tmp_path / "models") == []
    assert keys.search != again.run.keys.search == derive_keys(again.run.recipe, again.run.world, (1,)).search
    assert recipe.search.trials == 6
