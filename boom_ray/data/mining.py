"""Hard negatives: models embed a corpus' own texts, and what they rank high is given to the rows as negatives.

Stages, each spread over Ray Data actors (one per core, or per GPU): number the texts of every dataset; for each model
embed them and rank passages for queries; choose and write the row shards again. Every unit is a file of its own: what
a killed run has finished is kept, and no result depends on the number of actors. Nothing large travels through the
object store. Ray must be initialised by the caller.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boom_ray.cluster.autoscale import grown_nodes
from boom_ray.config import BoomError, Recipe
from boom_ray.config.corpus import Mine
from boom_ray.data.actors import Pool, on_actors
from boom_ray.data.mining_rows import COUNTS, MinedDataset, write_shard
from boom_ray.data.mining_search import Matrix, nearest
from boom_ray.data.mining_texts import KINDS, TEXTS_PER_SHARD, read_texts, row_shards, text_shard, write_index
from boom_ray.data.workers import Files, on_workers
from boom_ray.resources import bundle, slots

if TYPE_CHECKING:
    from boom_ray.encoder import Encoder

_MINED_TYPES = ("retrieval", "reranking")  # unless the recipe names datasets
_SECONDS_BETWEEN_LINES = 30.0
_LAYOUT = "layout-2"  # of the scratch folder: another release must not read what it does not know

Counts = dict[str, dict[str, int]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class MineTask:
    """What to mine, with what, and where.

    Attributes:
        corpus: a corpus artifact.
        scratch: a folder for this corpus that all nodes share; what it holds stays valid under other settings.
        settings: of the recipe; ``models`` are directories or hub names.
        digests: names of the models' contents, in their order.
        chunk_tokens: as ``Encoder.encode``.
    """

    corpus: Path
    scratch: Path
    settings: Mine
    digests: tuple[str, ...]
    chunk_tokens: int
    pool: Pool


def mine_task(recipe: Recipe, settings: Mine, digests: Sequence[str], corpus: Path, scratch: Path) -> MineTask:
    """The task on the cluster as it is, or grows to: workers like those that train.

    Raises:
        BoomError: no node has room for one worker.
    """
    worker, nodes = recipe.resources, grown_nodes(recipe.resources, [1])
    needed = bundle({"GPU": sum(n.get("GPU", 0.0) for n in nodes)}, worker.cpus_per_worker, worker.gpus_per_worker)
    pool, chunk_tokens = Pool(slots(nodes, needed), needed), recipe.evaluate.chunk_tokens
    return MineTask(corpus.resolve(), scratch.resolve() / _LAYOUT, settings, tuple(digests), chunk_tokens, pool)


def mine(task: MineTask, out: Path, say: Say = print) -> Counts:
    """Write the corpus with mined negatives into the folder ``out``: the files of a corpus, and mined.json.

    Returns:
        Counts per mined dataset: see :func:`boom_ray.data.mining_rows.write_shard`.

    Raises:
        BoomError: a dataset that is not in the corpus or takes no negatives, none to mine, or a model that cannot be
            loaded.
    """
    entries = mined_datasets(task.corpus, task.settings)
    places = [_place(task, place, entry["name"]) for place, entry in entries.items()]
    plain = [(entry["name"], entry["task_type"], p.texts) for entry, p in zip(entries.values(), places, strict=True)]
    sizes = on_workers(partial(_index, task.corpus), plain, Files(lambda _: [task.corpus], lambda item: [item[2]]))
    texts = [
        _Texts(place, entry, size, model)
        for model in range(len(task.digests))
        for place, entry, size in zip(places, entries.values(), sizes, strict=True)
    ]
    embeddings = _each_once(t.embeddings() for t in texts)
    on_actors(partial(_Embedder, task), embeddings, task.pool, _progress(say, "shards of texts embedded"))
    rankings = _each_once(t.rankings(task.settings.ranks) for t in texts)
    on_actors(partial(_Ranker, task), rankings, task.pool, _progress(say, "shards of queries ranked"))
    shards, found = row_shards(task.corpus), [path for place in places for path in place.folders]
    files = Files(lambda shard: [shard, *found], lambda shard: [out / shard.name])
    written = on_workers(partial(write_shard, datasets=places, settings=task.settings, out=out), shards, files)
    counts = _total(places, written)
    _write_rest(task, counts, out)
    return counts


def mined_datasets(corpus: Path, settings: Mine) -> dict[int, dict[str, Any]]:
    """The entries of datasets.json that are mined, by their place in it.

    Raises:
        BoomError: a name that is not there or whose rows take no negatives; nothing to mine.
    """
    entries: list[dict[str, Any]] = json.loads((corpus / "datasets.json").read_text(encoding="utf-8"))
    known = {entry["name"]: entry for entry in entries}
    for name in settings.datasets:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(known)}."
            raise BoomError(f"corpus.mine.datasets: the corpus has no dataset '{name}'. {hint}")
        if known[name]["loss"] == "cosent":
            raise BoomError(f"corpus.mine.datasets: '{name}' is trained on scores (cosent), which takes no negatives.")
    wanted = settings.datasets or [
        name for name, entry in known.items() if entry["task_type"] in _MINED_TYPES and entry["loss"] != "cosent"
    ]
    if not wanted:
        raise BoomError(
            f"corpus.mine: no dataset with negatives has task type {' or '.join(_MINED_TYPES)}. "
            f"Name the datasets in corpus.mine.datasets; there are: {', '.join(known)}."
        )
    return {place: entry for place, entry in enumerate(entries) if entry["name"] in wanted}


def _place(task: MineTask, place: int, name: str) -> MinedDataset:
    """Where a dataset's intermediate files lie. Its name may hold anything, its place in datasets.json is a number."""
    first, end = task.settings.ranks
    vectors = [task.scratch / f"model-{digest}" / f"{place:05d}" for digest in task.digests]
    rankings = [folder / f"ranks-{first}-{end}" for folder in vectors]
    return MinedDataset(name, task.scratch / "texts" / f"{place:05d}", tuple(vectors), tuple(rankings))


def _index(corpus: Path, item: tuple[str, str, Path]) -> dict[str, int]:
    return write_index(corpus, *item)


@dataclass(frozen=True)
class _Embedding:
    """A shard of texts for a model (its place in the settings) to embed."""

    model: int
    texts: Path
    prompt: str
    target: Path

    @property
    def reads(self) -> tuple[Path, ...]:
        return (self.texts,)

    @property
    def writes(self) -> tuple[Path, ...]:
        return (self.target,)


@dataclass(frozen=True)
class _Ranking:
    """A shard of queries to rank passages for. ``target`` gets the numbers of passages, ``scores`` their cosines."""

    queries: Path
    passages: tuple[Path, ...]
    ranks: tuple[int, int]
    scores: Path
    target: Path

    @property
    def reads(self) -> tuple[Path, ...]:
        return (self.queries, *self.passages)

    @property
    def writes(self) -> tuple[Path, ...]:
        return (self.scores, self.target)


@dataclass(frozen=True)
class _Texts:
    """A dataset's texts as one model sees them."""

    place: MinedDataset
    entry: Mapping[str, Any]
    sizes: Mapping[str, int]
    model: int

    def embeddings(self) -> Iterator[_Embedding]:
        for kind, role in zip(KINDS, ("query", "passage"), strict=True):
            for number, target in enumerate(self._vectors(kind)):
                yield _Embedding(
                    self.model, text_shard(self.place.texts, kind, number), self.entry["instruction"][role], target
                )

    def rankings(self, ranks: tuple[int, int]) -> Iterator[_Ranking]:
        passages, folder = self._vectors("passages"), self.place.rankings[self.model]
        for number, queries in enumerate(self._vectors("queries")):
            scores, target = (folder / f"{name}-{number:07d}.npy" for name in ("scores", "numbers"))
            yield _Ranking(queries, passages, ranks, scores, target)

    def _vectors(self, kind: str) -> tuple[Path, ...]:
        shards = -(-self.sizes[kind] // TEXTS_PER_SHARD)
        return tuple(self.place.vectors[self.model] / f"{kind}-{number:07d}.npy" for number in range(shards))


def _each_once(units: Iterable[Iterable[Any]]) -> list[Any]:
    """All units; each target once, although a model may be named twice."""
    return list({unit.target: unit for some in units for unit in some}.values())


class _Embedder:
    """``embedder(unit)`` writes the unit's vectors. It holds one model at a time: units come model by model."""

    def __init__(self, task: MineTask) -> None:
        _use_threads(task.pool.bundle.cpus)
        self._task = task
        self._held: tuple[int, Encoder] | None = None

    def __call__(self, unit: _Embedding) -> None:
        texts = read_texts(unit.texts).to_pylist()
        encoder = self._encoder(unit.model)
        _save(unit.target, encoder.encode(texts, prompt=unit.prompt, chunk_tokens=self._task.chunk_tokens))

    def _encoder(self, model: int) -> Encoder:
        from boom_ray.base import resolve_base
        from boom_ray.encoder import Encoder

        if self._held is None or self._held[0] != model:
            self._held = None  # first, so that two are never held
            try:
                self._held = (model, Encoder.load(resolve_base(self._task.settings.models[model], None)))
            except BoomError as error:
                raise BoomError(f"corpus.mine.models: {error}") from None
        return self._held[1]


class _Ranker:
    """``ranker(unit)`` writes the unit's window of ranks."""

    def __init__(self, task: MineTask) -> None:
        _use_threads(task.pool.bundle.cpus)

    def __call__(self, unit: _Ranking) -> None:
        first, end = unit.ranks
        numbers, scores = nearest(np.load(unit.queries), Matrix(unit.passages), end)
        _save(unit.scores, scores[:, first:])
        _save(unit.target, numbers[:, first:])  # last: it says that both are there


def _use_threads(threads: int) -> None:
    import torch

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the actors are the parallelism
    torch.set_num_threads(threads)


def _save(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = f"{file}.{uuid.uuid4().hex[:8]}.tmp"  # a worker of a killed run may still be at the same shard
    with open(temporary, "wb") as stream:
        np.save(stream, array)
    os.replace(temporary, file)


def _progress(say: Say, what: str) -> Callable[[int, int], None]:
    """Says how far a long stage is, now and then."""
    last = time.monotonic()

    def tick(done: int, of: int) -> None:
        nonlocal last
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"  {what}: {done} of {of}")

    return tick


def _total(places: Iterable[MinedDataset], per_shard: Iterable[Counts]) -> Counts:
    total = {place.name: dict.fromkeys(COUNTS, 0) for place in places}
    for counts in per_shard:
        for dataset, numbers in counts.items():
            for name, number in numbers.items():
                total[dataset][name] += number
    return total


def _write_rest(task: MineTask, counts: Counts, out: Path) -> None:
    """The files of the corpus that mining leaves as they are, and what it did."""
    for file in task.corpus.iterdir():
        if file.is_dir():
            shutil.copytree(file, out / file.name)
        elif file.name != "manifest.json" and not file.name.startswith("rows-"):
            shutil.copy(file, out / file.name)
    mined = {"settings": task.settings.model_dump(mode="json"), "models": task.digests, "datasets": counts}
    (out / "mined.json").write_text(json.dumps(mined, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
