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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from boom_ray.config import BoomError, Mine
from boom_ray.data.mining_rows import COUNTS, MinedDataset, write_shard
from boom_ray.data.mining_search import Matrix, nearest
from boom_ray.data.mining_texts import KINDS, TEXTS_PER_SHARD, read_texts, row_shards, text_shard, write_index
from boom_ray.resources import Bundle

if TYPE_CHECKING:
    from boom_ray.encoder import Encoder

_MINED_TYPES = ("retrieval", "reranking")  # unless the recipe names datasets
_BLOCKS = 64  # parts of a stage that actors ask for: enough to share unequal ones evenly
_SECONDS_BETWEEN_LINES = 30.0

Counts = dict[str, dict[str, int]]
Say = Callable[[str], None]
Work = Callable[[Any], Any]


@dataclass(frozen=True)
class MineTask:
    """What to mine, with what, and where.

    Attributes:
        corpus: a corpus artifact.
        scratch: a folder for this corpus that all nodes share; what it holds stays valid under other settings.
        settings: of the recipe; ``models`` are directories or hub names.
        digests: names of the models' contents, in their order.
        chunk_tokens: as ``Encoder.encode``.
        actors: how many at once; ``bundle`` is what each takes.
    """

    corpus: Path
    scratch: Path
    settings: Mine
    digests: tuple[str, ...]
    chunk_tokens: int
    actors: int
    bundle: Bundle


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
    sizes = _on_actors(task, partial(_ready, partial(_index, task.corpus)), plain, _progress(say, "datasets numbered"))
    for number, model in enumerate(task.settings.models):
        texts = [_Texts(p, e, s, number) for p, e, s in zip(places, entries.values(), sizes, strict=True)]
        label = f"{model} ({number + 1} of {len(task.settings.models)}):"
        todo = [unit for t in texts for unit in t.embeddings() if not unit.target.is_file()]
        _on_actors(task, partial(_Embedder, model, task), todo, _progress(say, f"{label} shards of texts embedded"))
        ranks = [unit for t in texts for unit in t.rankings(task.settings.ranks) if not unit.numbers.is_file()]
        _on_actors(task, partial(_ready, _rank), ranks, _progress(say, f"{label} shards of queries ranked"))
    write = partial(write_shard, datasets=places, settings=task.settings, out=out)
    written = _on_actors(task, partial(_ready, write), row_shards(task.corpus), _progress(say, "row shards written"))
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
        if known[name].get("loss", "cosent" if known[name]["task_type"] == "sts" else "") == "cosent":
            raise BoomError(f"corpus.mine.datasets: '{name}' is trained on scores (cosent), which takes no negatives.")
    wanted = settings.datasets or [name for name, e in known.items() if e["task_type"] in _MINED_TYPES]
    if not wanted:
        raise BoomError(
            f"corpus.mine: no dataset of the corpus has task type {' or '.join(_MINED_TYPES)}. "
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
    """A shard of texts to embed."""

    texts: Path
    prompt: str
    target: Path


@dataclass(frozen=True)
class _Ranking:
    """A shard of queries to rank passages for."""

    queries: Path
    passages: tuple[Path, ...]
    ranks: tuple[int, int]
    numbers: Path
    scores: Path


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
                yield _Embedding(text_shard(self.place.texts, kind, number), self.entry["instruction"][role], target)

    def rankings(self, ranks: tuple[int, int]) -> Iterator[_Ranking]:
        passages, folder = self._vectors("passages"), self.place.rankings[self.model]
        for number, queries in enumerate(self._vectors("queries")):
            yield _Ranking(
                queries, passages, ranks, folder / f"numbers-{number:05d}.npy", folder / f"scores-{number:05d}.npy"
            )

    def _vectors(self, kind: str) -> tuple[Path, ...]:
        shards = -(-self.sizes[kind] // TEXTS_PER_SHARD)
        return tuple(self.place.vectors[self.model] / f"{kind}-{number:05d}.npy" for number in range(shards))


class _Embedder:
    """One actor's model; ``embedder(unit)`` writes the unit's vectors."""

    def __init__(self, model: str, task: MineTask) -> None:
        from boom_ray.base import resolve_base
        from boom_ray.encoder import Encoder

        self._encoder: Encoder = Encoder.load(resolve_base(model, None))
        self._chunk_tokens = task.chunk_tokens

    def __call__(self, unit: _Embedding) -> None:
        texts = read_texts(unit.texts).to_pylist()
        _save(unit.target, self._encoder.encode(texts, prompt=unit.prompt, chunk_tokens=self._chunk_tokens))


def _rank(unit: _Ranking) -> None:
    first, end = unit.ranks
    numbers, scores = nearest(np.load(unit.queries), Matrix(unit.passages), end)
    _save(unit.scores, scores[:, first:])
    _save(unit.numbers, numbers[:, first:])  # last: it says that both are there


def _save(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{file}.tmp", "wb") as stream:
        np.save(stream, array)
    os.replace(f"{file}.tmp", file)


def _ready(work: Work) -> Work:
    return work


class _Actor:
    """Does units of a stage; a user's mistake comes back as a value, because Ray wraps what is raised."""

    def __init__(self, make: Callable[[], Work], items: Sequence[Any], threads: int) -> None:
        import torch

        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the actors are the parallelism
        torch.set_num_threads(threads)
        self._make, self._items = make, items
        self._work: Work | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            self._work = self._work or self._make()
            result, mistake = self._work(self._items[row["index"]]), ""
        except BoomError as error:
            result, mistake = None, str(error)
        return {"index": row["index"], "result": json.dumps(result), "mistake": mistake}


def _on_actors(
    task: MineTask, make: Callable[[], Work], items: Sequence[Any], tick: Callable[[int, int], None]
) -> list[Any]:
    """What the work that ``make()`` gives returns for each item, in their order; ``tick(done, all)`` along the way."""
    if not items:
        return []
    import ray.data

    actors = min(task.actors, len(items))
    blocks = np.array_split(np.arange(len(items)), min(len(items), max(_BLOCKS, 4 * actors)))
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    results: dict[int, Any] = {}
    with ray.data.DataContext.current(context):
        stream = ray.data.from_arrow([pa.table({"index": block}) for block in blocks]).map(
            _Actor,
            fn_constructor_args=(make, items, task.bundle.cpus),
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
            num_cpus=task.bundle.cpus,
            num_gpus=task.bundle.gpus,
        )
        for row in stream.iter_rows():
            if row["mistake"]:
                raise BoomError(f"corpus.mine: {row['mistake']}")
            results[row["index"]] = json.loads(row["result"])
            tick(len(results), len(items))
    return [results[index] for index in range(len(items))]


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
        elif file.name != "manifest.json" and file.suffix != ".arrow":
            shutil.copy(file, out / file.name)
    mined = {"settings": task.settings.model_dump(mode="json"), "models": task.digests, "datasets": counts}
    (out / "mined.json").write_text(json.dumps(mined, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
