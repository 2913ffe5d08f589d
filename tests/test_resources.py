"""What fits on nodes, and how fast workers are: counted, and fitted to what members have shown."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.config import BoomError
from boom_ray.resources import Bundle, Measured, Speed, bundle, described_nodes, fit_speed, fitting, slots


def test_bundles_and_slots():
    assert bundle({"CPU": 8}, 2, None) == Bundle(2, 0.0)
    assert bundle({"CPU": 8, "GPU": 4}, 2, None) == Bundle(2, 1.0)
    assert bundle({"CPU": 8, "GPU": 4}, 2, 0.5) == Bundle(2, 0.5)
    assert bundle({"CPU": 8, "GPU": 4}, 2, 0) == Bundle(2, 0)
    assert Bundle(2, 0).per_worker == {"CPU": 2}
    assert Bundle(2, 0.5).per_worker == {"CPU": 2, "GPU": 0.5}
    nodes = [{"CPU": 7.0}, {"CPU": 1.0}, {"CPU": 16.0, "GPU": 4.0}, {}]
    assert slots(nodes, Bundle(2, 0)) == 3 + 0 + 8  # a worker does not span nodes
    assert slots(nodes, Bundle(2, 1)) == 4
    assert slots(nodes, Bundle(2, 0.5)) == 8
    assert slots(nodes, Bundle(8, 1)) == 2
    assert slots([{"CPU": 1.0, "GPU": 1.0}], Bundle(1, 0.1)) == 1
    for needed in (Bundle(17, 0), Bundle(1, 8)):
        assert fitting(nodes, needed) == 0
        with pytest.raises(BoomError, match=r"no node has room.*resources\.cpus_per_worker"):
            slots(nodes, needed)


@pytest.mark.parametrize(
    ("text", "needed", "nodes", "workers"),
    [
        ("4x8", Bundle(2, 1.0), 4, 32),
        ("4x8xH100", Bundle(2, 1.0), 4, 32),
        ("8xH100", Bundle(1, 1.0), 1, 8),
        ("8", Bundle(1, 1.0), 1, 8),
        ("2x8", Bundle(3, 0.5), 2, 32),  # two workers share a GPU
        ("2x9", Bundle(2, 0.0), 2, 8),  # without GPUs a device is a core
    ],
)
def test_a_cluster_that_is_only_described(text, needed, nodes, workers):
    described = described_nodes(text, needed)
    assert (len(described), slots(described, needed)) == (nodes, workers)


@pytest.mark.parametrize("text", ["", "x8", "0x8", "4x0", "H100", "4x8x8", "4,8", "-1"])
def test_a_cluster_that_cannot_be_read_is_refused(text):
    with pytest.raises(BoomError, match="NODESxDEVICES"):
        described_nodes(text, Bundle(1, 1.0))


def test_wider_is_faster_but_never_more_efficient():
    speed = Speed()
    for width in range(1, 512):
        assert speed.of(width) < speed.of(width + 1)
        assert speed.of(width + 1) / (width + 1) < speed.of(width) / width
    assert speed.of(1) == 1
    assert speed.of(2) == pytest.approx(2 * 0.92)
    assert speed.of(8) == pytest.approx(8 * 0.92**3)
    assert Speed(rate=4, efficiency=0.5, startup=3).seconds(work=20, width=8) == pytest.approx(3 + 20 / 4)


@given(st.floats(0.1, 1000), st.floats(0.56, 0.99), st.lists(st.integers(0, 6), min_size=2, unique=True))
def test_members_of_several_widths_tell_rate_and_efficiency(rate, efficiency, powers):
    truth = Speed(rate, efficiency)
    shown = [Measured(2**p, 1000.0, truth.seconds(1000.0, 2**p)) for p in powers]
    found = fit_speed(shown)
    assert found is not None
    assert (found.rate, found.efficiency) == (pytest.approx(rate), pytest.approx(efficiency))


def test_members_of_one_width_tell_the_rate_alone():
    shown = [Measured(4, 100.0, 10.0, 7.0), Measured(4, 400.0, 10.0, 9.0), Measured(4, 200.0, 10.0)]
    found = fit_speed(shown)
    assert found is not None
    assert found.efficiency == Speed().efficiency
    assert found.rate * found.of(4) == pytest.approx(20.0)  # the geometric mean
    assert found.startup == 8.0  # the median of those that are known
    assert fit_speed([]) is None


def test_a_measurement_that_cannot_be_is_not_believed():
    """Wider and no faster at all, or faster than ideal, is noise: plans stay sane, and the middle is what was seen."""
    for seconds, efficiency in ((10.0, 0.55), (1.0, 1.0)):
        found = fit_speed([Measured(1, 100.0, 10.0), Measured(4, 100.0, seconds)])
        assert found is not None
        assert found.efficiency == efficiency
        middle = math.sqrt((100 / 10.0) * (100 / seconds))
        assert math.sqrt(found.rate * found.rate * found.of(4)) == pytest.approx(middle)
