"""What is asked of an autoscaler and counted of its nodes, as arithmetic; an autoscaler itself: tests/faults."""

from __future__ import annotations

import json

import pytest

from boom_ray.cluster.autoscale import most, workers_ahead
from boom_ray.cluster.node_counts import FILE, Counter, Sample, read_counts
from boom_ray.ledger import Ledger
from boom_ray.report.nodes import nodes as draw_nodes
from boom_ray.report.nodes import pieces

HEAD = {"CPU": 0.0, "memory": 1e9}
CPU, GPU = {"CPU": 8.0}, {"CPU": 8.0, "GPU": 1.0}
MACHINE = {"cpus": 8, "gpus": 0, "memory_gib": 1.0}


@pytest.mark.parametrize("count", range(10))
@pytest.mark.parametrize("room", range(12))
def test_the_most_that_fits_is_found_with_few_questions(count, room):
    asked: list[int] = []

    def fits(number: int) -> bool:
        asked.append(number)
        return number <= room

    assert most(count, fits) == min(count, room)
    assert len(asked) <= 1 + max(1, count).bit_length()
    assert asked[:1] == [count][: len(asked)]  # what is wanted is asked first: most clusters have room for it


@pytest.mark.parametrize(
    ("waiting", "held", "room", "expected"),
    [
        ((1, 1, 1), (), 3, 3),
        ((1, 1), (1,), 3, 2),  # whose controller is up asks for itself
        ((1, 1, 1, 1), (1, 1), 3, 1),  # never more than the plan counts on
        ((1,), (1, 1, 1), 3, 0),
        ((4, 2), (2,), 8, 6),
        ((), (1, 1), 3, 0),
        ((2,), (), 0, 0),  # a cluster that does not grow
    ],
)
def test_workers_are_asked_for_ahead_of_members_that_wait(waiting, held, room, expected):
    assert workers_ahead(waiting, held, room) == expected


def test_a_head_that_takes_no_work_is_no_node():
    assert Sample.of([HEAD, CPU, GPU, GPU], 1.0).counts == (1, 2)
    assert Sample.of([HEAD], 1.0).counts == (0, 0)


def test_a_cluster_that_never_changes_leaves_no_curve(tmp_path):
    ledger = Ledger.open(tmp_path / "run", "r")
    counter = Counter(ledger)
    for at in (1.0, 3.0, 5.0):
        counter.look([HEAD, CPU], at, MACHINE)
    counter.end(6.0)
    assert not (ledger.root / FILE).exists()
    assert read_counts(ledger) == []
    assert json.loads((ledger.root / "hardware.json").read_text()) == MACHINE
    assert draw_nodes({"nodes": []}) is None


def test_curves_of_two_drivers_lie_in_one_file_and_one_figure(tmp_path):
    """Between a driver that was killed and the next one nothing is known, and nothing is drawn."""
    ledger = Ledger.open(tmp_path / "run", "r")
    killed = Counter(ledger)
    killed.look([HEAD], 10.0, {**MACHINE, "cpus": 0})
    killed.look([HEAD, CPU, CPU], 20.0, {**MACHINE, "cpus": 16})
    killed.look([HEAD, CPU, GPU], 40.0, MACHINE)
    assert json.loads((ledger.root / "hardware.json").read_text())["cpus"] == 16  # the most that there was
    second = Counter(ledger)
    second.look([HEAD, CPU], 1000.0, MACHINE)
    second.look([HEAD], 1030.0, MACHINE)
    second.end(1040.0)
    found = read_counts(ledger)
    assert [sample.at for sample in found] == [10.0, 20.0, 40.0, 1000.0, 1030.0, 1040.0]
    assert [sample.begins for sample in found] == [True, False, False, True, False, False]
    summary = {"nodes": [vars(sample) for sample in found]}
    assert pieces(summary, "cpu_nodes") == [(10.0, 20.0, 0), (20.0, 40.0, 2), (1000.0, 1030.0, 1), (1030.0, 1040.0, 0)]
    figure = draw_nodes(summary)
    assert figure is not None
    axes = figure.axes[0]
    assert axes.get_ylabel() == "worker nodes"
    assert any("without a driver" in text.get_text() for text in axes.texts)
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert sorted(labels) == ["with GPUs", "without GPU"]
    assert max(line.get_ydata().max() for line in axes.lines[:3] if len(line.get_ydata()) > 2) == 2
