"""mteb's metrics as functions of counts: how often each unit (query, text, pair) occurs in each of many resamples.

``counts`` is [R, N] for R resamples of N units; every function returns the R scores. With counts of one a score is
mteb's own; with others it is what mteb would give on data in which unit n stands ``counts[r, n]`` times.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_ROWS = 1024  # of a table of pairs, held at once


def pearson(counts: np.ndarray, values: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Pearson's correlation of two columns [N]; 0 where one of them is constant."""
    return _correlation(counts, np.broadcast_to(values, counts.shape), np.broadcast_to(gold, counts.shape))


def spearman(counts: np.ndarray, values: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Spearman's correlation: Pearson's of the average ranks; 0 where one column is constant."""
    return _correlation(counts, ranks(counts, values), ranks(counts, gold))


def kendall(counts: np.ndarray, values: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of two columns [N]; 0 where one of them is constant. Takes R * N * N operations."""
    agree, apart, apart_gold = (np.zeros(len(counts)) for _ in range(3))
    for start in range(0, len(values), _ROWS):
        rows = slice(start, start + _ROWS)
        sign = np.sign(values[rows, None] - values[None, :])
        sign_gold = np.sign(gold[rows, None] - gold[None, :])
        for total, pairs in ((agree, sign * sign_gold), (apart, np.abs(sign)), (apart_gold, np.abs(sign_gold))):
            total += np.einsum("rn,rn->r", counts[:, rows] @ pairs, counts)
    both = np.sqrt(apart * apart_gold)
    return np.divide(agree, both, out=np.zeros(len(both)), where=both > 0)


def ranks(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Average ranks [R, N] of values [N]."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    tied = np.add.reduceat(counts[:, order], starts, axis=1)  # [R, groups]
    middle = np.cumsum(tied, axis=1) - (tied - 1) / 2
    group = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(ordered)]))
    out = np.empty_like(counts)
    out[:, order] = middle[:, group]
    return out


def v_measure(counts: np.ndarray, clusters: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """V-measure (Rosenberg & Hirschberg 2007), 2 I(C;K) / (H(C) + H(K)), of whole numbers [N]."""
    joint, cells, width = _contingency(counts, clusters, classes)
    h_class, h_cluster = _entropy(_sums(joint, cells // width)), _entropy(_sums(joint, cells % width))
    both = h_class + h_cluster
    return np.divide(2 * (both - _entropy(joint)), both, out=np.ones(len(both)), where=both > 0)


def adjusted_information(counts: np.ndarray, clusters: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Adjusted mutual information (Vinh et al. 2010) with the mean of the entropies.

    The information expected by chance takes a sum over all cells and hardly moves: it is that of the first resample.
    """
    from scipy.sparse import coo_matrix
    from sklearn.metrics.cluster import expected_mutual_information

    joint, cells, width = _contingency(counts, clusters, classes)
    h_class, h_cluster = _entropy(_sums(joint, cells // width)), _entropy(_sums(joint, cells % width))
    table = coo_matrix((joint[0].astype(np.int64), (cells // width, cells % width))).tocsr()
    table = table[table.getnnz(axis=1) > 0]
    chance = expected_mutual_information(table[:, table.getnnz(axis=0) > 0], int(joint[0].sum()))
    shared = _off_zero(h_class + h_cluster - _entropy(joint) - chance)
    return np.where(h_class + h_cluster > 0, shared / _off_zero((h_class + h_cluster) / 2 - chance), 1.0)


def _off_zero(values: np.ndarray) -> np.ndarray:
    tiny = np.finfo(float).eps
    return np.where(values < 0, np.minimum(values, -tiny), np.maximum(values, tiny))


def average_precision(counts: np.ndarray, values: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Average precision of similarities [N] against gold 0 or 1 [N], equal values as one step; 0 without positives."""
    seen, hits = _steps(counts, values, gold)
    gained = np.diff(hits, prepend=0.0, axis=1)
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    total = hits[:, -1]
    return np.divide((gained * precision).sum(axis=1), total, out=np.zeros(len(total)), where=total > 0)


def best_accuracy(counts: np.ndarray, values: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Accuracy at the best threshold between two different similarities, as mteb's pair classification has it."""
    seen, hits = _steps(counts, values, gold)
    total, positives = seen[:, -1:], hits[:, -1:]
    right = hits + (total - positives) - (seen - hits)
    return np.where((seen > 0) & (seen < total), right / total, 0.0).max(axis=1)


def best_f1(counts: np.ndarray, values: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """F1 at the best threshold between two different similarities, as mteb's pair classification has it."""
    seen, hits = _steps(counts, values, gold)
    total, positives = seen[:, -1:], hits[:, -1:]
    return np.where((seen > 0) & (seen < total), 2 * hits / np.maximum(seen + positives, 1), 0.0).max(axis=1)


def label_metric(name: str) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """The metric of predicted and true class numbers [N] that mteb (scikit-learn) calls ``name``.

    Macro averages go over the classes that occur in a resample, ``_weighted`` ones by the true classes' shares.

    Raises:
        KeyError: not one of accuracy, ap, f1, precision, recall, and the last three with ``_weighted``.
    """
    kind, _, weighted = name.partition("_")
    if kind == "accuracy":
        return lambda counts, found, gold: counts @ (found == gold) / counts.sum(axis=1)
    if kind == "ap":
        return lambda counts, found, gold: average_precision(counts, found, (gold == 1).astype(float))
    ratio = _RATIOS[kind]

    def metric(counts: np.ndarray, found: np.ndarray, gold: np.ndarray) -> np.ndarray:
        width = int(max(found.max(), gold.max())) + 1
        hits, predicted, true = (
            _by_class(c, k, width) for c, k in ((counts * (found == gold), gold), (counts, found), (counts, gold))
        )
        scores = ratio(hits, predicted, true)
        weights = true if weighted else (predicted + true > 0).astype(float)
        return (weights * scores).sum(axis=1) / weights.sum(axis=1)

    return metric


def multilabel_f1(counts: np.ndarray, found: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """F1 of each label (0 where neither predicted nor true), mean over the labels of 0-or-1 tables [N, L]."""
    return _f1(counts @ (found * gold), counts @ found, counts @ gold).mean(axis=1)


def _f1(hits: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    return np.divide(2 * hits, predicted + true, out=np.zeros_like(hits), where=predicted + true > 0)


def _precision(hits: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    return np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)


def _recall(hits: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    return np.divide(hits, true, out=np.zeros_like(hits), where=true > 0)


_RATIOS = {"f1": _f1, "precision": _precision, "recall": _recall}


def _steps(counts: np.ndarray, values: np.ndarray, gold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs at or above each distinct value, from the highest down, and positives among them; both [R, steps]."""
    order = np.argsort(-values, kind="stable")
    ordered = values[order]
    ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
    counts = counts[:, order]
    return np.cumsum(counts, axis=1)[:, ends], np.cumsum(counts * gold[order], axis=1)[:, ends]


def _by_class(counts: np.ndarray, classes: np.ndarray, width: int) -> np.ndarray:
    """Row-wise sums [R, width] of counts [R, N] over the units of each class number [N]."""
    from scipy.sparse import csr_matrix

    members = csr_matrix((np.ones(len(classes)), (classes, np.arange(len(classes)))), shape=(width, len(classes)))
    return (members @ counts.T).T


def _correlation(counts: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlation of x and y [R, N] under counts; 0 where one of them is constant."""
    total = counts.sum(axis=1, keepdims=True)
    x = x - np.einsum("rn,rn->r", counts, x)[:, None] / total
    y = y - np.einsum("rn,rn->r", counts, y)[:, None] / total
    weighted = counts * x
    squares = np.einsum("rn,rn->r", weighted, x) * np.einsum("rn,rn,rn->r", counts, y, y)
    both = np.einsum("rn,rn->r", weighted, y)
    return np.divide(both, np.sqrt(squares), out=np.zeros(len(both)), where=squares > 0)


def _contingency(counts: np.ndarray, clusters: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Counts [R, cells] of the pairs of class and cluster that occur; the pairs as class * width + cluster; width."""
    width = int(clusters.max()) + 1
    cells, place = np.unique(classes * width + clusters, return_inverse=True)
    return _by_class(counts, place, len(cells)), cells, width


def _sums(joint: np.ndarray, groups: np.ndarray) -> np.ndarray:
    kinds, place = np.unique(groups, return_inverse=True)
    return _by_class(joint, place, len(kinds))


def _entropy(masses: np.ndarray) -> np.ndarray:
    p = masses / masses.sum(axis=1, keepdims=True)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)
