"""Intervals: exact statistics under resampling, and coverage of the truth on simulated data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr, rankdata, spearmanr
from sklearn.metrics import v_measure_score

from boom_ray.config import BoomError
from boom_ray.evaluate.significance import (
    Bootstrap,
    Samples,
    _counts,
    _ranks,
    difference,
    mean_difference,
    task_difference,
)

RNG = np.random.default_rng(5)


def test_counts_are_multinomial_and_the_same_for_every_block() -> None:
    blocks = list(_counts(3_000, 1_500, np.random.default_rng(1)))
    assert len(blocks) > 1
    counts = np.concatenate(blocks)
    assert counts.shape == (1_500, 3_000)
    assert (counts.sum(axis=1) == 3_000).all()
    assert counts.var() == pytest.approx(1 - 1 / 3_000, rel=0.01)


def test_ranks_equal_ranks_of_the_repeated_values() -> None:
    values = RNG.integers(0, 8, 40).astype(float)
    counts = RNG.integers(0, 3, (5, 40)).astype(float)
    for row, ranks in zip(counts, _ranks(values, counts), strict=True):
        repeated = np.repeat(np.arange(40), row.astype(int))
        np.testing.assert_allclose(ranks[repeated], rankdata(values[repeated]))


@pytest.mark.parametrize(("kind", "reference"), [("pearson", pearsonr), ("spearman", spearmanr)])
def test_correlations_equal_scipy_on_the_repeated_pairs(kind: str, reference) -> None:
    gold = RNG.integers(0, 10, 60) / 10
    values = gold + RNG.normal(0, 0.4, 60).round(1)
    samples = Samples(kind, "t", values, gold)
    assert samples.score() == pytest.approx(reference(values, gold)[0], abs=1e-12)
    counts = RNG.multinomial(60, [1 / 60] * 60, size=4).astype(float)
    for row, score in zip(counts, samples.resampled(counts), strict=True):
        repeated = np.repeat(np.arange(60), row.astype(int))
        assert score == pytest.approx(reference(values[repeated], gold[repeated])[0], abs=1e-12)


def test_v_measure_equals_sklearn_on_the_repeated_texts() -> None:
    gold = RNG.integers(0, 4, 50)
    clusters = np.where(RNG.random((3, 50)) < 0.7, gold, RNG.integers(0, 5, (3, 50)))
    draws = RNG.integers(0, 3, (3, 50))
    samples = Samples("v_measure", "t", clusters, gold, draws)
    counts = RNG.multinomial(50, [1 / 50] * 50, size=4).astype(float)
    for row, score in zip(counts, samples.resampled(counts), strict=True):
        runs = [np.repeat(np.arange(50), (row * drawn).astype(int)) for drawn in draws]
        expected = [v_measure_score(gold[r], found[r]) for r, found in zip(runs, clusters, strict=True)]
        assert score == pytest.approx(np.mean(expected), abs=1e-12)


def test_samples_come_back_from_disk_unchanged(tmp_path: Path) -> None:
    samples = Samples("spearman", "abc-cap50", RNG.random(9), RNG.random(9))
    samples.save(tmp_path / "deep" / "set.npz")
    loaded = Samples.load(tmp_path / "deep" / "set.npz")
    assert (loaded.kind, loaded.texts) == ("spearman", "abc-cap50")
    assert loaded.score() == samples.score()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["set.npz"]


def test_the_interval_is_that_of_the_mean_for_means() -> None:
    gain = RNG.normal(0.05, 0.2, 400)
    base = RNG.random(400)
    found = difference(Samples("mean", "t", base + gain), Samples("mean", "t", base), Bootstrap(resamples=20_000))
    error = gain.std(ddof=1) / 20
    assert found.difference == pytest.approx(gain.mean(), abs=1e-12)
    assert found.low == pytest.approx(gain.mean() - 1.96 * error, abs=0.05 * error)
    assert found.high == pytest.approx(gain.mean() + 1.96 * error, abs=0.05 * error)
    assert found.certain


def test_a_model_does_not_differ_from_itself_and_order_only_turns_the_sign() -> None:
    one, two = (Samples("mean", "t", RNG.random(50)) for _ in range(2))
    same = difference(one, one)
    assert (same.difference, same.low, same.high, same.certain) == (0, 0, 0, False)
    forth, back = difference(one, two), difference(two, one)
    assert (forth.difference, forth.low, forth.high) == pytest.approx((-back.difference, -back.high, -back.low))
    assert difference(one, two) == forth


def test_scores_on_other_texts_are_not_compared() -> None:
    one = Samples("mean", "t", np.ones(5))
    with pytest.raises(BoomError, match="set 'x': the two scores were not taken on the same texts"):
        mean_difference({"x": one}, {"x": Samples("mean", "other", np.ones(5))})
    with pytest.raises(BoomError, match="nothing to compare"):
        mean_difference({"x": one}, {"y": one})
    with pytest.raises(BoomError, match="at least three tasks, got 2"):
        task_difference([0.1, 0.2])


def covered(intervals: list, truth: float) -> float:
    return float(np.mean([interval.low <= truth <= interval.high for interval in intervals]))


@pytest.mark.parametrize("queries", [150, 400])
def test_coverage_of_one_task_whose_score_is_a_mean(queries: int) -> None:
    """Right or wrong per query, and models that differ on a few: the second repeats the first on 80 of 100 queries."""
    rng, intervals = np.random.default_rng(11), []
    for trial in range(1000):
        hard = rng.beta(0.5, 0.5, queries)
        first = (rng.random(queries) < 0.97 * hard + 0.03).astype(float)
        fresh = (rng.random(queries) < hard).astype(float)
        second = np.where(rng.random(queries) < 0.8, first, fresh)
        one, two = Samples("mean", "t", first), Samples("mean", "t", second)
        intervals.append(difference(one, two, Bootstrap(200, trial)))
    truth = 0.2 * (0.97 / 2 + 0.03 - 1 / 2)
    assert 0.93 <= covered(intervals, truth) <= 0.97


def test_coverage_of_one_task_whose_score_is_a_rank_correlation() -> None:
    """Bivariate normal pairs: the true Spearman correlation is 6/pi asin(r/2)."""
    rng, intervals = np.random.default_rng(12), []
    for trial in range(500):
        gold, shared, *own = rng.normal(size=(4, 120))
        first, second = (
            r * gold + np.sqrt(1 - r * r) * (shared + o) / np.sqrt(2) for r, o in zip((0.8, 0.7), own, strict=True)
        )
        one, two = Samples("spearman", "t", first, gold), Samples("spearman", "t", second, gold)
        intervals.append(difference(one, two, Bootstrap(150, trial)))
    truth = 6 / np.pi * (np.arcsin(0.4) - np.arcsin(0.35))
    assert 0.93 <= covered(intervals, truth) <= 0.97


def test_coverage_of_the_mean_over_fixed_tasks() -> None:
    rng, intervals = np.random.default_rng(13), []
    sizes, gains = (60, 120, 240, 500), (0.00, 0.02, -0.01, 0.05)
    for trial in range(1000):
        first, second = {}, {}
        for size, gain in zip(sizes, gains, strict=True):
            base = rng.random(size)
            first[str(size)] = Samples("mean", "t", base + gain + rng.normal(0, 0.3, size))
            second[str(size)] = Samples("mean", "t", base)
        intervals.append(mean_difference(first, second, Bootstrap(100, trial)))
    assert 0.93 <= covered(intervals, float(np.mean(gains))) <= 0.97


@pytest.mark.parametrize("tasks", [5, 9, 20])
def test_coverage_of_the_mean_over_other_tasks(tasks: int) -> None:
    rng = np.random.default_rng(14)
    intervals = [task_difference(rng.normal(0.01, 0.02, tasks).tolist()) for _ in range(1000)]
    assert 0.93 <= covered(intervals, 0.01) <= 0.97
