"""The rules of mining on hand-made texts and scores: equality, label, margin, turns; and the numbers of texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from boom_ray.data import mining_texts
from boom_ray.data.mining_choice import Ranked, allowed, margin_limit, take_turns
from boom_ray.data.mining_texts import Index, Texts, first_rows, write_index
from boom_ray.data.parts import ROWS
from boom_ray.data.schema import row_id


def write_rows(folder: Path, *shards: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(shards):
        filled = [
            {
                "id": row_id(r["dataset"], r["query"], r["pos"]),
                "task_type": "retrieval",
                "neg": [],
                "score": None,
                "label": None,
                **r,
            }
            for r in rows
        ]
        with pa.ipc.new_file(str(folder / f"rows-{number:05d}.arrow"), ROWS) as writer:
            for start in range(0, len(filled), 2):
                writer.write_batch(pa.RecordBatch.from_pylist(filled[start : start + 2], schema=ROWS))
    return folder


def row(query: str, *pos: str, neg: tuple[str, ...] = (), label: str | None = None, name: str = "d") -> dict[str, Any]:
    return {"dataset": name, "query": query, "pos": list(pos), "neg": list(neg), "label": label}


@pytest.fixture
def index(tmp_path: Path) -> tuple[Path, Index]:
    """Two shards with another dataset between; texts that repeat, exactly and after folding."""
    rows = (
        [row("q0", "p0", neg=("p1", "p2")), row("other", "far", name="else"), row("q1", "p1", "p3", label="L")],
        [row("q0", "p4", neg=("P0 ",)), row("Q0", "p5", label="M"), row("q2", "p6", neg=("q2", "p1"), label="L")],
    )
    corpus = write_rows(tmp_path / "corpus", *rows)
    write_index(corpus, "d", "retrieval", tmp_path / "out")
    return tmp_path / "out", Index.load(tmp_path / "out")


PASSAGES = ["p0", "p1", "p2", "p3", "p4", "P0 ", "p5", "p6", "q2"]


def test_texts_are_numbered_by_first_occurrence(index: tuple[Path, Index]) -> None:
    folder, found = index
    assert json.loads((folder / "index.json").read_text())["counts"] == {"rows": 5, "queries": 4, "passages": 9}
    assert [Texts(folder, "passages")[i] for i in range(9)] == PASSAGES
    assert [Texts(folder, "queries")[i] for i in range(4)] == ["q0", "q1", "Q0", "q2"]
    assert found.query.tolist() == [0, 1, 0, 2, 3]
    assert [PASSAGES[i] for i in found.pos] == ["p0", "p1", "p3", "p4", "p5", "p6"]
    assert found.pos_ends.tolist() == [0, 1, 3, 4, 5, 6]
    assert first_rows(folder) == {"rows-00000.arrow": 0, "rows-00001.arrow": 2}
    folds = found.passage_fold
    assert folds[0] == folds[5]  # "p0" and "P0 "
    assert len(set(folds.tolist())) == 8
    assert found.query_fold[0] == found.query_fold[2]
    assert found.query_fold[3] == folds[8]
    assert found.label[0] == found.label[2] == -1
    assert found.label[1] == found.label[4] != found.label[3]


def test_cut_of_texts_into_shards_changes_nothing(
    index: tuple[Path, Index], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mining_texts, "TEXTS_PER_SHARD", 2)
    write_index(tmp_path / "corpus", "d", "retrieval", tmp_path / "again")
    assert len(list((tmp_path / "again").glob("passages-*"))) == 5
    assert [Texts(tmp_path / "again", "passages")[i] for i in range(9)] == PASSAGES
    for name in Index.__annotations__:
        np.testing.assert_array_equal(getattr(Index.load(tmp_path / "again"), name), getattr(index[1], name))


def test_a_cut_short_index_is_made_again(index: tuple[Path, Index], tmp_path: Path) -> None:
    half = tmp_path / "half.dead.tmp"
    half.mkdir()
    (half / "queries-00000.arrow").write_bytes(b"cut")
    assert write_index(tmp_path / "corpus", "d", "retrieval", tmp_path / "half") == {
        "rows": 5,
        "queries": 4,
        "passages": 9,
    }
    assert not half.exists()


def test_equality_label_and_margin(index: tuple[Path, Index]) -> None:
    """Rows 0 (q0), 1 (q1, label L), 4 (q2, label L); every passage is in the window."""
    rows = np.array([0, 1, 4])
    everything = np.tile(np.arange(9), (3, 1))
    scores = np.full((3, 9), 0.5, np.float32)
    scores[:, 2] = 0.7  # p2 is too close for the rows whose limit is 0.7: below, not at
    limit = np.array([0.9, 0.7, 0.7], np.float32)
    mask, counts = allowed(Ranked(everything, scores, limit), index[1], rows)
    # q0 has the positives p0, p4 and, as Q0, p5; "P0 " is p0 folded
    assert [PASSAGES[i] for i in np.flatnonzero(mask[0])] == ["p1", "p2", "p3", "p6", "q2"]
    # q1 has p1 and p3; p6 has its label, and so has q2, the query of that row
    assert [PASSAGES[i] for i in np.flatnonzero(mask[1])] == ["p0", "p4", "P0 ", "p5"]
    # q2 is a text equal to the query; p1 and p3 have its label
    assert [PASSAGES[i] for i in np.flatnonzero(mask[2])] == ["p0", "p4", "P0 ", "p5"]
    assert counts == {"equal": 4 + 2 + 2, "label": 0 + 2 + 2, "margin": 0 + 1 + 1}


def test_positive_of_a_classification_row_is_its_label(tmp_path: Path) -> None:
    rows = [row("a", "animal", "beast"), row("b", "plant"), row("c", "Animal", neg=("plant",))]
    corpus = write_rows(tmp_path / "corpus", rows)
    write_index(corpus, "d", "classification", tmp_path / "out")
    found = Index.load(tmp_path / "out")
    passages = np.arange(4)[None].repeat(3, axis=0)  # animal, beast, plant, Animal
    ranked = Ranked(passages, np.zeros((3, 4), np.float32), np.ones(3, np.float32))
    mask, _ = allowed(ranked, found, np.arange(3))
    assert mask.tolist() == [[False, False, True, False], [True, True, False, True], [False, True, True, False]]


def test_limit_is_below_the_positive_whatever_its_sign() -> None:
    limit = margin_limit(np.array([0.8, 0.0, -0.4], np.float32), 0.95)
    np.testing.assert_allclose(limit, [0.76, 0.0, -0.42], rtol=1e-6)
    np.testing.assert_array_equal(margin_limit(np.float32([0.5, -0.5]), 1.0), np.float32([0.5, -0.5]))


@pytest.mark.parametrize(
    ("lists", "count", "expected"),
    [
        ([[1, 2, 3]], 2, [1, 2]),
        ([[1, 2, 3], [7, 8]], 4, [1, 7, 2, 8]),
        ([[1, 2, 3], [1, 2, 9]], 4, [1, 2, 3, 9]),
        ([[1], [5, 6, 7]], 9, [1, 5, 6, 7]),
        ([[], []], 3, []),
        ([[11, 1, 2]], 3, [11, 2]),  # 11 and 1 are the same text, folded
    ],
)
def test_models_take_turns_and_no_text_comes_twice(lists: list[list[int]], count: int, expected: list[int]) -> None:
    assert take_turns(lists, [[n % 10 for n in numbers] for numbers in lists], count) == expected
