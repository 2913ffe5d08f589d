"""``boom-ray study``: what it says before it starts, and what it refuses then rather than after hours of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from road_data import recipe_text, write_corpus, write_sets

from boom_ray.config import BoomError
from boom_ray.study_run import Limits, open_study, plan_study, study

ONE = {"name": "one", "role": "reference", "bags": {"ratios": [1.0]}}
TWO = {"name": "two", "role": "merge", "bags": {"ratios": [0.5, 1.0]}}
TYPES = {"name": "types", "role": "merge", "bags": {"kind": "task_type"}, "seeds": 1, "exploratory": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study_command")
    write_corpus(root / "corpus", rows=20)
    write_sets(root / "eval")
    return root


def written(data: Path, *conditions: dict[str, Any], seeds: int = 1) -> Path:
    raw = yaml.safe_load(recipe_text(data / "corpus", data / "eval"))
    raw["study"] = {"seeds": seeds, "conditions": list(conditions)}
    (data / "recipe.yaml").write_text(yaml.safe_dump(raw))
    return data / "recipe.yaml"


def test_the_plan_lists_members_and_makes_nothing(data: Path, tmp_path: Path):
    lines = plan_study(written(data, ONE, TWO, TYPES, seeds=2), run_dir=tmp_path / "run")
    assert lines[0] == "road: 5 of 5 conditions (seeds counted) to do"
    assert [line.split("  for")[0].split()[0] for line in lines[2:9]] == ["-"] * 7
    assert [line.split()[-1] for line in lines[2:9]] == ["two", "two", "two", "two", "types", "types", "types"]
    assert lines[-2].startswith("7 members to train, 5 models to score; without sharing")
    assert "once the corpus has been made" in lines[-1]
    assert not (tmp_path / "run").exists()


def test_limits_are_of_what_is_done_now_and_not_of_the_study(data: Path, tmp_path: Path):
    recipe = written(data, ONE, TWO, TYPES, seeds=2)
    under_way = open_study(recipe, ("train.batch_size=16",), tmp_path, Limits(("two",), 1), print)
    assert [case.name for case in under_way.chosen] == ["two (seed 0)"]
    assert len(under_way.listed) == 5
    assert under_way.command == f"boom-ray study {recipe} --set train.batch_size=16"


WRONG = [
    ([{**TWO, "method": "multislurp"}], Limits(), "did you mean 'multislerp'"),
    ([{**TWO, "method": "ties"}], Limits(), "not in the span of the members"),
    ([{**ONE, "scale": 0.5, "method": "model_stock"}], Limits(), "takes at least 2 members"),
    ([ONE], Limits(("three",)), "it has one"),
    ([], Limits(), "no study.conditions"),
]


@pytest.mark.parametrize(("conditions", "limits", "told"), WRONG, ids=[told for *_, told in WRONG])
def test_what_cannot_be_done_is_refused_before_anything_is_trained(data, tmp_path, conditions, limits, told):
    with pytest.raises(BoomError) as refused:
        study(written(data, *conditions), run_dir=tmp_path / "run", limits=limits)
    assert told in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_cap_of_no_set_is_refused_before_anything_is_trained(data: Path, tmp_path: Path):
    with pytest.raises(BoomError, match="did you mean 'finding'"):
        study(written(data, ONE), overrides=["evaluate.cap={findings: 20}"], run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
