"""A cap on a task of mteb's registry: the same texts for every model, chosen by a hash of the text.

The cap holds for each split and subset. What is cut and how follows the type of task (docs/evaluation.md); where no
rule makes sense, the cap is refused by the task's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from boom_ray.config import BoomError
from boom_ray.evaluate.rows import Document, Retrieval, cap_retrieval, cap_rows, hash_order


def refuse_caps(tasks: Iterable[Any]) -> None:
    """Say which of these tasks cannot be cut, before anything runs.

    Raises:
        BoomError: at least one; all are named.
    """
    wrong = {}
    for task in tasks:
        try:
            _rule(task)
        except BoomError:
            wrong[task.metadata.name] = task.metadata.type
    if wrong:
        shown = ", ".join(f"'{name}' ({kind})" for name, kind in wrong.items())
        raise BoomError(f"{shown} cannot be cut to a cap: texts belong together. Give cap NAME=none, or leave it out.")


def cut(task: Any, cap: int) -> None:
    """Cut a task's loaded data in place.

    Raises:
        BoomError: a type of task that cannot be cut, or a cap that leaves nothing.
    """
    rule = _rule(task)
    if rule is _cut_retrieval:
        task.convert_v1_dataset_format_to_v2(num_proc=None)
    for holder, split in _splits(task):
        holder[split] = rule(task, holder[split], cap)


def _rule(task: Any) -> Callable[[Any, Any, int], Any]:
    from mteb import abstasks as kinds
    from mteb.abstasks.text.bitext_mining import AbsTaskBitextMining
    from mteb.abstasks.text.summarization import AbsTaskSummarization

    per_query = re.fullmatch(
        r"(max_over_subqueries_)?(ndcg|map|recall|precision|mrr|hit_rate)_at_\d+", task.metadata.main_score
    )
    if isinstance(task, kinds.AbsTaskRetrieval) and per_query:  # p-MRR and the like compare queries with one another
        return _cut_retrieval
    if isinstance(task, kinds.AbsTaskSTS | kinds.AbsTaskPairClassification):
        return _cut_pairs
    if isinstance(task, AbsTaskBitextMining):
        return _cut_parallel
    if isinstance(task, AbsTaskSummarization):
        return _cut_summaries
    if isinstance(task, kinds.AbsTaskClassification | kinds.AbsTaskClustering):  # multilabel and regression among them
        return _cut_texts
    raise BoomError(
        f"task '{task.metadata.name}' ({task.metadata.type}) cannot be cut to a cap: its texts belong together. "
        "Give it cap: null, or leave it out."
    )


def _splits(task: Any) -> Iterable[tuple[Any, str]]:
    """(what holds the split, its name) of every split that is scored."""
    for subset in ("default",) if getattr(task, "parallel_subsets", False) else task.hf_subsets:
        holder = task.dataset.get(subset, task.dataset)
        yield from ((holder, split) for split in task.eval_splits)


def _cut_retrieval(task: Any, data: Any, cap: int) -> Any:
    """Whole queries with their documents, then other documents: see :func:`boom_ray.evaluate.rows.cap_retrieval`."""
    queries = dict(zip(data["queries"]["id"], map(str, data["queries"]["text"]), strict=True))
    texts, columns = data["corpus"]["text"], data["corpus"].column_names
    titles = data["corpus"]["title"] if "title" in columns else [""] * len(texts)
    rows = zip(data["corpus"]["id"], texts, titles, strict=True)
    documents = {key: Document(text or "", title or "") for key, text, title in rows}
    known = {q: {d: s for d, s in data["relevant_docs"].get(q, {}).items() if d in documents} for q in queries}
    answered = {q: text for q, text in queries.items() if any(score > 0 for score in known[q].values())}
    listed = data["top_ranked"]
    candidates = listed and {q: tuple(d for d in listed.get(q, ()) if d in documents) for q in answered}
    kept = cap_retrieval(Retrieval(answered, documents, {q: known[q] for q in answered}, candidates or None), cap)
    return {
        "queries": data["queries"].select([i for i, q in enumerate(data["queries"]["id"]) if q in kept.queries]),
        "corpus": data["corpus"].select([i for i, d in enumerate(data["corpus"]["id"]) if d in kept.documents]),
        "relevant_docs": {q: dict(found) for q, found in kept.relevant.items()},
        "top_ranked": None if kept.candidates is None else {q: list(found) for q, found in kept.candidates.items()},
    }


def _cut_texts(task: Any, rows: Any, cap: int) -> Any:
    """Rows of one text: those that are scored, not the training texts of a classifier."""
    column = task.input_column_name
    if not isinstance(column, str) or getattr(task, "is_cross_validation", False):
        raise BoomError(f"task '{task.metadata.name}' cannot be cut to a cap: give it cap: null, or leave it out.")
    if hasattr(task, "max_fraction_of_documents_to_embed"):  # all that the cap leaves is embedded
        task.max_fraction_of_documents_to_embed = task.max_document_to_embed = None
    return rows.select(cap_rows(map(str, rows[column]), cap))


def _cut_pairs(task: Any, rows: Any, cap: int) -> Any:
    """Rows of two texts, both counted."""
    from datasets import Dataset

    if len(rows) == 1 and isinstance(rows[0].get(getattr(task, "label_column_name", "score")), list):
        rows = Dataset.from_dict(rows[0])  # mteb's first format: all pairs in one row
    names = getattr(task, "column_names", None) or (task.input1_column_name, task.input2_column_name)
    both = zip(rows[names[0]], rows[names[1]], strict=True)
    return rows.select(cap_rows((f"{a}\0{b}" for a, b in both), cap // 2))


def _cut_parallel(task: Any, rows: Any, cap: int) -> Any:
    """Rows of a sentence and its translations; two sentences a row are counted, as many as one direction scores."""
    if isinstance(rows, dict):
        raise BoomError(f"task '{task.metadata.name}' cannot be cut to a cap: give it cap: null, or leave it out.")
    first = sorted(rows.column_names)[0] if task.parallel_subsets else "sentence1"
    return rows.select(cap_rows(map(str, rows[first]), cap // 2))


def _cut_summaries(task: Any, rows: Any, cap: int) -> Any:
    """Whole documents with all their summaries, at least two."""
    columns = (task.human_summaries_column_name, task.machine_summaries_column_name)
    sizes = [sum(len(row[column]) for column in columns) for row in rows]
    kept, texts = [], 0
    for row in hash_order(dict(enumerate(map(str, rows[task.text_column_name])))):
        if texts + sizes[row] > cap:
            break
        texts += sizes[row]
        kept.append(row)
    if len(kept) < 2:
        raise BoomError(f"a cap of {cap} texts leaves {len(kept)} documents of '{task.metadata.name}': raise the cap.")
    return rows.select(sorted(kept))
