"""The rules of every dataset, resolved once: what datasets.json says and all later stages go by.

A source may leave a rule to boom_ray (``auto``); what it becomes depends on the task type alone, as in the paper's code
(docs/data.md). Sources that feed one dataset must agree.
"""

from __future__ import annotations

from typing import Any

from boom_ray.config import BoomError
from boom_ray.config.corpus import FilesSource
from boom_ray.data.schema import needs_score

OWN_NEGATIVES = ("classification", "clustering")  # a batch holds rows of one class more than once
SYMMETRIC = ("clustering", "sts")
_RULES = ("instruction", "loss", "negatives", "hard_negatives", "symmetric", "weight", "language", "licence", "cap")


def resolve_rules(name: str, task_type: str, source: FilesSource, with_negatives: int) -> dict[str, Any]:
    """The entry of datasets.json of one dataset, less its number of rows.

    ``negatives: auto`` compares classification and clustering rows with their own negatives only, unless the dataset
    has none (``with_negatives`` rows have some): there is nothing else to compare with then.
    """
    own = source.negatives == "own" or (
        source.negatives == "auto" and task_type in OWN_NEGATIVES and with_negatives > 0
    )
    return {
        "name": name,
        "task_type": task_type,
        "instruction": source.instruction.model_dump(),
        "loss": "cosent" if needs_score(task_type, source.loss) else "infonce",
        "in_batch": not own,
        "hard_negatives": source.hard_negatives,
        "symmetric": task_type in SYMMETRIC if source.symmetric is None else source.symmetric,
        "weight": source.weight,
        "language": source.language,
        "licence": source.licence,
    }


def agree(name: str, first: FilesSource, other: FilesSource) -> None:
    """Check that two sources of one dataset have the same rules.

    Raises:
        BoomError: names the rule.
    """
    for rule in _RULES:
        if getattr(first, rule) != getattr(other, rule):
            raise BoomError(
                f"dataset '{name}' comes from two sources with different '{rule}'. "
                f"Give one of them another name in corpus.datasets, or both the same rule."
            )
