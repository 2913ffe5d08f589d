"""A study that is killed goes on where it was: the same conditions, members trained once; small files are enough."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from driver_kills import kill_when
from finished_runs import take_corpus
from road_data import recipe_text

from boom_ray.study_run import Limits, open_study, plan_study
from boom_ray.study_run import study as carry_out

pytestmark = pytest.mark.long

CONDITIONS = """
study:
  conditions:
    - {name: one, role: reference, bags: {ratios: [1.0]}}
    - {name: two, role: merge, bags: {ratios: [0.5, 1.0]}}
    - {name: ema, role: control, bags: {ratios: [1.0]}, average: ema}
    - {name: wise, role: control, bags: {ratios: [1.0]}, scale: 0.5}
"""
ADDED = "    - {name: longer, role: merge, bags: {ratios: [0.5, 1.0, 1.0]}, scale: 1.2}\n"
BRANCHES = """\
    - {name: half, role: reference, bags: {ratios: [1.0]}, passes: 0.5}
    - {name: part, role: merge, bags: {ratios: [0.5]}}
    - {name: branches, role: merge, trunk: 0.5, bags: {ratios: [0.5, 0.5]}}
"""
KEPT = ("passes", "rows", "ratios", "weights", "scale", "cosine", "found")


@pytest.fixture(scope="module")
def recipe(road: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = recipe_text(road / "corpus", road / "eval").replace("train: {", "train: {averages: {ema: 0.9, every: 2}, ")
    file = tmp_path_factory.mktemp("study_faults") / "recipe.yaml"
    file.write_text(text.replace("{max_width: 1}", "{max_width: 1, max_concurrent: 1}") + CONDITIONS)
    return file


def command(recipe: Path, run_dir: Path) -> list[str]:
    return [sys.executable, "-m", "boom_ray", "study", str(recipe), "--run-dir", str(run_dir)]


def finish(recipe: Path, run_dir: Path) -> str:
    done = subprocess.run(command(recipe, run_dir), capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def conditions(run_dir: Path) -> dict[str, dict[str, Any]]:
    found = {file.parent.name: json.loads(file.read_text()) for file in run_dir.glob("conditions/[!.]*/condition.json")}
    return {name: {key: told[key] for key in KEPT} for name, told in found.items()}


def scores(run_dir: Path) -> dict[str, dict[str, float]]:
    files = run_dir.glob("scores/[!.]*/manifest.json")
    return {file.parent.name: json.loads(file.read_text())["meta"]["scores"] for file in files}


def landed(run_dir: Path) -> dict[str, int]:
    """Members and when they landed; averages are of members."""
    found = [file for file in run_dir.glob("members/[!.]*/manifest.json") if "-ema-" not in file.parent.name]
    return {file.parent.name: file.stat().st_mtime_ns for file in found if "-last" not in file.parent.name}


@pytest.fixture(scope="module")
def undisturbed(road: Path, recipe: Path) -> Path:
    run_dir = recipe.parent / "a"
    take_corpus(road / "run", run_dir)
    text = finish(recipe, run_dir)
    assert "4 of 4 conditions (seeds counted) are finished" in text
    return run_dir


def test_members_are_shared_and_what_nobody_needs_is_gone(undisturbed: Path):
    assert len(landed(undisturbed)) == 2, "all rows and half of them"
    assert len(conditions(undisturbed)) == 4
    assert len(scores(undisturbed)) == 5, "and the base"
    left = [file for kind in ("merges", "grams") for file in undisturbed.glob(f"{kind}/[!.]*")]
    assert not left
    assert not list(undisturbed.glob("members/*-ema-*"))
    assert (undisturbed / "study" / "index.html").stat().st_size > 10_000
    assert (undisturbed / "study" / "study.md").is_file()


def test_killed_at_a_random_moment_and_run_again_it_finds_the_same(recipe: Path, undisturbed: Path):
    run_dir = recipe.parent / "b"  # corpus and base are those of the other: what is under test begins with the members
    made = shutil.ignore_patterns("members", "conditions", "scores", "study", "scratch", "placement")
    shutil.copytree(undisturbed, run_dir, ignore=made)
    pause = random.Random(11).uniform(0, 6)
    kill_when(lambda: landed(run_dir), command(recipe, run_dir), 300, pause)
    before = landed(run_dir)
    assert len(conditions(run_dir)) < 4
    finish(recipe, run_dir)
    assert conditions(run_dir) == conditions(undisturbed)
    assert scores(run_dir) == scores(undisturbed)
    after = landed(run_dir)
    assert set(after) == set(landed(undisturbed))
    assert {name: after[name] for name in before} == before, "no member was trained twice"


def test_members_start_from_a_trunk_that_is_trained_before_them_and_only_once(recipe: Path, undisturbed: Path):
    run_dir = recipe.parent / "c"
    shutil.copytree(undisturbed, run_dir)
    with_branches = recipe.parent / "branches.yaml"
    with_branches.write_text(recipe.read_text() + BRANCHES)
    before = landed(run_dir)
    finish(with_branches, run_dir)
    new = {name: when for name, when in landed(run_dir).items() if name not in before}
    trunk, *branches = sorted(new, key=new.__getitem__)
    inputs = {name: json.loads((run_dir / "members" / name / "manifest.json").read_text())["inputs"] for name in new}
    assert [Path(inputs[name]["base"]).name for name in branches] == [trunk, trunk]
    assert Path(inputs[trunk]["base"]).name == next((run_dir / "base").glob("[!.]*")).name
    found = {name.rsplit("-", 1)[0]: told for name, told in conditions(run_dir).items()}
    one, half = found["one-s0"]["passes"], found["half-s0"]["passes"]
    assert found["branches-s0"]["passes"] == pytest.approx(half + 2 * found["part-s0"]["passes"], rel=0.02)
    assert half < one
    assert scores(run_dir).keys() > scores(undisturbed).keys()
    assert len(found["branches-s0"]["cosine"]) == 2


def test_small_files_alone_are_gone_on_with_elsewhere(recipe: Path, undisturbed: Path, tmp_path: Path):
    """What git keeps of a study: run.json, conditions and scores. Nothing is trained; an added condition trains."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy2(undisturbed / "run.json", elsewhere)
    for kind in ("conditions", "scores"):
        shutil.copytree(undisturbed / kind, elsewhere / kind)
    said: list[str] = []
    result, page = carry_out(recipe, run_dir=elsewhere, echo=said.append)
    assert said == ["road: nothing planned, all conditions asked for are done."]
    assert result is not None
    assert page is not None
    assert not result.pending
    assert page.read_bytes() == (undisturbed / "study" / "index.html").read_bytes()
    assert not (elsewhere / "members").exists()
    recipe_with_more = tmp_path / "more.yaml"
    recipe_with_more.write_text(recipe.read_text() + ADDED)
    open_cases = open_study(recipe_with_more, (), undisturbed, Limits(), print)
    assert [case.name for case in open_cases.open(open_cases.listed)] == ["longer (seed 0)"]
    lines = plan_study(recipe_with_more, run_dir=undisturbed)
    members = [line.split("  for")[0] for line in lines if line.endswith("longer")]
    assert [line[0] for line in members] == ["x", "x", "-"], "of three members one is new"
