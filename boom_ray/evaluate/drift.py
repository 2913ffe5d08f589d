"""Drift between two versions of a model: what becomes of an index of old vectors when the new model asks.

Texts are encoded by both models in blocks, an index streams past its queries, and nothing is kept but cosines, the best
ten of each query and the vectors of the queries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from boom_ray.config import BoomError
from boom_ray.evaluate.contents import Search, contents
from boom_ray.evaluate.drift_search import Subject, measure
from boom_ray.evaluate.drift_verdict import Drift
from boom_ray.evaluate.sets import EvalSet, precision_of


@dataclass(frozen=True)
class DriftOptions:
    """``queries``: texts at most that ask, where a set has no queries of its own; ``block``: documents at once."""

    queries: int = 1000
    block: int = 2048
    chunk_tokens: int = 16384


def drift(
    old: str | Path,
    new: str | Path,
    sets: Sequence[EvalSet] = (),
    texts: Mapping[str, Sequence[str]] | None = None,
    options: DriftOptions | None = None,
) -> Drift:
    """Compare two versions of a model on evaluation sets and on plain texts.

    A retrieval or reranking set is searched by its queries, over all its documents. Elsewhere, and in plain texts,
    texts that a hash chooses ask for their neighbours among all texts, themselves left out.

    Args:
        old, new: model directories.
        sets: entries with their caps, and the precision that both models compute in.
        texts: plain texts by name.

    Raises:
        BoomError: nothing to compare on, a subject of fewer than two texts, or a model or set that cannot be read.
    """
    options = options or DriftOptions()
    models = [_Model(Path(model), options.chunk_tokens, precision_of(sets)) for model in (old, new)]
    found = []
    for subject, task in _subjects(sets, texts or {}, options.queries):
        first, second = (partial(model.embed, task) for model in models)
        found.append(measure(subject, first, second, options.block))
    if not found:
        raise BoomError("there is nothing to compare the models on: give evaluation sets or texts.")
    return Drift(str(old), str(new), tuple(found))


@dataclass(frozen=True)
class _Task:
    """What prompts are chosen by: mteb's metadata (name and type) and what was asked for on top."""

    metadata: Any
    prompts: tuple[tuple[str, str], ...] = ()


def _subjects(
    sets: Sequence[EvalSet], texts: Mapping[str, Sequence[str]], queries: int
) -> Iterator[tuple[Subject, _Task]]:
    for entry in sets:
        for part in contents(entry):
            name = entry.name if len(entry.parts) == 1 else f"{entry.name} {part.name}"
            task = _Task(part.metadata, entry.prompts)
            yield searched(name, part) if isinstance(part, Search) else neighbours(name, part.texts(), queries), task
    for name, plain in texts.items():
        distinct = list(dict.fromkeys(plain))
        task = _Task(SimpleNamespace(name=name, type="Retrieval"))  # plain texts are somebody's index
        yield neighbours(name, distinct, queries, sides=("query", "document")), task


def searched(name: str, search: Search) -> Subject:
    """A retrieval subset, by its own queries."""

    def blocks(size: int) -> Iterator[tuple[list[str], list[str]]]:
        yield from ((ids, texts) for ids, texts, _ in search.blocks(size))

    own = [key if search.skips_itself else None for key in search.queries]
    sides = ("query", "document")
    return Subject(name, list(search.queries.values()), blocks, list(search.relevant.values()), own, sides)


def neighbours(name: str, texts: Sequence[str], most: int, sides: tuple[str, str] = ("", "")) -> Subject:
    """Distinct texts as an index, and ``most`` of them, the lowest by a hash, as queries for their neighbours.

    Raises:
        BoomError: fewer than two texts.
    """
    if len(texts) < 2:
        raise BoomError(f"'{name}' has {len(texts)} distinct texts: at least two are needed to look for neighbours.")
    order = sorted(range(len(texts)), key=lambda i: hashlib.blake2b(texts[i].encode(), digest_size=16).digest())
    asking = sorted(order[:most])

    def blocks(size: int) -> Iterator[tuple[list[str], Sequence[str]]]:
        for start in range(0, len(texts), size):
            yield [str(i) for i in range(start, min(start + size, len(texts)))], texts[start : start + size]

    return Subject(name, [texts[i] for i in asking], blocks, None, [str(i) for i in asking], sides)


class _Model:
    """A model directory that embeds texts with the prompts that mteb would put before them."""

    def __init__(self, directory: Path, chunk_tokens: int, precision: str) -> None:
        if not directory.is_dir():
            raise BoomError(f"model {directory} is not a directory.")
        from boom_ray.encoder import Encoder
        from boom_ray.evaluate.packing import pack
        from boom_ray.evaluate.results import model_meta
        from boom_ray.evaluate.vectors import MtebEncoder, default_prompt

        encoder = Encoder.load(directory)
        pack(encoder.backbone, precision)
        meta = model_meta(directory, None, "drift", ())  # a name for messages: nothing is kept under it
        once = partial(_encode, encoder, chunk_tokens)  # each text comes once: a cache would only take memory
        self._adapter = MtebEncoder(encoder, meta, chunk_tokens, default_prompt(directory), vectors=once)

    def embed(self, task: _Task, texts: Sequence[str], side: str) -> np.ndarray:
        """Unit vectors of texts of a task."""
        from mteb.types import PromptType

        self._adapter.asked_prompts = dict(task.prompts)
        inputs = SimpleNamespace(dataset={"text": list(texts)})
        side_of_mteb = PromptType(side) if side else None
        return self._adapter.encode(inputs, task_metadata=task.metadata, prompt_type=side_of_mteb)


def _encode(encoder: Any, chunk_tokens: int, texts: Sequence[str], prompt: str) -> np.ndarray:
    return np.asarray(encoder.encode(texts, prompt=prompt, chunk_tokens=chunk_tokens))
