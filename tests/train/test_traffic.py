"""What a plan moves over the network: the counts of ring exchanges, by hand."""

from __future__ import annotations

import pytest

from boom_ray.config import Train, parse_recipe
from boom_ray.resources import Placement
from boom_ray.train.traffic import Sizes, step_bytes, traffic

MODEL = Sizes(parameters=1000, row_tokens=100)


def _train(**settings: object) -> Train:
    return Train.model_validate({"batch_size": 16, "chunk_tokens": 200, **settings})


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_sum_of_gradients_gives_twice_the_model_to_all_but_one(stage: int) -> None:
    train = _train(zero_stage=stage)
    assert step_bytes(train, 1, MODEL) == 0
    assert step_bytes(train, 4, MODEL) == 2 * 3 * 4000
    assert step_bytes(train.model_copy(update={"accumulation": 2}), 4, MODEL) == 3 * 4000


def test_half_precision_moves_half_and_adapters_next_to_nothing() -> None:
    assert step_bytes(_train(precision="bfloat16"), 2, MODEL) == 2 * 2000
    assert step_bytes(_train(lora={"targets": ["query"]}), 2, MODEL) == 0


def test_zero_3_gathers_the_weights_for_every_chunk_of_both_passes() -> None:
    train = _train(zero_stage=3)
    chunks = 2  # 16 rows of 100 tokens, 400 for each of 4 workers, 200 in a chunk
    assert step_bytes(train, 4, MODEL) == 3 * 4000 * (2 * chunks + 1)
    again = train.model_copy(update={"gradient_checkpointing": True})
    assert step_bytes(again, 4, MODEL) == 3 * 4000 * (3 * chunks + 1)
    assert step_bytes(_train(zero_stage=3, lora={"targets": ["query"]}), 4, MODEL) == 3 * 4000 * 2 * chunks


def test_an_ensemble_adds_up() -> None:
    raw = {
        "name": "r",
        "base": {"model": "m"},
        "corpus": {"datasets": [{"path": "p.jsonl"}]},
        "bags": {"ratios": [0.5, 1]},
    }
    recipe = parse_recipe({**raw, "train": {"batch_size": 16}})
    plan = [Placement("member-0", 1, 0.0, 10.0), Placement("member-1", 2, 0.0, 20.0)]
    found = traffic(recipe, plan, {"member-0": 800, "member-1": 1600}, MODEL)
    assert found.workers == 100 * 2 * 4000  # member-0 is alone; the other has 100 steps of two workers
    assert found.peak == found.workers / 2 / 20
    # read: a base for each of 3 workers, 3 models for the Gram matrices and each of 3 merges, 6 scored, 1 published
    assert found.read == 4000 * (3 + 12 + 6 + 1)
    assert found.written == 4000 * (2 + 3 + 1)
    assert not found.at_most


def test_tokens_that_are_not_known_are_the_most_that_there_can_be() -> None:
    raw = {"name": "r", "base": {"model": "m", "max_tokens": 64}, "corpus": {"datasets": [{"path": "p.jsonl"}]}}
    recipe = parse_recipe({**raw, "train": {"hard_negatives": 3}})
    assert Sizes.assumed(recipe, 10.0, None) == Sizes(10.0, 5 * 64, at_most=True)
    assert Sizes.assumed(recipe, 10.0, 70.0) == Sizes(10.0, 70.0)
