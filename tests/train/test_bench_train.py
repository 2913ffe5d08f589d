"""What ``bench train`` runs, at a tiny size in this process: every variant, on texts and a model made for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from boom_ray.bench import train as bench
from boom_ray.bench import train_jobs
from boom_ray.bench.made_model import TINY, make_model, write_texts
from boom_ray.config import BoomError
from boom_ray.encoder import Encoder

NEGATIVES = 2


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> dict:
    folder, size = tmp_path_factory.mktemp("bench"), 4
    make_model(TINY, 32, folder / "model")
    write_texts(folder / "rows.json", 2 * size + bench.WARM_ROWS, NEGATIVES, TINY, 32)
    settings = {"batch": size, "steps": 2, "max_tokens": 32, "chunk_tokens": 64, "graph_tokens": 64, "threads": 1}
    return {"model": str(folder / "model"), "rows": str(folder / "rows.json"), **settings, "device": "cpu"}


def test_made_texts_have_a_token_per_word_and_an_end(job):
    rows = json.loads(Path(job["rows"]).read_text())
    assert {len(row) for row in rows} == {2 + NEGATIVES}
    encoder = Encoder.load(job["model"], device="cpu")
    assert encoder.pooling == "lasttoken"
    texts = [text for row in rows for text in row]
    ids = encoder.tokenize(texts)
    assert [len(found) for found in ids] == [len(text.split()) + 1 for text in texts]
    assert {int(found[-1]) for found in ids} == {encoder.tokenizer.eos_token_id}
    assert max(map(len, ids)) <= 32
    queries, passages = (np.mean([len(i) for i in encoder.tokenize([r[k] for r in rows])]) for k in (0, 1))
    assert queries < passages


@pytest.mark.parametrize("kind", list(train_jobs.KINDS))
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_variant_trains(job, kind, precision):
    told = train_jobs.main({**job, "kind": kind, "precision": precision})
    assert len(told["steps"]) == 2  # the warm one is not told
    assert all(step["seconds"] > 0 and step["cpu"] > 0 for step in told["steps"])
    assert told["memory"] is None  # a CPU's is watched from outside


def test_work_is_that_of_the_measured_rows(job):
    told = train_jobs.main({**job, "kind": "work", "precision": "float32"})
    rows = json.loads(Path(job["rows"]).read_text())[:8]
    encoder = Encoder.load(job["model"], device="cpu")
    assert told["tokens"] == sum(len(ids) for row in rows for ids in encoder.tokenize(row))
    assert told["peak"] is None
    per_token = 6 * 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64)  # two layers: q, k and v, o, gate, up and down
    assert per_token * told["tokens"] < told["flops"] < 1.2 * per_token * told["tokens"]


def test_ratios_are_to_the_better_baseline_and_what_does_not_fit_has_none():
    def run(pairs: float, memory: float) -> dict:
        return {"pairs": pairs, "memory": memory, "pairs_per_cpu": pairs / 2}

    runs = {
        "st plain": [None, None],
        "st cached": [run(2.0, 4.0), run(3.0, 6.0)],
        "fast": [run(6.0, 3.0), run(9.0, 2.0)],
        "limit": [run(10.0, 1.0)],
    }
    rows = {row["variant"]: row for row in bench._rows(runs)}
    assert rows["st plain"] == {"variant": "st plain", "runs": 0}
    assert (rows["fast"]["speed_ratio"], rows["fast"]["memory_ratio"], rows["fast"]["limit_ratio"]) == (3, 0.5, 0.75)
    text = bench.table({"rows": list(rows.values())})
    assert text.splitlines()[1].split() == ["st", "plain", *["-"] * 6]
    assert "MFU" not in text


def test_data_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BoomError, match=r"medquad\.jsonl\.gz is not there"):
        bench.read_pairs(tmp_path, 8)
