"""What people read of a comparison: plain sentences that say no more than the intervals do."""

from __future__ import annotations

import numpy as np
import pytest
from test_page import parse

from boom_ray.evaluate.compare import Comparison, Scored, Task, compare
from boom_ray.evaluate.significance import Samples
from boom_ray.report.comparison import forest, format_comparison, notes, to_json, verdict, write_comparison

TASKS = [Task(f"task{n}", ("sts", "retrieval")[n % 2], ("in_domain", "out_of_domain")[n // 2 % 2]) for n in range(6)]
BASE = {task.name: np.random.default_rng(n).random(200) for n, task in enumerate(TASKS)}


def scored(name: str, gain: float, seed: int = 1) -> Scored:
    rng = np.random.default_rng(seed)
    samples = {t: Samples("mean", t, values + gain + rng.normal(0, 0.05, 200)) for t, values in BASE.items()}
    return Scored(name, {t: s.score() for t, s in samples.items()}, samples)


def two(gain: float) -> Comparison:
    return compare({"old": [scored("old", 0.0, 1)], "new": [scored("new", gain, 2)]}, TASKS)


def test_a_clear_gain_a_clear_loss_and_neither() -> None:
    better, worse, even = (verdict(two(gain))[0] for gain in (0.03, -0.03, 0.0))
    assert better.startswith(("new is better than old by 2.9", "new is better than old by 3.0"))
    assert better.endswith("in the mean over these 6 tasks.")
    assert worse.startswith(("new is worse than old by 2.9", "new is worse than old by 3.0"))
    assert even.startswith("No difference between new and old can be told in the mean over these 6 tasks: ")
    assert "better on 6, worse on 0, and on 0 of 6" in "\n".join(verdict(two(0.03)))
    assert any(line.startswith("Taken over tasks") for line in verdict(two(0.03)))


def test_the_text_shows_every_task_mean_and_interval() -> None:
    text = format_comparison(two(0.03))
    for label in [*BASE, "in-domain", "out-of-domain", "sts", "mean over types", "mean over tasks", "A  old", "B  new"]:
        assert label in text
    table = text.split("\n\n")[1]
    assert all("[" in line for line in table.splitlines() if line.startswith(("task", "mean")) and "type " not in line)
    assert max(map(len, text.split("\n\n")[1].splitlines())) <= 120


def test_what_is_not_known_is_said() -> None:
    bare = Scored("new", scored("new", 0.03).scores, {})
    found = compare({"old": [scored("old", 0.0)], "new": [bare]}, [*TASKS, Task("other")])
    assert "how sure that is, is not known" in verdict(found)[0]
    assert "[?]" in format_comparison(found)
    assert "Left out, as not every model has a score: other." in notes(found)


def test_seeds_are_named() -> None:
    sides = {"old": [scored("old", 0.0)], "new": [scored("n", 0.03, s) for s in (2, 3, 4)]}
    found = compare(sides, TASKS)
    assert "B  new (3 seeds)" in format_comparison(found)
    assert any("A side of one model stands for that model" in line for line in notes(found))


@pytest.mark.parametrize("others", [1, 3])
def test_plot_page_and_json(others: int) -> None:
    sides = {"<base> & $x$": [scored("base", 0.0)]}
    sides |= {f"model-{n}": [scored(f"model-{n}", 0.01 * n, n + 2)] for n in range(others)}
    found = compare(sides, TASKS)
    axes = forest(found).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [row.label for row in found.rows]
    html = write_comparison(found)
    parse(html)
    assert "<base>" not in html
    assert write_comparison(found) == html
    told = to_json(found)
    assert len(told["rows"]) == len(found.rows)
    assert told["rows"][0]["differences"][0].keys() == {"difference", "low", "high"}
