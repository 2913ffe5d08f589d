"""``corpus.mine`` on the whole road: killed in the middle, gone on with, trained on; and the command beside it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from driver_kills import kill_when
from road_data import recipe_text, write_corpus, write_sets

from boom_ray.config import BoomError, parse_recipe
from boom_ray.runs import with_found_miners

pytestmark = pytest.mark.long
SHORT = ["search.trials=4", "evaluate.sets=[]", "train.max_steps=4", "base.build.warm_steps=0"]


@pytest.fixture(scope="module")
def inputs(small_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that mines with a model of random weights; other settings are kept small."""
    root = tmp_path_factory.mktemp("mine")
    raw = yaml.safe_load(recipe_text(write_corpus(root / "corpus"), write_sets(root / "eval")))
    raw["corpus"]["mine"] = {"models": [str(small_base(1))], "ranks": [2, 100], "share": 1.0, "count": 2}
    (root / "recipe.yaml").write_text(yaml.safe_dump(raw))
    return root


def boom(verb: str, inputs: Path, run_dir: str, *sets: str) -> list[str]:
    options = [part for key in sets for part in ("--set", key)]
    recipe, directory = inputs / "recipe.yaml", inputs / run_dir
    return [sys.executable, "-m", "boom_ray", verb, str(recipe), "--run-dir", str(directory), *options]


def output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def vectors(run_dir: Path) -> dict[Path, int]:
    found = (run_dir / "scratch" / "mine").glob("*/*/model-*/*/*.npy")
    return {path: path.stat().st_mtime_ns for path in found}


def mined(run_dir: Path) -> Path:
    (folder,) = (run_dir / "corpus").glob("road-mined-*")
    return folder


def kill_when_vectors_are_there(command: list[str], run_dir: Path) -> None:
    kill_when(lambda: vectors(run_dir), command, 400)


@pytest.fixture(scope="module")
def finished(inputs: Path) -> tuple[Path, str, dict[Path, int]]:
    """(run directory, what the second command printed, what the killed first one had embedded)."""
    run = boom("run", inputs, "run", *SHORT)
    kill_when_vectors_are_there(run, inputs / "run")
    before = vectors(inputs / "run")
    assert not list((inputs / "run" / "corpus").glob("road-mined-*"))
    return inputs / "run", output(run), before


def test_killed_run_goes_on_and_publishes(finished: tuple[Path, str, dict[Path, int]]) -> None:
    run_dir, printed, before = finished
    after = vectors(run_dir)
    assert {path: after[path] for path in before} == before, "finished vectors were made again"
    assert "corpus:" not in printed
    assert "mine: hard negatives by" in printed
    assert list(run_dir.glob("published/*/_SUCCESS"))


def test_members_read_the_mined_corpus(finished: tuple[Path, str, dict[Path, int]]) -> None:
    run_dir, _, _ = finished
    built = next(p for p in (run_dir / "corpus").iterdir() if "mined" not in p.name)
    tables = [pa.ipc.open_file(str(folder / "rows-00000.arrow")).read_all() for folder in (built, mined(run_dir))]
    assert tables[0].drop(["neg"]) == tables[1].drop(["neg"])
    counts = json.loads((mined(run_dir) / "mined.json").read_text())["datasets"]
    assert list(counts) == ["finding"]
    assert counts["finding"]["rows"] == 160
    assert counts["finding"]["mined"] > 0
    (tokens,) = (run_dir / "tokens").glob("*/tokens-00000.arrow")
    texts = [sum(map(len, table["neg"].to_pylist())) for table in (*tables, pa.ipc.open_file(str(tokens)).read_all())]
    assert texts[2] == texts[1] != texts[0]


def test_command_finds_it_done_and_says_how_to_train_on_it(
    inputs: Path, finished: tuple[Path, str, dict[Path, int]]
) -> None:
    printed = output(boom("mine", inputs, "run", *SHORT))
    assert "mine:" not in printed.splitlines()[0]
    assert f"mined: {mined(finished[0])}" in printed
    lines = yaml.safe_load(printed[printed.index("corpus:\n") :])
    assert lines["corpus"] == {"mine": {**yaml.safe_load((inputs / "recipe.yaml").read_text())["corpus"]["mine"],
                                        "datasets": []}}  # fmt: skip


def test_undisturbed_mining_elsewhere_gives_the_same_bytes(
    inputs: Path, finished: tuple[Path, str, dict[Path, int]]
) -> None:
    shutil.copytree(finished[0], inputs / "other", ignore=lambda _, names: [n for n in names if "mine" in n])
    output(boom("mine", inputs, "other", *SHORT))
    for name in ("rows-00000.arrow", "mined.json", "datasets.json"):
        assert (mined(inputs / "other") / name).read_bytes() == (mined(finished[0]) / name).read_bytes(), name


def test_members_mine_by_name(finished: tuple[Path, str, dict[Path, int]]) -> None:
    run_dir, _, _ = finished
    (member,) = (run_dir / "members").glob("member-1-*")

    def named(*models: str) -> tuple[str, ...]:
        raw = {
            "name": "road",
            "base": {"build": {}},
            "corpus": {"datasets": [{"path": "x"}], "mine": {"models": models}},
        }
        found = with_found_miners(parse_recipe(raw), run_dir).corpus.mine
        assert found is not None
        return found.models

    assert named("member-1", f"members/{member.name}", "org/other") == (str(member), str(member), "org/other")
    with pytest.raises(BoomError, match="several models called 'member'"):
        named("member")
