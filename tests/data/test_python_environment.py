import gzip
import json
import time

import pytest

from boom_ray.config.corpus import PythonEnvironmentSource
from boom_ray.data import environment_sets
from boom_ray.data.environment_sets import deduplicate, select, training_rows, withheld_packages, write_evaluation
from boom_ray.data.python_environment import (
    Function,
    fingerprint,
    list_packages,
    read_package,
    read_source,
    share_out,
)
from boom_ray.data.schema import fold

SOURCE = PythonEnvironmentSource(source="python_environment", max_functions=1500, eval_documents=150, eval_queries=60)

CODE = b'''
import os
class Reader:
    @property
    def first_line(self):
        """Return the first line of the file.

        Longer text.
        """
        return self.lines[0] + """
at the margin"""

    def todo(self):
        """This one has nothing to do."""
        raise NotImplementedError

def plain(a):
    return a

async def fetch(url):
    """Fetch one page from the network."""
    def inner():
        """An inner function that nobody finds."""
        return 1
    return await get(url, inner)

def short(): """All on a single line here."""; return 1

def terse():
    """Too short."""
    return 1
'''


def test_read_source_takes_code_without_docstring():
    found = {f.qualified_name: f for f in read_source(CODE, "pkg", "pkg.io")}
    assert sorted(found) == ["pkg.io.Reader.first_line", "pkg.io.fetch"]
    first = found["pkg.io.Reader.first_line"]
    assert first.summary == "Return the first line of the file."
    assert first.code == 'def first_line(self):\n    return self.lines[0] + """\nat the margin"""'
    assert "network" not in found["pkg.io.fetch"].code


def test_quotas_grow_with_size_and_keep_to_the_total():
    source = PythonEnvironmentSource(source="python_environment", max_functions=1000, max_per_package=400)
    quotas = share_out([10, 1000, 4000, 100000], source)
    assert quotas[0] == 10
    assert sorted(quotas) == quotas
    assert max(quotas) <= 400
    assert sum(quotas) <= 1250
    assert share_out([5, 7], source) == [5, 7]


def _function(name, package="p", module="p.m", summary=None, code=None):
    return Function(package, module, name, summary or f"what {name} does", code or f"def {name}(): work({name})")


def test_duplicates_by_summary_or_code_leave_the_first():
    a = _function("a")
    same_summary = _function("b", summary="What A  does")
    same_code = _function("c", code="def a():\n    work(a)")
    of_dropped = _function("d", summary="what c does")
    assert deduplicate([a, same_summary, same_code, of_dropped]) == [a, of_dropped]


def test_withheld_packages_follow_the_hash_and_reach_the_documents():
    sizes = {"python": 500} | {f"package{i}": 40 for i in range(50)}
    chosen = withheld_packages(sizes, SOURCE)
    assert "python" not in chosen
    assert 150 <= sum(sizes[n] for n in chosen) <= 0.25 * sum(sizes.values())
    without = {n: s for n, s in sizes.items() if n not in ("package1", "package2")}
    assert len(withheld_packages(without, SOURCE) ^ chosen) <= 4
    assert withheld_packages({"python": 100, "big": 900}, SOURCE) <= {"big"}


@pytest.fixture(scope="module")
def functions():
    return [f for package in list_packages(SOURCE) for f in read_package(package)]


def _jsonl(file):
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).decode().splitlines()]


def _texts(rows):
    for row in rows:
        yield row["query"]
        if row["task_type"] != "classification":
            yield from [*row["pos"], *row["neg"]]


def test_held_out_functions_are_in_no_row(functions, tmp_path):
    selection = select(functions, SOURCE)
    rows = list(training_rows(selection.train, SOURCE))
    trained = {fold(text) for text in _texts(rows)}
    away = [*selection.held_out, *selection.withheld]
    assert trained.isdisjoint(fold(text) for f in away for text in (f.summary, f.code))
    evaluated = write_evaluation(selection, SOURCE, tmp_path)
    assert evaluated
    assert trained.isdisjoint(map(fold, evaluated))
    assert {f.package for f in selection.withheld}.isdisjoint(f.package for f in selection.train)
    assert {f.package for f in selection.held_out} <= {f.package for f in selection.train}
    assert len(selection.withheld) >= SOURCE.eval_documents
    assert "python" in {f.package for f in selection.train}
    assert len(selection.train) + len(away) <= SOURCE.max_functions


def test_rows_have_the_negatives_that_they_promise(functions):
    train = select(functions, SOURCE).train
    by_code, by_summary = {f.code: f for f in train}, {f.summary: f for f in train}
    rows = list(training_rows(train, SOURCE))
    assert {r["dataset"] for r in rows} == {"python_functions", "python_modules", "python_packages"}
    for row in rows:
        query = by_summary[row["query"]]
        assert len(set(row["neg"])) == len(row["neg"])
        assert row["pos"][0] not in row["neg"]
        if row["dataset"] == "python_functions":
            assert by_code[row["pos"][0]] == query
            assert {by_code[n].module for n in row["neg"]} <= {query.module}
        elif row["dataset"] == "python_modules":
            assert by_summary[row["pos"][0]].module == query.module
            assert query.module not in {by_summary[n].module for n in row["neg"]}
        else:
            assert row["pos"] == [query.package]
            assert query.package not in row["neg"]
    assert len([r for r in rows if r["dataset"] == "python_functions"]) == len(train)


def test_evaluation_folders_have_the_layouts(functions, tmp_path):
    write_evaluation(select(functions, SOURCE), SOURCE, tmp_path)
    folder = tmp_path / "out_of_domain" / "python_functions_ood"
    meta = json.loads((folder / "meta.json").read_text())
    assert meta == {
        "name": "python_functions_ood",
        "task_type": "retrieval",
        "lang": "code:python",
        "main_metric": "ndcg_at_10",
    }
    corpus = _jsonl(folder / "corpus.jsonl.gz")
    queries = _jsonl(folder / "queries.jsonl.gz")
    qrels = [line.split("\t") for line in (folder / "qrels.tsv").read_text().splitlines()]
    assert (len(corpus), len(queries), len(qrels)) == (150, 60, 61)
    assert qrels[0] == ["query-id", "corpus-id", "score"]
    assert {q for q, _, _ in qrels[1:]} == {q["_id"] for q in queries}
    assert {d for _, d, _ in qrels[1:]} <= {d["_id"] for d in corpus}
    inside = json.loads((tmp_path / "in_domain" / "python_functions" / "meta.json").read_text())
    assert inside["trained_by"] == ["python_functions"]


def test_classification_evaluation_has_shots_and_tests(tmp_path):
    held = [_function(f"{p}{i}", package=p, module=f"{p}.m{i % 3}") for p in ("a", "b", "c") for i in range(20)]
    held += [_function(f"rare{i}", package="rare") for i in range(5)]
    selection = environment_sets.Selection(tuple(held * 2), tuple(held), ())
    write_evaluation(selection, SOURCE, tmp_path)
    folder = tmp_path / "in_domain" / "python_packages"
    train, test = (_jsonl(folder / f"{name}.jsonl.gz") for name in ("train", "test"))
    assert {row["label"] for row in train} == {row["label"] for row in test} == {"a", "b", "c"}
    assert (len(train), len(test)) == (24, 36)
    assert {row["text"] for row in train}.isdisjoint(row["text"] for row in test)
    assert not (tmp_path / "out_of_domain").exists()


def test_fingerprint_is_quick_and_names_distributions():
    started = time.perf_counter()
    first = fingerprint(SOURCE)
    assert time.perf_counter() - started < 1.0
    assert first == fingerprint(SOURCE)
    names = [name for name, _, _ in first["distributions"]]
    assert "numpy" in names
    assert "boom-ray" not in names


def test_fingerprint_and_packages_do_not_change_with_sys_path(monkeypatch, tmp_path):
    """``import ray`` adds a folder of bundled distributions, and a second run must find the same environment."""
    before = fingerprint(SOURCE), list_packages(SOURCE)
    info = tmp_path / "bundled" / "numpy-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.1\n")
    (info / "RECORD").write_text("numpy/x.py,,9\n")
    monkeypatch.syspath_prepend(str(tmp_path / "bundled"))
    assert (fingerprint(SOURCE), list_packages(SOURCE)) == before
