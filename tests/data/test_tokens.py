import json
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from boom_ray.config import BoomError
from boom_ray.data.parts import ROWS
from boom_ray.data.schema import row_id
from boom_ray.data.tokens import (
    TokenJob,
    TokenStore,
    label_key,
    save_effective_tokenizer,
    tokenise_shard,
    train_tokenizer,
)

DATASETS = [
    {"name": "plain", "task_type": "retrieval", "rows": 300, "instruction": {"query": "", "passage": ""}},
    {"name": "asked", "task_type": "sts", "rows": 200, "instruction": {"query": "find: ", "passage": "text: "}},
]


def _row(number):
    name = DATASETS[number >= 300]["name"]
    query, pos = f"readCsvFile number_{number} été", [f"def read_csv_{number}(path): return parse(path, {number})"]
    neg = [f"negative {number} {k} " + "word " * 60 for k in range(number % 3)]
    return [row_id(name, query, pos), name, "retrieval", query, pos, neg, 0.5 if name == "asked" else None, "x"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """500 rows in 3 shards of 2 record batches each."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "datasets.json").write_text(json.dumps(DATASETS))
    rows = [_row(number) for number in range(500)]
    for shard, (start, stop) in enumerate([(0, 200), (200, 400), (400, 500)]):
        with pa.ipc.new_file(str(folder / f"rows-{shard:05d}.arrow"), ROWS) as writer:
            for part in (rows[start : start + 50], rows[start + 50 : stop]):
                columns = [pa.array(c, t) for c, t in zip(zip(*part, strict=True), ROWS.types, strict=True)]
                writer.write_batch(pa.record_batch(columns, schema=ROWS))
    return folder


@pytest.fixture(scope="module")
def tokenizer(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(corpus, 400, 32, out)
    return out


@pytest.fixture(scope="module")
def store(corpus, tokenizer, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokens")
    (out / "datasets.json").write_text((corpus / "datasets.json").read_text())
    job = TokenJob(out / "tokenizer.json", out / "datasets.json", out)
    save_effective_tokenizer(tokenizer, 32, job.tokenizer)
    totals = [tokenise_shard(shard, job) for shard in sorted(corpus.glob("rows-*"))]
    assert list(job.finished(sorted(corpus.glob("rows-*"))).values()) == totals
    assert sum(t["rows"] for t in totals) == 500
    assert sum(t["texts"] for t in totals) == 500 + 500 + sum(n % 3 for n in range(500))
    return TokenStore(out)


def test_tokenizer_is_the_same_bytes_twice(corpus, tokenizer, tmp_path):
    for run in range(3):
        again = tmp_path / str(run)
        train_tokenizer(corpus, 400, 32, again)
        assert sorted(os.listdir(again)) == ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
        for name in os.listdir(again):
            assert (again / name).read_bytes() == (tokenizer / name).read_bytes()


def test_tokenizer_loads_and_knows_identifiers(tokenizer):
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    assert loaded.pad_token_id == 0
    assert len(loaded) <= 400
    assert loaded.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert loaded.tokenize("read_csv") == loaded.tokenize("read csv")
    assert loaded.tokenize("readCsv") == loaded.tokenize("read Csv")
    ids = loaded("read_csv(path)")["input_ids"]
    assert (ids[0], ids[-1]) == (2, 3)
    assert 1 not in ids
    assert loaded("a b", "c")["input_ids"].count(3) == 2


def test_ids_equal_those_of_the_auto_tokenizer(store, tokenizer):
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    for number, row in zip(range(500), store.take(np.arange(500)), strict=True):
        identity, name, _, query, pos, neg, _, label = _row(number)
        prompt = DATASETS[name == "asked"]["instruction"]
        assert row.id == identity
        texts = [prompt["query"] + query, *(prompt["passage"] + t for t in pos + neg)]
        expected = loaded(texts, truncation=True, max_length=32)["input_ids"]
        assert [row.query.tolist(), *(t.tolist() for t in row.pos + row.neg)] == expected
        assert row.label == label_key(name, label) != 0
        assert (len(row.pos), len(row.neg)) == (1, number % 3)
        assert all(t.dtype == np.int32 for t in [row.query, *row.pos, *row.neg])
    assert max(len(n) for row in store.take(np.arange(9)) for n in row.neg) == 32


def test_store_counts_and_scores(store):
    assert len(store) == 500
    assert store.ids.shape == (500, 16)
    assert store.dataset.tolist() == [0] * 300 + [1] * 200
    rows = np.array([499, 3, 250, 3])
    taken = store.take(rows)
    assert np.isnan(taken[1].score)
    assert taken[0].score == 0.5
    assert [t.id for t in taken] == [store.ids[r].tobytes() for r in rows]
    sizes = [len(t.query) + sum(map(len, t.pos + t.neg)) for t in taken]
    assert store.lengths(rows).tolist() == sizes
    assert store.take(np.empty(0, np.int64)) == []
    with pytest.raises(IndexError):
        store.take(np.array([500]))


def test_a_take_of_a_batch_is_fast_and_a_pickled_store_is_small(store):
    rows = np.random.default_rng(0).integers(0, len(store), 96)
    best = min(_seconds(lambda: store.take(rows)) for _ in range(10))
    assert best < 0.005
    copy = pickle.dumps(store)
    assert len(copy) < 2000
    assert pickle.loads(copy).lengths(rows).tolist() == store.lengths(rows).tolist()


def _seconds(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def test_base_without_a_tokenizer(tmp_path):
    with pytest.raises(BoomError, match="no tokenizer that can be loaded"):
        save_effective_tokenizer(tmp_path, 32, Path(tmp_path) / "x")
    with pytest.raises(BoomError, match="no token shards"):
        TokenStore(tmp_path)
