"""What a score was made from, kept while mteb computes it: mixins for mteb's task classes, one for each type.

mteb hands every task's predictions to ``_save_task_predictions`` and single steps to small methods; the mixins look at
both and change nothing. :attr:`Keeping.samples` then holds units whose score is mteb's main score; of kind ``none``
where the main score is no function of units that can be drawn again.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from boom_ray.evaluate.sets import EvalSet
from boom_ray.evaluate.significance import Samples

_Task: Any = object  # the mixins stand before a subclass of mteb's AbsTask, whose methods they call by super()
_OF_QUERY = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "hit_rate": "success"}
_FOLLOWING = threading.Lock()  # one task at a time looks at what mteb computes
_MERGED = "max_over_subqueries_"
_SIMILARITIES = {
    "similarity": ("similarity_scores", 1),
    "cosine": ("cosine_scores", 1),
    "manhattan": ("manhattan_distances", -1),
    "euclidean": ("euclidean_distances", -1),
    "dot": ("dot_scores", 1),
}  # column of mteb's scores, and the sign that makes higher more alike


class Keeping(_Task):
    """Collects samples for each split and subset of a task."""

    entry: EvalSet
    kept: dict[str, Samples]

    @property
    def samples(self) -> Samples:
        """Of the whole set: mteb's score is the plain mean over its splits and subsets."""
        parts = [self.kept.get(part) for part in self.entry.parts]
        known = [part for part in parts if part is not None and part.kind != "none"]
        if len(known) < len(parts):
            return Samples("none", self.entry.text_revision, np.zeros(0))
        texts = self.entry.text_revision
        return known[0] if len(known) == 1 else Samples("parts", texts, np.zeros(0), parts=tuple(known))

    def evaluate(self, model: Any, split: str = "test", subsets_to_run: Any = None, **options: Any) -> Any:
        """As mteb's; a folder for predictions is what makes mteb show them."""
        return super().evaluate(model, split, subsets_to_run, **{**options, "prediction_folder": Path()})

    def _evaluate_subset(self, model: Any, data_split: Any, **options: Any) -> Any:
        self._part = f"{options['hf_split']}/{options['hf_subset']}"
        return super()._evaluate_subset(model, data_split, **options)

    def _save_task_predictions(self, predictions: Any, *_: Any, **where: Any) -> None:
        """mteb would write a file here."""

    def _keep(self, kind: str, values: Any, gold: Any = (), draws: Any = ()) -> None:
        texts = self.entry.text_revision
        self.kept[self._part] = Samples(kind, texts, np.asarray(values), np.asarray(gold), np.asarray(draws))

    def _rows(self, where: Mapping[str, Any]) -> Any:
        """The rows of a split and subset, as mteb's ``evaluate`` finds them."""
        subset, split = where["hf_subset"], where["hf_split"]
        return self.dataset[split] if subset not in self.dataset else self.dataset[subset][split]


class KeepsRetrieval(Keeping):
    """Retrieval and reranking: the metric of each query, queries in the order of their ids."""

    def task_specific_scores(self, scores: Any, qrels: Any, results: Any, **where: Any) -> Any:
        metric, _, k = self.entry.metric.rpartition("_at_")
        found = scores
        if metric.startswith(_MERGED):
            metric, found = metric.removeprefix(_MERGED), self._merged(qrels, results)
        queries = sorted(found)
        name = f"{_OF_QUERY.get(metric)}_{k}"
        if all(name in found[query] for query in queries):
            self._keep("mean", [found[query][name] for query in queries])
        elif metric == "mrr" and not self.skip_first_result:
            self._keep("mean", [_reciprocal_rank(results.get(q, {}), qrels[q], int(k)) for q in queries])
        if self.entry.metric == "p-MRR":
            return self._followed(scores, qrels, results, **where)
        return super().task_specific_scores(scores, qrels, results, **where)

    def _followed(self, *found: Any, **where: Any) -> Any:
        """Keeps how far each query followed; which documents its instruction changes, the task finds out on the way."""
        from mteb._evaluators import retrieval_metrics

        score = retrieval_metrics.calculate_pmrr

        def keep(before: Any, after: Any, changed: Any) -> float:
            asked = sorted(query for query in changed if f"{query}-og" in before and f"{query}-changed" in after)
            self._keep("mean", [score(before, after, {query: changed[query]}) for query in asked if changed[query]])
            return score(before, after, changed)

        with _FOLLOWING, mock.patch.object(retrieval_metrics, "calculate_pmrr", keep):
            return super().task_specific_scores(*found, **where)

    def _merged(self, qrels: Any, results: Any) -> Any:
        """Metrics of queries whose parts, ``QUERY_1``, ``QUERY_2`` ..., count as one by each document's best score."""
        from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores

        best: dict[str, dict[str, float]] = {}
        for part in qrels:
            documents = best.setdefault(part.rpartition("_")[0], {})
            for document, score in results[part].items():
                documents[document] = max(score, documents.get(document, score))
        relevant = {part.rpartition("_")[0]: found for part, found in qrels.items()}
        return calculate_retrieval_scores(best, relevant, list(self.k_values))[0]


class KeepsClassification(Keeping):
    """What each draw's classifier made of each test text: right or wrong, else the class."""

    def _save_task_predictions(self, predictions: Any, *_: Any, **where: Any) -> None:
        gold = np.asarray(self._rows(where)[self.label_column_name])
        if self.is_cross_validation or any(len(p) != len(gold) for p in predictions):
            return
        found = np.asarray(predictions)
        if self.entry.metric == "accuracy":
            self._keep("mean", found == gold)
        else:
            numbers = np.unique(np.concatenate([gold, found.ravel()]), return_inverse=True)[1]
            self._keep(f"labels:{self.entry.metric}", numbers[len(gold) :].reshape(found.shape), numbers[: len(gold)])


class KeepsRegression(Keeping):
    """What each draw's regression makes of each test text."""

    def _save_task_predictions(self, predictions: Any, *_: Any, **where: Any) -> None:
        gold = np.asarray(self._rows(where)[self.label_column_name], dtype=float)
        if self.entry.metric == "kendalltau" and not self.is_cross_validation:
            self._keep("kendalltau", np.asarray(predictions, dtype=float), gold)


class KeepsMultilabel(Keeping):
    """The metric of each test text in each draw; of macro F1 the labels themselves."""

    def _evaluate_subset(self, model: Any, data_split: Any, **options: Any) -> Any:
        self._draws: list[np.ndarray] = []
        found = super()._evaluate_subset(model, data_split, **options)
        if self._draws and self.entry.metric in ("accuracy", "lrap"):
            self._keep("mean", np.array(self._draws))
        elif self._draws and self.entry.metric == "f1":
            self._keep("multilabel:f1", np.array(self._draws), self._gold)
        return found

    def _calculate_scores(self, y_test: Any, y_pred: Any, vectors: Any, classifier: Any) -> Any:
        gold, found = np.asarray(y_test), np.asarray(y_pred)
        if self.entry.metric == "accuracy":
            self._draws.append((gold == found).all(axis=1))
        elif self.entry.metric == "lrap":
            if type(classifier).__name__ == "MultiOutputClassifier":  # mteb ranks by probability there
                found = np.stack([p[:, 1] for p in classifier.predict_proba(vectors)], axis=1)
            self._draws.append(_label_ranking(gold, found))
        else:
            self._draws.append(found)
            self._gold = gold
        return super()._calculate_scores(y_test, y_pred, vectors, classifier)


class KeepsZeroShot(Keeping):
    """Whether each text is nearest to its own label."""

    def _calculate_scores(self, labels: Any, probabilities: Any) -> Any:
        if self.entry.metric == "accuracy":
            self._keep("mean", np.asarray(probabilities).argmax(axis=1) == np.asarray(labels))
        return super()._calculate_scores(labels, probabilities)


class KeepsClustering(Keeping):
    """The cluster of each embedded text in each k-means run; a row per run and level of the labels."""

    def _evaluate_subset(self, model: Any, data_split: Any, **options: Any) -> Any:
        self._replay = random.Random()
        self._replay.setstate(self.rng_state.getstate())  # mteb draws the texts of each run from this state
        return super()._evaluate_subset(model, data_split, **options)

    def _save_task_predictions(self, predictions: Any, *_: Any, **where: Any) -> None:
        """mteb hands over the cluster of each drawn text; equal texts share a cluster, so one number a text is kept."""
        if self.entry.metric not in ("v_measure", "ami"):
            return
        labels = [x if isinstance(x, list) else [x] for x in self._embedded(self._rows(where))]
        clusters, gold, counts = [], [], []
        for level, runs in enumerate(predictions.values()):
            names = np.array([label[level] if len(label) > level else -1 for label in labels])
            there = np.flatnonzero([name != -1 for name in names])  # as mteb finds texts without a label here
            classes = np.zeros(len(labels), dtype=np.int32)
            classes[there] = np.unique(names[there], return_inverse=True)[1]
            for assigned in runs:
                drawn = there[self._replay.choices(range(len(there)), k=len(assigned))]
                cluster = np.zeros(len(labels), dtype=np.int32)
                cluster[drawn] = assigned
                clusters.append(cluster)
                gold.append(classes)
                counts.append(np.bincount(drawn, minlength=len(labels)))
        self._keep(self.entry.metric, clusters, gold if len(predictions) > 1 else gold[0], counts)

    def _embedded(self, rows: Any) -> Any:
        """The labels of the rows that mteb embeds: all, or a share that it draws first."""
        most = self.max_document_to_embed
        if self.max_fraction_of_documents_to_embed is not None:
            most = int(self.max_fraction_of_documents_to_embed * len(rows))
        if most is not None:
            rows = rows.select(self._replay.sample(range(len(rows)), k=min(len(rows), most)))
        return rows[self.label_column_name]


class KeepsOldClustering(Keeping):
    """Sets of texts that are clustered one by one; the score is the mean over the sets."""

    def _evaluate_subset(self, model: Any, data_split: Any, **options: Any) -> Any:
        self._sets: list[Samples] = []
        found = super()._evaluate_subset(model, data_split, **options)
        texts, there, parts = self.entry.text_revision, iter(self._sets), []
        for row in data_split:
            alone = len(set(row[self.label_column_name])) <= 1  # mteb gives 1 and clusters nothing
            parts.append(Samples("mean", texts, np.ones(1)) if alone else next(there, None))
        if self.entry.metric == "v_measure" and all(parts):
            self.kept[self._part] = Samples("parts", texts, np.zeros(0), parts=tuple(p for p in parts if p))
        return found

    def _compute_metrics(self, labels: Any, clusters: Any, *args: Any, **options: Any) -> Any:
        gold = np.unique(np.asarray(labels), return_inverse=True)[1]
        found = np.asarray(clusters)[None]
        self._sets.append(Samples("v_measure", self.entry.text_revision, found, gold, np.ones_like(found)))
        return super()._compute_metrics(labels, clusters, *args, **options)


class KeepsPairs(Keeping):
    """Similarity and label of each pair, by the similarity that gives mteb's main score."""

    def _compute_metrics(self, similarity_scores: Any, labels: Any) -> Any:
        found = super()._compute_metrics(similarity_scores, labels)
        side, _, metric = self.entry.metric.rpartition("_")
        if side == "max":
            side = max(_SIMILARITIES, key=lambda name: found[f"{name}_{metric}"])
        kind = {"ap": "ap", "accuracy": "best_accuracy", "f1": "best_f1"}.get(metric)
        if kind and side in _SIMILARITIES:
            column, sign = _SIMILARITIES[side]
            self._keep(kind, sign * np.asarray(similarity_scores[column], dtype=float), np.asarray(labels, dtype=int))
        return found


class KeepsSTS(Keeping):
    """Predicted and true similarity of each pair."""

    def _calculate_scores(self, scores: Any, normalized_scores: Any) -> Any:
        similarity, kind = f"_{self.entry.metric}".rsplit("_", 1)
        column = _SIMILARITIES[similarity.lstrip("_") or "similarity"][0]
        values = scores[column] if scores[column] is not None else scores["cosine_scores"]
        self._keep(kind, np.asarray(values, dtype=float), np.asarray(normalized_scores, dtype=float))
        return super()._calculate_scores(scores, normalized_scores)


class KeepsBitext(Keeping):
    """Which sentence each sentence found."""

    def _save_task_predictions(self, predictions: Any, *_: Any, **where: Any) -> None:
        rows = self.dataset[where["hf_split"]] if self.parallel_subsets else self._rows(where)
        for pair, neighbours in predictions.items():
            self._part = f"{where['hf_split']}/{pair if self.parallel_subsets else where['hf_subset']}"
            found = np.array([neighbour["corpus_id"] for neighbour in neighbours])
            gold = np.array([g[1] for g in rows["gold"]]) if isinstance(rows, dict) else np.arange(len(found))
            if self.entry.metric == "accuracy":
                self._keep("mean", found == gold[: len(found)])
            elif self.entry.metric in ("f1", "precision", "recall"):
                self._keep(f"labels:{self.entry.metric}_weighted", found[None], gold[: len(found)])


class KeepsSummaries(Keeping):
    """The correlation of each document's summaries."""

    def _save_task_predictions(self, predictions: Any, *_: Any, **where: Any) -> None:
        alone = [{name: [lists[i]] for name, lists in predictions.items()} for i in range(_longest(predictions))]
        self._keep("mean", [self.evaluator._calculate_metrics(None, one)[self.entry.metric] for one in alone])


def _longest(predictions: Mapping[str, Sequence[Any]]) -> int:
    return max(len(lists) for lists in predictions.values())


def _reciprocal_rank(found: Mapping[str, float], relevant: Mapping[str, int], k: int) -> float:
    """1 / rank of the first relevant document among the best ``k``, ties broken by the higher id, as mteb does."""
    ranked = sorted(found.items(), key=lambda item: (item[1], item[0]), reverse=True)[:k]
    return next((1 / rank for rank, (document, _) in enumerate(ranked, 1) if relevant.get(document, 0) > 0), 0.0)


def _label_ranking(gold: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Label ranking average precision [N] of each row of gold 0/1 and scores [N, L] (Tsoumakas et al. 2010)."""
    found = np.ones(len(gold))
    for row, (true, score) in enumerate(zip(gold.astype(bool), scores, strict=True)):
        if 0 < true.sum() < len(true):
            ahead = score[None, :] >= score[true][:, None]  # [true labels, labels]
            found[row] = float(np.mean(ahead[:, true].sum(axis=1) / ahead.sum(axis=1)))
    return found
