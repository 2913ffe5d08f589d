"""A whole search of ratios over {40..100} with 2 or 3 members: it trains no member twice, also when it is killed."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from driver_kills import kill_when
from finished_runs import take_corpus
from road_data import recipe_text

pytestmark = pytest.mark.long
OPTIONS = ["--ratios", "40,70,100", "--members", "2-3", "--trials", "3", "--rungs", "2"]


@pytest.fixture(scope="module")
def recipe(road: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ratio_faults")
    text = recipe_text(road / "corpus", road / "eval", "[0.4, 1.0]").replace("train: {", "train: {max_steps: 9, ")
    text = text.replace("search: {", "ratio_search: {round: 3}\nsearch: {")
    (root / "recipe.yaml").write_text(text)
    return root / "recipe.yaml"


def command(recipe: Path, run_dir: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "boom_ray",
        "search",
        "ratios",
        str(recipe),
        "--run-dir",
        str(run_dir),
        *OPTIONS,
        *more,
    ]


def search(recipe: Path, run_dir: Path, *more: str) -> str:
    done = subprocess.run(command(recipe, run_dir, *more), capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def artifact(run_dir: Path) -> Path:
    (found,) = run_dir.glob("ratio_searches/[!.]*")
    return found


def trials(run_dir: Path) -> list[dict[str, Any]]:
    """What was tried and what came out of it."""
    lines = [json.loads(line) for line in (artifact(run_dir) / "ratio_trials.jsonl").read_text().splitlines()]
    kept = ("number", "rung", "parameters", "value", "by_dataset", "rows", "error")
    return [{name: line[name] for name in kept} for line in lines]


def outcome(run_dir: Path) -> dict[str, Any]:
    return json.loads((artifact(run_dir) / "search.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(road: Path, recipe: Path) -> tuple[Path, str]:
    run_dir = recipe.parent / "a"
    take_corpus(road / "run", run_dir)
    return run_dir, search(recipe, run_dir)


def check_trainings(run_dir: Path) -> None:
    """No member was trained on a batch twice, and each landed where its trials judged it."""
    parts = defaultdict(list)
    for training in outcome(run_dir)["trainings"]:
        if training["landed"]:
            parts[training["member"]].append((training["begun"], training["ended"]))
    for member, spans in parts.items():
        assert all(begun < ended for begun, ended in spans), member
        assert all(before[1] <= after[0] for before, after in pairwise(spans)), (member, spans)
    assert len(list(run_dir.glob("rungs/member-*-step*/manifest.json"))) == 3
    finished = {path.parent.name for path in run_dir.glob("members/*/manifest.json")}
    assert len(finished) >= len(outcome(run_dir)["best"]["ratios"])


def test_every_member_is_trained_once_and_the_best_set_to_its_end(undisturbed: tuple[Path, str]) -> None:
    run_dir, text = undisturbed
    check_trainings(run_dir)
    found, lines = outcome(run_dir), trials(run_dir)
    landed = [(t["member"], t["begun"], t["ended"]) for t in found["trainings"] if t["landed"]]
    second = next(line for line in lines if line["number"] == 1)
    first = dict(zip(second["parameters"]["numbers"], second["parameters"]["steps"], strict=True))
    assert len(first) == 3, "the second trial is the set of all"
    assert sorted(ended for _, begun, ended in landed if begun == 0) == sorted(first.values()), "three, to a third"
    assert sorted(begun for _, begun, _ in landed if begun) == sorted(first[n] for n in found["best"]["numbers"])
    assert [line["number"] for line in lines if line["rung"] == 0] == list(range(3))
    own, low_rung = lines[0]["parameters"], [line for line in lines if line["rung"] == 0]
    assert own["ratios"] == [0.4, 1.0], "the recipe's own set is tried first"
    assert all(len(line["parameters"]["ratios"]) in (2, 3) for line in low_rung)
    low = sorted((line["value"], line["number"]) for line in low_rung)
    (high,) = [line for line in lines if line["rung"] == 1]
    assert high["number"] == low[0][1], "the best of the first rung is trained on"
    best = found["best"]
    assert (best["number"], best["value"], best["complete"]) == (high["number"], high["value"], True)
    assert len(best["ratios"]) == len(set(best["numbers"])) >= 2
    assert found["table"][0]["name"] == best["name"]
    assert found["table"][0]["a"] == pytest.approx(best["value"], rel=1e-6), "the same members, the same rows"
    singles = [row for row in found["table"] if len(row["ratios"]) == 1]
    assert len(singles) == len(best["ratios"]), "every member that was trained to the end, alone"
    assert all(row["b"] is not None and row["to_best"] for row in found["table"][1:])
    assert f"numbers: {best['numbers']}" in text
    assert "device-seconds" in text


def test_a_second_call_does_nothing(recipe: Path, undisturbed: tuple[Path, str]) -> None:
    run_dir, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()}
    assert "this search is done" in search(recipe, run_dir)
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()} == before


def test_more_trials_go_on_with_the_same_log_and_a_budget_ends_them(
    recipe: Path, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    """Three trials are answered by the log; members of the other are trained already, but nothing is left to spend."""
    run_dir = tmp_path / "c"
    shutil.copytree(undisturbed[0], run_dir)
    before = trials(run_dir)
    shutil.rmtree(artifact(run_dir))
    text = search(recipe, run_dir, "--trials", "4", "--budget", "1")
    assert "stopped by the budget" in text
    assert trials(run_dir) == before, "no trial was begun"
    assert outcome(run_dir)["best"] == outcome(undisturbed[0])["best"]


def test_killed_at_a_random_moment_and_resumed_it_finds_the_same(recipe: Path, undisturbed: tuple[Path, str]) -> None:
    run_dir = recipe.parent / "b"  # corpus and base are those of the other: what is under test begins with the members
    made = shutil.ignore_patterns("rungs", "members", "ratio_searches", "scratch", "placement")
    shutil.copytree(undisturbed[0], run_dir, ignore=made)
    pause = random.Random(7).uniform(0, 5)
    kill_when(lambda: list(run_dir.glob("rungs/member-*/manifest.json")), command(recipe, run_dir), 300, pause)
    assert not list(run_dir.glob("ratio_searches/[!.]*"))
    search(recipe, run_dir)
    assert trials(run_dir) == trials(undisturbed[0])
    assert outcome(run_dir)["best"] == outcome(undisturbed[0])["best"]
    check_trainings(run_dir)


def test_a_run_takes_the_members_over(recipe: Path, undisturbed: tuple[Path, str]) -> None:
    """What the search prints is put into the recipe: its plan has no member left to train."""
    run_dir, _ = undisturbed
    best = outcome(run_dir)["best"]
    sets = [f"bags.ratios={best['ratios']}", f"bags.numbers={best['numbers']}"]
    arguments = [sys.executable, "-m", "boom_ray", "plan", str(recipe), "--run-dir", str(run_dir)]
    done = subprocess.run(
        [*arguments, *(part for text in sets for part in ("--set", text))], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    states = [line[0] for line in done.stdout.splitlines() if line[2:].startswith("member-")]
    assert states == ["x"] * len(best["ratios"])
