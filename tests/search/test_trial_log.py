"""The record of a search: what a kill leaves, what is refused, who wins."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boom_ray.config import BoomError
from boom_ray.search.points import even_point
from boom_ray.search.trial_log import Trial, TrialLog, best_trial, spent_seconds

POINT = even_point("linear", [1, 2])


def _trial(number: int, value: float | None = 0.5, rung: int | None = None, **more) -> Trial:
    settings = {"by_dataset": {"a": 0.5}, "rows": 10, "seconds": {"total": 0.25}, "code": "1+abc", **more}
    return Trial(number, "tpe", POINT, {"weight_0": 0.1, "method": "linear"}, value, rung=rung, **settings)


@pytest.fixture
def log(tmp_path) -> TrialLog:
    return TrialLog(tmp_path / "deep" / "trials.jsonl")


def test_what_is_appended_is_read(log):
    assert log.read() == []
    trials = [_trial(0), _trial(1, None, error="it burned"), _trial(2, 1 / 3, rung=1)]
    for trial in trials:
        log.append(trial)
    assert log.read() == trials
    assert len(log.path.read_text().splitlines()) == 3


def test_a_nan_is_a_failed_trial(log):
    log.append(_trial(0, math.nan, by_dataset={"a": math.inf, "b": 1.0}))
    line = json.loads(log.path.read_text())
    assert line["value"] is None
    assert line["by_dataset"] == {"b": 1.0}
    assert "finite" in line["error"]
    with pytest.raises(BoomError, match="every trial of the search failed"):
        best_trial(log.read())


@settings(max_examples=25)
@given(st.integers(1, 400))
def test_a_cut_last_line_is_dropped_and_written_again(tmp_path_factory, cut):
    log = TrialLog(tmp_path_factory.mktemp("log") / "trials.jsonl")
    log.append(_trial(0))
    whole = log.path.read_bytes()
    log.append(_trial(1))
    both = log.path.read_bytes()
    log.path.write_bytes(both[: max(len(whole), len(both) - cut)])
    assert log.read() == [_trial(0)]
    log.append(_trial(1))
    assert log.path.read_bytes() == both


def test_any_other_broken_line_is_an_error_that_names_it(log):
    for number in range(3):
        log.append(_trial(number))
    lines = log.path.read_text().splitlines(keepends=True)
    for bad in (
        "{\n",
        "[]\n",
        "\n",
        '{"number": 1}\n',
        lines[1].replace('"rows"', '"rovs"'),
        lines[1].replace("0.33", "0.99"),
    ):
        log.path.write_text(lines[0] + bad + lines[2])
        with pytest.raises(BoomError, match=r"trials\.jsonl:2 is no trial"):
            log.read()


def test_replay_is_by_number_and_rung_and_each_once(log, tmp_path):
    order = [_trial(1, 0.2), _trial(0, 0.3, rung=0), _trial(0, 0.1, rung=1), _trial(1, 0.2)]
    for trial in order:
        log.append(trial)
    assert log.replay() == [order[1], order[2], order[0]]
    log.write_sorted(tmp_path / "sorted.jsonl")
    assert TrialLog(tmp_path / "sorted.jsonl").read() == log.replay()
    log.append(_trial(1, 0.7))
    with pytest.raises(BoomError, match="trial 1 stands there twice"):
        log.replay()


def test_the_lowest_value_wins_and_ties_go_to_the_lower_number():
    trials = [_trial(3, 0.2), _trial(1, 0.2), _trial(0, 0.9), _trial(4, None), _trial(5, math.nan)]
    assert best_trial(trials).number == 1
    assert best_trial(reversed(trials)).number == 1
    # a proxy's value is of other rows: only the highest rung counts
    assert best_trial([_trial(0, 0.1, rung=0), _trial(1, 0.5, rung=1), _trial(2, 0.4, rung=1)]).number == 2


def test_spent_seconds():
    assert spent_seconds([_trial(0), _trial(1), _trial(2, seconds={})]) == 0.5
