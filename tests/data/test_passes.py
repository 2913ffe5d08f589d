"""Fractions of a pass: the first batches of the last one, and nothing else changes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from boom_ray.config import Train
from boom_ray.config.bags import ScheduleName
from boom_ray.data.rules import DatasetRule, dataset_rules
from boom_ray.data.schedule import Batch, Schedule, part_of, split_passes, whole_run

SIZES = {"ask": ("retrieval", 70), "sort": ("classification", 45), "alike": ("sts", 33)}


@pytest.fixture
def rules() -> dict[str, DatasetRule]:
    from boom_ray.config.corpus import FilesSource
    from boom_ray.data.datasets import resolve_rules

    source = FilesSource(path="x.jsonl")
    return dataset_rules([{"rows": n, **resolve_rules(name, task, source, n)} for name, (task, n) in SIZES.items()])


def bag() -> dict[str, np.ndarray]:
    ends = np.cumsum([0, *(n for _, n in SIZES.values())])
    return {name: np.arange(ends[i], ends[i + 1]) for i, name in enumerate(SIZES)}


def told(batches: tuple[Batch, ...]) -> list[tuple[str, int, list[int]]]:
    return [(batch.dataset, batch.epoch, batch.rows.tolist()) for batch in batches]


@pytest.mark.parametrize(
    ("epochs", "passes"), [(1, (1, 0)), (3, (3, 0)), (1.8, (1, 0.8)), (0.25, (0, 0.25)), (2.0, (2, 0))]
)
def test_a_fraction_is_the_last_pass(epochs, passes):
    assert split_passes(epochs) == passes


def test_a_part_of_a_pass_has_a_batch():
    assert [part_of(10, share) for share in (1.0, 0.8, 0.04, 0.001)] == [10, 8, 1, 1]
    assert part_of(0, 0.5) == 0


@pytest.mark.parametrize("name", ["batch_shuffle", "dataset_sequential", "task_sequential", "example_shuffle"])
@pytest.mark.parametrize("epochs", [0.4, 1.8, 2.5])
def test_a_fraction_takes_the_first_batches_of_the_pass_that_it_cuts(rules, name: ScheduleName, epochs: float):
    schedule = Schedule(name, 8, 2, rules)
    whole = whole_run(bag(), schedule, 5, int(epochs) + 1, None)
    cut = whole_run(bag(), schedule, 5, epochs, None)
    one = len(whole_run(bag(), schedule, 5, 1, None).batches)
    count = int(epochs) * one + round((epochs - int(epochs)) * one)
    assert told(cut.batches) == told(whole.batches[:count])
    assert cut.ended_early
    assert not whole.ended_early


def test_two_stages_have_a_fraction_of_their_passes_each(rules):
    schedule = Schedule("two_stage", 8, 2, rules)
    whole, cut = (whole_run(bag(), schedule, 5, epochs, None) for epochs in (2, 1.5))
    stages = [[b for b in plan.batches if b.in_batch is first] for plan in (whole, cut) for first in (True, False)]
    for all_of_it, part in ((stages[0], stages[2]), (stages[1], stages[3])):
        one = len(all_of_it) // 2
        assert told(tuple(part)) == told(tuple(all_of_it[: one + round(0.5 * one)]))


def test_a_whole_number_stays_one_however_it_is_written():
    """Identities of members are made of the settings' JSON: runs of earlier versions keep their members."""
    dumps = {json.dumps(Train.model_validate({"epochs": e}).model_dump(mode="json")) for e in (1, 1.0, "1")}
    assert dumps == {json.dumps(Train().model_dump(mode="json"))}
    assert '"epochs": 1,' in dumps.pop()
    assert Train(epochs=1.8).model_dump(mode="json")["epochs"] == 1.8
