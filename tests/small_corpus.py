"""Rows of a tiny corpus of every task type."""

from __future__ import annotations

import random
from typing import Any

SIZES = {"ask": ("retrieval", 60), "sort": ("classification", 40), "group": ("clustering", 30), "alike": ("sts", 30)}
MAX_TOKENS = 24
WORDS = [a + b for a in ("red", "blue", "old", "new", "big", "low") for b in ("cat", "ship", "tree", "song", "town")]


def example(name: str, number: int, rng: random.Random) -> dict[str, Any]:
    """Row ``number`` of a dataset: 0 to 3 negatives, every fifth row two positives, of 2 words to too many."""

    def text(longest: int = 12) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(2, longest)))

    task_type = SIZES[name][0]
    pos = [f"{text()} {number}" for _ in range(2 if number % 5 == 0 else 1)]
    if task_type == "classification":
        pos = [f"label {number % 4}"]  # the same text for many rows: a false negative of one another
    neg = [] if task_type == "sts" else [f"not {text(40)}" for _ in range(number % 4)]
    score = (number % 6) / 5 if task_type == "sts" else None
    return {"query": f"{text(8)} {number}", "pos": pos, "neg": neg, "score": score}
