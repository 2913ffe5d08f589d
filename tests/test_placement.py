"""Plans: within the slots at all times, never worse than list scheduling, near the bound that no plan can beat."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.config import BoomError
from boom_ray.placement import busy_seconds, lower_bound, makespan, place
from boom_ray.resources import Job, Limits, Placement, Speed

works = st.lists(st.floats(0.1, 100), min_size=1, max_size=5)
speeds = st.builds(Speed, st.floats(0.1, 10), st.floats(0.55, 1.0), st.floats(0, 20))
PAPER = [0.2, 0.4, 0.6, 0.8, 1.0]


def _jobs(work: list[float]) -> list[Job]:
    return [Job(f"m{i}", w) for i, w in enumerate(work)]


def _list_schedule(seconds: list[float], count: int) -> float:
    """Makespan of list scheduling, longest first, every job on one slot."""
    free = [0.0] * count
    for duration in sorted(seconds, reverse=True):
        free[free.index(min(free))] += duration
    return max(free)


def _check(jobs: list[Job], placed: list[Placement], limits: Limits, speed: Speed = Speed()) -> None:
    assert sorted(p.name for p in placed) == sorted(j.name for j in jobs)
    assert [p.start for p in placed] == sorted(p.start for p in placed)
    by_name = {j.name: j for j in jobs}
    for p in placed:
        job = by_name[p.name]
        assert p.width == job.width if job.width is not None else 1 <= p.width <= limits.widest
        assert p.end - p.start == pytest.approx(speed.seconds(job.work, p.width))
        assert p.start >= 0
    for moment in [p.start for p in placed]:
        running = [p for p in placed if p.start <= moment < p.end - 1e-9 * max(1, p.end)]
        assert sum(p.width for p in running) <= limits.slots
        assert len(running) <= limits.places(len(jobs))


@given(works, st.integers(1, 12), st.integers(1, 8), st.integers(1, 5) | st.none(), speeds)
def test_slots_hold_at_every_moment_and_no_plan_beats_the_bound(work, count, max_width, most, speed):
    jobs, limits = _jobs(work), Limits(count, max_width, most)
    placed = place(jobs, limits, speed)
    _check(jobs, placed, limits, speed)
    assert lower_bound(jobs, limits, speed) <= makespan(placed) * (1 + 1e-9)
    if most is None:
        alone = [speed.seconds(w, 1) for w in work]
        assert makespan(placed) <= _list_schedule(alone, count) * (1 + 1e-9)


def _best(work: list[float], limits: Limits, speed: Speed = Speed()) -> float:
    """The least makespan over all widths and all orders, each job at the earliest time that its order allows."""
    best = math.inf
    for widths in itertools.product(range(1, limits.widest + 1), repeat=len(work)):
        durations = [speed.seconds(w, n) for w, n in zip(work, widths, strict=True)]
        if max(durations) >= best:
            continue
        for order in itertools.permutations(range(len(work))):
            free = [0.0] * limits.slots
            for job in order:
                free.sort()
                start = free[widths[job] - 1]
                free[: widths[job]] = [start + durations[job]] * widths[job]
                if start + durations[job] >= best:
                    break
            else:
                best = max(free)
    return best


@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 5))
def test_near_the_best_of_brute_force_which_the_bound_is_below(work, count, max_width):
    """To place moldable jobs is NP-hard; on small cases the plan is at most a quarter from the best (mean: 0.4 %)."""
    jobs, limits = _jobs([float(w) for w in work]), Limits(count, max_width)
    best = _best([float(w) for w in work], limits)
    assert best * (1 - 1e-9) <= makespan(place(jobs, limits)) <= best * 1.25
    assert lower_bound(jobs, limits) <= best * (1 + 1e-9)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("work", [[5.0], [1.0, 1.0], [8.0, 1.0]])
def test_equal_to_the_best_on_plain_cases(work, count):
    limits = Limits(count, count)
    assert makespan(place(_jobs(work), limits)) == pytest.approx(_best(work, limits))


@pytest.mark.parametrize("count", [8, 16, 64, 512])
@pytest.mark.parametrize("max_width", [8, 64])
def test_five_bags_end_within_five_percent_of_the_bound(count, max_width):
    jobs, limits = _jobs(PAPER), Limits(count, max_width)
    placed, bound = place(jobs, limits), lower_bound(jobs, limits)
    _check(jobs, placed, limits)
    assert bound >= max(sum(PAPER) / count, 1.0 / Speed().of(limits.widest)) * (1 - 1e-9)
    assert bound * (1 - 1e-9) <= makespan(placed) <= bound * 1.05
    first = {p.name: p.width for p in placed if p.start == 0}
    assert first["m4"] == max(first.values()) > min(first.values())  # the largest bag has the most workers


def test_the_bound_by_hand():
    """Two members of 10 on 3 slots, ideal speed: one after the other on all 3 they fill the area. With at most 2 each,
    a makespan below 10 would have both on 2 slots at half time, and there are 3: area alone would promise 20/3."""
    ideal = Speed(efficiency=1.0)
    jobs = [Job("a", 10.0), Job("b", 10.0)]
    assert lower_bound(jobs, Limits(3, 3), ideal) == pytest.approx(20 / 3)
    assert lower_bound(jobs, Limits(3, 2), ideal) == pytest.approx(10.0)
    assert lower_bound(jobs, Limits(4, 4, 1), ideal) == pytest.approx(5.0)  # one place: 2.5 s each
    assert lower_bound([Job("a", 10.0, 1), Job("b", 1.0)], Limits(8, 8), ideal) == pytest.approx(
        10.0
    )  # a frozen width counts


@given(works, st.lists(st.integers(1, 6) | st.none(), min_size=5, max_size=5), st.integers(6, 10), st.integers(1, 4))
def test_frozen_widths_stay(work, widths, count, max_width):
    jobs = [Job(f"m{i}", w, width) for i, (w, width) in enumerate(zip(work, widths, strict=False))]
    limits = Limits(count, max_width)
    placed = place(jobs, limits)
    _check(jobs, placed, limits)
    assert lower_bound(jobs, limits) <= makespan(placed) * (1 + 1e-9)


def test_a_frozen_width_that_does_not_fit_is_refused():
    with pytest.raises(BoomError, match=r"m0 was started with 4 workers, but only 3 fit.*--replan"):
        place([Job("m0", 1.0, 4), Job("m1", 1.0)], Limits(3, 8))


@given(works, st.integers(1, 12), st.integers(1, 8), st.randoms(use_true_random=False))
def test_the_order_of_jobs_does_not_matter(work, count, max_width, random):
    jobs, limits = _jobs(work), Limits(count, max_width)
    assert place(random.sample(jobs, len(jobs)), limits) == place(jobs, limits)


def test_no_jobs_take_no_time():
    assert place([], Limits(4, 8)) == []
    assert makespan([]) == busy_seconds([]) == lower_bound([], Limits(4, 8)) == 0


def test_no_more_members_at_once_than_the_recipe_allows():
    placed = place(_jobs(PAPER), Limits(16, 8, max_concurrent=2))
    for moment in {p.start for p in placed}:
        assert sum(p.start <= moment < p.end for p in placed) <= 2
    assert min(p.width for p in placed) == 8  # two at a time have room to be wide


def test_a_long_start_up_makes_members_narrower():
    """Seconds that no width shortens are paid by every worker."""
    quick, slow = (place(_jobs(PAPER * 2), Limits(8, 8), Speed(startup=s)) for s in (0.0, 0.5))
    assert sum(p.width for p in slow) < sum(p.width for p in quick)
