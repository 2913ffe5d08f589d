"""The benchmark of updates: a stratified corpus, whole pieces, goals by arithmetic, a plan that counts rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from boom_ray.bench.update import UpdateBench, caps, cut, lines_of, plan_lines, recipe_of, stratified
from boom_ray.bench.update_curve import curve
from boom_ray.bench.update_table import goals, table
from boom_ray.config import BoomError, parse_recipe


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for folder, sizes in (("train", {"a": 60, "b": 30, "c": 11}), ("new_domain_train", {"d": 12, "e": 7})):
        (tmp_path / folder).mkdir()
        for name, count in sizes.items():
            rows = [json.dumps({"query": f"{name}{i}", "pos": ["x"], "task_type": "retrieval"}) for i in range(count)]
            with gzip.open(tmp_path / folder / f"{name}.jsonl.gz", "wt") as stream:
                stream.write("\n".join(rows) + "\n")
    return tmp_path


def test_caps_are_in_proportion_and_add_up(data):
    files = sorted((data / "train").iterdir())
    assert [lines_of(file) for file in files] == [60, 30, 11]
    for rows in (10, 50, 101, 1000):
        caps = [entry["cap"] for entry in stratified(files, rows)]
        assert sum(caps) == min(rows, 101)
        assert all(abs(cap - min(rows, 101) * n / 101) < 1 for cap, n in zip(caps, (60, 30, 11), strict=True))


def test_pieces_hold_every_row_once(data, tmp_path):
    files = sorted((data / "new_domain_train").iterdir())
    folders = cut(files, 5, tmp_path / "pieces")
    assert [len(list(folder.iterdir())) for folder in folders] == [2] * 5
    pieces = [[lines_of(folder / name) for folder in folders] for name in ("d.jsonl", "e.jsonl")]
    assert pieces == [[3, 3, 2, 2, 2], [2, 2, 1, 1, 1]]
    queries = {json.loads(line)["query"] for folder in folders for file in folder.iterdir() for line in file.open()}
    assert len(queries) == 19


def test_every_group_of_sets_has_the_same_number_of_texts(tmp_path):
    for group, names in {"in_domain": "abcd", "out_of_domain": "ef", "new_domain": "g"}.items():
        for name in names:
            (tmp_path / group / name).mkdir(parents=True)
    assert caps(tmp_path, 100) == {"a": 25, "b": 25, "c": 25, "d": 25, "e": 50, "f": 50, "default": 100}
    assert caps(tmp_path, None) is None


def test_the_recipe_is_one_and_the_plan_counts_its_rows(data):
    bench = UpdateBench(str(data), "out", str(data), seeds=(1, 2), rows=50)
    recipe = parse_recipe(recipe_of(bench, 1))
    assert recipe.update is not None
    assert (recipe.merge.weights, recipe.update.core, recipe.update.weights) == ("ratio", 0.4, "fixed")
    lines = plan_lines(bench, ["main"], 1.0, 1.0)
    rows = round(2 * (3.0 * (50 + 50 + 19) + 0.4 * 50 + 19))
    assert f"{rows}" in lines[1]
    with pytest.raises(BoomError, match="no part 'other'"):
        plan_lines(bench, ["other"], 1.0, 1.0)


def _found(current: float, update: float, retrain: float) -> dict[str, Any]:
    def row(label: str, *scores: float) -> dict[str, Any]:
        names = ("current model", "update", "full retrain")
        cells = {n: {"score": s, "to_current": None} for n, s in zip(names, scores, strict=True)}
        return {"label": label, "sets": 2, "models": cells}

    rows = [row("old in-domain", 0.5, 0.496, 0.51), row("out-of-domain", 0.4, 0.41, 0.4)]
    rows.append(row("new domain", current, update, retrain))
    return {
        "seed": 1,
        "table": rows,
        "cost": {"update": {"tokens": 20}, "retrain": {"share": 0.15, "tokens": 100}},
        "verdict": ["said"],
    }


def test_goals_are_shares_of_the_gain_and_points():
    found = goals(_found(0.2, 0.29, 0.3))
    assert found["gain"] == pytest.approx(0.9)
    assert (found["old_id"], found["ood"]) == (pytest.approx(-0.4), pytest.approx(1.0))
    assert (found["cost"], found["tokens"]) == (0.15, 0.2)
    assert goals(_found(0.2, 0.29, 0.2))["gain"] is None
    text = table({"parts": {"main-1": _found(0.2, 0.29, 0.3)}})
    assert "90 % of the full retrain's gain" in text
    assert "seed 1" in text


def test_the_curve_has_a_panel_per_mean_and_a_line_per_weight():
    def row(weights: str, piece: int) -> dict[str, Any]:
        cell = {"models": {"update": {"score": 0.5, "to_current": [0.01 * piece, 0.0, 0.02 * piece]}}}
        means = [{"label": label, "sets": 2, **cell} for label in ("old in-domain", "new domain")]
        return {"weights": weights, "piece": piece, "since_first": [*means, {"label": "asked", "sets": 1, **cell}]}

    figure = curve([row(weights, piece) for weights in ("fixed", "mass") for piece in (1, 2, 3)])
    assert [axes.get_title() for axes in figure.axes] == ["old in-domain", "new domain"]
    for axes in figure.axes:
        lines = [drawn.lines[0] for drawn in axes.containers]
        assert [line.get_ydata().tolist() for line in lines] == [pytest.approx([1.0, 2.0, 3.0])] * 2
    assert curve([]) is None
