"""What two versions of a model do to an index: searches by hand, mteb's own nDCG, and the rule that decides."""

from __future__ import annotations

import importlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mteb_tasks import TASKS
from small_sets import WORDS
from typer.testing import CliRunner

from boom_ray.cli import app
from boom_ray.config import BoomError
from boom_ray.evaluate.benchmarks import find_tasks
from boom_ray.evaluate.drift import DriftOptions, drift, neighbours
from boom_ray.evaluate.drift_search import Measured, Ranking, Subject, measure, ndcg, overlap
from boom_ray.evaluate.drift_verdict import LOSS, OVERLAP, Drift
from boom_ray.evaluate.results import load_samples
from boom_ray.evaluate.score import evaluate
from boom_ray.evaluate.sets import find_sets

Models = Callable[[int], Path]


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@given(seed=st.integers(0, 10**6), documents=st.integers(1, 60), block=st.integers(1, 25), top=st.integers(1, 12))
def test_a_streamed_ranking_is_the_sorted_list(seed: int, documents: int, block: int, top: int) -> None:
    rng = np.random.default_rng(seed)
    queries = rng.integers(-2, 3, size=(7, 3)).astype(np.float32)  # small whole numbers: exact, and many ties
    index = rng.integers(-2, 3, size=(documents, 3)).astype(np.float32)
    own = rng.integers(-1, documents, size=7)
    ranking = Ranking(queries, top)
    for start in range(0, documents, block):
        ranking.add(index[start : start + block], start, own)
    scores = queries @ index.T
    for row in range(7):
        allowed = [d for d in range(documents) if d != own[row]]
        best = sorted(allowed, key=lambda d: (-scores[row, d], d))[:top]
        assert ranking.numbers[row].tolist() == best + [-1] * (top - len(best))


def test_overlap_counts_documents_of_both_and_no_missing_ones() -> None:
    first = np.array([[1, 2, 3, 4], [1, 2, -1, -1], [-1, -1, -1, -1]])
    second = np.array([[4, 3, 9, 8], [2, 1, -1, -1], [-1, -1, -1, -1]])
    assert overlap(first, second).tolist() == [0.5, 1.0, 0.0]


def test_ndcg_by_hand() -> None:
    numbers = np.array([[5, 7, -1], [7, 5, 9], [9, 8, 6]])
    relevant: list[Mapping[int, int]] = [{5: 1}, {5: 2, 9: 1}, {5: 1}]
    best = 2 + 1 / math.log2(3)
    found = 2 / math.log2(3) + 1 / 2
    assert ndcg(numbers, relevant) == pytest.approx([1.0, found / best, 0.0])


def subject(rng: np.random.Generator, queries: int = 60, documents: int = 200) -> tuple[Subject, dict[str, np.ndarray]]:
    """A search whose texts are numbers of vectors: query i is near document i."""
    index = unit(rng.normal(size=(documents, 16)))
    asking = unit(index[:queries] + 0.15 * rng.normal(size=(queries, 16)))
    vectors = {f"d{i}": v for i, v in enumerate(index)} | {f"q{i}": v for i, v in enumerate(asking)}

    def blocks(size: int) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
        for start in range(0, documents, size):
            names = [f"d{i}" for i in range(start, min(start + size, documents))]
            yield names, names

    names = [f"q{i}" for i in range(queries)]
    relevant = [{f"d{i}": 1} for i in range(queries)]
    return Subject("search", names, blocks, relevant, [None] * queries, ("query", "document")), vectors


def embedder(vectors: Mapping[str, np.ndarray], turn: np.ndarray) -> Callable[[Sequence[str], str], np.ndarray]:
    return lambda texts, side: unit(np.stack([vectors[text] for text in texts]) @ turn)


def turned(angle: float) -> np.ndarray:
    """A rotation of every pair of 16 dimensions: it changes no search, but every cosine with what was before."""
    turn = np.zeros((16, 16))
    for i in range(0, 16, 2):
        turn[i : i + 2, i : i + 2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return turn


def test_a_turned_space_keeps_its_search_and_loses_its_old_index() -> None:
    search, vectors = subject(np.random.default_rng(0))
    old = embedder(vectors, np.eye(16))
    for angle in (0.0, 0.3, math.pi / 2):
        found = measure(search, old, embedder(vectors, turned(angle)), block=33)
        assert found.cosines == pytest.approx(np.full(260, math.cos(angle)), abs=1e-6)
        assert found.overlaps["new/old"].tolist() == [1.0] * 60  # the same search, with another index
        assert found.ndcg["new"] == pytest.approx(found.ndcg["old"])
    assert found.ndcg["mixed"].mean() < 0.3 * found.ndcg["old"].mean()
    verdict = Drift("a", "b", (found,)).verdict()
    assert verdict.reembed
    assert verdict.shown
    same = measure(search, old, old, block=33)
    assert all((values == 1).all() for values in same.overlaps.values())
    kept = Drift("a", "a", (same,)).verdict()
    assert (kept.reembed, kept.shown) == (False, True)


def test_blocks_do_not_matter() -> None:
    search, vectors = subject(np.random.default_rng(1))
    pair = embedder(vectors, np.eye(16)), embedder(vectors, turned(0.4))
    one, other = measure(search, *pair, block=7), measure(search, *pair, block=4096)
    for name in one.overlaps:
        assert (one.overlaps[name] == other.overlaps[name]).all()
    assert one.ndcg["mixed"] == pytest.approx(other.ndcg["mixed"])


def measured(name: str = "set", **ndcg: Sequence[float]) -> Measured:
    count = len(next(iter(ndcg.values())))
    same = np.ones(count)
    overlaps = {"mixed/new": same, "mixed/old": same, "new/old": same}
    values = {system: np.array(v, dtype=float) for system, v in ndcg.items()}
    return Measured(name, (4, 4), 9, count, np.full(9 + count, 0.9, np.float32), overlaps, values)


def with_loss(loss: float, noise: float, count: int, name: str = "set") -> Measured:
    """nDCG of a new index minus that of the old one is ``loss`` in the mean, give or take ``noise`` per query."""
    turn = np.tile([noise, -noise], count // 2)
    return measured(name, old=[0.5] * count, new=[0.6] * count, mixed=(0.6 - loss + turn).tolist())


@pytest.mark.parametrize(
    ("loss", "noise", "count", "reembed", "shown"),
    [
        (0.0, 0.01, 400, False, True),
        (LOSS / 2, 0.01, 400, False, True),
        (0.03, 0.01, 400, True, True),
        (0.0, 0.2, 20, True, False),  # 20 queries show nothing,
        (0.0, 0.0, 20, True, False),  # however equal they are
        (-0.05, 0.01, 400, False, True),  # the old index is better
    ],
)
def test_the_rule_by_relevance(loss: float, noise: float, count: int, reembed: bool, shown: bool) -> None:
    verdict = Drift("a", "b", (with_loss(loss, noise, count),)).verdict()
    assert (verdict.reembed, verdict.shown) == (reembed, shown)


def test_one_set_that_loses_is_enough() -> None:
    fine = [with_loss(0.0, 0.005, 400, f"fine{i}") for i in range(9)]
    verdict = Drift("a", "b", (*fine, with_loss(0.03, 0.005, 400, "hurt"))).verdict()
    assert verdict.reembed
    assert "on hurt alone" in verdict.reason
    assert Drift("a", "b", tuple(fine)).verdict().reembed is False


def test_how_often_the_rule_errs() -> None:
    """A fifth of 500 queries change; where the true loss is twice the limit an index is hardly ever kept, and where it
    is none a new one is hardly ever shown to be needed."""
    rng, wrong = np.random.default_rng(3), {2 * LOSS: 0, 0.0: 0}
    for loss in wrong:
        for _ in range(200):
            size = rng.choice([0.13, 0.37, 0.5, 0.63], size=500)
            worse = rng.random(500) < 0.5 + loss / (2 * 0.2 * 0.4075)
            change = (rng.random(500) < 0.2) * size * np.where(worse, 1, -1)
            new = rng.random(500)
            found = Drift("a", "b", (measured(old=new.tolist(), new=new.tolist(), mixed=(new - change).tolist()),))
            verdict = found.verdict()
            wrong[loss] += not verdict.reembed if loss else verdict.reembed and verdict.shown
    assert wrong[2 * LOSS] <= 4
    assert wrong[0.0] <= 4


@pytest.mark.parametrize(("share", "count", "reembed", "shown"), [
    (1.0, 50, False, True), (0.98, 400, False, True), (0.7, 400, True, True), (OVERLAP, 20, True, False),
    (1.0, 20, True, False),
])  # fmt: skip
def test_the_rule_by_overlap(share: float, count: int, reembed: bool, shown: bool) -> None:
    values = np.clip(share + 0.02 * np.tile([1, -1], count // 2), 0, 1) if share < 1 else np.ones(count)
    overlaps = dict.fromkeys(("mixed/new", "mixed/old", "new/old"), values)
    found = Measured("texts", (4, 4), 9, count, np.full(9, 0.9, np.float32), overlaps, {})
    verdict = Drift("a", "b", (found,)).verdict()
    assert (verdict.reembed, verdict.shown) == (reembed, shown)


def test_a_worse_model_is_said_to_be_worse() -> None:
    worse = measured(old=[0.6, 0.61] * 50, new=[0.5, 0.52] * 50, mixed=[0.5, 0.52] * 50)
    found = Drift("a", "b", (worse,))
    assert found.verdict().reembed is False
    assert any("worse than the old one" in line for line in found.notes())


def test_new_in_new_is_mtebs_own_score(sets_root: Path, make_model: Models, tmp_path: Path) -> None:
    sets = [s for s in find_sets([sets_root], None) if s.name == "find"]
    found = drift(make_model(0), make_model(1), sets, options=DriftOptions(block=7))
    for seed, system in ((0, "old"), (1, "new")):
        score = evaluate(make_model(seed), sets, results=tmp_path)["find"]
        per_query = load_samples(make_model(seed), sets, results=tmp_path)["find"].values
        assert found.sets[0].ndcg[system] == pytest.approx(per_query, abs=1e-6)
        assert found.to_json()["sets"][0]["ndcg"][system] == pytest.approx(score, abs=1e-5)  # mteb's five decimals


def test_all_types_of_sets_and_plain_texts(sets_root: Path, make_model: Models) -> None:
    texts = {"own": WORDS}
    found = drift(make_model(0), make_model(1), find_sets([sets_root], None), texts, DriftOptions(queries=9))
    assert [(m.name, m.queries, bool(m.ndcg)) for m in found.sets] == [
        ("find", 12, True), ("rank", 12, True), ("sort", 9, False), ("alike", 9, False), ("group", 9, False),
        ("own", 9, False),
    ]  # fmt: skip
    told = found.to_json()
    assert told["verdict"]["reembed"]  # two random models have nothing in common
    assert told["mean"]["cosine"]["texts"] == sum(m.documents + m.queries for m in found.sets)
    same = drift(make_model(0), make_model(0), (), texts).to_json()
    assert same["mean"]["cosine"]["mean"]["value"] == pytest.approx(1, abs=1e-6)
    assert same["mean"]["overlap"]["mixed/new"] == pytest.approx({"value": 1, "low": 1, "high": 1})
    assert same["verdict"]["text"].startswith("Keep the index: ")


def test_tasks_of_mteb_with_their_splits_and_subsets(make_model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = importlib.import_module("mteb.get_tasks")._TASKS_REGISTRY
    for task in TASKS:
        monkeypatch.setitem(registry, task.metadata.name, task)
    sets = find_tasks((), [task.metadata.name for task in TASKS])
    found = drift(make_model(0), make_model(1), sets, options=DriftOptions(queries=5))
    assert len(found.sets) == sum(len(entry.parts) for entry in sets)
    assert {m.name.partition(" ")[0] for m in found.sets} == {entry.name for entry in sets}
    searched = {entry.name for entry in sets if entry.task_type in ("retrieval", "reranking", "instruction_reranking")}
    assert {m.name.partition(" ")[0] for m in found.judged} == searched


def test_prompts_are_put_before_both_sides(make_model: Models, tmp_path: Path) -> None:
    """A model whose queries get another prompt than its documents is not the model without prompts."""
    prompted = tmp_path / "prompted"
    shutil.copytree(make_model(0), prompted)
    file = prompted / "config_sentence_transformers.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "prompts": {"query": "note redcat ", "document": ""}}))
    found = drift(make_model(0), prompted, (), {"own": WORDS})
    documents, queries = np.split(found.sets[0].cosines, [len(WORDS)])
    assert documents == pytest.approx(np.ones(len(WORDS)), abs=1e-6)
    assert queries.max() < 0.999


def test_another_dimension_is_a_new_index(make_model: Models, tmp_path: Path) -> None:
    from boom_ray.base import build_base
    from boom_ray.config import BuildBase

    wide = tmp_path / "wide"
    build = BuildBase(layers=2, hidden=64, heads=2, vocab=300, warm_steps=0, learning_rate=1e-3)
    build_base(build, make_model(0), wide, "mean", 32, 0)
    found = drift(make_model(0), wide, (), {"own": WORDS})
    told = found.to_json()
    assert told["verdict"]["text"].startswith("Re-embed: old vectors have 32 numbers and new ones 64")
    assert told["mean"]["cosine"] is None
    assert list(told["mean"]["overlap"]) == ["new/old"]


def test_mistakes_are_named(make_model: Models) -> None:
    with pytest.raises(BoomError, match="nothing to compare"):
        drift(make_model(0), make_model(1))
    with pytest.raises(BoomError, match="at least two"):
        neighbours("one", ["a"], 10)
    with pytest.raises(BoomError, match="not a directory"):
        drift("nowhere", make_model(0), (), {"own": WORDS})


def test_the_command(sets_root: Path, make_model: Models, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(WORDS))
    options = ["--sets", str(sets_root / "in_domain" / "find"), "--texts", str(lines)]
    options += ["--json", str(tmp_path / "drift.json"), "--plot", str(tmp_path / "drift.png")]
    result = CliRunner().invoke(app, ["drift", str(make_model(0)), str(make_model(1)), *options])
    assert result.exit_code == 0, result.output
    assert "Re-embed: new queries in the old index change nDCG@10 by " in result.output
    assert [m["name"] for m in json.loads((tmp_path / "drift.json").read_text())["sets"]] == ["find", "lines.txt"]
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")
