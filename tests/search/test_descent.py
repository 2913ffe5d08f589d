"""The gradient search from trial to trial: killed and resumed it takes the steps of one left alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_run import make_run

from boom_ray.config import BoomError
from boom_ray.merge.gram import gram
from boom_ray.search.baselines import whole_search
from boom_ray.search.coefficients import MergeSpec
from boom_ray.search.descent import Descent
from boom_ray.search.gradient import GradientSettings, gradient_descent
from boom_ray.search.judging import Judge
from boom_ray.search.objective_rows import ObjectiveSettings, Source
from boom_ray.search.resident import Resident
from boom_ray.search.rounds import Records, ScriptSearch
from boom_ray.search.settings import judge_spec, setup_of
from boom_ray.search.trial_log import TrialLog

OBJECTIVE = ObjectiveSettings(temperature=0.1, max_rows=200)


@pytest.mark.parametrize("searcher", ["self_positioning", "gradient"])
def test_resumed_from_any_line_it_takes_the_same_steps(spec, source, searcher):
    settings = GradientSettings(searcher, 11, steps=3, batch=8, learning_rate=0.1, groups="coarse")

    def fresh() -> Descent:
        return gradient_descent(Resident(spec, device="cpu"), source, OBJECTIVE, settings)

    descent, state, lines, points = fresh(), None, [], []
    for _ in range(4):
        state, point = descent.advance(state)
        lines.append(json.dumps(state))
        points.append(point)
    assert [json.loads(line)["step"] for line in lines] == [0, 3, 6, 9]
    assert len({json.dumps(point.to_json()) for point in points}) == 4
    for number in (0, 2):
        state, point = fresh().advance(json.loads(lines[number]))
        assert json.dumps(state) == lines[number + 1]
        assert point == points[number + 1]


@pytest.mark.parametrize("searcher", ["self_positioning", "gradient"])
def test_the_loss_falls(spec, source, searcher):
    """On the probe's own rows, over whole rounds of the datasets, relative to where it began."""
    settings = GradientSettings(searcher, 11, steps=8, batch=16, learning_rate=0.1, penalty=0.0, groups="coarse")
    descent = gradient_descent(Resident(spec, device="cpu"), source, OBJECTIVE, settings)
    state, _ = descent.advance()
    losses = []
    for _ in range(3):
        state, _ = descent.advance(state)
        losses.append(math.fsum(state["losses"]))
    assert losses[-1] < losses[0]


def _search(run, folder: Path, dies_at: int | None = None) -> list[dict[str, object]]:
    """A whole search as Tune drives it, its judge in this process, to its end or until its log has so many trials."""
    recipe, ledger, keys = run
    judge = Judge(judge_spec(recipe, ledger, keys, folder / "half_b"))
    records = Records(TrialLog(folder / "trials.jsonl"), TrialLog(folder / "others.jsonl"), "1+test")
    search = ScriptSearch(whole_search(setup_of(recipe, ledger, keys)), records)
    number = 0
    while isinstance(config := search.suggest(str(number)), dict) and len(records.trials.read()) != dies_at:
        search.on_trial_complete(str(number), {"found": json.dumps(judge(config["asked"]))})
        number += 1
    assert search.broken is None
    return [trial.to_json() | {"seconds": None} for trial in records.trials.read()]


def test_killed_and_resumed_it_has_the_trials_of_an_undisturbed_search(small_tokens, small_base, tmp_path):
    settings = {"searcher": "gradient", "trials": 4, "max_rows": 8, "gradient": {"steps": 2, "batch": 4}}
    run = make_run(tmp_path / "run", small_tokens, small_base, **settings)
    expected = _search(run, tmp_path / "alone")
    assert [t["parameters"]["step"] for t in expected] == [0, 2, 4, 6]
    assert len({t["value"] for t in expected}) == 4
    killed = tmp_path / "killed"
    for dies_at in (2, 3):
        _search(run, killed, dies_at)
        log = killed / "trials.jsonl"
        log.write_bytes(log.read_bytes()[:-9])  # as a kill in the middle of a line leaves it
        assert len(TrialLog(log).read()) == dies_at - 1
    assert _search(run, killed) == expected


class _Bowl:
    """A form of two numbers whose pull is told by the slope itself."""

    def start(self) -> np.ndarray:
        return np.array([1.0, -2.0])

    def point(self, x):
        return tuple(x)

    def pull(self, x, slope):
        return np.asarray(slope["x"])

    def inside(self, x):
        return np.clip(x, -2, 0.9)


def test_a_step_that_is_no_number_moves_nothing_but_is_counted():
    def slopes(point, step):
        value = math.nan if step % 3 == 1 else 1.0
        grad = [math.inf, 0.0] if step % 3 == 2 else [2 * point[0], 2 * point[1]]
        return value, {"x": np.array(grad)}

    state, _ = Descent(_Bowl(), slopes, steps=6, rate=0.1).advance(Descent(_Bowl(), slopes).advance()[0])
    assert state["step"] == 6
    assert state["updates"] == 2
    assert state["losses"] == [1.0, None, 1.0, 1.0, None, 1.0]
    assert json.loads(json.dumps(state, allow_nan=False)) == state


def test_adam_by_hand_and_inside_its_bounds():
    grads = iter([[2.0, -4.0], [1.0, 0.0]])
    descent = Descent(_Bowl(), lambda point, step: (0.0, {"x": np.array(next(grads))}), steps=2, rate=0.5)
    state, point = descent.advance(descent.advance()[0])
    first = [0.1 * 2 * 0.9 + 0.1 * 1, 0.1 * -4 * 0.9]
    second = [0.001 * 4 * 0.999 + 0.001 * 1, 0.001 * 16 * 0.999]
    assert np.allclose(state["first"], first)
    assert np.allclose(state["second"], second)
    after_one = np.clip([1.0 - 0.5, -2.0 + 0.5], -2, 0.9)
    step = [
        0.5 * (m / (1 - 0.9**2)) / (math.sqrt(v / (1 - 0.999**2)) + 1e-8) for m, v in zip(first, second, strict=True)
    ]
    assert np.allclose(point, np.clip(after_one - np.array(step), -2, 0.9), atol=1e-6)


def test_what_a_descent_refuses():
    with pytest.raises(BoomError, match="at least one step"):
        Descent(_Bowl(), lambda p, s: (0.0, {}), steps=0)
    for rate in (0.0, -1.0, math.nan):
        with pytest.raises(BoomError, match="learning rate"):
            Descent(_Bowl(), lambda p, s: (0.0, {}), rate=rate)
    descent = Descent(_Bowl(), lambda p, s: (0.0, {"x": np.zeros(2)}))
    with pytest.raises(BoomError, match="no place"):
        descent.advance({"weight_0": 0.3})
    state, _ = descent.advance()
    with pytest.raises(BoomError, match="another search"):
        descent.advance({**state, "x": [1.0, 2.0, 3.0]})


def test_one_member_has_nothing_to_weigh_but_its_scale(spec, tmp_path, source):
    file = tmp_path / "grams.npz"
    gram([spec.members[0]], spec.base).save(file)
    alone = MergeSpec(spec.members[:1], spec.base, file, "linear", False)
    one = Source(source.tokens, source.drawn, source.draw, (0,))
    settings = GradientSettings("gradient", 1, steps=4, batch=8, learning_rate=0.1, scale=(0.5, 1.5))
    descent = gradient_descent(Resident(alone, device="cpu"), one, OBJECTIVE, settings)
    state, start = descent.advance()
    _, point = descent.advance(state)
    assert start.weights == point.weights == {"all": (1.0,)}
    assert start.scale == 1.0 != point.scale


def test_weights_to_start_from_are_one_per_member(spec, source):
    settings = GradientSettings("gradient", 1, start=(0.5, 0.5))
    with pytest.raises(BoomError, match="2 weights to start from for 3 members"):
        gradient_descent(Resident(spec, device="cpu"), source, OBJECTIVE, settings)


def test_the_start_is_where_it_was_told(spec, source):
    settings = GradientSettings("gradient", 1, start=(0.5, 0.3, 0.2), scale=(1.1, 1.4), groups="layers")
    _, point = gradient_descent(Resident(spec, device="cpu"), source, OBJECTIVE, settings).advance()
    assert all(np.allclose(weights, (0.5, 0.3, 0.2)) for weights in point.weights.values())
    assert point.scale == 1.1
    assert {"embeddings", "layer-00", "layer-01"} <= set(point.weights)
    assert point.method == spec.method == "multislerp"
    chosen = replace(settings, method="karcher")
    assert gradient_descent(Resident(spec, device="cpu"), source, OBJECTIVE, chosen).advance()[1].method == "karcher"
