"""What an evaluation set holds, subset by subset: the texts that a model is scored on, as it reads them.

Splits come first, then subsets, as mteb scores them; queries are in the order of their ids and rows in that of the
split, as scores per unit are kept. A local set is read without mteb.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from boom_ray.config import BoomError
from boom_ray.evaluate.rows import Document, cap_retrieval, cap_rows, read_labelled, read_pairs, read_retrieval
from boom_ray.evaluate.sets import EvalSet
from boom_ray.evaluate.settings import mteb_type

_SUMMARIES = ("machine_summaries_column_name", "human_summaries_column_name")


@dataclass(frozen=True)
class Search:
    """A subset of a retrieval task.

    Attributes:
        metadata: which prompts are chosen by: mteb's, or name and type of the task alone.
        queries: text by id, sorted by id; every query has a relevant document.
        relevant: score by document and query; above 0 is relevant.
        corpus: mteb's table of documents, read in blocks.
        skips_itself: a document that has the query's own id is no answer.
    """

    name: str
    metadata: Any
    queries: Mapping[str, str]
    relevant: Mapping[str, Mapping[str, int]]
    corpus: Any
    skips_itself: bool = False

    def __len__(self) -> int:
        return len(self.corpus)

    def blocks(self, size: int) -> Iterator[tuple[list[str], list[str], list[str]]]:
        """``(ids, texts, bodies)`` of at most ``size`` documents; a text is title and body joined, as in mteb."""
        for start in range(0, len(self.corpus), size):
            block = self.corpus[start : start + size]
            bodies = block["text"]
            titles = block.get("title") or [""] * len(bodies)
            texts = [f"{a} {b}".strip() if a else b.strip() for a, b in zip(titles, bodies, strict=True)]
            yield [str(key) for key in block["id"]], texts, bodies


@dataclass(frozen=True)
class Rows:
    """A subset of any other task: the texts of every scored row (one of a labelled row, two of a pair)."""

    name: str
    metadata: Any
    rows: Sequence[tuple[str, ...]]

    def texts(self) -> list[str]:
        """Every distinct text, in order."""
        return list(dict.fromkeys(text for row in self.rows for text in row))


def contents(entry: EvalSet) -> Iterator[Search | Rows]:
    """The splits and subsets of a set, cut to its cap.

    Raises:
        BoomError: a bad row, or a task that scores something else than text.
    """
    if entry.path is not None:
        yield _local(entry)
    else:
        from boom_ray.evaluate.tasks import build_task

        yield from task_contents(build_task(entry))


def task_contents(task: Any) -> Iterator[Search | Rows]:
    """Load an mteb task and go through its splits and subsets; the data are unloaded at the end.

    Raises:
        BoomError: the task scores something else than text.
    """
    if parts := getattr(task, "tasks", None):  # a task that is the mean of others
        for part in parts:
            yield from task_contents(part)
        return
    try:
        if not task.data_loaded:
            task.load_data()
        if hasattr(task, "convert_v1_dataset_format_to_v2"):
            task.convert_v1_dataset_format_to_v2(num_proc=None)
            yield from _searches(task)
        else:
            yield from _tables(task)
    finally:
        task.unload_data()


class _Documents:
    """Documents in the form of mteb's table, as far as :class:`Search` needs it."""

    def __init__(self, documents: Mapping[str, Document]) -> None:
        self._ids, self._documents = list(documents), list(documents.values())

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, part: slice) -> dict[str, list[str]]:
        there = self._documents[part]
        return {"id": self._ids[part], "title": [d.title for d in there], "text": [d.text for d in there]}


def _local(entry: EvalSet) -> Search | Rows:
    metadata, cap = SimpleNamespace(name=entry.name, type=mteb_type(entry.task_type)), entry.cap
    if entry.task_type in ("retrieval", "reranking"):
        data = read_retrieval(entry.folder, reranking=entry.task_type == "reranking")
        data = data if cap is None else cap_retrieval(data, cap)
        queries = dict(sorted(data.queries.items()))
        relevant = {key: data.relevant[key] for key in queries}
        return Search(entry.parts[0], metadata, queries, relevant, _Documents(data.documents))
    if entry.task_type == "sts":
        pairs = read_pairs(entry.folder)
        rows: list[tuple[str, ...]] = list(zip(pairs.first, pairs.second, strict=True))
        kept = None if cap is None else cap_rows((f"{a}\0{b}" for a, b in rows), cap // 2)
    else:
        texts = read_labelled(entry.folder, "test").texts
        rows = [(text,) for text in texts]
        kept = None if cap is None else cap_rows(texts, cap)
    return Rows(entry.parts[0], metadata, rows if kept is None else [rows[i] for i in kept])


def _searches(task: Any) -> Iterator[Search]:
    for split in task.eval_splits:
        for subset in task.hf_subsets:
            data = task.dataset[subset][split]
            relevant = {str(query): found for query, found in data["relevant_docs"].items()}
            texts = _query_texts(data["queries"])
            answered = sorted(key for key in texts if any(score > 0 for score in relevant.get(key, {}).values()))
            yield Search(
                f"{split}/{subset}",
                task.metadata,
                {key: texts[key] for key in answered},
                {key: relevant[key] for key in answered},
                data["corpus"],
                bool(task.ignore_identical_ids),
            )


def _query_texts(queries: Any) -> dict[str, str]:
    """As mteb reads them: an instruction follows its query, and goes before a conversation."""
    instructions = queries["instruction"] if "instruction" in queries.column_names else [None] * len(queries)
    found = {}
    for key, text, instruction in zip(queries["id"], queries["text"], instructions, strict=True):
        if isinstance(text, str):
            found[str(key)] = text if instruction is None else f"{text} {instruction}"
        else:
            turns = "; ".join(turn if isinstance(turn, str) else f"{turn['role']}: {turn['content']}" for turn in text)
            found[str(key)] = turns if instruction is None else f"{instruction} {turns}"
    return found


def _tables(task: Any) -> Iterator[Rows]:
    for split in task.eval_splits:
        for subset in task.hf_subsets:
            whole = subset not in task.dataset and (subset == "default" or getattr(task, "parallel_subsets", False))
            table = task.dataset[split] if whole else task.dataset[subset][split]
            yield Rows(f"{split}/{subset}", task.metadata, _rows(table, _columns(task, subset)))


def _columns(task: Any, subset: str) -> list[str]:
    if getattr(task, "parallel_subsets", False):
        return subset.split("-")
    columns = [name for name, modality in task._get_content_columns().items() if modality == "text"]
    columns += [str(getattr(task, name)) for name in _SUMMARIES if hasattr(task, name)]
    if not columns:
        raise BoomError(f"task {task.metadata.name} holds no text columns: only tasks on text can be looked into.")
    return columns


def _rows(table: Any, columns: Sequence[str]) -> list[tuple[str, ...]]:
    values = [table[name] for name in columns]
    if len(table) == 1 and all(isinstance(column[0], list) for column in values):
        values = [column[0] for column in values]  # mteb's first layout: all pairs in one row
    return [tuple(_flat(cells)) for cells in zip(*values, strict=True)]


def _flat(cells: Sequence[Any]) -> Iterator[str]:
    for cell in cells:
        if isinstance(cell, str):
            yield cell
        elif isinstance(cell, list | tuple):
            yield from _flat(cell)
