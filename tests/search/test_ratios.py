"""Members of a search of ratios: shared by their numbers, trained part by part, paid for once. No Ray here; the whole
search runs in tests/faults/test_ratio_faults.py."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from road_data import recipe_text, write_corpus, write_sets

from boom_ray.commands.ratios import read_range, read_ratios, result_lines
from boom_ray.config import BoomError
from boom_ray.ledger import Key, Ledger
from boom_ray.plan import derive_keys, paused_key
from boom_ray.ratio_run import pool_recipe, search_key
from boom_ray.recipe import load_recipe
from boom_ray.runs import look
from boom_ray.search.ratio_members import Costs, Pool, RatioTask, Training, plan_lines
from boom_ray.search.ratio_space import ratio_space
from boom_ray.stages.preparation import Run, draw_bags

FIVE = "ratio_search.ratios=[0.2, 0.4, 0.6, 0.8, 1.0]"


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ratios")
    text = recipe_text(write_corpus(root / "corpus", rows=60), write_sets(root / "eval"))
    (root / "recipe.yaml").write_text(text)
    return root / "recipe.yaml"


def _pool(file: Path, *overrides: str):
    recipe = load_recipe(file, (FIVE, *overrides))
    space = ratio_space(recipe.ratio_search, recipe.bags, 3)
    return recipe, space, derive_keys(pool_recipe(recipe, space), look(recipe))


def test_searches_share_members_and_a_run_takes_them_over(recipe_file: Path) -> None:
    _, space, wide = _pool(recipe_file)
    _, narrow_space, narrow = _pool(recipe_file, "ratio_search.ratios=[0.4, 0.8]", "ratio_search.members=[1, 2]")
    by_ratio = {slot.ratio: key for slot, key in zip(space.slots, wide.members, strict=True)}
    for slot, key in zip(narrow_space.slots, narrow.members, strict=True):
        assert key == by_ratio[slot.ratio]
    numbers = [slot.number for slot in narrow_space.slots]
    taken = load_recipe(recipe_file, ("bags.ratios=[0.4, 0.8]", f"bags.numbers={numbers}"))
    assert derive_keys(taken, look(taken)).members == narrow.members


def test_a_run_without_numbers_keeps_its_identities(recipe_file: Path) -> None:
    """Numbers that say what the places say change nothing but the bags' artifact, which lists them."""
    plain = load_recipe(recipe_file)
    named = load_recipe(recipe_file, ("bags.numbers=[0, 1]",))
    assert derive_keys(plain, look(plain)).members == derive_keys(named, look(named)).members
    assert [key.label for key in derive_keys(plain, look(plain)).members] == ["member-0", "member-1"]


@pytest.mark.parametrize("wrong", ["[1]", "[1, 1]", "[-1, 2]"])
def test_numbers_that_name_no_members_are_refused(recipe_file: Path, wrong: str) -> None:
    with pytest.raises(BoomError, match="numbers"):
        load_recipe(recipe_file, (f"bags.numbers={wrong}",))


def test_more_trials_or_budget_are_another_search_with_the_same_members(recipe_file: Path) -> None:
    keys = []
    for changes in ((), ("ratio_search.trials=20",), ("ratio_search.budget_seconds=9",), ("ratio_search.eta=2",)):
        recipe, _, pool = _pool(recipe_file, *changes)
        keys.append(search_key(recipe, pool))
    assert len(set(keys)) == 4


@pytest.fixture
def pool(recipe_file: Path, tmp_path: Path, small_corpus: Path, small_tokens: Path) -> Pool:
    """Five members over the shared small corpus; bags are drawn, nothing is trained."""
    import shutil

    recipe, space, keys = _pool(recipe_file, "ratio_search.rungs=3", "train.batch_size=8", "train.accumulation=2")
    ledger = Ledger.open(tmp_path / "run", "road")
    with ledger.stage(keys.corpus) as stage:
        counts = {"rows": 1}
        shutil.copy(small_corpus / "datasets.json", stage.path / "datasets.json")
        (stage.path / "counts.json").write_text(_counts(small_corpus, counts))
    with ledger.stage(keys.tokens) as stage:
        shutil.copytree(small_tokens, stage.path, dirs_exist_ok=True)
    draw_bags(Run(pool_recipe(recipe, space), ledger, look(recipe), keys, lambda line: None))
    task = RatioTask(pool_recipe(recipe, space), ledger, keys, space, ledger.scratch("ratio_search", "x"))
    return Pool(task)


def _counts(corpus: Path, counts: dict[str, int]) -> str:
    import json

    datasets = json.loads((corpus / "datasets.json").read_text())
    return json.dumps({d["name"]: {"rows_in": d["rows"], "rows": d["rows"]} for d in datasets})


def _commit(ledger: Ledger, key: Key) -> None:
    with ledger.stage(key):
        pass


def test_members_are_trained_part_by_part_and_no_part_twice(pool: Pool) -> None:
    ledger, keys, top = pool.task.ledger, pool.task.keys, len(pool.shares) - 1
    for slot in range(5):
        steps = pool.work[slot][0].steps
        assert [pool.step(slot, rung) % 2 for rung in range(top)] == [0, 0], "whole updates"
        assert pool.step(slot, top) == steps
        assert pool.key(slot, top) == keys.members[slot]
        assert pool.key(slot, 0) == paused_key(keys.members[slot], pool.step(slot, 0))
    assert pool.missing([(4, 0), (4, 2), (1, 1)]) == {1: 1, 4: 0}
    whole = pool.rows(4, top)
    assert whole == sum(len(batch.rows) for batch in pool.work[4][1])
    parts = []
    for rung in range(top + 1):
        parts.append(pool.rows(4, rung))
        _commit(ledger, pool.key(4, rung))
        assert pool.trained(4) == pool.step(4, rung)
        assert pool.rows(4, rung) >= 0
    assert sum(parts) == whole
    assert pool.missing([(4, rung) for rung in range(top + 1)]) == {}


def test_costs_are_kept_and_foretold_from_what_was_measured(pool: Pool) -> None:
    costs = Costs(pool.task)
    assert costs.forecast({0: 100}, 1.0) is None, "nothing has been trained yet"
    assert costs.forecast({}, 1.0) == 0.0
    costs.add(Training("m", 0.2, 12000, 0, 4, 50, 20.0, True))
    costs.add(Training("n", 0.4, 14000, 0, 0, 0, 7.0, False))
    again = Costs(pool.task)
    assert again.spent == 27.0
    assert again.forecast({0: 100, 1: 25}, 1.0) == pytest.approx(125 * 20 / 50), "failures are spent, not foretold"
    lines = "\n".join(plan_lines(pool, again, 1.0))
    assert "16 sets of 2 to 5 members, of 5 members" in lines
    assert "spent so far: 27" in lines
    assert "100 %" in lines


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("20,40,100", [0.2, 0.4, 1.0]),
        ("0.2, 1", [0.2, 1.0]),
        ("50%", [0.5]),
        ("1%,2%", [0.01, 0.02]),
        ("33.3,60", [0.333, 0.6]),
    ],
)
def test_ratios_as_people_write_them(text: str, read: list[float]) -> None:
    assert read_ratios(text) == read


def test_ranges_as_people_write_them() -> None:
    assert (read_range("2-5"), read_range("3"), read_range(" 2 - 4 ")) == ([2, 5], [3, 3], [2, 4])
    for wrong in ("2..5", "", "-3", "two"):
        with pytest.raises(BoomError, match="--members"):
            read_range(wrong)
    for wrong in ("20;40", "", "many"):
        with pytest.raises(BoomError, match="--ratios"):
            read_ratios(wrong)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--ratios", "20,140"], "from 0.0001 to 1"),
        (["--ratios", "20,40", "--members", "2-5"], "goes to 5"),
        (["--members", "5-2"], "least <= most"),
        (["--budget", "0"], "budget_seconds"),
        (["--trials", "0"], "trials"),
        (["--weights", "searched"], "weights"),
        (["--set", "bags.kind=dataset"], "one member each"),
    ],
)
def test_bad_input_is_one_message(recipe_file, arguments, told, monkeypatch, capsys) -> None:
    from boom_ray.cli import main

    monkeypatch.setattr(sys, "argv", ["boom-ray", "search", "ratios", str(recipe_file), *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert (out, err.count("boom-ray: ")) == ("", 1)
    assert told in err


def test_the_result_says_how_to_train_with_it() -> None:
    best = {"name": "{40 %, 80 %}", "value": 0.9, "rung": 0, "complete": False, "ratios": [0.4, 0.8], "numbers": [1, 2]}
    found = {"best": best, "shares": [0.5, 1.0], "stopped": "no money", "trainings": [], "spent": 3.0, "table": []}
    text = "\n".join(result_lines(found))
    assert "trained to 50 % of its steps only" in text
    assert "stopped by the budget: no money" in text
    assert "bags: {ratios: [0.4, 0.8], numbers: [1, 2]}" in text
    row = {"name": "{100 %}", "a": 1.0, "b": None, "metric_b": 0.5, "to_best": [0.01, -0.01, 0.03]}
    text = "\n".join(result_lines({**found, "best": {**best, "complete": True, "rung": 1}, "table": [row]}))
    assert "+1.00 [-1.00, +3.00]" in text


def test_a_task_says_where_it_lands(pool: Pool) -> None:
    task, batches = pool.work[3]
    stopped = replace(task, stop=4)
    assert (stopped.ends, len(stopped.due(batches))) == (4, 4)
    assert stopped.lands == paused_key(task.key, 4)
    for whole in (task, replace(task, stop=task.steps), replace(task, stop=task.steps + 9)):
        assert (whole.ends, whole.lands, whole.due(batches)) == (task.steps, task.key, batches)
