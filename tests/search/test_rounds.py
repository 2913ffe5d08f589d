"""The script behind Tune's interface: told in order whatever ends first, and rebuilt from its log after any kill."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from boom_ray.config import BoomError
from boom_ray.search.points import even_point
from boom_ray.search.rounds import Records, ScriptSearch
from boom_ray.search.searchers import Asked, SearchPlan, searching
from boom_ray.search.space import Space
from boom_ray.search.trial_log import Trial, TrialLog

FIRST = (even_point("linear", [1, 3]), even_point("linear", [1, 1]))
TRIALS = 18


def _plan(**more: Any) -> SearchPlan:
    settings = {"trials": TRIALS, "round": 4, "seed": 3, "first": FIRST, "rungs": 2, "eta": 2}
    return SearchPlan(Space(2, scale=(0.7, 1.4)), **{**settings, **more})


def _records(folder: Path) -> Records:
    return Records(TrialLog(folder / "trials.jsonl"), TrialLog(folder / "others.jsonl"), "1+test")


def _found(asked: Asked) -> dict[str, Any]:
    assert asked.point is not None
    value = (asked.point.of("all")[0] - 0.3) ** 2 + (asked.point.scale - 1.1) ** 2 + 0.01 * (asked.rung or 0)
    if asked.number == 7:
        return {"value": None, "error": "not finite", "seconds": {"total": 1.0}}
    return {"value": value, "by_dataset": {"a": value}, "rows": 5, "seconds": {"total": 1.0}}


Order = Callable[[list[str]], str]


def _drive(
    search: ScriptSearch[list[Trial]], order: Order = lambda r: r[0], actors: int = 3, most: int = 10_000
) -> int:
    """As Tune does: ask while it gives and an actor is free, end trials in some order; at most ``most`` of them."""
    running: dict[str, Asked] = {}
    ended = asked = 0
    while ended < most:
        while len(running) < actors and isinstance(config := search.suggest(f"t{asked}"), dict):
            running[f"t{asked}"] = config["asked"]
            asked += 1
        if not running:
            assert search.suggest("end") == "FINISHED"
            break
        name = order(list(running))
        search.on_trial_complete(name, {"found": json.dumps(_found(running.pop(name))), "notes": ["said once"]})
        ended += 1
    return ended


def _run(folder: Path, order: Order = lambda r: r[0], actors: int = 3) -> list[Trial]:
    search = ScriptSearch(searching(_plan()), _records(folder))
    _drive(search, order, actors)
    assert search.finished
    assert search.result is not None
    return search.result


def test_no_order_of_completion_and_no_number_of_actors_matters(tmp_path):
    expected = _run(tmp_path / "a", actors=1)
    assert {t.number for t in expected} == set(range(TRIALS))
    for seed in range(4):
        chance = random.Random(seed)
        found = _run(tmp_path / str(seed), lambda running, c=chance: c.choice(running), actors=seed + 1)
        assert found == expected
        assert _records(tmp_path / str(seed)).trials.replay() == _records(tmp_path / "a").trials.replay()


def test_killed_after_any_trial_it_ends_as_if_left_alone(tmp_path):
    expected = _run(tmp_path / "whole")
    total = len(expected)
    for killed_at in range(0, total + 1, 2):
        folder = tmp_path / str(killed_at)
        chance = random.Random(killed_at)
        ended = _drive(
            ScriptSearch(searching(_plan()), _records(folder)), lambda r, c=chance: c.choice(r), 3, killed_at
        )
        if killed_at % 3 == 2:  # the kill cut the line that was being written
            log = folder / "trials.jsonl"
            log.write_bytes(log.read_bytes()[:-9])
            ended -= 1
        again = ScriptSearch(searching(_plan()), _records(folder))
        assert _drive(again) == total - ended, "something was judged twice, or not at all"
        assert again.result == expected
    assert ScriptSearch(searching(_plan()), _records(tmp_path / "whole")).finished  # nothing is left to ask


def test_a_log_of_other_code_is_refused(tmp_path):
    _run(tmp_path)
    other = ScriptSearch(searching(_plan(seed=4)), _records(tmp_path))
    assert other.finished
    assert isinstance(other.broken, BoomError)
    assert "trial 2 was another point" in str(other.broken)


def test_what_every_actor_refuses_ends_the_search(tmp_path):
    search = ScriptSearch(searching(_plan()), _records(tmp_path))
    assert search.suggest("a")
    assert search.suggest("b")
    for name in ("a", "b"):
        search.on_trial_complete(name, {"broken": "no rows to judge by", "objective": 0.0})
    assert search.suggest("c") == "FINISHED"
    assert "no rows to judge by" in str(search.broken)
    assert not (tmp_path / "trials.jsonl").exists()


def test_a_trial_whose_process_died_three_times_is_failed_and_takes_its_place(tmp_path):
    search = ScriptSearch(searching(_plan(rungs=1)), _records(tmp_path))
    for number in range(4):
        assert search.suggest(str(number))
    assert search.suggest("4") is None
    for number in (3, 0, 2):
        search.on_trial_complete(str(number), {"found": '{"value": 1.0}'})
        assert search.suggest("4") is None
    for name, again in (("1", "5"), ("5", "6")):
        search.on_trial_complete(name, error=True)
        config = search.suggest(again)
        assert config["asked"].number == 1  # made again by another actor, and nothing of the next round before it
        assert search.suggest("7") is None
    search.on_trial_complete("6", error=True)
    search.on_trial_complete("1", {"found": '{"value": 0.0}'})  # told twice: the second is of no trial
    assert search.suggest("8") is not None
    trials = _records(tmp_path).trials.replay()
    assert [t.value for t in trials] == [1.0, None, 1.0, 1.0]
    assert "process ended" in trials[1].error


def test_notes_are_said_once(tmp_path):
    said: list[str] = []
    records = _records(tmp_path)
    records.say = said.append
    _drive(ScriptSearch(searching(_plan()), records))
    assert said == ["said once"]


def test_state_of_tune_is_not_needed(tmp_path):
    search = ScriptSearch(searching(_plan()), _records(tmp_path))
    search.save(str(tmp_path / "state"))
    search.restore(str(tmp_path / "state"))
    assert search.suggest("0") is not None


def _never(running: Sequence[str]) -> str:
    raise AssertionError


def test_an_empty_batch_is_passed_over(tmp_path):
    def script():
        found = yield []
        assert found == []
        return "end"

    search = ScriptSearch(script(), _records(tmp_path))
    assert search.finished
    assert search.result == "end"
    assert _drive(search, _never) == 0
