"""Tasks of mteb's other types, in memory and larger than mteb's own mocks, as its registry would bring them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from datasets import Dataset, DatasetDict
from mteb import abstasks as kinds
from mteb._evaluators.retrieval_metrics import evaluate_p_mrr_change, max_over_subqueries
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.aggregate_task_metadata import AggregateTaskMetadata
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.abstasks.task_metadata import TaskMetadata
from small_sets import sentence

LABELS = ("red", "blue", "old")


def rows(seed: int, count: int, make: Callable[[random.Random, int], Mapping[str, Any]]) -> Dataset:
    rng = random.Random(seed)
    return Dataset.from_list([dict(make(rng, i)) for i in range(count)])


def _text(rng: random.Random, i: int) -> dict[str, Any]:
    return {"text": f"{sentence(rng)} {LABELS[i % 3]}cat", "label": i % 3}


def _pair(rng: random.Random, i: int) -> dict[str, Any]:
    first = sentence(rng)
    return {
        "sentence1": first,
        "sentence2": first + " redcat" if i % 3 == 0 else sentence(rng),
        "labels": int(i % 3 == 0),
    }


def _parallel(rng: random.Random, i: int) -> dict[str, Any]:
    first = sentence(rng)
    return {"sentence1": first, "sentence2": f"{first} {sentence(rng)}"}


def _many_labels(rng: random.Random, i: int) -> dict[str, Any]:
    chosen = [n for n in range(3) if rng.random() < 0.5] or [i % 3]
    return {"text": " ".join(f"{LABELS[n]}cat" for n in chosen) + " " + sentence(rng, 3), "label": chosen}


def _tree(rng: random.Random, i: int) -> dict[str, Any]:
    labels = [LABELS[i % 3], f"{LABELS[i % 3]}-{i % 2}"]
    return {"sentences": f"{LABELS[i % 3]}cat {'bigtown' if i % 2 else 'oldsong'} {sentence(rng)}", "labels": labels}


def _sets(rng: random.Random, i: int) -> dict[str, Any]:
    texts = [f"{LABELS[n % 3]}cat {sentence(rng)}" for n in range(24)]
    return {"sentences": texts, "labels": [n % 3 if i else 0 for n in range(24)]}


def _summaries(rng: random.Random, i: int) -> dict[str, Any]:
    human = [sentence(rng) for _ in range(2)]
    machine = [" ".join([human[0], *[sentence(rng)] * n]) for n in range(5)]
    return {"text": sentence(rng), "human_summaries": human, "machine_summaries": machine, "relevance": [5, 4, 3, 3, 1]}


def _value(rng: random.Random, i: int) -> dict[str, Any]:
    return {"text": f"{sentence(rng)} {LABELS[i % 3]}cat", "value": float(i % 3)}


def _search(seed: int, metric: str) -> Any:
    rng = random.Random(seed)
    documents = [{"id": f"d{i}", "title": "note" if i % 3 else "", "text": sentence(rng)} for i in range(40)]
    queries = [{"id": f"q{i}", "text": sentence(rng, 4)} for i in range(12)]
    relevant = {f"q{i}": {f"d{(3 * i + k) % 40}": 1 for k in range(1 + i % 2)} for i in range(12)}
    ranked = (
        {f"q{i}": [f"d{(3 * i + k) % 40}" for k in range(6)] for i in range(12)} if metric.startswith("map") else None
    )
    return {
        "corpus": Dataset.from_list(documents),
        "queries": Dataset.from_list(queries),
        "relevant_docs": relevant,
        "top_ranked": ranked,
    }


def _task(base: Any, kind: str, metric: str, data: Callable[[], Any], **own: Any) -> type[AbsTask]:
    """A task class of mteb's over data in memory; ``langs`` makes it one of several subsets."""
    name = f"Tiny{kind}{metric.title().replace('_', '').replace('-', '')}" + ("Langs" if "langs" in own else "")
    langs = own.pop("langs", ["eng-Latn"])
    metadata = TaskMetadata(
        name=name, description=name, type=kind, category="t2t", main_score=metric, eval_splits=["test"],
        eval_langs=langs, dataset={"path": "lab/tiny", "revision": "1234abcd"}, modalities=["text"],
    )  # fmt: skip

    def load_data(self: Any, **_: Any) -> None:
        if not self.data_loaded:
            self.dataset = {lang: data() for lang in langs} if isinstance(langs, dict) else data()
            self.data_loaded = True

    few = {"n_experiments": 3} if issubclass(base, kinds.AbsTaskClassification) else {}  # each takes mteb 0.1 s
    return type(name, (base,), {"metadata": metadata, "load_data": load_data, **few, **own})


def _both(make: Callable[[random.Random, int], Mapping[str, Any]], train: int, test: int) -> Callable[[], DatasetDict]:
    return lambda: DatasetDict({"train": rows(1, train, make), "test": rows(2, test, make)})


def _only(make: Callable[[random.Random, int], Mapping[str, Any]], count: int) -> Callable[[], DatasetDict]:
    return lambda: DatasetDict({"test": rows(3, count, make)})


TWO = {"eng": ["eng-Latn"], "fra": ["fra-Latn"]}
TASKS: list[type[AbsTask]] = [
    _task(kinds.AbsTaskRetrieval, "Retrieval", "ndcg_at_10", lambda: {"default": {"test": _search(5, "ndcg")}}),
    _task(kinds.AbsTaskRetrieval, "Retrieval", "mrr_at_10", lambda: {"default": {"test": _search(6, "mrr")}}),
    _task(kinds.AbsTaskRetrieval, "Reranking", "map_at_1000", lambda: {"default": {"test": _search(7, "map")}}),
    _task(kinds.AbsTaskClassification, "Classification", "accuracy", _both(_text, 45, 45), langs=TWO),
    _task(kinds.AbsTaskClassification, "Classification", "f1", _both(_text, 45, 45)),
    _task(kinds.AbsTaskMultilabelClassification, "MultilabelClassification", "lrap", _both(_many_labels, 60, 50)),
    _task(kinds.AbsTaskMultilabelClassification, "MultilabelClassification", "accuracy", _both(_many_labels, 60, 50)),
    _task(kinds.AbsTaskMultilabelClassification, "MultilabelClassification", "f1", _both(_many_labels, 60, 50)),
    _task(
        kinds.AbsTaskClustering, "Clustering", "v_measure", _only(_tree, 120),
        max_fraction_of_documents_to_embed=0.5, max_documents_per_cluster=200, n_clusters=4,
    ),
    _task(kinds.AbsTaskClusteringLegacy, "Clustering", "v_measure", _only(_sets, 3), langs=TWO),
    _task(kinds.AbsTaskPairClassification, "PairClassification", "max_ap", _only(_pair, 60)),
    _task(kinds.AbsTaskPairClassification, "PairClassification", "similarity_accuracy", _only(_pair, 60)),
    _task(kinds.AbsTaskBitextMining, "BitextMining", "f1", _only(_parallel, 40)),
    _task(
        kinds.AbsTaskSummarization, "Summarization", "cosine_spearman", _only(_summaries, 6), min_score=0, max_score=5
    ),
    _task(kinds.AbsTaskRegression, "Regression", "kendalltau", _both(_value, 45, 45)),
]  # fmt: skip


class TinyMerged(kinds.AbsTaskRetrieval):
    """As MindSmallReranking: queries in parts, merged by each document's best score."""

    metadata = TaskMetadata(
        name="TinyMerged", description="parts", type="Reranking", category="t2t", eval_splits=["test"],
        main_score="max_over_subqueries_map_at_1000", eval_langs=["eng-Latn"], modalities=["text"],
        dataset={"path": "lab/tiny", "revision": "1234abcd"},
    )  # fmt: skip

    def load_data(self, **_: Any) -> None:
        data = _search(9, "map")
        names = {f"q{i}": f"U{i // 3}_{i}" for i in range(12)}
        together = {f"q{i}": {f"d{9 * (i // 3)}": 1} for i in range(12)}
        data["queries"] = data["queries"].map(lambda row: {**row, "id": names[row["id"]]})
        data["relevant_docs"] = {names[q]: found for q, found in together.items()}
        data["top_ranked"] = {names[q]: [*found, *together[q]] for q, found in data["top_ranked"].items()}
        self.dataset, self.data_loaded = {"default": {"test": data}}, True

    def task_specific_scores(self, scores: Any, qrels: Any, results: Any, **_: Any) -> Any:
        return max_over_subqueries(qrels, results, self.k_values)


class TinyFollows(kinds.AbsTaskRetrieval):
    """As FollowIR: each query twice, with an instruction and with one that makes some documents irrelevant."""

    metadata = TaskMetadata(
        name="TinyFollows", description="pairs", type="InstructionReranking", category="t2t", eval_splits=["test"],
        main_score="p-MRR", eval_langs=["eng-Latn"], modalities=["text"],
        dataset={"path": "lab/tiny", "revision": "1234abcd"},
    )  # fmt: skip

    def load_data(self, **_: Any) -> None:
        data, ways = _search(11, "map"), {"og": LABELS[0], "changed": LABELS[1]}
        rows = [
            {"id": f"{q['id']}-{way}", "text": f"{q['text']} {w}"} for q in data["queries"] for way, w in ways.items()
        ]
        data["queries"] = Dataset.from_list(rows)
        for part in ("relevant_docs", "top_ranked"):
            data[part] = {f"{query}-{way}": found for query, found in data[part].items() for way in ways}
        self.dataset, self.data_loaded = {"default": {"test": data}}, True

    def task_specific_scores(self, scores: Any, qrels: Any, results: Any, **_: Any) -> Any:
        changed = {f"q{i}": [f"d{(3 * i + k) % 40}" for k in range(1 + i % 3)] for i in range(12)}
        return evaluate_p_mrr_change(qrels, results, changed, self.k_values)


class TinyAggregate(AbsTaskAggregate):
    metadata = AggregateTaskMetadata(
        name="TinyAggregate", description="two", type="Retrieval", main_score="ndcg_at_10", eval_splits=["test"],
        tasks=[TASKS[0](), TASKS[2]()],
    )  # fmt: skip
