"""The rows that an objective judges by, and its settings; without torch.

They are rows that no judged model was trained on: a half of the dev rows, and, for half A, the rows that are in no
merged member's bag. Of every dataset the rows of lowest hash come first. The dev rows are by their definition those of
lowest hash, so they come before the out-of-bag rows, and a smaller set of rows is always part of a larger one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from boom_ray.config import BoomError
from boom_ray.data.bagging import Draw, Rows, bag_rows, dev_rows, membership_hash, out_of_bag_rows, training_rows
from boom_ray.data.batches import BatchReader, DrawSettings, Slice, TrainBatch
from boom_ray.data.tokens import TokenStore

Half = Literal["a", "b"]
LEAST = 2  # rows of a dataset: one row has nothing to be told from


@dataclass(frozen=True)
class ObjectiveSettings:
    """How merges are judged.

    Attributes:
        kind: loss, the training loss relative to the base's; metric, that of each dataset's task type.
        aggregate: tasks, the mean over datasets; types, the mean of the means of each task type; as mteb has both.
        max_rows: of a dataset at most.
        ranking: metric of retrieval and reranking rows: nDCG@10 or the reciprocal rank.
        shares: of the rows of every dataset that each rung sees, rising to 1.0: the nested proxies of the objective.
        out_of_bag: rows that are in no merged member's bag count, too.
        datasets: the only ones to judge by; empty: all of the corpus.
        temperature: of the losses.
        precision: that linear layers compute in; bfloat16 is quicker where the processor has instructions for it.
    """

    kind: Literal["loss", "metric"] = "loss"
    aggregate: Literal["tasks", "types"] = "tasks"
    max_rows: int = 200
    ranking: Literal["ndcg", "mrr"] = "ndcg"
    shares: tuple[float, ...] = (1.0,)
    out_of_bag: bool = True
    datasets: tuple[str, ...] = ()
    temperature: float = 0.02
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.shares, self.shares[1:], strict=False))
        if not self.shares or self.shares[0] <= 0 or self.shares[-1] != 1.0 or not rising:
            raise BoomError(f"rungs are shares of an objective's rows that rise to 1; got {list(self.shares)}.")
        if self.max_rows < LEAST:
            raise BoomError(f"an objective needs at least {LEAST} rows of a dataset; max_rows is {self.max_rows}.")


def halving_shares(rungs: int, eta: float) -> tuple[float, ...]:
    """Shares of the rows that ``rungs`` rungs of successive halving see, each ``eta`` times those of the one below."""
    return tuple(float(eta) ** (rung + 1 - rungs) for rung in range(rungs))


@dataclass(frozen=True)
class Source:
    """Where an objective takes its rows from.

    Attributes:
        tokens: directory of the token shards; drawn: dev rows and bags; draw: how hard negatives are drawn.
        members: numbers of the bags whose members are merged.
        reported: names of the evaluation sets that the run reports scores on.
    """

    tokens: Path
    drawn: Draw
    draw: DrawSettings
    members: tuple[int, ...]
    reported: tuple[str, ...] = ()

    @cached_property
    def store(self) -> TokenStore:
        return TokenStore(self.tokens)

    @cached_property
    def rows(self) -> Rows:
        store = self.store
        return Rows(store.ids, store.dataset, tuple(d["name"] for d in store.datasets))

    def batch(self, name: str, rows: np.ndarray) -> TrainBatch:
        """Rows of a dataset as the training step would see them, in the order of their numbers."""
        return self._read(Slice(0, 0, name, np.sort(rows), len(rows)))

    @cached_property
    def _read(self) -> BatchReader:
        return BatchReader(self.store, self.draw)

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def judged_rows(source: Source, half: Half, settings: ObjectiveSettings) -> dict[str, np.ndarray]:
    """Row numbers by dataset, lowest hash first, of all rows that judge merges; datasets with too few are left out.

    Raises:
        BoomError: no dataset has two; a dataset that is asked for is not in the corpus, or is reported as test.
    """
    refuse_reported(settings.datasets, source.rows.names, source.reported)
    parts = [dev_rows(source.rows, source.drawn, half)]
    if settings.out_of_bag and half == "a":
        parts.append(common_out_of_bag(source))
    return _chosen(source, parts, settings)


def member_rows(source: Source, half: Half, member: int, settings: ObjectiveSettings) -> dict[str, np.ndarray]:
    """The same for one member alone: the dev rows of the half, then its own out-of-bag rows."""
    own = out_of_bag_rows(source.rows, source.drawn, source.drawn.bags[member])
    return _chosen(source, [dev_rows(source.rows, source.drawn, half), own], settings)


def common_out_of_bag(source: Source) -> dict[str, np.ndarray]:
    """Training rows by dataset, ascending, that no merged member's bag holds."""
    left = training_rows(source.rows, source.drawn)
    for member in source.members:
        held = bag_rows(source.rows, source.drawn, source.drawn.bags[member])
        left = {name: np.setdiff1d(rows, held[name]) if name in held else rows for name, rows in left.items()}
    return left


def why_none_out_of_bag(source: Source) -> str | None:
    """What to tell people where there are no common out-of-bag rows."""
    whole = [i for i in source.members if source.drawn.bags[i].kind == "subset" and source.drawn.bags[i].ratio >= 1]
    if whole:
        return f"member-{whole[0]} has seen 100 % of the training rows: merges are judged on dev rows alone."
    if not any(len(rows) for rows in common_out_of_bag(source).values()):
        return "every training row is in some member's bag: merges are judged on dev rows alone."
    return None


def refuse_reported(asked: Iterable[str], corpus: Collection[str], reported: Collection[str]) -> None:
    """Raise where a dataset that a search is to be judged by is not in the corpus; a test set never is.

    Raises:
        BoomError: names it, and says whether it is a reported test set.
    """
    for name in asked:
        if name in corpus:
            continue
        if name in reported:
            raise BoomError(
                f"'{name}' is reported as test: no search is judged by it. Choose among the datasets of the corpus, "
                f"whose dev rows are held out for that: {', '.join(corpus)}."
            )
        raise BoomError(f"the objective names dataset '{name}', which is not in the corpus: {', '.join(corpus)}.")


def rung_rows(rows: Mapping[str, np.ndarray], share: float) -> dict[str, np.ndarray]:
    """The first rows of every dataset, at least two: the proxy that a rung sees."""
    return {name: found[: min(len(found), max(LEAST, math.ceil(share * len(found))))] for name, found in rows.items()}


def _chosen(
    source: Source, parts: Sequence[Mapping[str, np.ndarray]], settings: ObjectiveSettings
) -> dict[str, np.ndarray]:
    """Of some disjoint sets of rows, those of lowest hash of every dataset."""
    chosen = {}
    for name in settings.datasets or source.rows.names:
        found = np.concatenate([part[name] for part in parts])
        order = np.argsort(membership_hash(source.rows.ids[found], source.drawn.dev_seed), kind="stable")
        rows = found[order[: settings.max_rows]]
        if len(rows) >= LEAST:
            chosen[name] = rows
    if not chosen:
        raise BoomError("no dataset has dev rows to judge merges by: raise corpus.dev.fraction or corpus.dev.min_rows.")
    return chosen


def dev_batches(tokens: Path, drawn: Draw, half: Half, max_rows: int, settings: DrawSettings) -> list[TrainBatch]:
    """One batch per dataset: at most ``max_rows`` dev rows of a half, lowest hash first.

    Raises:
        BoomError: no dataset has two dev rows, so there is nothing to judge by.
    """
    source = Source(tokens, drawn, settings, ())
    rows = judged_rows(source, half, ObjectiveSettings(max_rows=max_rows, out_of_bag=False))
    return [source.batch(name, found) for name, found in rows.items()]
