"""What ``bench evaluate`` runs, on small sets in this process, and what it makes of the times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boom_ray.bench import evaluate as bench
from boom_ray.bench import evaluate_jobs
from boom_ray.encoder import Encoder


def test_both_variants_give_the_same_scores(sets_root: Path, make_model: Callable[[int], Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    bench._perturbed(make_model(0), other)
    first, second = (Encoder.load(path).encode(["redcat bluecat"])[0] for path in (make_model(0), other))
    assert 0 < np.abs(first - second).max() < 0.01
    job: dict[str, Any] = {"sets": str(sets_root / "out_of_domain"), "cap": 30, "actors": 0}
    job |= {"results": str(tmp_path / "results"), "models": [str(make_model(0)), str(other)]}
    (theirs,) = evaluate_jobs.main({**job, "kind": "mteb"})
    ours = evaluate_jobs.main({**job, "kind": "ours"})
    assert ours[0] == pytest.approx(theirs, abs=1e-6)
    assert set(ours[1]) == {"alike", "group"}


def test_the_second_model_is_what_two_take_beyond_one() -> None:
    rows = bench._rows({"mteb": 300.0, "ours": 150.0, "ours, two models": 270.0})
    ratios = {row["variant"]: row.get("speed_ratio") for row in rows}
    assert ratios == {"mteb": None, "ours": 2.0, "ours, two models": None, "second model": 2.5}
    text = bench.table({"rows": rows, "scores": {"a": 0.5}, "largest_difference": 3e-7})
    assert "ours                   150.0     2.00" in text
    assert "1 sets; largest difference of a score: 3.0e-07" in text
