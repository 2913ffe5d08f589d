"""The rules of a dataset in training, read from ``datasets.json``: which loss, which negatives, how large a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DatasetRule:
    """One dataset's rules.

    Attributes:
        graded: CoSENT over the rows that have a score; else InfoNCE.
        in_batch: a query is compared with the candidates of the whole batch; else with its own row's only.
        symmetric: both sides are alike, so that a batch has half the rows.
        hard_negatives: drawn per row at most; None: what ``train.hard_negatives`` says.
        weight: factor on the dataset's share of every bag.
        place: in the corpus, from 0.
    """

    task_type: str
    graded: bool = False
    in_batch: bool = True
    symmetric: bool = False
    hard_negatives: int | None = None
    weight: float = 1.0
    place: int = 0


def dataset_rules(datasets: Sequence[Mapping[str, Any]]) -> dict[str, DatasetRule]:
    """Rules by dataset, in the order of the corpus: the entries of ``datasets.json``."""
    return {entry["name"]: _rule(entry, place) for place, entry in enumerate(datasets)}


def _rule(entry: Mapping[str, Any], place: int) -> DatasetRule:
    return DatasetRule(
        task_type=entry["task_type"],
        graded=entry["loss"] == "cosent",
        in_batch=entry["in_batch"],
        symmetric=entry["symmetric"],
        hard_negatives=entry["hard_negatives"],
        weight=entry["weight"],
        place=place,
    )
