"""Comparisons: means as the leaderboard has them, models found by what people call them, and the two commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from boom_ray.cli import app
from boom_ray.config import BoomError
from boom_ray.contenders import find_contender, split_sides
from boom_ray.evaluate.compare import Scored, Task, compare, means
from boom_ray.evaluate.results import load_samples
from boom_ray.evaluate.sets import find_sets
from boom_ray.evaluate.significance import Samples, difference, mean_difference

TASKS = [
    Task("a", "retrieval", "in_domain", "ndcg_at_10", "one"),
    Task("b", "retrieval", "out_of_domain", "ndcg_at_10", "one"),
    Task("c", "retrieval", "out_of_domain", "ndcg_at_10", "two"),
    Task("d", "sts", "out_of_domain", "cosine_spearman", "two"),
]


def scored(name: str, gain: float, seed: int = 0, tasks: str = "abcd") -> Scored:
    """Mean scores on 50 units per task; the units of a task are the same for every model."""
    own = np.random.default_rng(seed)
    units = {t: np.random.default_rng(ord(t)).random(50) + gain + own.normal(0, 0.05, 50) for t in tasks}
    samples = {t: Samples("mean", t, values) for t, values in units.items()}
    return Scored(name, {t: s.score() for t, s in samples.items()}, samples)


def test_means_are_over_tasks_types_domains_and_benchmarks() -> None:
    found = {label: weights for label, _, weights in means(TASKS)}
    third = pytest.approx(1 / 3)
    assert found["retrieval"] == {"a": third, "b": third, "c": third}
    assert "sts" not in found, "one task of its type is there already"
    assert found["in-domain"] == {"a": 1.0}
    assert found["mean over tasks of one"] == {"a": 0.5, "b": 0.5}
    assert "mean over types of one" not in found, "it has one type only"
    assert found["mean over types of two"] == {"c": 0.5, "d": 0.5}
    assert found["mean over tasks"] == dict.fromkeys("abcd", 0.25)
    sixth = pytest.approx(1 / 6)
    assert found["mean over types"] == {"a": sixth, "b": sixth, "c": sixth, "d": 0.5}
    assert means(TASKS[:1]) == []
    assert [label for label, *_ in means([Task("x"), Task("y")])] == ["mean over tasks"], "types and domains not known"


def test_a_comparison_has_the_intervals_of_significance() -> None:
    one, two = scored("one", 0.0, 1), scored("two", 0.04, 2)
    found = compare({"one": [one], "two": [two]}, TASKS)
    rows = {row.label: row for row in found.rows}
    assert [row.label for row in found.rows[:4]] == ["a", "b", "c", "d"], "in-domain first"
    assert rows["a"].differences == (difference(two.samples["a"], one.samples["a"]),)
    assert rows["mean over tasks"].differences == (mean_difference(two.samples, one.samples),)
    assert found.overall.label == "mean over tasks"
    assert found.overall.scores == tuple(pytest.approx(np.mean(list(s.scores.values()))) for s in (one, two))
    assert rows["retrieval"].over_tasks[0] is not None
    assert rows["in-domain"].over_tasks == (None,), "one task says nothing of others"


def test_seeds_are_averaged_and_what_is_not_common_is_left_out() -> None:
    sides = {"plain": [scored(f"p{i}", 0.01 * i, i) for i in range(3)], "new": [scored("n", 0.1, 9, "abd")]}
    found = compare(sides, TASKS)
    assert found.seeds == (3, 1)
    assert found.left_out == ("c",)
    row = found.rows[0]
    assert row.scores[0] == pytest.approx(np.mean([m.scores["a"] for m in sides["plain"]]))
    with pytest.raises(BoomError, match="no task in common"):
        compare({"x": [scored("x", 0, 0, "a")], "y": [scored("y", 0, 0, "b")]}, TASKS)
    with pytest.raises(BoomError, match="at least two"):
        compare({"x": [scored("x", 0)]}, TASKS)


def test_a_task_without_units_keeps_its_scores_and_has_no_interval() -> None:
    one, two = scored("one", 0.0), scored("two", 0.1)
    bare = Scored("two", two.scores, {**two.samples, "d": Samples("none", "d")})
    rows = {row.label: row for row in compare({"one": [one], "two": [bare]}, TASKS).rows}
    assert rows["d"].differences == (None,)
    assert rows["mean over tasks"].differences == (None,)
    assert rows["mean over tasks"].over_tasks[0] is not None
    assert rows["retrieval"].differences[0] is not None


def test_sides_are_named_by_what_tells_them_apart() -> None:
    assert split_sides(["runs/a/published/m", "runs/b/published/m"]) == {
        "a/published/m": ["runs/a/published/m"],
        "b/published/m": ["runs/b/published/m"],
    }
    assert split_sides(["x/plain-1,x/plain-2", "ours=y/1,y/2"]) == {
        "plain": ["x/plain-1", "x/plain-2"],
        "ours": ["y/1", "y/2"],
    }
    with pytest.raises(BoomError, match="no space"):
        split_sides(["a,,b", "c"])
    with pytest.raises(BoomError, match="two sides are called"):
        split_sides(["one=a", "one=b"])
    assert find_contender("org/some-model").directory is None


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def test_the_commands_score_two_models_and_compare_them(
    sets_root: Path, make_model: Callable[[int], Path], tmp_path: Path
) -> None:
    models, results = [make_model(seed) for seed in (0, 1)], tmp_path / "results"
    with pytest.raises(BoomError, match=r"has no scores in .*boom-ray evaluate .*tiny-0 --sets"):
        run("compare", *models, "--results", results)
    told = run("evaluate", *models, "--sets", sets_root, "--results", results, "--actors", 0).stdout.splitlines()
    assert next(line.split()[:2] for line in told if line.startswith("in-domain")) == ["in-domain", "find"]
    assert any(line.strip().startswith("mean over types") for line in told)
    written = [tmp_path / name for name in ("c.png", "c.html", "c.json")]
    options = ("--plot", written[0], "--html", written[1], "--json", written[2])
    kept = run("compare", *models, "--results", results, *options)
    assert all(file.stat().st_size > 1000 for file in written)
    found = json.loads(written[2].read_text())
    assert found["sides"] == ["tiny-0", "tiny-1"]
    assert any(found["verdict"][0] in line for line in kept.stdout.splitlines())
    sets = find_sets([sets_root], None)
    samples = [load_samples(model, sets, results=results) for model in models]
    expected = mean_difference(samples[1], samples[0])
    overall = found["rows"][-1]
    assert overall["label"] == "mean over tasks"
    assert overall["differences"][0] == pytest.approx(expected.__dict__)
    by_name = run("compare", "first=tiny-0", "second=boom_ray/tiny-1", "--results", results)
    assert by_name.stdout.count("[") == kept.stdout.count("[")
    again = run("compare", *models, "--results", results, "--sets", sets_root, "--actors", 0)
    assert kept.stdout.split("written")[0].strip() in again.stdout, (
        "finished scores are not run again, and are the same"
    )
