"""The paper's recipes with a tiny Qwen3 and local data in the place of its own: the same settings train on this
machine, two workers a member, by ZeRO 1 as by adapters at ZeRO 3."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from road_data import write_corpus, write_sets
from small_qwen import write_qwen

from boom_ray.cluster.session import ray_session
from boom_ray.encoder import Encoder
from boom_ray.pipeline import run

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
# float16 is not what every CPU computes in; the other changes make the run small
SMALLER = {
    "0.6b": {"train.precision": "float32"},
    "4b": {"train.lora.rank": 4, "train.learning_rate": 1e-3},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("paper")
    write_corpus(root / "corpus", rows=120)
    write_sets(root / "eval")
    lines = [json.loads(line) for file in sorted((root / "corpus").glob("*.jsonl")) for line in file.open()]
    write_qwen(root / "qwen3", (line["query"] for line in lines), ends_texts=False, pads=False)
    return root


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with ray_session():
        yield


@pytest.mark.long
@pytest.mark.parametrize("name", ["0.6b", "4b"])
def test_the_recipe_trains_with_a_tiny_base_and_local_data(inputs, session, name):
    changes = {
        "base.model": str(inputs / "qwen3"),
        "corpus.datasets": json.dumps([{"path": str(inputs / "corpus"), "loss": "infonce"}]),
        "corpus.dev.min_rows": 10,
        "bags.ratios": "[0.5, 1.0]",
        "train.batch_size": 16,
        "train.max_steps": 4,
        "evaluate.sets": json.dumps([str(inputs / "eval" / "in_domain")]),
        "evaluate.members": "false",
        "resources.max_width": 2,
        "search.trials": 2,
        "search.round": 2,
        "search.max_rows": 10,
        **SMALLER[name],
    }
    run_dir = inputs / name
    run(RECIPES / f"boom_{name}.yaml", overrides=[f"{key}={value}" for key, value in changes.items()], run_dir=run_dir)
    start, *_ = (run_dir / "start").glob("*/config.json")
    base = Encoder.load(start.parent, device="cpu")
    (published,) = (run_dir / "published").glob("*-*")
    for directory in [*(d.parent for d in (run_dir / "members").glob("member-*/config.json")), published]:
        encoder = Encoder.load(directory, device="cpu")
        assert (encoder.pooling, encoder.max_tokens) == ("lasttoken", 64)
        assert encoder.tokenize(["a ship"])[0][-1] == encoder.tokenizer.eos_token_id
        moved, began = (dict(e.backbone.named_parameters()) for e in (encoder, base))
        assert moved.keys() == began.keys()
        changed = {n for n in moved if not np.array_equal(moved[n].detach().numpy(), began[n].detach().numpy())}
        if name == "4b":  # adapters change the matrices that they lie beside, nothing else
            last = {parameter.split(".")[-2] for parameter in changed}
            assert last == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
        else:
            assert changed == set(moved)
