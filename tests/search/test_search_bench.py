"""What ``bench search`` runs, on tiny members in this process, and what it makes of the times."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from boom_ray.bench import search as bench
from boom_ray.bench import search_jobs
from boom_ray.bench.search_made import DATASETS, Made, _grams, _texts, perturb, points
from boom_ray.data.bag_rules import BagRule
from boom_ray.data.bagging import draw
from boom_ray.data.batches import DrawSettings
from boom_ray.data.membership import corpus_rows
from boom_ray.search.objective_rows import Source

ROWS = 6 * len(DATASETS)


@pytest.fixture(scope="module")
def made(small_corpus, small_tokens, small_base, tmp_path_factory) -> Made:
    root, base = tmp_path_factory.mktemp("bench_search"), small_base()
    for k in range(2):
        perturb(base, root / f"member-{k}", 0.3 + 0.3 * k, k)
    drawn = draw(corpus_rows(small_tokens), [BagRule("subset", 1.0, 0)], (0.1, 12), 3)
    source = Source(small_tokens, drawn, DrawSettings(17, 2), (0,))
    (root / "source.pkl").write_bytes(pickle.dumps(source))
    (root / "texts.json").write_text(json.dumps(_texts(small_corpus, base, source, ROWS)))
    (root / "points.json").write_text(json.dumps([p.to_json() for p in points(3, 2)]))
    members = tuple(str(root / f"member-{k}") for k in range(2))
    paths = (str(root / name) for name in ("grams.npz", "source.pkl", "texts.json", "points.json"))
    found = Made(str(base), members, *paths)
    _grams(found)
    return found


def job(made: Made, out: Path) -> dict[str, Any]:
    settings = {"rows": ROWS, "threads": 1, "precision": "float32", "rungs": 2, "eta": 3.0, "out": str(out)}
    return {**settings, "made": {**vars(made), "members": list(made.members)}, "texts": made.texts}


def test_both_sides_score_the_same_points_alike(made: Made, tmp_path: Path) -> None:
    given = job(made, tmp_path / "merged")
    ours = search_jobs.trials({**given, "trials": 3})
    theirs = search_jobs.loop({**given, "trials": 3})
    for one, other in zip(ours["trials"], theirs["trials"], strict=True):
        assert other["score"] == pytest.approx(one["score"], abs=1e-6)
        assert one["rows"] == 24
        assert [*one["seconds"]] == ["apply", "encode", "score", "total", "wall"]
        assert [*other["seconds"]] == ["merge", "load", "encode", "score", "wall"]
        assert one["rungs"][1][:2] == [one["value"], one["score"]]
    assert ours["sizes"][0][0] == 8
    assert ours["sizes"][1][0] == 24
    assert len({trial["score"] for trial in ours["trials"]}) == 3


def test_members_are_the_model_and_noise(made: Made) -> None:
    base, *members = (load_file(Path(d) / "model.safetensors") for d in (made.base, *made.members))
    for number, member in enumerate(members):
        for name, values in base.items():
            if values.size > 1000:
                noise = (member[name] - values).std() / values.std()
                assert noise == pytest.approx(0.3 + 0.3 * number, rel=0.1), name
    assert points(4, 3) == points(4, 3)
    assert np.allclose([sum(p.of("all")) for p in points(4, 3)], 1)


def test_figures_and_table() -> None:
    def trial(point: int, encode: float, wall: float, score: float, **more: Any) -> dict[str, Any]:
        return {"point": point, "seconds": {"encode": encode, "wall": wall}, "score": score, **more}

    rungs = [[[1.0, 0.1, 0.5], [1.0, 0.1, 2.0]], [[3.0, 0.2, 0.5], [2.0, 0.2, 2.0]], [[2.0, 0.3, 0.5], [3.0, 0.3, 2.0]]]
    ours = [trial(k, 1.9, 2.0, 0.1 * (k + 1), value=k + 1.0, rungs=rung) for k, rung in enumerate(rungs)]
    user = [trial(1, 4.0, 12.0, 0.2 + 1e-7)]
    rows = [bench._row(name, found, ours) for name, found in (("ours", ours), ("user", user))]
    assert [row["speed_ratio"] for row in rows] == [1.0, 6.0]
    assert [row["trials_per_minute"] for row in rows] == [30.0, 5.0]
    assert rows[0]["rest_share"] == pytest.approx(0.05)
    assert rows[1]["largest_difference"] == pytest.approx(1e-7)
    ranks = bench._ranks(ours, ours)
    assert [(r["loss"], r["metric"], r["seconds"]) for r in ranks] == [(0.5, 1.0, 0.5), (1.0, 1.0, 2.0)]
    memory = {"added": 400_000_000, "libraries": 250_000_000, "resident": 110_000_000, "activations": 40_000_000}
    result = {
        "rows": rows,
        "ranks": {"ours": ranks},
        "objective": {"rows": 500, "padding": 0.05, "sizes": [(56, 200, 9000), (500, 2000, 90000)]},
        "memory": {**memory, "model": 91_000_000, "members": 455_000_000, "actors": []},
        "gradient": {"rows": 32, "seconds": {"step": 2.4, "apply": 0.02, "slope": 0.05, "chain": 0.01, "encode": 0.8}},
    }
    text = bench.table(result)
    assert "user                    12.00        5.00        66.7 %            6.00 ×" in text
    assert "56 rows, 200 texts, 9000 tokens in 0.50 s; rank correlation with the full objective 0.500 (loss)" in text
    assert "adds 400 MB: 250 of interpreter and libraries, 110 of a model of 91, 40 of activations" in text
    assert "a gradient step on 32 rows: 2.40 s, 3.0 × the encoding of its texts (0.80 s); of that 0.020 s apply" in text


def test_parts_of_a_gradient_step(made: Made, tmp_path: Path) -> None:
    found = search_jobs.steps(job(made, tmp_path / "merged"))
    assert found["rows"] == 32
    assert [*found["seconds"]] == ["step", "apply", "slope", "chain", "encode"]
    assert found["seconds"]["step"] > found["seconds"]["apply"] > 0
