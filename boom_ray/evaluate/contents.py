"""What a task holds, subset by subset: the texts that a model is scored on, as it reads them.

A task is an mteb task that has been built, local or of mteb's registry. Splits come first, then subsets, as mteb scores
them; queries are in the order of their ids and rows in that of the split, as scores per unit are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boom_ray.config import BoomError

_SUMMARIES = ("machine_summaries_column_name", "human_summaries_column_name")


@dataclass(frozen=True)
class Search:
    """A subset of a retrieval task.

    Attributes:
        metadata: mteb's, which prompts are chosen by.
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


def contents(task: Any) -> Iterator[Search | Rows]:
    """Load a task and go through its splits and subsets; the data are unloaded at the end.

    Raises:
        BoomError: the task scores something else than text.
    """
    if parts := getattr(task, "tasks", None):  # a task that is the mean of others
        for part in parts:
            yield from contents(part)
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
