"""The arithmetic behind the figures."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.report.layout import (
    below,
    busy,
    clock_unit,
    duration,
    percent,
    share,
    smooth,
    spread,
    union,
    without_gaps,
)

heights = st.lists(st.floats(-5, 5), min_size=1, max_size=12)


@given(heights)
def test_spread_keeps_order_and_distance(values):
    placed = spread(values, 0.5)
    order = sorted(range(len(values)), key=lambda i: values[i])
    gaps = [placed[b] - placed[a] for a, b in pairwise(order)]
    assert all(gap >= 0.5 - 1e-9 for gap in gaps)
    assert np.mean(placed) == pytest.approx(np.mean(values), abs=1e-9), "least squares keeps the mean"


def test_spread_moves_nothing_that_is_apart():
    assert spread([3.0, 1.0, 2.0], 0.5) == [3.0, 1.0, 2.0]
    assert spread([1.0, 1.0], 1.0) == [0.5, 1.5]


def test_below_moves_only_what_is_too_high():
    assert below([0.1, 0.9, 1.0], 0.95, 0.1) == pytest.approx([0.1, 0.85, 0.95])


def test_smooth_keeps_a_line_and_short_curves():
    curve = [3 - 0.1 * x for x in range(40)]
    assert smooth(curve) == pytest.approx(curve, abs=1e-9), "straight fit: no lag, no bias at the ends"
    assert np.std(smooth([x % 3 for x in range(90)])) < 0.1, "datasets that take turns are evened out"
    assert smooth([3.0, 1.0, 2.0]) == [3.0, 1.0, 2.0]


def test_busy_time_counts_concurrent_spans_once():
    assert union([(5.0, 7.0), (0.0, 2.0), (1.0, 3.0)]) == [(0.0, 3.0), (5.0, 7.0)]
    assert busy([(5.0, 7.0), (0.0, 2.0), (1.0, 3.0)]) == 5.0


def test_clock_without_gaps():
    place, cuts = without_gaps([(100.0, 160.0), (130.0, 200.0), (5200.0, 5260.0)])
    assert place(100.0) == 0
    assert place(200.0) == 100
    assert place(5200.0) == 100
    assert place(5260.0) == 160
    assert cuts == [(100.0, 5000.0)]
    place, cuts = without_gaps([(0.0, 100.0), (110.0, 200.0)])
    assert cuts == []
    assert place(200.0) == 200


@pytest.mark.parametrize(("seconds", "text"), [(0.14, "0.1 s"), (42.4, "42 s"), (300, "5.0 min"), (9000, "2.5 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_words():
    assert (percent(0.4), percent(0.025), percent(1)) == ("40 %", "2.5 %", "100 %")
    assert (share(0.614), share(0.001), share(0)) == ("61 %", "<1 %", "0 %")
    assert clock_unit(60) == ("s", 1.0)
