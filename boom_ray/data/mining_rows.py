"""A row shard of the corpus written again with mined negatives; a row for which nothing is found keeps its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from boom_ray.config.corpus import Mine
from boom_ray.data.mining_choice import DROPPED, Ranked, allowed, margin_limit, take_turns
from boom_ray.data.mining_search import Matrix, scores_of_pairs
from boom_ray.data.mining_texts import Index, Texts, first_rows

COUNTS = ("rows", "mined", "unchanged", "negatives", *DROPPED)
_ROWS = 1024  # at once: their windows of ranks are held in memory


@dataclass(frozen=True)
class MinedDataset:
    """A dataset's place: the folder of its index, and for each model one with vectors and one with its ranking."""

    name: str
    texts: Path
    vectors: tuple[Path, ...]
    rankings: tuple[Path, ...]

    @property
    def folders(self) -> tuple[Path, ...]:
        return (self.texts, *self.vectors, *self.rankings)


def write_shard(shard: Path, datasets: Sequence[MinedDataset], settings: Mine, out: Path) -> dict[str, dict[str, int]]:
    """Write ``out``/NAME-OF-SHARD; ids, order and batches stay as they are.

    Returns:
        ``{dataset: {count: n}}``: rows; mined and unchanged rows; negatives that they were given; and how many texts
        in the windows of ranks were ``equal`` to the query or a positive of it, of the row's ``label``, or within the
        ``margin`` of the positive's score.
    """
    open_datasets = [_Dataset(d, settings, shard.name) for d in datasets if shard.name in first_rows(d.texts)]
    target = out / shard.name
    with pa.memory_map(str(shard)) as source:
        reader = pa.ipc.open_file(source)
        with pa.ipc.new_file(f"{target}.tmp", reader.schema) as writer:
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                for dataset in open_datasets:
                    batch = dataset.mined(batch)
                writer.write_batch(batch)
    os.replace(f"{target}.tmp", target)
    return {dataset.name: dataset.counts for dataset in open_datasets}


@dataclass(frozen=True)
class _Model:
    """What a model found for a dataset, memory-mapped."""

    queries: Matrix
    passages: Matrix
    numbers: Matrix
    scores: Matrix

    @classmethod
    def open(cls, vectors: Path, ranking: Path) -> _Model:
        folders = {"queries": vectors, "passages": vectors, "numbers": ranking, "scores": ranking}
        return cls(**{name: Matrix(sorted(folder.glob(f"{name}-*.npy"))) for name, folder in folders.items()})


class _Dataset:
    """One dataset's rows in a shard, batch by batch."""

    def __init__(self, dataset: MinedDataset, settings: Mine, shard: str) -> None:
        self.name = dataset.name
        self.counts = dict.fromkeys(COUNTS, 0)
        self._settings = settings
        self._index = Index.load(dataset.texts)
        self._texts = Texts(dataset.texts, "passages")
        pairs = zip(dataset.vectors, dataset.rankings, strict=True)
        self._models = [_Model.open(vectors, ranking) for vectors, ranking in pairs]
        self._next = first_rows(dataset.texts)[shard]

    def mined(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with new negatives in the dataset's rows."""
        places = np.flatnonzero(pc.equal(batch.column("dataset"), self.name).to_numpy(zero_copy_only=False))
        if not len(places):
            return batch
        column = batch.schema.get_field_index("neg")
        negatives: list[Any] = batch.column(column).to_pylist()
        for start in range(0, len(places), _ROWS):
            part = places[start : start + _ROWS]
            rows = np.arange(self._next, self._next + len(part))
            self._next += len(part)
            for place, numbers in zip(part, self._negatives(rows), strict=True):
                self._count(len(numbers))
                if numbers:
                    negatives[place] = [self._texts[number] for number in numbers]
        field = batch.schema.field(column)
        return batch.set_column(column, field, pa.array(negatives, field.type))

    def _negatives(self, rows: np.ndarray) -> list[list[int]]:
        """Numbers of the passages that become each row's negatives."""
        ranked = [self._ranked(model, rows) for model in self._models]
        masks = []
        for found in ranked:
            mask, dropped = allowed(found, self._index, rows)
            masks.append(mask)
            for name, count in dropped.items():
                self.counts[name] += count
        chosen = []
        for row in range(len(rows)):
            lists = [found.passages[row][mask[row]] for found, mask in zip(ranked, masks, strict=True)]
            folds = [self._index.passage_fold[numbers].tolist() for numbers in lists]
            chosen.append(take_turns([numbers.tolist() for numbers in lists], folds, self._settings.count))
        return chosen

    def _ranked(self, model: _Model, rows: np.ndarray) -> Ranked:
        """The model's window for each row, and the limit that its lowest positive sets."""
        index, first, end = self._index, int(rows[0]), int(rows[-1]) + 1
        ends = index.pos_ends[first : end + 1]
        pos = index.pos[ends[0] : ends[-1]]
        queries = index.query[first:end]
        vectors = np.repeat(model.queries.take(queries), np.diff(ends), axis=0)
        scores = scores_of_pairs(vectors, model.passages.take(pos)[:, None])[:, 0]
        lowest = np.minimum.reduceat(scores, ends[:-1] - ends[0])
        limit = margin_limit(lowest, self._settings.share)
        return Ranked(model.numbers.take(queries), model.scores.take(queries), limit)

    def _count(self, negatives: int) -> None:
        self.counts["rows"] += 1
        self.counts["mined" if negatives else "unchanged"] += 1
        self.counts["negatives"] += negatives
