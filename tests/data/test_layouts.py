"""Rows of FlagEmbedding, sentence-transformers and tevatron become the same examples as rows of boom_ray."""

from __future__ import annotations

import pytest

from boom_ray.config.corpus import FilesSource
from boom_ray.data.layouts import guess, to_boom
from boom_ray.data.schema import RowError, parse_row

BOOM = {"query": "q", "pos": ["p"], "neg": ["n1", "n2"], "task_type": "retrieval"}
FLAG = {"query": "q", "pos": ["p"], "neg": ["n1", "n2"], "pos_scores": [0.9], "neg_scores": [0.1, 0.2], "prompt": "x"}
TRIPLET = {"anchor": "q", "positive": "p", "negative_1": "n1", "negative_2": "n2"}
TEVATRON = {
    "query_id": "1",
    "query": "q",
    "positive_passages": [{"docid": "1", "title": "", "text": "p"}],
    "negative_passages": [{"docid": "2", "text": "n1"}, {"docid": "3", "title": None, "text": "n2"}],
}
OLD_TEVATRON = {"query": "q", "positives": ["p"], "negatives": ["n1", "n2"]}


def _example(raw, layout, **entry):
    source = FilesSource(path="x", layout=layout, **{"task_type": "retrieval", **entry})
    return parse_row(to_boom(raw, layout), source, "stem")


@pytest.mark.parametrize(
    ("raw", "layout"),
    [
        (FLAG, "flagembedding"),
        ({**FLAG, "type": "normal"}, "flagembedding"),
        (TRIPLET, "sentence_transformers"),
        ({"query": "q", "answer": "p", "negative": ["n1", "n2"]}, "sentence_transformers"),
        ({"question": "q", "positive": "p", "negative_2": "n2", "negative": "n1"}, "sentence_transformers"),
        (TEVATRON, "tevatron"),
        (OLD_TEVATRON, "tevatron"),
        ({**TEVATRON, "query": None, "query_text": "q"} | {"query": "q"}, "tevatron"),
    ],
)
def test_the_same_example_in_every_layout(raw, layout):
    assert _example(raw, layout) == _example(BOOM, "boom")


@pytest.mark.parametrize(
    ("kind", "task_type"),
    [("symmetric_sts", "sts"), ("symmetric_class", "classification"), ("symmetric_clustering", "clustering")],
)
def test_flagembedding_types_are_task_types(kind, task_type):
    row = to_boom({**FLAG, "type": kind, "category": "cs.CL"}, "flagembedding")
    assert (row["task_type"], row["label"]) == (task_type, "cs.CL")


def test_flagembedding_only_1neg_keeps_one_negative():
    assert to_boom({**FLAG, "type": "only_1neg"}, "flagembedding")["neg"] == ["n1"]


def test_a_pair_with_a_score_is_sts():
    for name in ("score", "similarity_score", "label"):
        row = to_boom({"sentence1": "a", "sentence2": "b", name: 4.2}, "sentence_transformers")
        assert row == {"query": "a", "pos": "b", "neg": [], "score": 4.2, "task_type": "sts"}


def test_a_class_label_stays_a_label():
    row = to_boom({"anchor": "a", "positive": "b", "label": 3, "dataset": "d"}, "sentence_transformers")
    assert (row["label"], row["dataset"], "score" in row) == (3, "d", False)


def test_negatives_come_in_the_order_of_their_numbers():
    row = {"anchor": "a", "positive": "b"} | {f"negative_{i}": str(i) for i in (10, 9, 2, 1)}
    assert to_boom(row, "sentence_transformers")["neg"] == ["1", "2", "9", "10"]


def test_titles_stand_before_the_texts_of_tevatron():
    row = {"query": "q", "positive_passages": [{"title": "T", "text": "body"}], "negative_passages": []}
    assert to_boom(row, "tevatron")["pos"] == ["T body"]


@pytest.mark.parametrize(
    ("raw", "layout"),
    [
        ({**FLAG, "type": "symmetric_class"}, "flagembedding"),
        (TRIPLET, "sentence_transformers"),
        (TEVATRON, "tevatron"),
        (OLD_TEVATRON, "tevatron"),
    ],
)
def test_a_boom_source_with_rows_of_another_tool_says_which_layout_to_set(raw, layout):
    assert guess(raw) == layout
    with pytest.raises(RowError, match=f"set 'layout: {layout}' in the recipe"):
        to_boom(raw, "boom")
    assert to_boom(BOOM, "boom") is BOOM


def test_a_row_of_the_wrong_layout_names_the_right_one():
    with pytest.raises(RowError, match=r"missing field 'pos' .*set 'layout: tevatron'"):
        to_boom(TEVATRON, "flagembedding")
    with pytest.raises(RowError, match=r"missing field 'positive' .*set 'layout: boom'"):
        to_boom(BOOM, "sentence_transformers")
    with pytest.raises(RowError, match="by id: join it"):
        to_boom({"query_text": "q", "positive_document_ids": ["1"]}, "tevatron")
    with pytest.raises(RowError, match="list of objects with a text"):
        to_boom({"query": "q", "positive_passages": ["plain"]}, "tevatron")
    with pytest.raises(RowError, match="unknown type 'other'"):
        to_boom({**FLAG, "type": "other"}, "flagembedding")
    with pytest.raises(RowError, match="unknown type"):
        to_boom({**FLAG, "type": [1]}, "flagembedding")
    odd = {**BOOM, "type": [1]}
    assert to_boom(odd, "boom") is odd
    assert to_boom([1], "tevatron") == [1]
