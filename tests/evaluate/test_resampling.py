"""Every metric under counts equals scipy's, scikit-learn's or mteb's on data in which the units stand that often."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau, pearsonr, rankdata, spearmanr
from sklearn.metrics import (
    accuracy_score,
    adjusted_mutual_info_score,
    average_precision_score,
    f1_score,
    precision_score,
    recall_score,
    v_measure_score,
)

from boom_ray.evaluate.resampling import ranks
from boom_ray.evaluate.samples import Samples, read_samples

RNG = np.random.default_rng(5)


def repeated(counts: np.ndarray) -> list[np.ndarray]:
    """Row by row the unit numbers, each as often as it was drawn."""
    return [np.repeat(np.arange(len(row)), row.astype(int)) for row in counts]


def drawn(units: int, rows: int = 4) -> np.ndarray:
    return RNG.multinomial(units, [1 / units] * units, size=rows).astype(float)


def test_ranks_equal_ranks_of_the_repeated_values() -> None:
    values, counts = RNG.integers(0, 8, 40).astype(float), RNG.integers(0, 3, (5, 40)).astype(float)
    for units, found in zip(repeated(counts), ranks(counts, values), strict=True):
        np.testing.assert_allclose(found[units], rankdata(values[units]))


@pytest.mark.parametrize(
    ("kind", "reference"), [("pearson", pearsonr), ("spearman", spearmanr), ("kendalltau", kendalltau)]
)
def test_correlations_equal_scipy(kind: str, reference: Callable[..., tuple[float, float]]) -> None:
    gold = RNG.integers(0, 10, 60) / 10
    values = gold + RNG.normal(0, 0.4, 60).round(1)
    one_run = values[None] if kind == "kendalltau" else values
    samples, counts = Samples(kind, "t", one_run, gold), drawn(60)
    assert samples.score() == pytest.approx(reference(values, gold)[0], abs=1e-12)
    for units, score in zip(repeated(counts), samples.resampled(counts), strict=True):
        assert score == pytest.approx(reference(values[units], gold[units])[0], abs=1e-12)


def test_v_measure_equals_sklearn_with_a_gold_row_for_each_level() -> None:
    gold = np.stack([RNG.integers(0, 4, 50), RNG.integers(0, 2, 50), RNG.integers(0, 4, 50)])
    clusters = np.where(RNG.random((3, 50)) < 0.7, gold, RNG.integers(0, 5, (3, 50)))
    draws, counts = RNG.integers(0, 3, (3, 50)), drawn(50)
    for truth in (gold, gold[0]):
        samples = Samples("v_measure", "t", clusters, truth, draws)
        for row, score in zip(counts, samples.resampled(counts), strict=True):
            units = repeated(row * draws)
            gold_rows = truth if truth.ndim == 2 else [truth] * 3
            expected = [v_measure_score(g[u], c[u]) for u, g, c in zip(units, gold_rows, clusters, strict=True)]
            assert score == pytest.approx(np.mean(expected), abs=1e-12)


def test_ami_equals_sklearn_on_all_units_and_is_near_it_on_resamples() -> None:
    gold = RNG.integers(0, 4, 200)
    clusters = np.where(RNG.random((2, 200)) < 0.7, gold, RNG.integers(0, 5, (2, 200)))
    samples, counts = Samples("ami", "t", clusters, gold), drawn(200)
    expected = np.mean([adjusted_mutual_info_score(gold, found) for found in clusters])
    assert samples.score() == pytest.approx(expected, abs=1e-12)
    for units, score in zip(repeated(counts), samples.resampled(counts), strict=True):
        near = np.mean([adjusted_mutual_info_score(gold[units], found[units]) for found in clusters])
        assert score == pytest.approx(near, abs=0.005), "the information expected by chance hardly moves"


def test_average_precision_equals_sklearn_with_ties() -> None:
    gold = (RNG.random(80) < 0.3).astype(int)
    values, counts = (gold + RNG.normal(0, 0.8, 80)).round(1), drawn(80)
    samples = Samples("ap", "t", values, gold)
    assert samples.score() == pytest.approx(average_precision_score(gold, values), abs=1e-12)
    for units, score in zip(repeated(counts), samples.resampled(counts), strict=True):
        assert score == pytest.approx(average_precision_score(gold[units], values[units]), abs=1e-12)


def best(gold: np.ndarray, values: np.ndarray, metric: Callable[..., float]) -> float:
    """Of all thresholds between two different values."""
    steps = np.unique(values)
    return max(metric(gold, (values >= (a + b) / 2).astype(int)) for a, b in pairwise(steps))


@pytest.mark.parametrize(("kind", "metric"), [("best_accuracy", accuracy_score), ("best_f1", f1_score)])
def test_thresholds_are_the_best_between_two_values(kind: str, metric: Callable[..., float]) -> None:
    gold = (RNG.random(60) < 0.4).astype(int)
    values, counts = (gold + RNG.normal(0, 0.8, 60)).round(1), drawn(60)
    samples = Samples(kind, "t", values, gold)
    assert samples.score() == pytest.approx(best(gold, values, metric), abs=1e-12)
    for units, score in zip(repeated(counts), samples.resampled(counts), strict=True):
        assert score == pytest.approx(best(gold[units], values[units], metric), abs=1e-12)


LABEL_METRICS: dict[str, Callable[..., float]] = {
    "accuracy": accuracy_score,
    "f1": lambda g, p: f1_score(g, p, average="macro"),
    "f1_weighted": lambda g, p: f1_score(g, p, average="weighted"),
    "precision": lambda g, p: precision_score(g, p, average="macro", zero_division=0),
    "precision_weighted": lambda g, p: precision_score(g, p, average="weighted", zero_division=0),
    "recall": lambda g, p: recall_score(g, p, average="macro", zero_division=0),
    "recall_weighted": lambda g, p: recall_score(g, p, average="weighted", zero_division=0),
}


@pytest.mark.parametrize("metric", LABEL_METRICS)
def test_label_metrics_equal_sklearn(metric: str) -> None:
    gold = RNG.integers(0, 5, 40)
    found = np.where(RNG.random((3, 40)) < 0.6, gold, RNG.integers(0, 7, (3, 40)))
    tested, counts = (RNG.random((3, 40)) < 0.6).astype(int), drawn(40)
    for draws in (np.zeros(0), tested):
        samples = Samples(f"labels:{metric}", "t", found, gold, draws)
        for row, score in zip(counts, samples.resampled(counts), strict=True):
            units = repeated(row * (draws if draws.size else np.ones((3, 1))))
            expected = [LABEL_METRICS[metric](gold[u], p[u]) for u, p in zip(units, found, strict=True)]
            assert score == pytest.approx(np.mean(expected), abs=1e-12)


def test_ap_of_labels_and_f1_of_many_labels_equal_sklearn() -> None:
    gold = RNG.integers(0, 2, 50)
    found = np.where(RNG.random((2, 50)) < 0.7, gold, 1 - gold)
    expected = np.mean([average_precision_score(gold, p) for p in found])
    assert Samples("labels:ap", "t", found, gold).score() == pytest.approx(expected, abs=1e-12)
    gold = RNG.integers(0, 2, (40, 6))
    gold[:, 5] = 0
    found = np.where(RNG.random((2, 40, 6)) < 0.7, gold, 0)
    samples, counts = Samples("multilabel:f1", "t", found, gold), drawn(40)
    assert samples.units == 40
    for units, score in zip(repeated(counts), samples.resampled(counts), strict=True):
        expected = np.mean([f1_score(gold[units], p[units], average="macro", zero_division=0) for p in found])
        assert score == pytest.approx(expected, abs=1e-12)


def test_the_score_of_parts_is_the_mean_of_the_parts_scores() -> None:
    one, two, three = (Samples("mean", "t", RNG.random(n)) for n in (4, 9, 2))
    inner = Samples("parts", "t", parts=(two, three))
    whole = Samples("parts", "t", parts=(one, inner))
    assert whole.units == 15
    assert whole.score() == pytest.approx((one.score() + (two.score() + three.score()) / 2) / 2, abs=1e-12)
    assert whole.known
    assert not Samples("parts", "t", parts=(one, Samples("none", "t"))).known


def test_samples_come_back_from_disk_unchanged(tmp_path: Path) -> None:
    inner = Samples(
        "parts", "t", parts=(Samples("mean", "t", RNG.random(3)), Samples("ap", "t", RNG.random(9), np.ones(9)))
    )
    whole = Samples("parts", "abc-cap50", parts=(Samples("spearman", "t", RNG.random(9), RNG.random(9)), inner))
    whole.save(tmp_path / "deep" / "MTEB(eng).v2.npz")
    loaded = Samples.load(tmp_path / "deep" / "MTEB(eng).v2.npz")
    assert (loaded.kind, loaded.texts, loaded.units) == ("parts", "abc-cap50", 21)
    assert loaded.score() == whole.score()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["MTEB(eng).v2.npz"]
    (tmp_path / "half.npz").write_bytes((tmp_path / "deep" / "MTEB(eng).v2.npz").read_bytes()[:300])
    assert list(read_samples(tmp_path)) == ["MTEB(eng).v2"], "a damaged file is left out"
