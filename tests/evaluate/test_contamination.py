"""Test texts among training texts: the corpus' own rule, exact counts, and scores without what is touched."""

from __future__ import annotations

import gzip
import importlib
import json
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mteb_tasks import TASKS, TinyAggregate
from small_sets import sentence, write_qrels, write_set
from typer.testing import CliRunner

from boom_ray.cli import app
from boom_ray.config import BoomError
from boom_ray.data.decontaminate import Evaluation, decontaminate, write_evaluation
from boom_ray.data.overlap import EXACT, NEAR, NONE, Overlap, corpus_texts, file_texts
from boom_ray.data.schema import Example
from boom_ray.data.shingles import WordHasher
from boom_ray.evaluate.benchmarks import find_tasks
from boom_ray.evaluate.contamination import clean_score, evaluation_texts
from boom_ray.evaluate.contents import Rows, Search, contents, task_contents
from boom_ray.evaluate.marks import mark_of
from boom_ray.evaluate.score import evaluate
from boom_ray.evaluate.sets import EvalSet, find_sets
from boom_ray.evaluate.settings import asked
from boom_ray.evaluate.significance import Samples
from boom_ray.evaluate.tasks import build_task
from boom_ray.overlaps import find_marks, kept_samples, known_marks, plain_texts, training_texts

Models = Callable[[int], Path]
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def found(texts: Sequence[str], training: Sequence[str], ngram: int | None, folder: Path) -> list[int]:
    folder.mkdir(exist_ok=True)
    overlap = Overlap(texts, ngram, folder)
    overlap.look("train", training)
    return overlap.found(texts)[0].tolist()


def test_whole_texts_and_runs_of_words(tmp_path: Path) -> None:
    texts = ["A  Cat", "another cat", LONG, "", LONG.replace("seven", "7")]
    training = ["a cat", f"before {LONG} after", "ｃat"]
    assert found(texts, training, None, tmp_path) == [EXACT, NONE, NONE, NONE, NONE]
    assert found(texts, training, 13, tmp_path) == [EXACT, NONE, NEAR, NONE, NONE]
    assert found(texts, training, 4, tmp_path) == [EXACT, NONE, NEAR, NONE, NEAR]
    assert found(texts, [LONG.upper()], 13, tmp_path)[2] == EXACT
    assert found(texts, [], 13, tmp_path) == [NONE] * 5
    assert found([], training, 13, tmp_path) == []


def test_every_text_names_the_datasets_that_it_is_in(tmp_path: Path) -> None:
    overlap = Overlap(["a", "b", "c"], 13, tmp_path)
    overlap.look("first", ["a", "x"])
    overlap.look("second", ["b"])
    codes, names = overlap.found(["a", "b", "c"])
    assert codes.tolist() == [EXACT, EXACT, NONE]
    assert names == ["first", "second"]
    assert overlap.found(["c"])[1] == []


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), ngram=st.sampled_from([None, 2, 3]))
def test_the_rule_is_that_of_the_corpus(seed: int, ngram: int | None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A corpus from which evaluation texts were taken touches none of them; what it drops would have."""
    rng, folder = random.Random(seed), tmp_path_factory.mktemp("rule")
    words = ["cat", "ship", "tree", "猫", "Song"]
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(12)]
    rows = [Example("d", "retrieval", texts[rng.randrange(12)], (" ".join(rng.choices(words, k=5)),), (), None)
            for _ in range(10)]  # fmt: skip
    write_evaluation(texts[:6], ngram, folder)
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    kept = decontaminate(rows, Evaluation.of(folder), WordHasher(), counts)
    clean = [text for row in kept for text in (row.query, *row.pos)]
    assert found(texts[:6], clean, ngram, folder) == [NONE] * 6
    for row in rows:
        touches = any(found(texts[:6], [row.query, *row.pos], ngram, folder))
        assert touches == (row not in kept)


def test_what_of_a_corpus_and_of_files_is_compared(small_corpus: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    expected: dict[str, list[str]] = defaultdict(list)
    for shard in sorted(small_corpus.glob("rows-*.arrow")):
        for row in pa.ipc.open_file(pa.memory_map(str(shard))).read_all().to_pylist():
            classes = row["task_type"] == "classification"
            expected[row["dataset"]] += [row["query"], *([] if classes else [*row["pos"], *row["neg"]])]
    read: dict[str, list[str]] = defaultdict(list)
    for dataset, texts in corpus_texts(small_corpus):
        read[dataset] += texts
    assert {name: sorted(texts) for name, texts in read.items()} == {n: sorted(t) for n, t in expected.items()}

    rows: list[Any] = [
        {"query": "q", "pos": ["p"], "neg": ["n"], "task_type": "retrieval", "dataset": "mine"},
        {"query": "q2", "pos": ["label"], "neg": ["other label"], "task_type": "classification"},
        {"anchor": "a", "id": "no text", "messages": [{"role": "user", "content": "hello"}], "n": 3, "empty": " "},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows) + "{broken\n"
    (tmp_path / "their.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert dict(file_texts(str(tmp_path))) == {"mine": ["q", "p", "n"], "their": ["q2", "a", "hello"]}


@pytest.fixture
def search_set(tmp_path: Path) -> EvalSet:
    """Eight queries of one document each, documents 0 to 9."""
    rng = random.Random(3)
    documents = [{"_id": f"d{i}", "title": "note", "text": f"{sentence(rng)} {i}"} for i in range(10)]
    queries = [{"_id": f"q{i}", "text": f"{sentence(rng)} {i} ?"} for i in range(8)]
    folder = write_set(tmp_path / "find", "retrieval", {"corpus.jsonl": documents, "queries.jsonl": queries})
    write_qrels(folder, [(f"q{i}", f"d{i}", 1) for i in range(8)])
    return find_sets([folder], None)[0]


def texts_of(entry: EvalSet, stem: str) -> list[str]:
    return [json.loads(line)["text"] for line in (entry.folder / f"{stem}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("cap", [None, 30])
def test_local_sets_read_without_mteb_hold_what_mteb_scores(sets_root: Path, cap: int | None) -> None:
    def plain(part: Search | Rows) -> Any:
        if isinstance(part, Rows):
            return part.name, part.metadata.name, part.metadata.type, list(part.rows)
        return part.name, part.metadata.type, dict(part.queries), dict(part.relevant), list(part.blocks(7))

    for entry in asked(find_sets([sets_root], None), cap):
        ours, theirs = list(contents(entry)), list(task_contents(build_task(entry)))
        assert [plain(part) for part in ours] == [plain(part) for part in theirs]
        if isinstance(ours[0], Search):
            assert list(ours[0].queries) == list(theirs[0].queries)  # and in this order


def test_counts_of_a_search(search_set: EvalSet) -> None:
    queries, documents = texts_of(search_set, "queries"), texts_of(search_set, "corpus")
    training = [("a", [queries[2].upper()]), ("b", [documents[5], f"note {documents[2]}", documents[9]]), ("c", ["x"])]
    mark = find_marks([search_set], training)["find"]
    assert (mark.texts, mark.exact, mark.near) == (18, 4, 0)
    assert (mark.units, mark.touched) == (8, 2)  # d9 answers nothing, and d2 belongs to the query that is there too
    assert mark.datasets == ("a", "b")
    assert "4 of 18 texts" in mark.footnote
    assert "2 of 8 queries" in mark.footnote
    assert find_marks([search_set], [("c", ["x"])])["find"].footnote == ""


def test_counts_of_all_types(sets_root: Path) -> None:
    entries = find_sets([sets_root], None)
    pairs = [json.loads(line) for line in (sets_root / "out_of_domain/alike/test.jsonl").read_text().splitlines()]
    marks = find_marks(entries, [("sts", [pairs[4]["sentence2"], pairs[7]["sentence1"], pairs[7]["sentence2"]])])
    assert list(marks) == [entry.name for entry in entries]
    assert marks["alike"].units == 30
    assert marks["alike"].touched >= 2
    assert marks["alike"].exact >= 3
    everything = [("all", [text for row in pairs for text in (row["sentence1"], row["sentence2"])])]
    assert find_marks(entries, everything)["alike"].touched == 30


def test_the_clean_score_is_the_score_of_the_rest(search_set: EvalSet, make_model: Models, tmp_path: Path) -> None:
    queries = texts_of(search_set, "queries")
    score = evaluate(make_model(0), [search_set], results=tmp_path)["find"]
    samples = {"m": kept_samples(make_model(0), [search_set], tmp_path)}
    marks = find_marks([search_set], [("t", queries[:3])], samples=samples)
    values = samples["m"]["find"].values
    assert score == pytest.approx(values.mean(), abs=1e-5)  # mteb's five decimals
    assert marks["find"].clean["m"] == pytest.approx(values[3:].mean())
    assert "m" not in find_marks([search_set], [("t", queries)], samples=samples)["find"].clean  # nothing is left


def test_tasks_of_mteb_of_every_type(make_model: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All their texts are found, and their rows are the units that scores are kept for, where these are rows."""
    registry = importlib.import_module("mteb.get_tasks")._TASKS_REGISTRY
    for task in (*TASKS, TinyAggregate):
        monkeypatch.setitem(registry, task.metadata.name, task)
    sets = find_tasks((), [task.metadata.name for task in (*TASKS, TinyAggregate)])
    evaluate(make_model(0), sets, results=tmp_path)
    samples = kept_samples(make_model(0), sets, tmp_path)
    first = {entry.name: next(iter(evaluation_texts([entry]))) for entry in sets}
    training = [(name, [text]) for name, text in first.items()]
    marks = find_marks(sets, training, None, {"m": samples})
    cleaned = []
    for entry in sets:
        mark = marks[entry.name]
        assert mark.exact >= 1, entry.name
        assert 1 <= mark.touched <= mark.units
        assert mark.datasets
        if "m" in mark.clean:
            cleaned.append(entry.name)
    unknown = {"TinyClusteringVMeasure", "TinyClusteringVMeasureLangs"}  # half of their texts are drawn
    assert {entry.name for entry in sets} - set(cleaned) == unknown


def test_the_clean_score_of_other_kinds() -> None:
    rng, keep = np.random.default_rng(0), np.arange(40) >= 10
    one, gold = rng.random(40), rng.random(40)
    from scipy.stats import spearmanr

    clean = clean_score(Samples("spearman", "", one, gold), [~keep])
    assert clean == pytest.approx(spearmanr(one[keep], gold[keep]).statistic)
    parts = Samples("parts", "", parts=(Samples("mean", "", one), Samples("mean", "", gold[:5])))
    assert clean_score(parts, [~keep, np.zeros(5, bool)]) == pytest.approx((one[keep].mean() + gold[:5].mean()) / 2)
    assert clean_score(parts, [~keep]) is None
    assert clean_score(Samples("mean", "", one), [np.zeros(39, bool)]) is None
    assert clean_score(Samples("none", ""), [np.zeros(0, bool)]) is None


def test_the_command_marks_and_remembers(search_set: EvalSet, make_model: Models, tmp_path: Path) -> None:
    queries = texts_of(search_set, "queries")
    (tmp_path / "seen.jsonl").write_text("".join(json.dumps({"text": q}) + "\n" for q in queries[:2]))
    model, results = make_model(0), tmp_path / "results"
    evaluate(model, [search_set], results=results)
    command = ["contamination", str(model), "--sets", str(search_set.folder), "--results", str(results)]
    result = CliRunner().invoke(app, [*command, "--training", str(tmp_path / "seen.jsonl")])
    assert result.exit_code == 0, result.output
    assert "1 of 1 sets have test texts in the training data: find." in result.output
    mark = known_marks(model, results)["find"]
    assert (mark.exact, mark.touched, mark.datasets) == (2, 2, ("seen",))
    assert list(mark.clean) == [str(model)]
    evaluate(make_model(1), [search_set], results=results)
    compared = ["compare", str(model), str(make_model(1)), "--results", str(results)]
    shown = CliRunner().invoke(app, compared)
    assert "find † " in shown.output, shown.exception
    assert "† find, tiny-0: 2 of 18 texts occur in the training data of seen: 2 of 8 queries" in shown.output
    assert known_marks(make_model(1), results) == {}
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, BoomError)
    assert "--training FILE" in str(refused.exception)


def test_a_mark_survives_json(search_set: EvalSet) -> None:
    from dataclasses import asdict

    mark = find_marks([search_set], [("t", texts_of(search_set, "queries")[:1])])["find"]
    assert mark_of(json.loads(json.dumps(asdict(mark)))) == mark


def test_plain_texts(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("one\n\ntwo\none\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "three", "id": "x"}\n{"text": "four"}\n')
    assert plain_texts(tmp_path / "lines.txt") == ["one", "two"]
    assert plain_texts(tmp_path / "rows.jsonl") == ["three", "four"]
    assert len(plain_texts(tmp_path / "rows.jsonl", cap=1)) == 1
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(BoomError, match="holds no text"):
        plain_texts(tmp_path / "empty.txt")
    with pytest.raises(BoomError, match="does not exist"):
        plain_texts(tmp_path / "nowhere.jsonl")
    with pytest.raises(BoomError, match="--training"):
        training_texts(None, ())
