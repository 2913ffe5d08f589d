"""The five-minute version of the soak: a smaller quickstart, and a kill every few seconds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from soak import Plan, soak

SMALLER = (
    "corpus.datasets=[{source: python_environment, max_functions: 600}]",
    "corpus.dev.min_rows=40",
    "base.build={layers: 1, hidden: 64, heads: 2, vocab: 2000, warm_steps: 8}",
    "train.max_steps=20",
    "search.trials=6",
    "evaluate.cap=150",
)


@pytest.mark.slow
def test_a_run_under_a_killer_publishes_what_a_run_left_alone_does(tmp_path: Path) -> None:
    outcome = soak(tmp_path, Plan(minutes=2, gaps=(8, 16), settings=SMALLER))
    print(outcome)
    kinds = Counter(kill.split()[0] for kill in outcome.kills)
    assert kinds["driver"] == 2
    assert kinds["node"] >= 1
    assert kinds["worker"] + kinds["actor"] >= 2
    assert outcome.equal, "other bytes were published"
    assert outcome.left == []
    assert outcome.orphans == []
