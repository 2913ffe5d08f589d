"""The cap: the same texts for every model and every order of the rows."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from boom_ray.config import BoomError
from boom_ray.evaluate.rows import Document, Retrieval, cap_retrieval, cap_rows, read_retrieval


def retrieval(queries: int, documents: int, per_query: int = 1) -> Retrieval:
    return Retrieval(
        queries={f"q{i}": f"question {i}" for i in range(queries)},
        documents={f"d{i}": Document(f"answer {i}") for i in range(documents)},
        relevant={
            f"q{i}": {f"d{(i * per_query + k) % documents}": 1 for k in range(per_query)} for i in range(queries)
        },
    )


def size(data: Retrieval) -> int:
    return len(data.queries) + len(data.documents)


def test_whole_queries_take_half_and_other_documents_the_rest() -> None:
    data = retrieval(queries=300, documents=1000, per_query=2)
    capped = cap_retrieval(data, 120)
    assert size(capped) == 120
    assert len(capped.queries) == 20  # 20 x (1 + 2 documents) = 60 = half
    assert all(set(capped.relevant[q]) <= set(capped.documents) for q in capped.queries)
    assert capped.relevant == {q: data.relevant[q] for q in capped.queries}


def test_a_small_corpus_stays_whole_and_leaves_room_for_queries() -> None:
    capped = cap_retrieval(retrieval(queries=500, documents=50), 200)
    assert (len(capped.queries), len(capped.documents)) == (150, 50)


def test_a_cap_that_does_not_bite_changes_nothing() -> None:
    data = retrieval(queries=10, documents=20)
    assert cap_retrieval(data, 30) is data
    assert size(cap_retrieval(data, 29)) <= 29


def test_reranking_keeps_exactly_the_candidates_of_whole_queries() -> None:
    data = retrieval(queries=40, documents=200)
    candidates = {f"q{i}": tuple(f"d{(i + k) % 200}" for k in range(0, 50, 10)) for i in range(40)}
    capped = cap_retrieval(replace(data, candidates=candidates), 60)
    assert capped.candidates is not None
    assert size(capped) <= 60
    assert set(capped.documents) == {d for found in capped.candidates.values() for d in found}
    assert capped.candidates == {q: candidates[q] for q in capped.queries}
    assert capped.queries


def test_the_choice_ignores_the_order_of_rows() -> None:
    data = retrieval(queries=80, documents=200)
    rng = random.Random(1)
    queries, documents = list(data.queries.items()), list(data.documents.items())
    rng.shuffle(queries)
    rng.shuffle(documents)
    shuffled = cap_retrieval(replace(data, queries=dict(queries), documents=dict(documents)), 60)
    assert dict(shuffled.queries) == dict(cap_retrieval(data, 60).queries)
    assert dict(shuffled.documents) == dict(cap_retrieval(data, 60).documents)
    texts = [f"text {i}" for i in range(100)]
    kept = {texts[i] for i in cap_rows(texts, 30)}
    turned = texts[::-1]
    assert {turned[i] for i in cap_rows(turned, 30)} == kept
    assert cap_rows(texts, 30) == sorted(cap_rows(texts, 30))
    assert kept < {texts[i] for i in cap_rows(texts, 31)}  # a larger cap only adds


def test_a_cap_below_one_query_is_refused() -> None:
    with pytest.raises(BoomError, match="a cap of 10 texts leaves no query"):
        cap_retrieval(retrieval(queries=5, documents=100, per_query=20), 10)


def test_queries_without_an_answer_are_left_out(sets_root: Path, tmp_path: Path) -> None:
    data = read_retrieval(sets_root / "in_domain" / "find", reranking=False)
    assert len(data.queries) == 12
    assert data.documents["d0"].joined == f"note {data.documents['d0'].text}"
    assert data.documents["d1"].joined == data.documents["d1"].text
