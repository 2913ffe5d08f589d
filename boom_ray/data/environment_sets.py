"""From functions to training rows and evaluation sets: what is kept, what is held out, who is whose negative.

Pure but for ``write_evaluation``. Every choice is made by the hash of a name, so that the same environment gives the
same rows, and a package more or less moves few of the others.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boom_ray.config.corpus import PythonEnvironmentSource
from boom_ray.data.python_environment import STANDARD_LIBRARY, Function
from boom_ray.data.schema import fold_digest

FUNCTIONS, MODULES, PACKAGES = "python_functions", "python_modules", "python_packages"
LARGEST_PACKAGES = 25  # classes of python_packages
_LEAST_FUNCTIONS = 20  # of a package that is a class
_LEAST_CLUSTER = 4  # evaluation texts of a module that is a cluster
_SHOTS = 8  # training texts per class of the classification evaluation: what mteb draws
_LARGEST_WITHHELD_SHARE = 0.25


@dataclass(frozen=True)
class Selection:
    """Three disjoint groups of functions: to train on, held out of the same packages, and of withheld packages."""

    train: tuple[Function, ...]
    held_out: tuple[Function, ...]
    withheld: tuple[Function, ...]


def select(functions: Iterable[Function], source: PythonEnvironmentSource) -> Selection:
    """Deduplicate, cut to ``max_functions``, and split by the hash of the qualified name and of the package.

    A package with no function left to train on brings none to the in-domain evaluation either.
    """
    kept = _cut(deduplicate(functions), source.max_functions)
    withheld = withheld_packages(Counter(f.package for f in kept), source)
    away = [f for f in kept if f.package in withheld]
    near = [f for f in kept if f.package not in withheld]
    train = [f for f in near if _unit_hash(f.qualified_name) >= source.held_out_functions]
    trained = {f.package for f in train}
    held_out = [f for f in near if f.package in trained and _unit_hash(f.qualified_name) < source.held_out_functions]
    return Selection(tuple(train), tuple(held_out), tuple(away))


def deduplicate(functions: Iterable[Function]) -> list[Function]:
    """Without those whose folded summary or folded code an earlier one has: vendored copies, stock docstrings."""
    seen: set[bytes] = set()
    kept = []
    for function in functions:
        keys = {fold_digest(function.summary), fold_digest(function.code)}
        if seen.isdisjoint(keys):
            seen |= keys
            kept.append(function)
    return kept


def withheld_packages(sizes: Mapping[str, int], source: PythonEnvironmentSource) -> set[str]:
    """The packages of lowest hash: the asked share, and then more until they hold ``eval_documents`` functions.

    More are taken only while they stay within a quarter of all functions; the standard library always trains.
    """
    order = sorted((name for name in sizes if name != STANDARD_LIBRARY), key=_unit_hash)
    chosen = {name for name in order if _unit_hash(name) < source.held_out_packages}
    taken, most = sum(sizes[n] for n in chosen), _LARGEST_WITHHELD_SHARE * sum(sizes.values())
    for name in order:
        if name not in chosen and taken < source.eval_documents and taken + sizes[name] <= most:
            chosen.add(name)
            taken += sizes[name]
    return chosen


def training_rows(train: Sequence[Function], source: PythonEnvironmentSource) -> Iterator[dict[str, Any]]:
    """Rows of the three datasets, as a user's jsonl would hold them."""
    yield from _function_rows(train, source.hard_negatives)
    yield from _module_rows(train, source.hard_negatives)
    yield from _package_rows(train)


def write_evaluation(selection: Selection, source: PythonEnvironmentSource, out: Path) -> list[str]:
    """Write the evaluation sets below ``out``/in_domain and ``out``/out_of_domain; returns every text in them.

    A set that would be degenerate (under ten queries, or a single cluster or class) is not written.
    """
    held_out, withheld = _hash_order(selection.held_out), _hash_order(selection.withheld)
    inside, outside = out / "in_domain", out / "out_of_domain"
    return [
        *_write_retrieval(inside / FUNCTIONS, held_out, source, [FUNCTIONS]),
        *_write_clustering(inside / MODULES, held_out, source, [MODULES]),
        *_write_classification(inside / PACKAGES, held_out, classes(selection.train)),
        *_write_retrieval(outside / f"{FUNCTIONS}_ood", withheld, source, []),
        *_write_clustering(outside / f"{MODULES}_ood", withheld, source, []),
    ]


def classes(train: Sequence[Function]) -> list[str]:
    """The packages with most functions, by name: the labels of python_packages."""
    sizes = Counter(f.package for f in train)
    largest = sorted(sizes, key=lambda name: (-sizes[name], name))[:LARGEST_PACKAGES]
    return sorted(name for name in largest if sizes[name] >= _LEAST_FUNCTIONS)


def _cut(functions: Sequence[Function], most: int) -> list[Function]:
    """The same share of the first functions of every package, at least one, so that about ``most`` stay."""
    if len(functions) <= most:
        return list(functions)
    sizes, taken = Counter(f.package for f in functions), Counter[str]()
    kept = []
    for function in functions:
        if taken[function.package] < max(1, sizes[function.package] * most // len(functions)):
            taken[function.package] += 1
            kept.append(function)
    return kept[:most]


def _function_rows(train: Sequence[Function], negatives: int) -> Iterator[dict[str, Any]]:
    for ring in _by_module(train).values():
        for place, function in enumerate(ring):
            others = [ring[(place + k) % len(ring)].code for k in range(1, min(negatives, len(ring) - 1) + 1)]
            yield _row(FUNCTIONS, "retrieval", function.summary, function.code, others)


def _module_rows(train: Sequence[Function], negatives: int) -> Iterator[dict[str, Any]]:
    for module, ring in _by_module(train).items():
        elsewhere = len(train) - len(ring)
        for place, function in enumerate(ring if len(ring) > 1 else ()):
            others: list[str] = []
            attempt = 0
            while len(others) < min(negatives, elsewhere):
                other = train[int(_unit_hash(f"{function.qualified_name}#{attempt}") * len(train))]
                attempt += 1
                if other.module != module and other.summary not in others:
                    others.append(other.summary)
            yield _row(MODULES, "clustering", function.summary, ring[(place + 1) % len(ring)].summary, others)


def _package_rows(train: Sequence[Function]) -> Iterator[dict[str, Any]]:
    labels = classes(train)
    if len(labels) < 2:
        return
    for function in train:
        if function.package in labels:
            others = [name for name in labels if name != function.package]
            yield _row(PACKAGES, "classification", function.summary, function.package, others)


def _row(dataset: str, task_type: str, query: str, positive: str, negatives: list[str]) -> dict[str, Any]:
    return {"dataset": dataset, "task_type": task_type, "query": query, "pos": [positive], "neg": negatives}


def _write_retrieval(
    folder: Path, functions: Sequence[Function], source: PythonEnvironmentSource, trained_by: list[str]
) -> list[str]:
    documents = functions[: source.eval_documents]
    queries = documents[: source.eval_queries]
    if len(queries) < 10:
        return []
    _write_meta(folder, "retrieval", "code:python", trained_by)
    _write_jsonl(folder / "corpus.jsonl.gz", ({"_id": f"d{i}", "text": f.code} for i, f in enumerate(documents)))
    _write_jsonl(folder / "queries.jsonl.gz", ({"_id": f"q{i}", "text": f.summary} for i, f in enumerate(queries)))
    lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(len(queries)))]
    (folder / "qrels.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [f.code for f in documents] + [f.summary for f in queries]


def _write_clustering(
    folder: Path, functions: Sequence[Function], source: PythonEnvironmentSource, trained_by: list[str]
) -> list[str]:
    sizes = Counter(f.module for f in functions)
    texts = [f for f in functions if sizes[f.module] >= _LEAST_CLUSTER][: source.eval_documents]
    if len({f.module for f in texts}) < 2:
        return []
    _write_meta(folder, "clustering", "en", trained_by)
    _write_jsonl(folder / "test.jsonl.gz", ({"text": f.summary, "label": f.module} for f in texts))
    return [f.summary for f in texts]


def _write_classification(folder: Path, functions: Sequence[Function], labels: Sequence[str]) -> list[str]:
    by_label = {label: [f for f in functions if f.package == label] for label in labels}
    by_label = {label: group for label, group in by_label.items() if len(group) >= 2 * _SHOTS}
    if len(by_label) < 2:
        return []
    train = [f for group in by_label.values() for f in group[:_SHOTS]]
    test = [f for group in by_label.values() for f in group[_SHOTS:]]
    _write_meta(folder, "classification", "en", [PACKAGES])
    for name, part in (("train", train), ("test", test)):
        _write_jsonl(folder / f"{name}.jsonl.gz", ({"text": f.summary, "label": f.package} for f in part))
    return [f.summary for f in train + test]


def _write_meta(folder: Path, task_type: str, language: str, trained_by: list[str]) -> None:
    metric = {"retrieval": "ndcg_at_10", "clustering": "v_measure", "classification": "accuracy"}[task_type]
    meta = {"name": folder.name, "task_type": task_type, "lang": language, "main_metric": metric}
    folder.mkdir(parents=True)
    text = json.dumps(meta | ({"trained_by": trained_by} if trained_by else {}), indent=1)
    (folder / "meta.json").write_text(text + "\n", encoding="utf-8")


def _write_jsonl(file: Path, rows: Iterable[dict[str, str]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)  # ASCII: code may hold characters that end a line elsewhere
    file.write_bytes(gzip.compress(text.encode(), mtime=0))  # no time stamp: equal sets are equal bytes


def _by_module(functions: Sequence[Function]) -> dict[str, list[Function]]:
    modules: dict[str, list[Function]] = defaultdict(list)
    for function in functions:
        modules[function.module].append(function)
    return {module: _hash_order(group) for module, group in modules.items()}


def _hash_order(functions: Sequence[Function]) -> list[Function]:
    return sorted(functions, key=lambda f: (_unit_hash(f.qualified_name), f.qualified_name))


def _unit_hash(name: str) -> float:
    """Uniform in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest()) / 2**48
