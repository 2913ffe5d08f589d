import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.config.corpus import Columns, FilesSource
from boom_ray.data.schema import Example, RowError, fold, parse_row, row_id

SOURCE = FilesSource(path="x.jsonl", name="d", task_type="retrieval")
GOOD = {"query": "q", "pos": ["p"], "neg": ["n"]}


def test_names_come_from_recipe_then_row_then_file():
    row = GOOD | {"dataset": "of_row", "task_type": "clustering"}
    assert parse_row(row, SOURCE, "stem").dataset == "d"
    assert parse_row(row, SOURCE, "stem").task_type == "retrieval"
    free = FilesSource(path="x.jsonl")
    assert parse_row(row, free, "stem") == Example("of_row", "clustering", "q", ("p",), ("n",), None)
    assert parse_row(GOOD | {"task_type": "sts", "score": 1}, free, "stem").dataset == "stem"


def test_columns_are_mapped_and_a_text_counts_as_a_list_of_one():
    source = SOURCE.model_copy(update={"columns": Columns(query="anchor", pos="positive", neg="negative", score="s")})
    row = {"anchor": " Cafe\u0301 ", "positive": "p", "negative": "n", "s": 0.5}
    assert parse_row(row, source, "x") == Example("d", "retrieval", "Caf\u00e9", ("p",), ("n",), 0.5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"query": "  "}, "empty text in 'query'"),
        ({"pos": [""]}, r"empty text in 'pos\[0\]'"),
        ({"neg": ["a", " "]}, r"empty text in 'neg\[1\]'"),
        ({"query": None}, "missing field 'query'"),
        ({"pos": None}, "missing field 'pos'"),
        ({"pos": []}, "no positive"),
        ({"query": 3}, "'query' must be a text, not a number"),
        ({"pos": {"a": 1}}, "'pos' must be a text or a list"),
        ({"pos": [1]}, r"'pos\[0\]' must be a text"),
        ({"query": "a\0b"}, "NUL"),
        ({"query": "a\ud800"}, "surrogate"),
        ({"score": math.nan}, "not finite"),
        ({"score": math.inf}, "not finite"),
        ({"score": 10**400}, "not finite"),
        ({"score": True}, "must be a number, not a boolean"),
        ({"score": "0.5"}, "must be a number, not a text"),
    ],
)
def test_bad_rows_say_why(change, reason):
    with pytest.raises(RowError, match=reason):
        parse_row(GOOD | change, SOURCE, "x")


def test_task_types():
    free = FilesSource(path="x.jsonl")
    with pytest.raises(RowError, match="unknown task type 'ranking': one of retrieval"):
        parse_row(GOOD | {"task_type": "ranking"}, free, "x")
    with pytest.raises(RowError, match="unknown task type"):
        parse_row(GOOD | {"task_type": ["sts"]}, free, "x")
    with pytest.raises(RowError, match="missing field 'task_type'"):
        parse_row(GOOD, free, "x")
    with pytest.raises(RowError, match="missing field 'score'"):
        parse_row(GOOD | {"task_type": "sts"}, free, "x")
    with pytest.raises(RowError, match="JSON object, not a list"):
        parse_row([1], free, "x")


def test_scores_are_needed_where_they_are_trained_on():
    sts = GOOD | {"task_type": "sts"}
    assert parse_row(sts, FilesSource(path="x.jsonl", loss="infonce"), "x").score is None
    with pytest.raises(RowError, match="missing field 'score': loss cosent needs it"):
        parse_row(GOOD, SOURCE.model_copy(update={"loss": "cosent"}), "x")


def test_labels_are_texts_or_whole_numbers():
    assert [parse_row(GOOD | {"label": value}, SOURCE, "x").label for value in (" a ", 3, True, None, "")] == [
        "a",
        "3",
        "1",
        None,
        None,
    ]
    for value in (0.5, ["a"], {}):
        with pytest.raises(RowError, match="'label' must be a text or a whole number"):
            parse_row(GOOD | {"label": value}, SOURCE, "x")
    mapped = SOURCE.model_copy(update={"columns": Columns(score="label")})  # the column is a score, then
    assert parse_row(GOOD | {"label": 0.5}, mapped, "x")[-2:] == (0.5, None)


def test_row_id_is_unambiguous_and_blind_to_negatives():
    assert len(row_id("d", "q", ["p"])) == 16
    ids = {row_id(*parts) for parts in [("d", "q", ["p"]), ("dq", "", ["p"]), ("d", "qp", []), ("d", "q", ["p", ""])]}
    assert len(ids) == 4
    assert row_id("d", "q", ["p"]).hex() == "737827f713fc59bd65a6a9dfb379da8d"  # frozen: bags of old runs rest on it


@given(st.text("a \n\tB", max_size=3000))
def test_fold_of_long_texts_reads_as_much_as_it_takes(text):
    assert fold(text) == " ".join(text.lower().split())[:500]
    assert fold(" " * 2000 + text) == fold(text)


def test_fold_ignores_case_space_form_and_everything_after_500_characters():
    assert fold("\tThe  \ufb01rst\nTEXT ") == "the first text"
    assert fold("a" * 500 + "tail") == fold("A" * 500 + "other")


@given(st.text())
def test_fold_is_short_and_stable_under_spacing(text):
    assert len(fold(text)) <= 500
    assert fold(f"  {text}\n") == fold(text)
