"""Parts and their reduction without Ray: exact for any corpus, whatever files its rows lie in."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boom_ray.config.corpus import FilesSource
from boom_ray.data import parts, quarantine, reduce
from boom_ray.data.decontaminate import write_evaluation
from boom_ray.data.parts import Part, Unit, write_part
from boom_ray.data.schema import row_id
from boom_ray.data.sources import local_file, spans

TEXT = st.sampled_from(["a", "b", "c", "leak", " Leak "])
ROW = st.fixed_dictionaries(
    {"query": TEXT, "pos": TEXT, "neg": st.lists(TEXT, max_size=2), "dataset": st.sampled_from("xy")}
)
BAD = st.sampled_from([{"query": "a"}, {"query": "", "pos": "b"}, [], "{"])  # a file of no rows is drawn, too
FILES = st.lists(st.lists(ROW | BAD, max_size=12), min_size=1, max_size=4)


def _is_bad(row):
    return not (isinstance(row, dict) and row.get("query") and "pos" in row)


def _expected(files):
    """The same rules on plain lists: (rows kept in order, counts of all datasets together)."""
    kept, seen = [], set()
    counts = dict.fromkeys(parts.COUNTS, 0)
    for row in (row for file in files for row in file):
        counts["rows_in"] += 1
        if _is_bad(row):
            counts["rejected"] += 1
            continue
        clean = {key: row[key].strip() for key in ("query", "pos", "dataset")}
        if "leak" in (clean["query"].lower(), clean["pos"].lower()):
            counts["decontaminated"] += 1
            continue
        neg = [n for n in row["neg"] if n.strip().lower() != "leak"]
        counts["negatives_decontaminated"] += len(row["neg"]) - len(neg)
        key = tuple(clean.values())
        if key in seen:
            counts["duplicates"] += 1
            continue
        seen.add(key)
        kept.append((row_id(clean["dataset"], clean["query"], [clean["pos"]]), neg))
    counts["rows"] = len(kept)
    return kept, counts


def _reduced(files, span_bytes, folder):
    """Rows and counts of a corpus whose files are cut into spans of this size; quarantined (file, line)s."""
    write_evaluation(["LEAK"], None, folder)
    source = FilesSource(path=str(folder), task_type="retrieval")
    paths = [folder / f"{number}.jsonl" for number in range(len(files))]
    for path, rows in zip(paths, files, strict=True):
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    cut = [(place, file, span) for place, file in enumerate(map(local_file, paths)) for span in spans(file, span_bytes)]
    units = [Unit(index, place, file, span, source) for index, (place, file, span) in enumerate(cut)]
    found = [Part.of(folder, unit.index, write_part(unit, folder)) for unit in units]
    assert found == [parts.read_part(folder, unit.index) for unit in units]
    index = reduce.read_index(found)
    first = reduce.first_of_each(index.ids)
    plans = reduce.plan_shards(found, first, folder, folder)
    for plan in plans:
        reduce.write_shard(plan)
    shards = sorted(folder.glob("rows-*.arrow"))
    assert shards == [plan.target for plan in plans]
    total = {key: sum(c[key] for part in found for c in part.counts.values()) for key in parts.COUNTS}
    total |= {"rows": int(first.sum()), "duplicates": int((~first).sum())}
    quarantine.write_quarantine(units, found, folder / "quarantine.jsonl")
    bad = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    return shards, total, [(Path(b["file"]).name, b["line"]) for b in bad]


@given(FILES, st.integers(5, 300))
@settings(max_examples=40, deadline=None)
def test_any_corpus_is_reduced_exactly_however_it_is_cut(files, span_bytes):
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as other:
        shards, total, bad = _reduced(files, span_bytes, Path(name))
        rows = [r for s in shards for r in pa.ipc.open_file(str(s)).read_all().to_pylist()]
        kept, expected = _expected(files)
        assert [(r["id"], r["neg"]) for r in rows] == kept
        assert total == expected
        dropped = ("rejected", "decontaminated", "duplicates", "near_duplicates", "capped", "rows")
        assert total["rows_in"] == sum(total[key] for key in dropped)
        wrong = [(f"{n}.jsonl", line) for n, f in enumerate(files) for line, row in enumerate(f, 1) if _is_bad(row)]
        assert bad == wrong
        whole, _, _ = _reduced(files, 1 << 20, Path(other))
        assert [s.read_bytes() for s in shards] == [s.read_bytes() for s in whole]


def test_first_of_each_of_many_ids():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 256, (300, 16), dtype=np.uint8)[rng.integers(0, 300, 5000)]
    ids[:, :8] = ids[0, :8]  # only the second half tells them apart
    seen: set[bytes] = set()
    expected = [not (i in seen or seen.add(i)) for i in map(bytes, ids)]
    assert reduce.first_of_each(ids).tolist() == expected
    assert reduce.first_of_each(ids[:0]).tolist() == []


@pytest.mark.parametrize("span_bytes", [90, 700, 1 << 20])
def test_shards_are_cut_alike_and_lose_nothing(tmp_path, monkeypatch, span_bytes):
    monkeypatch.setattr(parts, "BATCH_ROWS", 16)
    monkeypatch.setattr(reduce, "BATCH_ROWS", 8)
    monkeypatch.setattr(reduce, "SHARD_ROWS", 50)
    rows = [{"query": f"q{n}", "pos": "p", "dataset": "x", "neg": []} for n in range(200)]
    shards, _, _ = _reduced([[row for row in rows for _ in range(2)]], span_bytes, tmp_path)
    tables = [pa.ipc.open_file(str(s)) for s in shards]
    assert [[t.get_batch(n).num_rows for n in range(t.num_record_batches)] for t in tables] == [[8] * 6 + [2]] * 4
    assert [q for t in tables for q in t.read_all().column("query").to_pylist()] == [f"q{n}" for n in range(200)]


def test_cap_is_exact_and_per_dataset():
    rng = np.random.default_rng(1)
    index = reduce.RowIndex(
        rng.integers(0, 256, (1000, 16), dtype=np.uint8),
        (np.arange(1000) % 2).astype(np.int32),
        (("a", "sts"), ("b", "sts")),
    )
    all_rows = np.ones(1000, dtype=bool)
    kept = reduce.under_cap(index, all_rows, {"a": 120, "b": 7}, seed=3)
    assert [int(kept[index.codes == code].sum()) for code in (0, 1)] == [120, 7]
    assert reduce.under_cap(index, all_rows, {"a": None}, seed=3).all()
    assert reduce.under_cap(index, all_rows, {"a": 10_000}, seed=3).all()
    smaller = reduce.under_cap(index, all_rows, {"a": 60, "b": 7}, seed=3)
    assert (smaller <= kept).all()  # a smaller cap keeps a part of the same rows


def test_duplicates_are_found_in_every_bucket(monkeypatch):
    monkeypatch.setattr(reduce, "_BUCKET_ROWS", 64)
    ids = np.random.default_rng(2).integers(0, 256, (500, 16), dtype=np.uint8)
    ids[0], ids[1] = 0, 255  # the ends of the first and the last bucket
    twice = np.concatenate([ids, ids[::-1]])
    assert reduce.first_of_each(twice).tolist() == [True] * 500 + [False] * 500
