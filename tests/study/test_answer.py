"""What a study says: known gaps come out, with the intervals of a comparison, and the goals follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import pytest
from made_study import GRID, Made, made_study, made_tasks

from boom_ray.evaluate.compare import Task, compare
from boom_ray.evaluate.samples import Samples
from boom_ray.evaluate.significance import Interval
from boom_ray.study.answer import Answer, answer, peer_of
from boom_ray.study.goals import State
from boom_ray.study.results import SeedResult

SINGLE = Made("bls-1.0", "reference", 1.0, (0.0, 0.0))
LONG = Made("bls-3.0", "reference", 3.0, (0.002, 0.001))


def merge(inside: float, outside: float, name: str = "bags", passes: float = 3.0) -> Made:
    return Made(name, "merge", passes, (inside, outside), (0.5, 1.0))


def of(*grid: Made, seeds: int = 3, tasks: Sequence[Task] = made_tasks(), **how: float) -> Answer:
    return answer(made_study(grid, seeds, tasks, **how))


def states(found: Answer) -> list[State]:
    return [goal.state for goal in found.goals]


def test_the_reference_at_equal_compute_is_the_cheapest_that_is_long_enough() -> None:
    references = {"one": 1.0, "two": 1.8, "three": 3.0}
    assert peer_of("x", 1.0, references) == "one"
    assert peer_of("x", 1.02, references) == "one", "98 % of it"
    assert peer_of("x", 1.03, references) == "two"
    assert peer_of("x", 0.2, references) == "one"
    assert peer_of("x", 5.0, references) == "three", "the longest there is"
    assert peer_of("two", 1.8, references) is None, "a reference is not compared with one"
    assert peer_of("x", 1.0, {}) is None


def test_known_gaps_come_out() -> None:
    found = of(*GRID, noise=0.02)
    gains = {made.name: made.gain for made in GRID}
    assert found.single == "bls-1.0"
    for line in found.lines:
        for place, domain in enumerate(("in_domain", "out_of_domain")):
            if line.to_single:
                assert line.to_single[domain].value == pytest.approx(gains[line.name][place], abs=0.002)
            if line.peer:
                gap = gains[line.name][place] - gains[line.peer][place]
                assert line.to_peer[domain].value == pytest.approx(gap, abs=0.003)
                interval = line.to_peer[domain].interval
                assert interval is not None
                assert interval.low - 0.002 < gap < interval.high + 0.002
    assert {line.name: line.peer for line in found.lines if line.role == "merge"} == {
        "bags-20-100": "bls-3.0",
        "bags-80-100": "bls-1.8",
        "bags-60x3": "bls-1.8",
        "bags-searched": "bls-3.0",
        "bags-scale-1.2": "bls-3.0",
        "half-and-rest": "bls-1.0",
    }
    assert [line.exploratory for line in found.lines] == [False] * 12 + [True] * 2


def same(one: Interval | None, other: Interval | None) -> bool:
    """But for the order in which other models were added up."""
    return one is not None and other is not None and asdict(one) == pytest.approx(asdict(other), abs=1e-9)


def test_conditions_that_share_members_are_compared_seed_by_seed() -> None:
    """Seeds move both by two points, and the average is one point above its own member every time."""
    result = made_study((SINGLE, Made("ema", "control", 1.0, (0.0, 0.0))), noise=0.001)
    single, ema = result.conditions

    def moved(by: Sequence[float], trained: str) -> tuple[SeedResult, ...]:
        return tuple(
            replace(
                seed,
                trained=frozenset({f"{trained}-{seed.seed}"}),
                scored=replace(
                    seed.scored,
                    samples={task: replace(s, values=s.values + shift) for task, s in seed.scored.samples.items()},
                    scores={task: score + shift for task, score in seed.scored.scores.items()},
                ),
            )
            for seed, shift in zip(single.seeds, by, strict=True)
        )

    def reach(trained: str) -> float:
        first = replace(single, seeds=moved((-0.02, 0.0, 0.02), "whole"))
        second = replace(ema, seeds=moved((-0.01, 0.01, 0.03), trained))
        line = answer(replace(result, conditions=(first, second))).line("ema")
        assert line is not None
        gap = line.to_single["in_domain"]
        assert gap.value == pytest.approx(0.01)
        assert gap.interval is not None
        return gap.interval.high - gap.interval.low

    assert reach("whole") < 0.005
    assert reach("another") > 0.05


def test_the_intervals_are_those_of_a_comparison() -> None:
    result = made_study()
    sides = {c.condition.name: [s.scored for s in c.seeds] for c in result.conditions}
    line = answer(result).line("bags-80-100")
    assert line is not None
    compared = compare({name: sides[name] for name in ("bls-1.8", "bags-80-100")}, result.tasks)
    rows = {row.label: row for row in compared.rows}
    for key, label in {"in_domain": "in-domain", "out_of_domain": "out-of-domain", "sts": "sts"}.items():
        assert same(line.to_peer[key].interval, rows[label].differences[0])
        assert line.to_peer[key].value == pytest.approx(rows[label].scores[1] - rows[label].scores[0])
        assert line.scores[key] == pytest.approx(rows[label].scores[1])
    assert same(line.over_tasks["in_domain"], rows["in-domain"].over_tasks[0])
    against_single = compare({name: sides[name] for name in ("bls-1.0", "bags-80-100")}, result.tasks)
    for row in against_single.rows[: len(result.tasks)]:
        assert same(line.task_gaps[row.label].interval, row.differences[0])


def test_a_clear_gain_reaches_the_goal_and_no_gain_does_not() -> None:
    assert states(of(SINGLE, LONG, merge(0.012, 0.016), noise=0.02)) == ["reached", "cannot be told"]
    assert states(of(SINGLE, LONG, merge(0.002, 0.001), noise=0.02)) == ["not reached", "cannot be told"]
    assert states(of(SINGLE, LONG, merge(0.012, 0.001), noise=0.02))[0] == "not reached", "one domain is not enough"
    found = of(SINGLE, merge(0.010, 0.015, "cheap", 1.01), noise=0.02)
    assert states(found) == ["reached", "reached"]
    assert found.goals[1].attempts[0].line.name == "cheap"
    assert states(of(SINGLE, merge(0.010, 0.015, "dear", 1.1), noise=0.02)) == ["cannot be told"] * 2


def test_a_wide_interval_is_no_verdict() -> None:
    found = of(SINGLE, LONG, merge(0.004, 0.008), units=25, noise=0.3)
    attempt = found.goals[0].attempts[0]
    assert attempt.state == "cannot be told"
    assert "may be none" in attempt.why


@pytest.mark.parametrize(
    ("grid", "why"),
    [
        ((SINGLE, LONG, replace(merge(0.02, 0.03), seeds=2)), "not all seeds are finished"),
        ((SINGLE, replace(LONG, seeds=1), merge(0.02, 0.03)), "not all seeds are finished"),
        ((SINGLE, merge(0.02, 0.03)), "no reference took as much compute"),
        ((merge(0.02, 0.03),), "no reference is finished"),
        ((SINGLE, LONG, replace(merge(0.02, 0.03), units=False)), "not known"),
    ],
)
def test_what_is_missing_leaves_the_goal_open(grid: tuple[Made, ...], why: str) -> None:
    attempt = of(*grid).goals[0].attempts[0]
    assert attempt.state == "cannot be told"
    assert why in attempt.why


def test_less_than_the_target_against_less_compute_is_a_miss_all_the_same() -> None:
    found = of(SINGLE, merge(0.0, 0.0), noise=0.02)
    assert found.lines[1].short
    assert states(found)[0] == "not reached"


def test_exploratory_conditions_and_controls_decide_nothing() -> None:
    large = replace(merge(0.02, 0.03, "half", 1.0), exploratory=True)
    control = Made("soup", "control", 3.0, (0.02, 0.03), (1.0, 1.0, 1.0))
    yardstick = Made("odd", "reference", 1.01, (0.5, 0.5), exploratory=True)
    found = of(SINGLE, LONG, merge(0.002, 0.001), large, control, yardstick, noise=0.02)
    assert states(found) == ["not reached", "cannot be told"]
    assert {line.name for line in found.goals[0].beside} == {"half", "soup"}
    assert [line.name for line in found.goals[1].beside] == ["half"]
    assert all(line.peer != "odd" for line in found.lines)
    odd = found.line("odd")
    assert odd is not None
    assert odd.peer == "bls-1.0", "an exploratory reference is compared, and is no yardstick"


def test_an_exploratory_reference_is_the_yardstick_of_exploratory_conditions_alone() -> None:
    longer = Made("bls-5.4", "reference", 5.4, (0.04, 0.03), exploratory=True)
    tried = replace(merge(0.05, 0.03, "tried", 5.4), exploratory=True)
    short = replace(merge(0.01, 0.0, "short", 3.0), exploratory=True)
    found = of(SINGLE, LONG, longer, merge(0.05, 0.03, "core", 5.4), tried, short, noise=0.02)
    peers = {line.name: (line.peer, line.short) for line in found.lines if line.peer}
    assert peers == {
        "core": ("bls-3.0", True),
        "tried": ("bls-5.4", False),
        "short": ("bls-3.0", False),
        "bls-5.4": ("bls-3.0", True),
    }


def test_the_closest_merge_leads_and_is_compared_with_the_controls() -> None:
    found = of(*GRID, noise=0.02)
    assert found.leading is not None
    assert found.leading.name == max(found.goals[0].attempts, key=lambda a: a.margin).line.name
    assert set(found.beside) == {"soup", "ema", "wise-0.5", "wise-0.8"}
    gains = {made.name: made.gain for made in GRID}
    expected = gains[found.leading.name][1] - gains["wise-0.8"][1]
    assert found.beside["wise-0.8"]["out_of_domain"].value == pytest.approx(expected, abs=0.003)


def test_intervals_are_counted_once() -> None:
    tasks = [Task(name, "sts", domain) for name, domain in (("a", "in_domain"), ("b", "out_of_domain"))]
    found = of(SINGLE, LONG, merge(0.0, 0.0, passes=1.0), tasks=tasks)
    # the long reference and the merge: two domains and two sets each, to the single run, which is the merge's peer, too
    assert found.intervals == 2 * (2 + 2)
    assert answer(made_study((), tasks=tasks)).intervals == 0


def test_one_model_without_units_takes_only_its_own_intervals() -> None:
    found = of(SINGLE, LONG, merge(0.01, 0.01), replace(merge(0.01, 0.01, "bare"), units=False))
    lines = {line.name: line for line in found.lines}
    assert lines["bare"].to_peer["in_domain"].interval is None
    assert lines["bare"].to_peer["in_domain"].value == pytest.approx(0.008, abs=0.004)
    assert lines["bags"].to_peer["in_domain"].interval is not None


def test_a_set_that_a_model_lacks_is_left_out() -> None:
    result = made_study((SINGLE, merge(0.0, 0.0)))
    gone = result.tasks[0].name
    base = replace(result.base, scores={k: v for k, v in result.base.scores.items() if k != gone})
    assert gone not in {task.name for task in answer(replace(result, base=base)).tasks}


def test_other_texts_are_refused() -> None:
    from boom_ray.config import BoomError

    result = made_study((SINGLE,), seeds=1)
    name = result.tasks[0].name
    other = {**result.base.samples, name: Samples("mean", "others", result.base.samples[name].values)}
    with pytest.raises(BoomError, match="not taken on the same texts"):
        answer(replace(result, base=replace(result.base, samples=other)))


def test_nothing_finished_is_an_answer_too() -> None:
    found = answer(made_study(()))
    assert found.lines == ()
    assert found.single is None
    assert found.leading is None
    assert states(found) == ["cannot be told", "cannot be told"]


def test_a_study_without_out_of_domain_sets() -> None:
    found = of(SINGLE, LONG, merge(0.02, 0.0), tasks=made_tasks(6, 0))
    assert set(found.means) == {"in_domain", *{task.task_type for task in found.tasks}}
    assert states(found)[0] == "cannot be told"


def test_what_reaches_the_goal_stands_before_what_is_closer_and_unfinished() -> None:
    unsure = replace(merge(0.03, 0.04, "unsure"), seeds=1)
    found = of(SINGLE, LONG, unsure, merge(0.012, 0.016), noise=0.02)
    assert states(found)[0] == "reached"
    assert [attempt.line.name for attempt in found.goals[0].attempts] == ["bags", "unsure"]
