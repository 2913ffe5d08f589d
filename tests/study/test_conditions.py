"""Conditions as variants of one recipe: members have one identity wherever they are used, pools train each once."""

from __future__ import annotations

from pathlib import Path

import pytest
from grids import WORLD, recipe

from boom_ray.config import BoomError, Recipe
from boom_ray.plan import derive_keys
from boom_ray.recipe import load_recipe
from boom_ray.study.conditions import Case, cases, choose, pools

FIVE = [0.2, 0.4, 0.6, 0.8, 1.0]
STUDY = Path(__file__).parents[2] / "jobs" / "recipes" / "study.yaml"


def of(study: Recipe, name: str, seed: int = 0) -> Case:
    return next(c for c in cases(study, WORLD) if (c.condition.name, c.seed) == (name, seed))


def members(case: Case) -> dict[float, str]:
    return {rule.ratio: key.identity for rule, key in zip(case.keys.rules, case.keys.members, strict=True)}


def test_conditions_that_train_alike_share_their_members():
    study = recipe(
        {"name": "five", "bags": {"ratios": FIVE}},
        {"name": "two", "bags": {"ratios": [1.0, 0.8]}},
        {"name": "one", "bags": {"ratios": [1.0]}},
        {"name": "wise", "bags": {"ratios": [1.0]}, "scale": 0.5},
        {"name": "uniform", "bags": {"ratios": FIVE}, "weights": "uniform", "method": "linear"},
    )
    five = members(of(study, "five"))
    assert len(set(five.values())) == 5
    assert members(of(study, "two")) == {ratio: five[ratio] for ratio in (1.0, 0.8)}
    assert members(of(study, "one")) == members(of(study, "wise")) == {1.0: five[1.0]}
    assert members(of(study, "uniform")) == five


def test_copies_and_seeds_are_other_members_and_the_first_copy_is_the_one_that_others_use():
    study = recipe(
        {"name": "five", "bags": {"ratios": FIVE}}, {"name": "three", "bags": {"ratios": [0.6, 0.6, 0.6]}}, seeds=2
    )
    three = of(study, "three")
    assert three.recipe.bags.numbers == (6000, 16001, 26002)
    assert of(study, "three", 1).recipe.bags.numbers == (1006100, 1016101, 1026102)
    identities = [key.identity for key in three.keys.members]
    assert len(set(identities)) == 3
    assert identities[0] == members(of(study, "five"))[0.6]
    assert not set(identities) & {key.identity for key in of(study, "three", 1).keys.members}
    assert {rule.stream for rule in three.keys.rules} == set(three.recipe.bags.numbers), "each has a draw of its own"


def test_numbers_never_meet():
    """Of seeds, copies and ratios: (100 seed + copy) 10001 + ratio in steps of 1e-4."""
    study = recipe({"name": "a", "bags": {"ratios": [1.0, 1.0, 0.0001, 0.0001]}}, seeds=3)
    numbers = [number for case in cases(study, WORLD) for number in case.recipe.bags.numbers or ()]
    assert len(set(numbers)) == len(numbers) == 12


def test_what_trains_otherwise_is_another_member_on_the_same_base():
    study = recipe(
        {"name": "one", "bags": {"ratios": [1.0]}},
        {"name": "long", "bags": {"ratios": [1.0]}, "passes": 1.8},
        {"name": "mixed", "bags": {"ratios": [1.0]}, "schedule": "example_shuffle"},
        {"name": "drawn", "bags": {"kind": "bootstrap", "ratios": [1.0]}},
        {"name": "whole", "bags": {"ratios": [1.0]}, "passes": 1.0},
        base={"build": {"warm_steps": 3}},
    )
    found = {case.condition.name: case for case in cases(study, WORLD)}
    assert len({case.keys.members[0] for case in found.values()}) == 4
    assert found["whole"].keys.members == found["one"].keys.members, "1.0 passes are 1"
    assert {case.keys.base for case in found.values()} == {derive_keys(study, WORLD).base}, "the warm base is shared"
    assert {case.keys.scores["base"] for case in found.values()} == {found["one"].keys.scores["base"]}


def test_the_model_is_the_member_its_average_or_a_merge():
    study = recipe(
        {"name": "one", "bags": {"ratios": [1.0]}},
        {"name": "ema", "bags": {"ratios": [1.0]}, "average": "ema"},
        {"name": "last", "bags": {"ratios": [1.0]}, "average": "last"},
        {"name": "wise", "bags": {"ratios": [1.0]}, "scale": 0.5},
        {"name": "two", "bags": {"ratios": [0.5, 1.0]}},
        {"name": "again", "bags": {"ratios": [0.5, 1.0]}, "title": "the same"},
        {"name": "longer", "bags": {"ratios": [0.5, 1.0]}, "scale": 1.2},
        {"name": "found", "bags": {"ratios": [0.5, 1.0]}, "weights": "searched"},
        train={"averages": {"last": 4}},
    )
    found = {case.condition.name: case for case in cases(study, WORLD)}
    model = {name: case.keys.models[case.model] for name, case in found.items()}
    assert model["one"] == found["one"].keys.members[0]
    assert [model["ema"].label, model["last"].label] == ["member-10000-ema", "member-10000-last4"]
    assert [name for name, case in found.items() if case.merged] == ["wise", "two", "again", "longer", "found"]
    assert len({key.identity for key in model.values()}) == len(model) - 1
    assert found["again"].scores == found["two"].scores, "one model is scored once"
    assert found["again"].key != found["two"].key
    assert found["found"].recipe.merge.weights == "searched"


def test_what_people_call_a_condition_changes_nothing():
    plain = of(recipe({"name": "two", "bags": {"ratios": [0.5, 1.0]}}), "two")
    told = of(recipe({"name": "two", "bags": {"ratios": [0.5, 1.0]}, "title": "T", "exploratory": True}), "two")
    assert told.key == plain.key
    assert told.keys == plain.keys


def test_whole_seeds_come_first_and_exploratory_conditions_last():
    study = recipe({"name": "b", "exploratory": True, "seeds": 1}, {"name": "a"}, {"name": "c"}, seeds=2)
    assert [case.name for case in cases(study, WORLD)] == [
        "a (seed 0)", "c (seed 0)", "a (seed 1)", "c (seed 1)", "b (seed 0)",
    ]  # fmt: skip


def test_pools_hold_each_wanted_member_once_and_those_that_train_alike_together():
    study = recipe(
        {"name": "five", "bags": {"ratios": FIVE}},
        {"name": "three", "bags": {"ratios": [0.6, 0.6, 0.6]}},
        {"name": "long", "bags": {"ratios": [1.0]}, "passes": 3},
        {"name": "halves", "bags": {"kind": "partition", "ratios": [0.5, 0.5]}},
        {"name": "types", "bags": {"kind": "task_type"}},
    )
    listed = cases(study, WORLD)
    landed = of(study, "five").keys.members[4]
    found = pools(listed, lambda member: member != landed)
    keys = [derive_keys(pool, WORLD, base=base) for pool, base in found]
    trained = [member for pool in keys for member in pool.members]
    wanted = {member for case in listed for member in case.keys.members} - {landed}
    assert len(trained) == len(set(trained))
    assert set(trained) == wanted
    assert [len(pool.members) for pool in keys] == [6, 1, 2, 3]
    assert pools(listed, lambda member: False) == []


def test_a_trunk_is_the_reference_of_so_many_passes_and_members_start_from_it():
    study = recipe(
        {"name": "long", "bags": {"ratios": [1.0]}, "passes": 1.8},
        {"name": "two", "bags": {"ratios": [0.6, 1.0]}},
        {"name": "branches", "bags": {"ratios": [0.6, 1.0]}, "trunk": 1.8},
        {"name": "wise", "bags": {"ratios": [0.6]}, "trunk": 1.8, "scale": 0.5},
        {"name": "later", "bags": {"ratios": [0.6, 1.0]}, "trunk": 2},
        seeds=2,
    )
    listed = cases(study, WORLD)
    for seed in (0, 1):
        long, two, branches, wise, later = (c for c in listed if c.seed == seed)
        (trunk,) = long.keys.members
        assert branches.keys.base == trunk, "members start from it, and the merge is around it"
        assert list(branches.trained) == [trunk, *branches.keys.members]
        assert list(two.trained) == list(two.keys.members)
        assert branches.base == two.base == two.keys.base
        assert branches.keys.scores["base"] == two.keys.scores["base"], "the table's base is the study's"
        assert wise.keys.members == branches.keys.members[:1]
        distinct = {key for case in (long, two, branches, later) for key in case.trained}
        assert len(distinct) == 1 + 2 + 2 + 3
        assert long.recipe.bags.numbers[0] not in branches.recipe.bags.numbers, "another order than the trunk's"
    found = {base: len(pool.bags.ratios) for pool, base in pools(listed, lambda member: True)}
    started = {base: count for base, count in found.items() if base != listed[0].base}
    assert started == {case.keys.base: 2 for case in listed if case.trunk}, "a pool for each trunk"


def test_the_bags_of_another_kind_begin_with_its_defaults():
    study = recipe(
        {"name": "types", "bags": {"kind": "task_type"}},
        {"name": "plain"},
        bags={"ratios": [0.3, 0.7], "nested": True, "temperature": 2.0},
    )
    bags = of(study, "types").recipe.bags
    assert (bags.ratios, bags.nested, bags.temperature) == ((1.0,), False, 2.0)
    assert of(study, "plain").recipe.bags.ratios == (0.3, 0.7)


REFUSED = [
    ({"name": "A"}, "small letters"),
    ({"name": "a", "bags": {"numbers": [1]}}, "numbers members itself"),
    ({"name": "a", "weights": "searched", "scale": 1.1}, "search the scale, too"),
    ({"name": "a", "average": "ema", "scale": 0.5}, "by itself"),
    ({"name": "a", "passes": 0}, "greater than 0"),
    ({"name": "a", "bags": {"ratio": [1.0]}}, "did you mean 'ratios'"),
    ({"name": "a", "bags": {"ratios": [1.5]}}, "at most 1"),
    ({"name": "a", "bags": {"ratios": [0.5, 1.0]}, "average": "ema"}, "Give it one ratio"),
    ({"name": "a", "bags": {"ratios": [1.0]}, "average": "ema"}, "train: {averages: {}}"),
    ({"name": "a", "bags": {"kind": "dataset"}, "seeds": 2}, "Give it seeds: 1"),
    ({"name": "a", "bags": {"nested": True}, "seeds": 2}, "one draw"),
    ({"name": "a", "bags": {"ratios": [0.5] * 101}}, "more than 100 members"),
]


@pytest.mark.parametrize(("condition", "told"), REFUSED, ids=[told for _, told in REFUSED])
def test_a_condition_that_cannot_be_is_refused_with_the_reason(condition, told):
    with pytest.raises(BoomError) as refused:
        cases(recipe(condition), WORLD)
    assert told in str(refused.value)


def test_names_are_unique_and_a_study_has_conditions():
    with pytest.raises(BoomError, match="two conditions are called 'a'"):
        recipe({"name": "a"}, {"name": "a"})
    with pytest.raises(BoomError, match=r"no study\.conditions"):
        cases(recipe(), WORLD)


def test_conditions_and_seeds_are_chosen_by_name_and_number():
    listed = cases(recipe({"name": "a"}, {"name": "b"}, seeds=2), WORLD)
    assert [c.name for c in choose(listed, ["b"], None)] == ["b (seed 0)", "b (seed 1)"]
    assert [c.name for c in choose(listed, [], 1)] == ["a (seed 0)", "b (seed 0)"]
    with pytest.raises(BoomError, match="no condition 'c'; it has a, b"):
        choose(listed, ["c"], None)
    with pytest.raises(BoomError, match="at least 1"):
        choose(listed, [], 0)


def test_the_shipped_study_is_the_grid_of_its_issue(monkeypatch):
    monkeypatch.setenv("BOOM_RAY_DATA", "/data")
    study = load_recipe(STUDY)
    listed = cases(study, WORLD)
    core = [case for case in listed if not case.condition.exploratory]
    assert {case.seed for case in core} == {0, 1, 2}
    assert {case.seed for case in listed if case.condition.exploratory} == {0}
    cost = {
        case.condition.name: sum(rule.ratio * by.recipe.train.epochs for by, rule in case.trained.values())
        for case in core
    }
    assert {name: round(passes, 6) for name, passes in cost.items()} == {
        "bls-1.0": 1, "bls-1.8": 1.8, "bls-3.0": 3, "boom-20-100": 3, "boom-80-100": 1.8, "boom-60-60-60": 1.8,
        "boom-20-100-scale-1.2": 3, "boom-20-100-searched": 3, "soup-3": 3, "ema": 1, "last-3": 1, "wise-0.5": 1,
        "wise-0.8": 1, "boom-50-rest": 1, "ema-long": 3, "wise-0.8-long": 3,
    }  # fmt: skip
    first = [case for case in core if case.seed == 0]
    needed = {member for case in first for member in case.trained}
    assert len(needed) == 13, "five ratios, two more of 60 % and of 100 %, two longer ones, two halves"
    assert {case.condition.role for case in first if case.condition.name.startswith("bls")} == {"reference"}
