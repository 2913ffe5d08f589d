"""Where every row went: a random corpus counted by brute force, and counts that do not add up are refused."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from boom_ray.config import Bags, BoomError, ScheduleName
from boom_ray.config.corpus import Corpus
from boom_ray.data import corpus
from boom_ray.data.accounts import CLEANED, PLACES, check_account, member_account
from boom_ray.data.bag_rules import bag_rules
from boom_ray.data.bagging import Rows, bag_rows, dev_rows, draw
from boom_ray.data.rules import DatasetRule, dataset_rules
from boom_ray.data.schedule import Schedule, whole_run

TYPES = ("retrieval", "sts", "classification", "clustering", "reranking")
# sizes that ask for trouble: nothing, one row, fewer than a batch, many
sizes = st.lists(st.sampled_from([0, 1, 2, 3, 5]) | st.integers(0, 120), min_size=1, max_size=4)
kinds = st.sampled_from(
    [
        {"ratios": (0.4, 1.0)},
        {"ratios": (0.4, 1.0), "nested": True},
        {"ratios": (0.4, 1.0), "temperature": 2.0},
        {"ratios": (0.4, 1.0), "kind": "bootstrap"},
        {"ratios": (0.4, 1.0), "kind": "bootstrap", "resample": "multinomial"},
        {"kind": "dataset"},
        {"kind": "task_type", "ratios": (0.3,)},
    ]
)


def _corpus(numbers: list[int], seed: int) -> tuple[Rows, dict[str, dict[str, int]], dict[str, DatasetRule]]:
    """Rows of some datasets, and counts of a cleaning that lost any number of rows, of one dataset all."""
    rng = np.random.default_rng(seed)
    names = tuple(f"d{i}" for i in range(len(numbers)))
    ids = rng.integers(0, 256, (sum(numbers), 16), dtype=np.uint8)
    counts = {}
    for name, number in (*zip(names, numbers, strict=True), ("all bad", 0)):
        lost = dict(zip(CLEANED, rng.integers(0, 9, len(CLEANED)).tolist(), strict=True))
        counts[name] = {"rows_in": number + sum(lost.values()), "rows": number, **lost}
    rules = {n: DatasetRule(TYPES[i % 5], TYPES[i % 5] == "sts", i != 2, i % 2 == 1) for i, n in enumerate(names)}
    return Rows(ids, np.repeat(np.arange(len(numbers), dtype=np.int16), numbers), names), counts, rules


@given(sizes, kinds, st.sampled_from(get_args(ScheduleName)), st.data())
def test_every_row_that_was_read_is_in_exactly_one_place(numbers, kind: dict[str, Any], name, data):
    batch, seed = data.draw(st.integers(2, 40)), data.draw(st.integers(0, 2**31))
    smallest_tail, max_steps = data.draw(st.sampled_from([2, None])), data.draw(st.none() | st.integers(1, 9))
    rows, counts, rules = _corpus(numbers, seed)
    named = [(n, rule.task_type) for n, rule in rules.items()]
    drawn = draw(rows, bag_rules(Bags.model_validate(kind), named), (0.1, 4), seed)
    dev = {r for chosen in dev_rows(rows, drawn).values() for r in chosen.tolist()}
    for bag in drawn.bags:
        inside = bag_rows(rows, drawn, bag)
        plan = whole_run(inside, Schedule(name, batch, smallest_tail, rules), seed, 2, max_steps)
        accounts = member_account(counts, rows, drawn, bag, plan)
        assert set(accounts) == {*rows.names, "all bad"}
        used = Counter(r for b in plan.batches for r in b.rows.tolist())
        for index, dataset in enumerate(rows.names):
            told, own = accounts[dataset], set(rows.of(index).tolist())
            bagged = set(inside[dataset].tolist())
            assert told["rows_in"] == sum(told[place] for place in PLACES) == counts[dataset]["rows_in"]
            assert told["used"] == len(own & set(used))
            assert told["dev"] == len(own & dev)
            assert told["out_of_bag"] == len(own - dev - bagged)
            assert told["tail"] + told["cut"] == len(bagged - set(used))
            assert told["cut"] == 0 or plan.ended_early
            if smallest_tail == 2 and not plan.ended_early:
                assert told["tail"] <= 1  # a row alone makes no batch
        assert accounts["all bad"]["used"] == 0


TEXT = st.sampled_from(["a", "b", "c", "d", "leak"])  # few texts: many duplicates, at times nothing else
ROW = st.fixed_dictionaries(
    {"query": TEXT, "pos": TEXT, "neg": st.lists(TEXT, max_size=1), "dataset": st.sampled_from("xy")}
)
FILES = st.lists(st.lists(ROW | st.just({"query": "bad"}), max_size=30), min_size=1, max_size=3)


@given(FILES, st.none() | st.integers(1, 9), kinds, st.sampled_from(get_args(ScheduleName)), st.integers(0, 99))
@settings(max_examples=40)
def test_files_to_batches_lose_no_row(files, cap, kind, name, seed):
    """From jsonl files through cleaning and bags to batches, against plain Python sets."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            corpus, "on_workers", lambda work, items, files: [work(item) for item in items]
        )  # in this process
        counts, rows, rules = _built(files, cap, seed, Path(folder))
    usable = [r for f in files for r in f if "pos" in r and "leak" not in (r["query"], r["pos"])]
    distinct = {(r["dataset"], r["query"], r["pos"]) for r in usable}
    for dataset, told in counts.items():
        own = sum(d == dataset for d, _, _ in distinct)
        assert told["rows"] == min(own, cap or own)
        assert told["duplicates"] == sum(r["dataset"] == dataset for r in usable) - own
        assert told["capped"] == own - told["rows"]
    assert sum(c["rows_in"] for c in counts.values()) == sum(map(len, files))
    named = [(n, rule.task_type) for n, rule in rules.items()]
    drawn = draw(rows, bag_rules(Bags.model_validate(kind), named), (0.1, 4), seed)
    for bag in drawn.bags:
        plan = whole_run(bag_rows(rows, drawn, bag), Schedule(name, 4, None, rules), seed, 1, None)
        accounts = member_account(counts, rows, drawn, bag, plan)
        used = {r for b in plan.batches for r in b.rows.tolist()}
        assert sum(a["used"] for a in accounts.values()) == len(used)
        assert sum(sum(a[p] for p in PLACES) for a in accounts.values()) == sum(map(len, files))


def _built(files: list[list[Any]], cap: int | None, seed: int, folder: Path) -> tuple[Any, Rows, Any]:
    for number, content in enumerate(files):
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    source = {"path": str(folder), "task_type": "retrieval"}
    settings = {"datasets": [source], "max_bad_fraction": 1.0, "max_rows_per_dataset": cap}
    try:
        counts = corpus.build_corpus(Corpus.model_validate(settings), seed, ["LEAK"], folder / "out")
    except BoomError as error:  # not one row is left
        assume("no training rows" not in str(error))
        raise
    rules = dataset_rules(json.loads((folder / "out" / "datasets.json").read_text()))
    names = tuple(rules)
    kept = [r for f in sorted((folder / "out").glob("rows-*")) for r in pa.ipc.open_file(str(f)).read_all().to_pylist()]
    ids = np.frombuffer(b"".join(r["id"] for r in kept), np.uint8).reshape(-1, 16)
    return counts, Rows(ids, np.array([names.index(r["dataset"]) for r in kept], np.int16), names), rules


def test_counts_that_do_not_add_up_are_refused():
    account = {"rows_in": 10, **dict.fromkeys(PLACES, 1)}
    check_account("good", account)
    for wrong in ({"rows_in": 11}, {"used": 2}, {"used": 3, "tail": -1}):
        with pytest.raises(BoomError, match=r"dataset 'bad'.*accounted for"):
            check_account("bad", {**account, **wrong})


def test_a_row_in_a_batch_of_another_member_is_noticed():
    """A batch with rows that are not of the bag: they would be counted twice."""
    rows, counts, rules = _corpus([40], 3)
    drawn = draw(rows, bag_rules(Bags(ratios=(0.4, 1.0))), (0.1, 4), 3)
    plan = whole_run(bag_rows(rows, drawn, drawn.bags[1]), Schedule("batch_shuffle", 4, 2, rules), 3, 1, None)
    with pytest.raises(BoomError, match="accounted for"):
        member_account(counts, rows, drawn, drawn.bags[0], plan)
