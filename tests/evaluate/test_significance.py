"""Intervals: what they are for simple cases, and that they cover the truth on simulated data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from boom_ray.config import BoomError
from boom_ray.evaluate.significance import (
    Bootstrap,
    Contrast,
    Interval,
    Paired,
    Samples,
    difference,
    mean_difference,
    over_tasks,
    task_difference,
)
from boom_ray.evaluate.units import resample_counts

RNG = np.random.default_rng(5)
A_B = Contrast(("a",), ("b",))


def test_counts_are_multinomial_and_the_same_for_every_block() -> None:
    blocks = list(resample_counts(3_000, 1_500, np.random.default_rng(1)))
    assert len(blocks) > 1
    counts = np.concatenate(blocks)
    assert counts.shape == (1_500, 3_000)
    assert (counts.sum(axis=1) == 3_000).all()
    assert counts.var() == pytest.approx(1 - 1 / 3_000, rel=0.01)


def test_the_interval_is_that_of_the_mean_for_means() -> None:
    gain, base = RNG.normal(0.05, 0.2, 400), RNG.random(400)
    found = difference(Samples("mean", "t", base + gain), Samples("mean", "t", base))
    reach = 1.96594 * gain.std(ddof=1) / 20  # Student's t for 399 degrees of freedom
    assert found.difference == pytest.approx(gain.mean(), abs=1e-12)
    assert (found.low, found.high) == pytest.approx((gain.mean() - reach, gain.mean() + reach), rel=1e-4)
    assert found.certain


def test_right_or_wrong_has_one_more_unit_that_differs() -> None:
    """100 queries, 6 gained and 2 lost, so that 9 of 101 differ."""
    first, second = np.zeros(100), np.zeros(100)
    first[:6], second[6:8] = 1, 1
    found = difference(Samples("mean", "t", first), Samples("mean", "t", second))
    reach = 1.98422 * np.sqrt((9 / 101 - 0.04**2) / 99)
    assert (found.low, found.high) == pytest.approx((0.04 - reach, 0.04 + reach), rel=1e-4)


def test_no_difference_on_any_query_does_not_prove_that_there_is_none() -> None:
    right = Samples("mean", "t", (np.arange(100) < 60).astype(float))
    found = difference(right, Samples("mean", "t", right.values.copy()))
    assert found.high == -found.low == pytest.approx(0.028, abs=0.001), "three in a hundred, about"
    assert not found.certain
    itself = Paired({"a": {"x": right}}).interval(Contrast(("a",), ("a",)), {"x": 1.0})
    assert itself == Interval(0.0, 0.0, 0.0)


def test_drawing_again_gives_the_known_error_of_a_correlation() -> None:
    """Fisher: the standard error of Pearson's r of normal pairs is (1 - r^2) / sqrt(n - 1)."""
    gold, noise = RNG.normal(size=(2, 4_000))
    values = 0.8 * gold + 0.6 * noise
    flat = Samples("pearson", "t", np.arange(4_000.0), gold)
    found = difference(Samples("pearson", "t", values, gold), flat, Bootstrap(resamples=4_000))
    alone = (1 - 0.8**2) / np.sqrt(3_999)
    reach = (found.high - found.low) / 2 / 1.9606
    assert reach == pytest.approx(np.hypot(alone, 1 / np.sqrt(3_999)), rel=0.05)


def test_a_model_does_not_differ_from_itself_and_order_only_turns_the_sign() -> None:
    one, two = (Samples("spearman", "t", RNG.random(50), np.arange(50.0)) for _ in range(2))
    same = difference(one, one)
    assert (same.difference, same.low, same.high, same.certain) == (0, 0, 0, False)
    forth, back = difference(one, two), difference(two, one)
    assert (forth.difference, forth.low, forth.high) == pytest.approx((-back.difference, -back.high, -back.low))
    assert difference(one, two) == forth


def test_a_set_has_the_same_resamples_in_every_mean() -> None:
    samples = {m: {s: Samples("spearman", "t", RNG.random(40), np.arange(40.0)) for s in "xyz"} for m in "abc"}
    whole = Paired(samples).interval(A_B, {"y": 1.0})
    alone = Paired({m: {"y": samples[m]["y"]} for m in "ab"}).interval(A_B, {"y": 1.0})
    assert whole == alone


def test_parts_are_drawn_each_on_its_own() -> None:
    """The variance of a mean of two parts is a quarter of the sum of theirs."""
    gains = [RNG.normal(0.1, s, n) for s, n in ((0.2, 500), (0.4, 800))]
    parts = Samples("parts", "t", parts=tuple(Samples("mean", "t", gain) for gain in gains))
    still = Samples("parts", "t", parts=tuple(Samples("mean", "t", np.zeros(len(gain))) for gain in gains))
    found = difference(parts, still)
    error = np.sqrt(sum(gain.var(ddof=1) / len(gain) for gain in gains)) / 2
    assert found.difference == pytest.approx(np.mean([gain.mean() for gain in gains]), abs=1e-12)
    assert (found.high - found.low) / 2 == pytest.approx(1.9623 * error, rel=1e-3)


def test_scores_on_other_texts_are_not_compared() -> None:
    one = Samples("mean", "t", np.ones(5))
    with pytest.raises(BoomError, match="set 'x': the scores were not taken on the same texts"):
        mean_difference({"x": one}, {"x": Samples("mean", "other", np.ones(5))})
    for other in (Samples("parts", "t", parts=(one, one)), Samples("mean", "t", np.ones(4))):
        with pytest.raises(BoomError, match=r"no units were kept for the scores on \['x'\]"):
            mean_difference({"x": one}, {"x": other})
    with pytest.raises(BoomError, match="nothing to compare"):
        mean_difference({"x": one}, {"y": one})
    with pytest.raises(BoomError, match=r"no units were kept for the scores on \['y'\]"):
        mean_difference({"x": one, "y": Samples("none", "t")}, {"x": one, "y": Samples("none", "t")})
    with pytest.raises(BoomError, match="at least three tasks, got 2"):
        task_difference([0.1, 0.2])


def test_a_mean_with_a_set_of_unknown_units_has_no_interval() -> None:
    known, unknown = Samples("mean", "t", RNG.random(9)), Samples("none", "t")
    paired = Paired({"a": {"x": known, "y": known}, "b": {"x": known, "y": unknown}})
    assert paired.sets == ("x",)
    assert paired.interval(A_B, {"x": 0.5, "y": 0.5}) is None
    assert paired.interval(Contrast(("a",), ("c",)), {"x": 1.0}) is None
    assert paired.interval(A_B, {"x": 1.0}) is not None


def test_a_model_may_stand_on_both_sides() -> None:
    """a - (a + b) / 2 is half of a - b."""
    models = {m: {"x": Samples("mean", "t", RNG.random(300))} for m in "ab"}
    half, whole = (Paired(models).interval(Contrast(("a",), side), {"x": 1.0}) for side in (("a", "b"), ("b",)))
    assert half is not None
    assert whole is not None
    assert (2 * half.difference, 2 * half.low, 2 * half.high) == pytest.approx(
        (whole.difference, whole.low, whole.high)
    )


def test_equal_seeds_add_nothing_and_unequal_ones_widen() -> None:
    gain, base = RNG.normal(0.05, 0.2, 300), RNG.random(300)

    def reach(shifts: Sequence[float]) -> float:
        models = {f"a{i}": {"x": Samples("mean", "t", base + gain + shift)} for i, shift in enumerate(shifts)}
        names = tuple(models)
        found = Paired({**models, "b": {"x": Samples("mean", "t", base)}}).interval(
            Contrast(names, ("b",), seeds=True), {"x": 1.0}
        )
        assert found is not None
        return found.high - found.low

    assert reach([0.0, 0.0, 0.0]) == pytest.approx(reach([0.0]))
    assert reach([-0.02, 0.0, 0.02]) > 1.5 * reach([0.0])


def covered(intervals: Sequence[Interval | None], truth: float) -> float:
    return float(np.mean([i is not None and i.low <= truth <= i.high for i in intervals]))


def right_or_wrong(rng: np.random.Generator, queries: int, agree: float) -> tuple[np.ndarray, np.ndarray, float]:
    """The second model repeats the first on the share ``agree`` of the queries; the first is a little better."""
    hard = rng.beta(0.5, 0.5, queries)
    first = rng.random(queries) < 0.97 * hard + 0.03
    fresh = rng.random(queries) < hard
    second = np.where(rng.random(queries) < agree, first, fresh)
    return first.astype(float), second.astype(float), (1 - agree) * (0.97 / 2 + 0.03 - 1 / 2)


def reciprocal_ranks(rng: np.random.Generator, queries: int, agree: float) -> tuple[np.ndarray, np.ndarray, float]:
    """As above with ranks 1 to 10, the first place more likely for the first model."""
    values, good, less = 1 / np.arange(1, 11), np.r_[0.46, np.full(9, 0.06)], np.r_[0.37, np.full(9, 0.07)]
    first, fresh = rng.choice(values, queries, p=good), rng.choice(values, queries, p=less)
    second = np.where(rng.random(queries) < agree, first, fresh)
    return first, second, float((1 - agree) * values @ (good - less))


def graded(rng: np.random.Generator, queries: int, agree: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Gains in nDCG: none on the share ``agree``, heavy tails on the others."""
    second = rng.beta(0.6, 0.4, queries)
    gain = np.where(rng.random(queries) < agree, 0.0, rng.laplace(0.02, 0.15, queries))
    return second + gain, second, (1 - agree) * 0.02


Draw = Callable[[np.random.Generator, int, float], tuple[np.ndarray, np.ndarray, float]]


@pytest.mark.parametrize(
    ("draw", "queries", "agree"),
    [
        (right_or_wrong, 200, 0.8), (right_or_wrong, 600, 0.8), (reciprocal_ranks, 50, 0.9),
        (reciprocal_ranks, 150, 0.97), (reciprocal_ranks, 400, 0.9), (graded, 50, 0.5), (graded, 300, 0.5),
    ],
)  # fmt: skip
def test_coverage_of_one_task_whose_score_is_a_mean(draw: Draw, queries: int, agree: float) -> None:
    assert 0.93 <= coverage(draw, queries, agree) <= 0.97


@pytest.mark.parametrize("queries", [30, 100, 300])
def test_few_right_or_wrong_answers_that_differ_are_covered_too_often_rather_than_too_rarely(queries: int) -> None:
    """On one query of 80 the answers differ."""
    assert coverage(right_or_wrong, queries, 0.95) >= 0.97


def coverage(draw: Draw, queries: int, agree: float) -> float:
    rng, intervals, truth = np.random.default_rng(11), [], 0.0
    for _ in range(1000):
        first, second, truth = draw(rng, queries, agree)
        intervals.append(difference(Samples("mean", "t", first), Samples("mean", "t", second)))
    return covered(intervals, truth)


def test_coverage_of_one_task_whose_score_is_a_rank_correlation() -> None:
    """Bivariate normal pairs: the true Spearman correlation is 6/pi asin(r/2)."""
    rng, intervals = np.random.default_rng(12), []
    for trial in range(1000):
        gold, shared, *own = rng.normal(size=(4, 100))
        first, second = (
            r * gold + np.sqrt(1 - r * r) * (shared + o) / np.sqrt(2) for r, o in zip((0.8, 0.7), own, strict=True)
        )
        one, two = Samples("spearman", "t", first, gold), Samples("spearman", "t", second, gold)
        intervals.append(difference(one, two, Bootstrap(100, trial)))
    truth = 6 / np.pi * (np.arcsin(0.4) - np.arcsin(0.35))
    assert 0.93 <= covered(intervals, truth) <= 0.97


def test_coverage_of_clusterings_whose_runs_differ_by_chance() -> None:
    """Both models put texts of four classes into the right cluster with a probability that is drawn for each run."""
    rng, intervals, gold = np.random.default_rng(17), [], np.arange(80) % 4
    for trial in range(250):
        sides = [
            Samples("v_measure", "t", np.where(rng.random((6, 80)) < p, gold, rng.integers(0, 4, (6, 80))), gold)
            for p in rng.uniform(0.6, 0.9, (2, 6, 1))
        ]
        intervals.append(difference(*sides, Bootstrap(60, trial)))
    assert 0.93 <= covered(intervals, 0.0) <= 0.985


@pytest.mark.parametrize("spread", [0.0, 0.02])
def test_coverage_of_classifiers_trained_on_other_draws(spread: float) -> None:
    """Ten draws of training texts: each moves a model's accuracy by ``spread``, and its answers are its own."""
    rng, intervals = np.random.default_rng(18), []
    for _ in range(1000):
        hard = rng.beta(2.0, 1.0, 150)
        right = [rng.random((10, 150)) < np.clip(hard + rng.normal(0, spread, (10, 1)), 0, 1) for _ in range(2)]
        intervals.append(difference(*(Samples("mean", "t", r) for r in right)))
    assert 0.93 <= covered(intervals, 0.0) <= 0.975


def test_coverage_of_the_mean_over_fixed_tasks_of_several_kinds() -> None:
    rng, intervals, truth = np.random.default_rng(13), [], 0.0
    for trial in range(1000):
        sides: tuple[dict[str, Samples], dict[str, Samples]] = ({}, {})
        gains = []
        for number, (draw, size, agree) in enumerate(
            [(right_or_wrong, 60, 0.8), (reciprocal_ranks, 120, 0.9), (graded, 240, 0.5), (right_or_wrong, 500, 0.95)]
        ):
            *values, gain = draw(rng, size, agree)
            gains.append(gain)
            for side, column in zip(sides, values, strict=True):
                side[str(number)] = Samples("mean", "t", column)
        gold, *noise = rng.normal(size=(3, 80))
        for side, r, own in zip(sides, (0.8, 0.75), noise, strict=True):
            side["pairs"] = Samples("pearson", "t", r * gold + np.sqrt(1 - r * r) * own, gold)
        truth = float(np.mean([*gains, 0.05]))
        intervals.append(mean_difference(*sides, Bootstrap(100, trial)))
    assert 0.93 <= covered(intervals, truth) <= 0.97


@pytest.mark.parametrize("tasks", [5, 9, 20])
def test_coverage_of_the_mean_over_other_tasks(tasks: int) -> None:
    rng = np.random.default_rng(14)
    intervals = [task_difference(rng.normal(0.01, 0.02, tasks).tolist()) for _ in range(2000)]
    assert 0.93 <= covered(intervals, 0.01) <= 0.97


@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.02), (3, 0.006), (5, 0.02)])
def test_coverage_over_training_seeds(seeds: int, spread: float) -> None:
    """Two methods, ``seeds`` models each, whose true scores have the standard deviation ``spread``; 200 queries."""
    rng, intervals = np.random.default_rng(15), []
    contrast = Contrast(*(tuple(f"{m}{i}" for i in range(seeds)) for m in "ab"), seeds=True)
    for _ in range(1000):
        query, taste = rng.normal(0.5, 0.2, 200), rng.normal(0, 0.05, 200)
        models = {
            f"{m}{i}": {"x": Samples("mean", "t", query + side + rng.normal(0, spread) + rng.normal(0, 0.1, 200))}
            for m, side in (("a", 0.03 + taste), ("b", 0.0))
            for i in range(seeds)
        }
        intervals.append(Paired(models).interval(contrast, {"x": 1.0}))
    assert 0.93 <= covered(intervals, 0.03) <= 0.97


@pytest.mark.parametrize("own", [0.001, 0.01])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_coverage_over_seeds_that_both_sides_share(seeds: int, own: float) -> None:
    """A model and its average: a seed moves both, by far more (0.02) than it moves their difference (``own``)."""
    rng = np.random.default_rng(19)
    sides = [tuple(f"{m}{i}" for i in range(seeds)) for m in "ab"]
    found: dict[bool, list[Interval]] = {True: [], False: []}
    for _ in range(500):
        query, models = rng.normal(0.5, 0.2, 200), {}
        for i in range(seeds):
            first = query + rng.normal(0, 0.02) + rng.normal(0, 0.1, 200)
            second = first + 0.03 + rng.normal(0, own) + rng.normal(0, 0.02, 200)
            models |= {f"a{i}": {"x": Samples("mean", "t", second)}, f"b{i}": {"x": Samples("mean", "t", first)}}
        for paired, kept in found.items():
            interval = Paired(models).interval(Contrast(sides[0], sides[1], seeds=True, paired=paired), {"x": 1.0})
            assert interval is not None
            kept.append(interval)
    widths = {paired: [i.high - i.low for i in kept] for paired, kept in found.items()}
    assert max(widths[False]) < 1, "each side by itself is wide, but not beyond all scores"
    if seeds > 2:  # two are too few
        assert 0.93 <= covered(found[True], 0.03) <= 0.97
        assert covered(found[False], 0.03) >= 0.94
        assert np.median(widths[True]) < 0.75 * np.median(widths[False])


def test_coverage_over_training_seeds_and_other_tasks() -> None:
    rng, intervals, names = np.random.default_rng(16), [], [str(n) for n in range(12)]
    contrast = Contrast(("a0", "a1", "a2"), ("b0", "b1", "b2"), seeds=True)
    for _ in range(1000):
        task, taste = rng.normal(0.5, 0.1, 12), rng.normal(0, 0.01, 12)
        scores = {
            f"{m}{i}": dict(zip(names, task + side + rng.normal(0, 0.01) + rng.normal(0, 0.01, 12), strict=True))
            for m, side in (("a", 0.02 + taste), ("b", 0.0))
            for i in range(3)
        }
        intervals.append(over_tasks(scores, contrast, names))
    assert 0.93 <= covered(intervals, 0.02) <= 0.97
