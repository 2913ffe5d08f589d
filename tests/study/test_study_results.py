"""What a study knows from its small artifacts alone: conditions and scores, no member on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from grids import WORLD, recipe

from boom_ray.config import Recipe
from boom_ray.ledger import Key, Ledger
from boom_ray.study.conditions import Case, cases
from boom_ray.study.costs import member_costs, plan_lines
from boom_ray.study.finding import Found
from boom_ray.study.leftovers import tidy
from boom_ray.study.results import base_name, read_results

SETS = [
    {"name": "ask", "task_type": "retrieval", "domain": "in_domain", "metric": "ndcg_at_10", "language": "en"},
    {"name": "far", "task_type": "sts", "domain": "out_of_domain", "metric": "cosine_spearman", "language": "en"},
]
FOUND = Found(3.0, 12.5, 400, (0.5, 1.0), (1 / 3, 2 / 3), 1.2, ((1.0, 0.6), (0.6, 1.0)), {"value": 0.9, "trials": 16})


@pytest.fixture
def study() -> Recipe:
    return recipe(
        {"name": "one", "role": "reference", "bags": {"ratios": [1.0]}},
        {"name": "two", "bags": {"ratios": [0.5, 1.0]}, "scale": 1.2},
        seeds=2,
        evaluate={"cap": 250},
    )


def commit(ledger: Ledger, key: Key, meta: dict[str, Any] | None = None) -> None:
    with ledger.stage(key) as stage:
        (stage.path / "model.safetensors").write_bytes(b"")
        stage.meta.update(meta or {})


def score(ledger: Ledger, key: Key, value: float) -> None:
    if not ledger.has(key):
        commit(ledger, key, {"sets": SETS, "scores": {"ask": value, "far": value / 2}, "dev": {}})


def finish(ledger: Ledger, case: Case, value: float) -> None:
    score(ledger, case.keys.scores["base"], 0.1)
    score(ledger, case.scores, value)
    with ledger.stage(case.key) as stage:
        FOUND.write(stage.path, case)


def test_nothing_is_finished_without_scores_of_the_model_and_of_the_base(study: Recipe, tmp_path: Path):
    ledger, (case, *_) = Ledger.open(tmp_path, study.name), cases(study, WORLD)
    assert read_results(study, ledger, [case], "c") is None
    with ledger.stage(case.key) as stage:
        FOUND.write(stage.path, case)
    score(ledger, case.scores, 0.4)
    assert not case.done(ledger.has)
    score(ledger, case.keys.scores["base"], 0.1)
    assert case.done(ledger.has)


def test_results_are_read_from_conditions_and_scores_alone(study: Recipe, tmp_path: Path):
    ledger, listed = Ledger.open(tmp_path, study.name), cases(study, WORLD)
    one, two = (case for case in listed if case.seed == 0)
    finish(ledger, one, 0.4)
    finish(ledger, two, 0.5)
    assert {folder.name for folder in tmp_path.iterdir() if folder.is_dir()} == {"scores", "conditions"}
    result = read_results(study, ledger, listed, "boom-ray study grid.yaml")
    assert result is not None
    assert (result.name, result.cap, result.rows, result.command) == ("grid", 250, 400, "boom-ray study grid.yaml")
    assert (result.base.scores["far"], result.base_model) == (0.05, "m")
    assert [(t.name, t.domain, t.metric) for t in result.tasks] == [
        ("ask", "in_domain", "ndcg_at_10"), ("far", "out_of_domain", "cosine_spearman"),
    ]  # fmt: skip
    assert [c.condition.name for c in result.conditions] == ["one", "two"]
    assert [c.wanted for c in result.conditions] == [2, 2]
    assert result.pending == ("one (seed 1)", "two (seed 1)")
    (seed,) = result.conditions[1].seeds
    assert seed.scored.scores == {"ask": 0.5, "far": 0.25}
    told = (seed.passes, seed.device_seconds, seed.ratios, seed.weights, seed.scale, seed.cosine, seed.found)
    assert told == (3.0, 12.5, (0.5, 1.0), (1 / 3, 2 / 3), 1.2, ((1.0, 0.6), (0.6, 1.0)), FOUND.found)


def test_a_condition_without_a_finished_seed_is_left_out_and_pending(study: Recipe, tmp_path: Path):
    ledger, listed = Ledger.open(tmp_path, study.name), cases(study, WORLD)
    finish(ledger, next(c for c in listed if c.condition.name == "two" and c.seed == 1), 0.5)
    result = read_results(study, ledger, listed, "c")
    assert result is not None
    assert [(c.condition.name, [s.seed for s in c.seeds]) for c in result.conditions] == [("two", [1])]
    assert result.pending == ("one (seed 0)", "two (seed 0)", "one (seed 1)")


def test_the_artifact_names_its_scores(study: Recipe, tmp_path: Path):
    ledger, (case, *_) = Ledger.open(tmp_path, study.name), cases(study, WORLD)
    finish(ledger, case, 0.4)
    told = json.loads((ledger.path(case.key) / "condition.json").read_text())
    assert (tmp_path / told["scores"] / "manifest.json").is_file()


def test_the_plan_has_each_member_once_with_all_that_need_it(study: Recipe, tmp_path: Path):
    ledger, listed = Ledger.open(tmp_path, study.name), [c for c in cases(study, WORLD) if c.seed == 0]
    found = member_costs(listed, ledger)
    assert [(m.bag, m.conditions, m.done, m.rows) for m in found] == [
        ("100 %", ("one", "two"), False, None), ("50 %", ("two",), False, None),
    ]  # fmt: skip
    lines = plan_lines(study, listed, ledger)
    assert lines[0] == "grid: 2 of 2 conditions (seeds counted) to do"
    assert (
        "2 members to train, 2 models to score; without sharing members between conditions it would be 3" in lines[-2]
    )
    finish(ledger, listed[0], 0.4)
    assert "would be 2" in plan_lines(study, listed, ledger)[-2], "what is finished needs no member"
    finish(ledger, listed[1], 0.4)
    assert plan_lines(study, listed, ledger) == ["grid: all 2 conditions (seeds counted) are done."]


def test_only_what_open_conditions_need_stays(tmp_path: Path):
    study = recipe(
        {"name": "ema", "bags": {"ratios": [1.0]}, "average": "ema"},
        {"name": "two", "bags": {"ratios": [0.5, 1.0]}},
        {"name": "longer", "bags": {"ratios": [0.5, 1.0]}, "scale": 1.2},
        train={"averages": {}},
    )
    ledger, (ema, two, longer) = Ledger.open(tmp_path, study.name), cases(study, WORLD)
    small, whole = two.keys.members
    averages = two.keys.averages  # by label
    for key in (small, whole, *averages.values(), two.keys.merges["ratio"], longer.keys.merges["ratio"]):
        commit(ledger, key)
    commit(ledger, two.keys.grams)

    def there(*keys: Key) -> list[bool]:
        return [ledger.has(key) for key in keys]

    tidy(ledger, [ema, two, longer])
    assert [label for label, key in averages.items() if ledger.has(key)] == ["member-10000-ema"], (
        "only EMA is asked for"
    )
    finish(ledger, ema, 0.3)
    finish(ledger, two, 0.4)
    tidy(ledger, [ema, two, longer])
    assert there(*averages.values(), two.keys.merges["ratio"]) == [False] * 5
    assert there(longer.keys.merges["ratio"], longer.keys.grams) == [True] * 2, "of the same members"
    finish(ledger, longer, 0.5)
    tidy(ledger, [ema, two, longer])
    assert there(longer.keys.merges["ratio"], longer.keys.grams, small, whole) == [False] * 2 + [True] * 2


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ({"model": "owner/name", "layers": 3}, "owner/name, its first 3 layers"),
        ({"model": "/somewhere/of/mine/model"}, "mine/model"),
        ({"build": {}}, "a base built from a config"),
    ],
)
def test_a_base_is_called_without_the_place_it_lies_in(base, name):
    assert base_name(recipe({"name": "a"}, base=base).base) == name
