"""Intervals of a run's tables are those of the differences that the tables show."""

from __future__ import annotations

import numpy as np
import pytest

from boom_ray.evaluate.significance import Contrast, Paired, Samples, difference, mean_difference, task_difference
from boom_ray.report.intervals import format_difference, mean_reach, means_of, run_intervals, set_reach

RNG = np.random.default_rng(3)
SETS = [
    {"name": "a", "task_type": "sts", "domain": "in_domain"},
    {"name": "b", "task_type": "retrieval", "domain": "in_domain"},
    {"name": "c", "task_type": "sts", "domain": "out_of_domain"},
]
KINDS = {"base": "base", "member-0": "member", "member-1": "member", "merge-ratio": "merge", "plain": "average"}


def summary() -> dict:
    return {"models": [{"name": n, "kind": k} for n, k in KINDS.items()], "sets": SETS, "chosen": "merge-ratio"}


def samples() -> dict[str, dict[str, Samples]]:
    return {name: {s["name"]: Samples("mean", "t", RNG.random(60)) for s in SETS} for name in KINDS}


def test_every_difference_of_the_tables_has_its_interval() -> None:
    found = samples()
    told = {**summary(), "intervals": run_intervals(summary(), found)}
    base = difference(found["member-0"]["a"], found["base"]["a"])
    assert told["intervals"]["sets"]["base"]["member-0"]["a"] == pytest.approx(
        [base.difference, base.low, base.high], abs=1e-8
    )
    assert set_reach(told, "base", "member-0", "a") == pytest.approx(50 * (base.high - base.low), abs=1e-6)
    pairs = [{n: found[m][n] for n in "ab"} for m in ("merge-ratio", "plain")]
    control = mean_difference(*pairs)
    assert told["intervals"]["means"]["chosen"]["plain"]["in_domain"] == pytest.approx(
        [control.difference, control.low, control.high], abs=1e-8
    )
    members = Paired(found).interval(Contrast(("merge-ratio",), ("member-0", "member-1")), {"c": 1.0})
    assert members is not None
    assert mean_reach(told, "members", "merge-ratio", "out_of_domain") == pytest.approx(
        50 * (members.high - members.low)
    )
    assert set(told["intervals"]["means"]["base"]) == set(KINDS) - {"base"}
    assert set(told["intervals"]["means"]["base"]["plain"]) == {"in_domain", "out_of_domain", "tasks", "types"}
    assert mean_reach(told, "base", "base", "tasks") is None


def test_the_published_model_over_other_sets() -> None:
    found = samples()
    told = summary()
    for model in told["models"]:
        model["scores"] = {name: s.score() for name, s in found[model["name"]].items()}
    scores = {m["name"]: m["scores"] for m in told["models"]}
    expected = task_difference([scores["merge-ratio"][n] - scores["base"][n] for n in "abc"])
    over = run_intervals(told, found)["over_sets"]
    assert over["base"] == pytest.approx([expected.difference, expected.low, expected.high], abs=1e-8)
    assert over["members"] is not None
    assert run_intervals({**told, "sets": SETS[:2]}, found)["over_sets"] == {"base": None, "members": None}


def test_what_was_not_kept_is_left_out() -> None:
    found = samples()
    del found["base"]["a"], found["member-1"]
    told = {**summary(), "intervals": run_intervals(summary(), found)}
    assert mean_reach(told, "base", "plain", "in_domain") is None
    assert mean_reach(told, "base", "plain", "out_of_domain") is not None
    assert told["intervals"]["means"]["members"] == {}, "the members' mean needs every member"
    assert run_intervals({"models": [], "sets": [], "chosen": "x"}, {})["means"] == {
        r: {} for r in ("base", "members", "chosen")
    }


def test_weights_of_the_means() -> None:
    found = means_of(SETS)
    assert found["types"] == {"a": 0.25, "b": 0.5, "c": 0.25}
    assert found["out_of_domain"] == {"c": 1.0}
    assert means_of([]) == {}


def test_differences_as_people_read_them() -> None:
    assert format_difference(1.234, 0.567) == "+1.23 ±0.57"
    assert format_difference(-1.0, None) == "-1.00"
    assert format_difference(None, 1.0) == "-"
