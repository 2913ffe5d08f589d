"""A whole search on tiny members, by every searcher, judged in this process."""

from __future__ import annotations

import json

import pytest
from small_run import make_run

from boom_ray.config import BoomError
from boom_ray.evaluate.samples import read_samples
from boom_ray.search.baselines import whole_search
from boom_ray.search.judging import Judge
from boom_ray.search.points import Point
from boom_ray.search.rounds import Records, ScriptSearch
from boom_ray.search.searchers import Asked
from boom_ray.search.settings import judge_spec, setup_of
from boom_ray.search.trial_log import TrialLog
from boom_ray.weight_search import chosen_members, search_run

SEARCH = {"trials": 6, "round": 3, "scale": [0.5, 1.5]}


def _whole(run, folder):
    """The search as Tune drives it, with one judge in this process."""
    recipe, ledger, keys = run
    judge = Judge(judge_spec(recipe, ledger, keys, folder / "half_b"))
    records = Records(TrialLog(folder / "trials.jsonl"), TrialLog(folder / "others.jsonl"), "1+test")
    search = ScriptSearch(whole_search(setup_of(recipe, ledger, keys)), records)
    number = 0
    while isinstance(config := search.suggest(str(number)), dict):
        search.on_trial_complete(str(number), {"found": json.dumps(judge(config["asked"])), "notes": judge.notes})
        number += 1
    assert search.broken is None
    return search.result


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"searcher": "random", "groups": "coarse", "methods": ["linear", "karcher"], "drop_members": True},
        {"searcher": "grid", "objective": "metric", "aggregate": "types", "base_share": [0.0, 0.3]},
        {"searcher": "random", "halving": {"rungs": 2, "eta": 2}},
        {"searcher": "gradient", "groups": "layers", "trials": 3, "gradient": {"steps": 1, "batch": 4}},
        {"searcher": "self_positioning", "trials": 2, "gradient": {"steps": 2, "batch": 4}},
    ],
    ids=lambda s: s.get("searcher", "tpe"),
)
def test_every_searcher_on_real_models(small_tokens, small_base, tmp_path, settings):
    run = make_run(tmp_path / "run", small_tokens, small_base, **{**SEARCH, **settings})
    outcome = _whole(run, tmp_path)
    assert all(t.value is not None for t in outcome.trials), [t.error for t in outcome.trials]
    names = [row.baseline.name for row in outcome.rows]
    assert names[0] == "base"
    assert names[-1] == "searched"
    for row in outcome.rows:
        assert row.a.value is not None, row
        assert row.b.value is not None, row
        assert row.b.rows == 24  # half B: 6 dev rows of each of four datasets
        assert read_samples(tmp_path / "half_b" / row.baseline.name)
    if run[0].search.objective == "loss":
        assert outcome.rows[0].a.value == pytest.approx(1, abs=1e-6)
    if run[0].search.searcher not in ("gradient", "self_positioning", "grid"):
        ratio, uniform = outcome.rows[1], outcome.rows[2]
        assert outcome.best.value <= max(ratio.a.value, uniform.a.value) + (1 if settings.get("halving") else 0)


def test_a_model_that_is_not_finite_is_a_failed_trial(small_tokens, small_base, tmp_path):
    recipe, ledger, keys = make_run(tmp_path / "run", small_tokens, small_base, **SEARCH)
    judge = Judge(judge_spec(recipe, ledger, keys, tmp_path))
    point = Point("linear", {"all": (1.0, 0.0, 0.0)}, scale=1e38)
    found = judge(Asked(0, None, {}, point, "tpe"))
    assert found["value"] is None
    assert found["error"]
    json.dumps(found, allow_nan=False, default=str)
    good = judge(Asked(1, None, {}, Point("linear", {"all": (1.0, 0.0, 0.0)}), "tpe"))
    assert good["value"] is not None  # nothing of it is left in the model


def test_members_of_a_search(small_tokens, small_base, tmp_path):
    _, ledger, keys = make_run(tmp_path / "run", small_tokens, small_base, **SEARCH)
    assert chosen_members([2, 0], keys) == [0, 2]
    for members, message in (([9], "member-9 is not in the ledger"), ([], "names no member"), ([0, 0], "twice")):
        with pytest.raises(BoomError, match=message):
            chosen_members(members, keys)
    with pytest.raises(BoomError, match="member-9 is not in the ledger"):
        search_run(ledger.root, members=[0, 9])
    with pytest.raises(BoomError, match="not trained with these settings"):
        search_run(ledger.root, overrides=("train.epochs=2",))
    with pytest.raises(BoomError, match="outside the simplex"):
        search_run(ledger.root, overrides=("search.weights=[0.5, 1.0]",))
    with pytest.raises(BoomError, match=r"world\.json"):
        search_run(tmp_path)
