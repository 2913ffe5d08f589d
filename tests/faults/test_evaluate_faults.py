"""An evaluation that is killed goes on where it was: finished sets are not scored again, and no score changes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from driver_kills import kill_driver_when, kill_when

pytestmark = pytest.mark.slow
SETS = 8
WORDS = [f"{a}{b}" for a in ("red", "blue", "old", "new", "big", "low") for b in ("cat", "ship", "tree", "song")]


@pytest.fixture(scope="module")
def inputs(small_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Retrieval sets of 400 documents, each of which takes a moment, and the folder ``undisturbed`` with its scores."""
    root, rng = tmp_path_factory.mktemp("evaluate"), random.Random(1)
    for number in range(SETS):
        folder = root / "sets" / f"find-{number}"
        folder.mkdir(parents=True)
        documents = [{"_id": f"d{i}", "text": " ".join(rng.choices(WORDS, k=30))} for i in range(400)]
        queries = [{"_id": f"q{i}", "text": " ".join(rng.choices(WORDS, k=5))} for i in range(50)]
        (folder / "meta.json").write_text(json.dumps({"name": folder.name, "task_type": "retrieval"}))
        (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
        (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
        (folder / "qrels.tsv").write_text("".join(f"q{i}\td{i}\t1\n" for i in range(50)))
    (root / "model").symlink_to(small_base())
    run(root, root / "undisturbed", 0)
    return root


def command(inputs: Path, results: Path, actors: int) -> list[str]:
    arguments = ["evaluate", inputs / "model", "--sets", inputs / "sets", "--results", results, "--actors", actors]
    return [sys.executable, "-m", "boom_ray", *map(str, arguments)]


def finished(results: Path) -> dict[str, int]:
    """The sets that are done, with the time of their result."""
    done = {file.stem for file in results.glob("samples/*/*/find-*.json")}
    return {f.stem: f.stat().st_mtime_ns for f in results.glob("results/*/*/find-*.json") if f.stem in done}


def scores(results: Path) -> dict[str, float]:
    files = results.glob("results/*/*/find-*.json")
    return {f.stem: json.loads(f.read_text())["scores"]["test"][0]["main_score"] for f in files}


def run(inputs: Path, results: Path, actors: int) -> str:
    done = subprocess.run(command(inputs, results, actors), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("actors", [0, 2])
def test_killed_in_the_middle_then_the_same_command(inputs: Path, tmp_path: Path, actors: int) -> None:
    results = tmp_path / "results"
    some = (lambda: len(finished(results)) >= 2, command(inputs, results, actors), 200)
    if actors:
        kill_when(*some)
    else:  # the processes beside the command notice by themselves
        _, alive = psutil.wait_procs(kill_driver_when(*some), timeout=60)
        assert not alive
    kept = finished(results)
    assert 2 <= len(kept) < SETS
    damaged = min(kept)
    file = next(results.glob(f"results/*/*/{damaged}.json"))
    file.write_text(file.read_text()[:100])

    said = run(inputs, results, 0)
    again = finished(results)
    assert {name for name in kept if again[name] != kept[name]} == {damaged}
    assert f"{len(kept) - 1} of {SETS} scores are there already" in said
    assert scores(results) == pytest.approx(scores(inputs / "undisturbed"), abs=1e-6)


def test_a_killed_actor_costs_no_score(inputs: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(command(inputs, tmp_path, 2), stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not finished(tmp_path):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    actors = [p for p in psutil.Process(process.pid).children(recursive=True) if "_Actor" in "".join(p.cmdline())]
    assert actors
    actors[0].kill()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert scores(tmp_path) == pytest.approx(scores(inputs / "undisturbed"), abs=1e-6)


def test_two_models_on_actors_give_the_scores_of_one_process(
    inputs: Path, small_base: Callable[..., Path], tmp_path: Path
) -> None:
    from boom_ray.evaluate.queue import ModelToScore, evaluate_many
    from boom_ray.evaluate.sets import find_sets

    sets = find_sets([inputs / "sets"], None)[:3]
    lines: list[str] = []

    def score(results: Path, actors: int) -> list[dict[str, float]]:
        models = [ModelToScore(str(small_base(seed)), str(results)) for seed in (0, 1)]
        return evaluate_many(models, sets, actors=actors, say=lines.append)

    assert score(tmp_path / "ray", 2) == [pytest.approx(one, abs=1e-6) for one in score(tmp_path / "alone", 0)]
    assert len(lines) == 12
