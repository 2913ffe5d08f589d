"""Finding and checking evaluation sets; every mistake has its own message with file and line."""

# ruff: noqa: E501  (a table of cases reads best one case a line)
from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_sets import make_sets, write_qrels, write_rows, write_set

from boom_ray.config import BoomError
from boom_ray.evaluate.sets import find_sets, texts

TRAINED = {"find", "rank", "sort"}


def test_finds_all_sets_at_every_level(sets_root: Path) -> None:
    entries = find_sets([sets_root], TRAINED)
    assert [(e.name, e.task_type, e.domain, e.metric) for e in entries] == [
        ("find", "retrieval", "in_domain", "ndcg_at_10"),
        ("rank", "reranking", "in_domain", "map_at_1000"),
        ("sort", "classification", "in_domain", "accuracy"),
        ("alike", "sts", "out_of_domain", "cosine_spearman"),
        ("group", "clustering", "out_of_domain", "v_measure"),
    ]
    single = find_sets([sets_root / "in_domain" / "find", sets_root / "in_domain"], TRAINED)
    assert [e.name for e in single] == ["find", "rank", "sort"]  # a folder given twice counts once


def test_digest_names_the_content(sets_root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "in_domain" / "find"
    shutil.copytree(sets_root / "in_domain" / "find", copy)
    original = find_sets([sets_root / "in_domain" / "find"], TRAINED)[0].digest
    assert find_sets([copy], TRAINED)[0].digest == original
    write_qrels(copy, [("q0", "d1", 1)])
    assert find_sets([copy], TRAINED)[0].digest != original


def test_trained_by_makes_a_set_in_domain(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    write_set(tmp_path / "held_out", "clustering", {"test.jsonl": rows}, trained_by=["source"])
    assert find_sets([tmp_path], {"source"})[0].domain == "in_domain"
    assert find_sets([tmp_path], {"other"})[0].domain == "out_of_domain"
    assert find_sets([tmp_path], None)[0].domain == "out_of_domain"


def test_a_folder_that_disagrees_is_an_error_that_says_both(sets_root: Path) -> None:
    with pytest.raises(BoomError, match=r"'find' lies in a folder called in_domain/ .* but is out_of_domain"):
        find_sets([sets_root], {"rank", "sort"})
    with pytest.raises(BoomError, match=r"'alike' lies in a folder called out_of_domain/ .* but is in_domain"):
        find_sets([sets_root / "out_of_domain" / "alike"], {"alike"})
    assert find_sets([sets_root], None)[0].domain == "in_domain"  # training unknown: the folder decides


def test_texts_are_queries_documents_and_sentences_but_no_labels(sets_root: Path) -> None:
    entries = find_sets([sets_root], TRAINED)
    found = list(texts(entries))
    titled = 14  # of 40 documents: each gives its text with and without the title
    assert len(found) == 2 * (12 + 40 + titled) + 45 + 90 + 60
    train = [json.loads(x)["text"] for x in (sets_root / "in_domain/sort/train.jsonl").read_text().splitlines()]
    only_sort = set(texts([e for e in entries if e.name == "sort"]))
    assert only_sort.isdisjoint({"red", "blue", "old"})
    assert len(only_sort - set(train)) > 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.rmtree(root), r"does not exist or is not a folder"),
        (
            lambda root: (root / "in_domain/find/qrels.tsv").unlink(),
            r"qrels\.tsv does not exist; a retrieval set needs it",
        ),
        (lambda root: (root / "in_domain/sort/train.jsonl").unlink(), r"train\.jsonl\.gz does not exist"),
        (
            lambda root: (root / "in_domain/find/meta.json").unlink(),
            r"looks like an evaluation set, but has no meta\.json",
        ),
        (lambda root: (root / "in_domain/find/meta.json").write_text("{"), r"meta\.json is not valid JSON"),
        (lambda root: _meta(root, task_type="summary"), r"unknown task_type 'summary'; known are retrieval"),
        (
            lambda root: _meta(root, main_metric="bleu"),
            r"main_metric 'bleu' is not one of retrieval; usual is 'ndcg_at_10'",
        ),
        (lambda root: _meta(root, name="a/b"), r"'name' must be letters"),
        (lambda root: _meta(root, name="rank"), r"two evaluation sets are called 'rank'"),
        (lambda root: _meta(root, trained_by=3), r"'trained_by' must be a list"),
        (lambda root: _meta(root, samples_per_label=0), r"'samples_per_label' must be a whole number"),
    ],
)
def test_bad_folders(tmp_path: Path, change, message: str) -> None:
    root = make_sets(tmp_path / "sets")
    change(root)
    with pytest.raises(BoomError, match=message):
        find_sets([root], None)


def test_a_folder_without_sets(tmp_path: Path) -> None:
    with pytest.raises(BoomError, match="holds no evaluation set"):
        find_sets([tmp_path], None)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("in_domain/find/queries.jsonl", b'{"_id": "q0", "text": "a"}\n{"_id": "q1", "text": " "}\n', r"queries\.jsonl:2: 'text' is empty"),
        ("in_domain/find/queries.jsonl", b'{"_id": "q0", "text": "a"}\n\n{"_id": ', r"queries\.jsonl:3: not valid JSON"),
        ("in_domain/find/queries.jsonl", b'{"_id": "q0", "text": "a"}\n{"_id": "q0", "text": "b"}', r"queries\.jsonl:2: _id 'q0' occurs twice"),
        ("in_domain/find/queries.jsonl", b'{"_id": "q0", "text": 5}', r"queries\.jsonl:1: 'text' must be text, got 5"),
        ("in_domain/find/queries.jsonl", b'{"_id": "q0", "text": "\xff"}', r"queries\.jsonl:1: not valid UTF-8"),
        ("in_domain/find/queries.jsonl", b"", r"queries\.jsonl has no rows"),
        ("in_domain/find/queries.jsonl", b"[1]", r"queries\.jsonl:1: expected a JSON object, got list"),
        ("in_domain/find/corpus.jsonl.gz", gzip.compress(b'{"_id": "d0"}\n' * 999, mtime=0)[:-20], r"corpus\.jsonl\.gz"),
        ("in_domain/find/qrels.tsv", b"q0 d0 1\n", r"qrels\.tsv:1: expected query-id, corpus-id and score"),
        ("in_domain/find/qrels.tsv", b"q0\td0\t1\nq0\td1\tyes\n", r"qrels\.tsv:2: the score must be a whole number"),
        ("in_domain/find/qrels.tsv", b"q\td\ts\nq99\td0\t1\n", r"qrels\.tsv:2: query 'q99' is not in the queries file"),
        ("in_domain/find/qrels.tsv", b"q\td\ts\nq0\td99\t1\n", r"qrels\.tsv:2: document 'd99' is not in the corpus file"),
        ("in_domain/find/qrels.tsv", b"q\td\ts\nq0\td0\t0\n", r"gives no query a relevant document"),
        ("in_domain/sort/test.jsonl.gz", gzip.compress(b'{"text": "a", "label": null}', mtime=0), r":1: 'label' must be text or"),
        ("out_of_domain/group/test.jsonl", b'{"text": "a", "label": 1}\n', r"has 1 distinct labels; at least two"),
        ("out_of_domain/alike/test.jsonl", b'{"sentence1": "a", "sentence2": "b", "score": NaN}', r":1: 'score' must be a finite"),
        ("out_of_domain/alike/test.jsonl", b'{"sentence1": "a", "sentence2": "b", "score": 1}', r"all scores are the same"),
    ],
)  # fmt: skip
def test_bad_rows_name_file_and_line(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    root = make_sets(tmp_path / "sets")
    (root / file).write_bytes(content)
    entries = find_sets([root], None)
    with pytest.raises(BoomError, match=message):
        list(texts(entries))


def test_bad_candidates(tmp_path: Path) -> None:
    root = make_sets(tmp_path / "sets")
    file = root / "in_domain/rank/top_ranked.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    for changed, message in [
        ([*rows[:-1]], "query 'q11' has no candidates"),
        ([*rows, {"query-id": "q0", "corpus-ids": []}], r":13: query 'q0' occurs twice"),
        ([{"query-id": "q0", "corpus-ids": ["d77"]}], r":1: document 'd77' is not in the corpus file"),
        ([{"query-id": "q0", "corpus-ids": "d1"}], r":1: 'corpus-ids' must be a list"),
    ]:
        write_rows(file, changed)
        with pytest.raises(BoomError, match=message):
            list(texts(find_sets([root / "in_domain/rank"], None)))


def test_plan_pays_for_no_heavy_import() -> None:
    heavy = ("torch", "mteb", "numpy", "transformers", "datasets", "ray")
    code = f"import sys, boom_ray.evaluate.sets; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _meta(root: Path, **changes: object) -> None:
    file = root / "in_domain/find/meta.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
