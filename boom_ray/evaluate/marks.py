"""What of an evaluation set occurs in the training texts of a model; light, for the tables that show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Mark:
    """What of a set occurs in the training texts of a model.

    Attributes:
        revision: the set's ``text_revision``.
        texts: texts that are scored; ``exact`` of them occur whole, ``near`` others by a run of words.
        units: scored queries or rows; ``touched`` of them are, or have a relevant document, that occurs.
        datasets: the training datasets that each was first met in.
        clean: by model, the score without the touched units, 0..1, where it is known.
    """

    revision: str
    texts: int
    exact: int
    near: int
    units: int
    touched: int
    datasets: tuple[str, ...]
    clean: Mapping[str, float] = field(default_factory=dict)

    @property
    def footnote(self) -> str:
        """One sentence; empty where nothing occurs."""
        if not self.exact + self.near:
            return ""
        shared = f", {self.near:,} more share a run of words" if self.near else ""
        where = f" of {', '.join(self.datasets)}" if self.datasets else ""
        return (
            f"{self.exact:,} of {self.texts:,} texts occur in the training data{where}{shared}: "
            f"{self.touched:,} of {self.units:,} queries or rows are touched."
        )


def mark_of(told: Mapping[str, Any]) -> Mark:
    """A mark from its plain values."""
    return Mark(**{**told, "datasets": tuple(told["datasets"])})
