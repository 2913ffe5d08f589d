"""Probe batches: rows that no member has seen, drawn evenly, a function of the step."""

from __future__ import annotations

from collections import Counter

import pytest

from boom_ray.config import BoomError
from boom_ray.data.bagging import bag_rows, dev_rows
from boom_ray.data.membership import corpus_rows
from boom_ray.search.objective_rows import ObjectiveSettings, judged_rows
from boom_ray.search.probe import Probe

OBJECTIVE = ObjectiveSettings(temperature=0.1, max_rows=200)


@pytest.fixture(scope="module")
def probe(source) -> Probe:
    return Probe(source, judged_rows(source, "a", OBJECTIVE), batch=8, seed=5)


def test_probe_rows_are_in_no_bag_and_not_of_half_b(source, probe):
    rows = corpus_rows(source.tokens)
    held = [bag_rows(rows, source.drawn, bag) for bag in source.drawn.bags]
    reported = dev_rows(rows, source.drawn, "b")
    seen: dict[str, set[int]] = {}
    for step in range(80):
        name, visit = probe.visit(step)
        found, _ = probe.rows(name, visit)
        assert not set(found) & set(reported[name])
        assert not any(set(found) & set(bag[name]) for bag in held)
        assert len(found) == len(set(found)) <= 8
        seen.setdefault(name, set()).update(found.tolist())
    dev = dev_rows(rows, source.drawn, "a")
    assert all(set(dev[name].tolist()) <= seen[name] for name in rows.names)


def test_batches_are_drawn_evenly_whatever_the_sizes(source):
    rows = judged_rows(source, "a", OBJECTIVE)
    assert len({len(found) for found in rows.values()}) > 1
    tasks = Probe(source, rows, 8, 5)
    for rounds in (1, 7):
        counts = Counter(tasks.visit(step)[0] for step in range(4 * rounds))
        assert counts == dict.fromkeys(rows, rounds)
    orders = {tuple(tasks.visit(step)[0] for step in range(4 * k, 4 * k + 4)) for k in range(8)}
    assert len(orders) > 1


def test_evenly_over_types_shares_a_type_s_turns_among_its_datasets(source, monkeypatch):
    datasets = [
        {**d, "task_type": "retrieval" if d["name"] == "sort" else d["task_type"]} for d in source.store.datasets
    ]
    monkeypatch.setattr(source.store, "datasets", datasets)
    probe = Probe(source, judged_rows(source, "a", OBJECTIVE), 8, 5, "types")
    counts = Counter(probe.visit(step)[0] for step in range(3 * 10))
    assert counts == {"ask": 5, "sort": 5, "group": 10, "alike": 10}


def test_a_pass_over_a_dataset_has_each_row_once(source):
    rows = judged_rows(source, "a", OBJECTIVE)
    probe = Probe(source, rows, 4, 5)
    for name, every in rows.items():
        batches = len(every) // 4
        for epoch in (0, 1):
            found = [probe.rows(name, epoch * batches + k) for k in range(batches)]
            assert {e for _, e in found} == {epoch}
            assert len({int(r) for part, _ in found for r in part}) == 4 * batches


def test_a_batch_is_a_function_of_seed_and_step(source, probe):
    again = Probe(source, judged_rows(source, "a", OBJECTIVE), 8, 5)
    other = Probe(source, judged_rows(source, "a", OBJECTIVE), 8, 6)
    keys = [[p.batch(step).row_keys.tolist() for step in (9, 2, 5)] for p in (probe, again, other)]
    assert keys[0] == keys[1] != keys[2]


def test_what_a_probe_refuses(source):
    with pytest.raises(BoomError, match="no rows"):
        Probe(source, {}, 8, 5)
    with pytest.raises(BoomError, match="at least two rows"):
        Probe(source, judged_rows(source, "a", OBJECTIVE), 1, 5)
