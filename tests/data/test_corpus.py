"""Exact counts, the same bytes for one and for two workers, planted leaks, bad rows; one local Ray for the module."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from boom_ray.config import BoomError
from boom_ray.config.corpus import Corpus
from boom_ray.data import corpus as corpus_module
from boom_ray.data import environment_sets
from boom_ray.data.corpus import build_corpus, tokenise
from boom_ray.data.parts import COUNTS
from boom_ray.data.python_environment import list_packages, read_package
from boom_ray.data.schema import fold
from boom_ray.data.tokens import TokenStore, train_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _ray():
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)  # never somebody else's cluster
    yield
    ray.shutdown()


@pytest.fixture
def one_worker():
    """Ray Data may run a single task at a time inside this fixture."""
    import ray.data

    options = ray.data.DataContext.get_current().execution_options
    before = options.resource_limits
    options.resource_limits = ray.data.ExecutionResources.for_limits(cpu=1)
    yield
    options.resource_limits = before


def _write(file, rows):
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode()) if file.name.endswith(".gz") else text.encode())


def _retrieval(query, pos="p", neg=()):
    return {"query": query, "pos": [f"{pos} of {query}"], "neg": list(neg), "task_type": "retrieval"}


def _build(tmp_path, evaluation=(), name="out", seed=1, **settings):
    out = tmp_path / name
    out.mkdir()
    settings.setdefault("datasets", [{"path": str(tmp_path / "data")}])
    return build_corpus(Corpus.model_validate(settings), seed, evaluation, out), out


def _lines(file):
    return gzip.decompress(file.read_bytes()).decode().strip().split("\n")


def _rows(out):
    return [
        r
        for f in sorted(out.glob("rows-*.arrow"))
        for r in pa.ipc.open_file(pa.memory_map(str(f))).read_all().to_pylist()
    ]


def _check(counts):
    for c in counts.values():
        assert c["rows_in"] == sum(c[key] for key in COUNTS if key not in ("rows_in", "negatives_decontaminated"))


@pytest.fixture
def data(tmp_path):
    """Three files; 'shared' lies in two of them, with duplicates inside a file and across files."""
    folder = tmp_path / "data"
    folder.mkdir()
    shared = [_retrieval(f"s{n}") | {"dataset": "shared"} for n in range(10)]
    _write(
        folder / "a.jsonl", [_retrieval(f"a{n}") for n in range(40)] + [_retrieval("a3", neg=["other"])] + shared[:6]
    )
    _write(folder / "b.jsonl.gz", [s | {"neg": ["late"]} for s in shared] + [_retrieval(f"a{n}") for n in range(3)])
    labels = [{"query": f"c{n}", "pos": "yes", "neg": ["no"], "task_type": "classification"} for n in range(5)]
    _write(folder / "c.jsonl", labels + labels)
    return folder


def test_counts_are_exact_with_duplicates_across_files(tmp_path, data):
    counts, out = _build(tmp_path)
    zero = {"rejected": 0, "near_duplicates": 0, "decontaminated": 0, "negatives_decontaminated": 0, "capped": 0}
    assert counts == {
        "a": zero | {"rows_in": 41, "duplicates": 1, "rows": 40},
        "shared": zero | {"rows_in": 16, "duplicates": 6, "rows": 10},
        "b": zero | {"rows_in": 3, "duplicates": 0, "rows": 3},
        "c": zero | {"rows_in": 10, "duplicates": 5, "rows": 5},
    }
    _check(counts)
    assert json.loads((out / "counts.json").read_text()) == counts
    rows = _rows(out)
    order = (
        [f"a{n}" for n in range(40)] + [f"s{n}" for n in range(10)] + ["a0", "a1", "a2"] + [f"c{n}" for n in range(5)]
    )
    assert [r["query"] for r in rows] == order
    assert [r["neg"] for r in rows if r["dataset"] == "shared"] == [[]] * 6 + [["late"]] * 4  # the first ones stayed
    assert len({r["id"] for r in rows}) == len(rows)
    listed = json.loads((out / "datasets.json").read_text())
    assert [(d["name"], d["task_type"], d["rows"]) for d in listed] == [
        ("a", "retrieval", 40),
        ("shared", "retrieval", 10),
        ("b", "retrieval", 3),
        ("c", "classification", 5),
    ]
    expected = ["counts.json", "datasets.json", "quarantine.jsonl", "rows-00000.arrow"]
    assert sorted(os.listdir(out)) == expected
    assert (out / "quarantine.jsonl").read_bytes() == b""


def test_one_and_two_workers_write_the_same_bytes(tmp_path, data, request):
    settings = {"max_rows_per_dataset": 7}
    _, two = _build(tmp_path, ["c1"], "two", **settings)
    request.getfixturevalue("one_worker")
    _, one = _build(tmp_path, ["c1"], "one", **settings)
    for file in sorted(two.iterdir()):
        assert file.read_bytes() == (one / file.name).read_bytes(), file.name


def test_cap_keeps_the_same_rows_whatever_the_order_of_files(tmp_path, data):
    counts, out = _build(tmp_path, max_rows_per_dataset=7)
    _check(counts)
    assert [c["rows"] for c in counts.values()] == [7, 7, 3, 5]
    assert [c["capped"] for c in counts.values()] == [33, 3, 0, 0]
    turned = [{"path": str(data / name)} for name in ("c.jsonl", "b.jsonl.gz", "a.jsonl")]
    _, other = _build(tmp_path, name="turned", max_rows_per_dataset=7, datasets=turned)
    assert {r["id"] for r in _rows(out)} == {r["id"] for r in _rows(other)}
    _, reseeded = _build(tmp_path, name="reseeded", max_rows_per_dataset=7, seed=2)
    assert {r["id"] for r in _rows(out)} != {r["id"] for r in _rows(reseeded)}


def test_a_dataset_has_its_own_cap(tmp_path, data):
    datasets = [{"path": str(data / "a.jsonl"), "cap": 12}, {"path": str(data / "c.jsonl")}]
    counts, out = _build(tmp_path, max_rows_per_dataset=4, datasets=datasets)
    _check(counts)
    assert {name: (c["rows"], c["capped"]) for name, c in counts.items()} == {
        "a": (12, 28),
        "shared": (6, 0),
        "c": (4, 1),
    }
    listed = {d["name"]: d for d in json.loads((out / "datasets.json").read_text())}
    assert [listed[name]["in_batch"] for name in ("a", "shared", "c")] == [True, True, False]


def test_near_duplicates_and_shared_ngrams_are_dropped_and_counted(tmp_path, request):
    folder = tmp_path / "data"
    folder.mkdir()
    text = " ".join(f"w{n}" for n in range(60))
    rows = [_retrieval(f"{text} {tail}") for tail in ("one", "two", "three")]
    rows += [_retrieval(" ".join(f"v{n}" for n in range(k, k + 40))) for k in range(5)]
    _write(folder / "a.jsonl", [*rows, rows[0]])
    evaluation = [" ".join(f"v{n}" for n in range(30, 43))]  # thirteen words that the last two rows hold
    settings = {"near_duplicates": 0.7, "ngram": 13}
    counts, out = _build(tmp_path, evaluation, **settings)
    _check(counts)
    assert (counts["a"]["duplicates"], counts["a"]["near_duplicates"], counts["a"]["decontaminated"]) == (1, 4, 2)
    assert [r["query"].split()[0] for r in _rows(out)] == ["w0", "v0"]
    request.getfixturevalue("one_worker")
    _, one = _build(tmp_path, evaluation, "one", **settings)
    for file in sorted(out.iterdir()):
        assert file.read_bytes() == (one / file.name).read_bytes(), file.name


def test_one_large_file_is_shared_and_the_spans_do_not_show(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [_retrieval(f"q{n % 700}") if n % 50 else "{bad\n" for n in range(1000)]
    _write(folder / "a.jsonl", rows)
    counts, whole = _build(tmp_path, ["q5"], max_bad_fraction=0.5)
    monkeypatch.setattr(corpus_module, "SPAN_BYTES", 3000)
    again, cut = _build(tmp_path, ["q5"], "cut", max_bad_fraction=0.5)
    assert again == counts
    for file in sorted(whole.iterdir()):
        assert file.read_bytes() == (cut / file.name).read_bytes(), file.name
    lines = [json.loads(line)["line"] for line in (cut / "quarantine.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 1001, 50))


def test_planted_leaks_are_all_found(tmp_path):
    """100 evaluation texts as they are, in other case and spaced, as query, positive and negative."""
    texts = [f"Evaluation Text number {n} \ufb01ne" for n in range(100)]
    forms = [str, str.upper, lambda t: "  " + " \t ".join(t.split(" ")) + "\n"]
    leaks = [forms[n % 3](text) for n, text in enumerate(texts)]
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [_retrieval(leak) for leak in leaks[:40]]
    rows += [{"query": f"q{n}", "pos": ["fine", leak], "task_type": "retrieval"} for n, leak in enumerate(leaks[40:70])]
    rows += [_retrieval(f"n{n}", neg=["good", leak]) for n, leak in enumerate(leaks[70:])]
    _write(folder / "a.jsonl", rows)
    label = {"query": "l", "pos": texts[0], "neg": [texts[1]], "task_type": "classification"}
    _write(folder / "labels.jsonl", [label, label | {"query": texts[2]}])
    counts, out = _build(tmp_path, iter(texts))
    _check(counts)
    assert counts["a"]["decontaminated"] == 70
    assert counts["a"]["negatives_decontaminated"] == 30
    assert counts["labels"]["decontaminated"] == 1
    assert [r["neg"] for r in _rows(out)] == [["good"]] * 30 + [[texts[1]]]


def _bad_rows():
    return [
        _retrieval("one"),
        "{oops\n",
        _retrieval(" "),
        _retrieval("two") | {"task_type": "ranking"},
        _retrieval("three"),
    ]


def test_bad_rows_stop_the_run_with_file_and_line(tmp_path):
    _write(tmp_path / "data", [])
    (tmp_path / "data").unlink()
    (tmp_path / "data").mkdir()
    _write(tmp_path / "data" / "a.jsonl", _bad_rows())
    with pytest.raises(BoomError) as caught:
        _build(tmp_path)
    message = str(caught.value)
    assert "3 of 5 training rows cannot be used" in message
    assert "a.jsonl:2: bad JSON: Expecting property name" in message
    assert "a.jsonl:3: empty text in 'query'" in message
    assert "a.jsonl:4: unknown task type 'ranking'" in message
    assert "raise corpus.max_bad_fraction" in message


def test_bad_rows_go_to_the_quarantine_and_good_ones_stay(tmp_path):
    (tmp_path / "data").mkdir()
    _write(tmp_path / "data" / "a.jsonl", _bad_rows())
    counts, out = _build(tmp_path, max_bad_fraction=0.6)
    _check(counts)
    assert (counts["a"]["rejected"], counts["a"]["rows"]) == (3, 2)
    quarantine = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [row["line"] for row in quarantine] == [2, 3, 4]
    assert {row["file"] for row in quarantine} == {str(tmp_path / "data" / "a.jsonl")}
    assert [r["query"] for r in _rows(out)] == ["one", "three"]


def test_every_kind_of_bad_input_is_named_by_file_and_line_and_nothing_good_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "SPAN_BYTES", 1 << 20)  # the long line spans several
    folder = tmp_path / "data"
    folder.mkdir()
    good = [json.dumps(_retrieval(f"good {n}")).encode() for n in range(5)]
    wrong = [
        json.dumps(_retrieval("x") | change).encode() for change in ({"query": "a\0b"}, {"pos": 7}, {"query": None})
    ]
    huge = b'{"query": "' + b"x" * (10 << 20) + b'"}'
    lines = [good[0], b'{"query": "\xff"}', *wrong, b"", huge, good[1], b"not json", good[2]]
    (folder / "a.jsonl").write_bytes(b"\n".join(lines))
    packed = gzip.compress(
        b"\n".join([good[3], *(json.dumps(_retrieval(os.urandom(30).hex())).encode() for _ in range(99))])
    )
    (folder / "b.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    counts, out = _build(tmp_path, max_bad_fraction=0.9)
    _check(counts)
    bad = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [b["line"] for b in bad[:-1]] == [2, 3, 4, 5, 7, 9]
    assert all(b["file"] == str(folder / "a.jsonl") for b in bad[:-1])
    reasons = ["invalid UTF-8", "NUL", "'pos' must be", "missing field 'query'", "longer than 8 MiB", "bad JSON"]
    assert [reason in b["reason"] for reason, b in zip(reasons, bad, strict=False)] == [True] * 6
    assert bad[-1]["file"] == str(folder / "b.jsonl.gz")
    assert "cut or damaged" in bad[-1]["reason"]
    assert counts["a"]["rows"] == 3
    assert counts["b"]["rows"] == bad[-1]["line"] - 1 > 10
    assert counts["b"]["rejected"] == 1


def test_what_makes_no_corpus_says_so(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(BoomError, match="does not exist"):
        _build(tmp_path, name="1", datasets=[{"path": str(tmp_path / "gone.jsonl")}])
    _write(tmp_path / "data" / "a.jsonl", [])
    with pytest.raises(BoomError, match=r"no training rows: .*data gave 0 rows"):
        _build(tmp_path, name="2")
    _write(tmp_path / "data" / "a.jsonl", [_retrieval("x")])
    with pytest.raises(BoomError, match=r"no training rows: .*1 hold an evaluation text"):
        _build(tmp_path, ["X"], name="3")
    _write(tmp_path / "data" / "a.jsonl", [_retrieval("x"), _retrieval("y") | {"task_type": "clustering"}])
    with pytest.raises(BoomError, match="two task types, retrieval and clustering"):
        _build(tmp_path, name="4")
    _write(tmp_path / "data" / "a.jsonl", [_retrieval("x")])
    twice = [{"path": str(tmp_path / "data"), "instruction": {"query": q}} for q in ("a", "b")]
    with pytest.raises(BoomError, match="two sources with different 'instruction'"):
        _build(tmp_path, name="5", datasets=twice)


def test_python_environment_and_files_become_one_corpus_and_its_tokens(tmp_path):
    environment = {"source": "python_environment", "max_functions": 1500, "eval_documents": 100, "eval_queries": 50}
    source = Corpus.model_validate({"datasets": [environment]}).datasets[0]
    functions = [f for p in list_packages(source) for f in read_package(p)]
    leak = environment_sets.select(functions, source).withheld
    leak = sorted(leak, key=lambda f: environment_sets._unit_hash(f.qualified_name))[0]
    (tmp_path / "data").mkdir()
    _write(tmp_path / "data" / "mine.jsonl", [_retrieval("mine"), _retrieval(leak.summary)])
    counts, out = _build(tmp_path, datasets=[environment, {"path": str(tmp_path / "data")}])
    _check(counts)
    assert list(counts) == ["python_functions", "python_modules", "python_packages", "mine"]
    assert [c["decontaminated"] for c in counts.values()] == [0, 0, 0, 1]
    sets = sorted(p.parent.relative_to(out / "eval").as_posix() for p in out.glob("eval/*/*/meta.json"))
    assert "in_domain/python_functions" in sets
    assert "out_of_domain/python_functions_ood" in sets
    train_tokenizer(out, 1000, 48, tmp_path / "tokenizer")
    totals = tokenise(out, tmp_path / "tokenizer", 48, tmp_path / "tokens")
    store = TokenStore(tmp_path / "tokens")
    assert len(store) == totals["rows"] == sum(c["rows"] for c in counts.values())
    assert store.lengths(np.arange(len(store))).sum() == totals["tokens"]
    assert [r["id"] for r in _rows(out)] == [store.ids[i].tobytes() for i in range(len(store))]
    assert sorted(os.listdir(tmp_path / "tokens")) == ["datasets.json", "tokens-00000.arrow"]


@pytest.mark.skipif(not os.environ.get("BOOM_RAY_DATA"), reason="BOOM_RAY_DATA names no folder of real data")
def test_real_data_runs_as_it_is_and_gives_up_100_planted_leaks(tmp_path):
    """100 test texts, as they are, in other case and spaced, among the rows of a copy of a training file."""
    root = Path(os.environ["BOOM_RAY_DATA"])
    files = [f for f in sorted(root.glob("eval/*/*/*.jsonl.gz")) if f.name != "train.jsonl.gz"]
    keys = ("text", "sentence1", "sentence2")
    texts = [row[key] for file in files for row in map(json.loads, _lines(file)) for key in keys if key in row]
    chosen = list({fold(t): t for t in texts if len(t) > 20}.values())[:: len(texts) // 120][:100]
    assert len(chosen) == 100
    forms = [str, str.upper, lambda t: f" {'  '.join(t.split(' '))}\n"]
    clean = [json.loads(line) for line in _lines(root / "train" / "banking77.jsonl.gz")]
    name, every = clean[0].get("dataset", "banking77"), len(clean) // 100
    planted = list(clean)
    for n, text in enumerate(chosen):
        planted.insert(n * every + n, planted[n * every + n] | {"query": forms[n % 3](text)})
    (tmp_path / "data").mkdir()
    _write(tmp_path / "data" / "banking77.jsonl", planted)
    others = [f for f in sorted((root / "train").iterdir()) if f.name != "banking77.jsonl.gz"]
    whole, _ = _build(tmp_path, texts, "whole", datasets=[{"path": str(root / "train")}])
    datasets = [*({"path": str(file)} for file in others), {"path": str(tmp_path / "data")}]
    counts, out = _build(tmp_path, texts, datasets=datasets)
    _check(whole)
    _check(counts)
    assert sum(c["decontaminated"] for c in whole.values()) == 0  # cleaned at its source
    assert counts[name] == whole[name] | {"rows_in": whole[name]["rows_in"] + 100, "decontaminated": 100}
    assert {n: c for n, c in counts.items() if n != name} == {n: c for n, c in whole.items() if n != name}
    lines = sum(1 for file in (root / "train").iterdir() for _ in _lines(file))
    assert sum(c["rows_in"] for c in whole.values()) == lines
    assert len(_rows(out)) == sum(c["rows"] for c in counts.values())
