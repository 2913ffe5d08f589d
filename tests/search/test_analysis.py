"""Tables of searches: what stands in the logs, exactly; importance, distances and convergence where they are known."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from made_searches import MEMBERS, RATIOS, ratio_search, weight_search

from boom_ray.config import BoomError
from boom_ray.search.analysis import (
    LEAST,
    Found,
    comparable,
    convergence,
    half_b,
    id_against_ood,
    importance,
    overview,
    parameters,
    read_results,
    read_searches,
    table,
    write_table,
)
from boom_ray.search.analysis_sources import distances
from boom_ray.search.points import Point
from boom_ray.search.trial_log import TrialLog


@pytest.fixture
def found(tmp_path: Path) -> Found:
    return read_searches(weight_search(tmp_path / "tpe"))[0]


def test_a_row_per_trial_says_what_the_log_says(tmp_path: Path, found: Found) -> None:
    rows = table([found])
    trials = TrialLog(tmp_path / "tpe" / "trials.jsonl").read()
    assert [row["trial"] for row in rows] == list(range(40))
    assert len({tuple(row) for row in rows}) == 1, "all rows have the same columns"
    for row, trial in zip(rows, trials, strict=True):
        assert (row["value"], row["failed"], row["rows"]) == (trial.value, trial.value is None, 50)
        assert [row[f"weight:{name}"] for name in MEMBERS] == list(trial.point.weights["all"])
        assert (row["scale"], row["method"], row["taken"]) == (trial.point.scale, "linear", "last")
        assert row["dataset:ask"] == trial.by_dataset["ask"]
    assert sum(row["failed"] for row in rows) == 5
    assert all(row["error"] for row in rows if row["failed"])


def test_distances_are_the_share_of_weight_that_would_move() -> None:
    point = Point("linear", {"all": (1.0, 0.0, 0.0)})
    assert distances(point, RATIOS) == pytest.approx({"distance_uniform": 2 / 3, "distance_ratio": 7 / 8})
    even = Point("linear", {"early": (1 / 3, 1 / 3, 1 / 3), "late": (0.125, 0.25, 0.625)})
    assert distances(even, RATIOS)["distance_uniform"] == pytest.approx((0 + (0.625 - 1 / 3)) / 2)
    assert distances(even, RATIOS)["distance_ratio"] == pytest.approx((0.625 - 1 / 3) / 2)
    assert set(distances(point, [0.5])) == {"distance_uniform"}, "ratios of other members are no reference"


def test_importance_finds_the_parameter_that_matters(found: Found) -> None:
    shares = {row["parameter"]: row["importance"] for row in importance(found)}
    assert set(shares) == {"scale", *(f"weight:{name}" for name in MEMBERS)} == set(parameters(found))
    assert shares["scale"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    assert importance(found) == importance(found), "the forest is seeded"


def test_importance_is_not_made_up(tmp_path: Path) -> None:
    few = read_searches(weight_search(tmp_path / "few", count=LEAST))[0]
    assert len(comparable(few)) == LEAST - 1
    assert importance(few) == []


def test_convergence_is_the_running_best(found: Found) -> None:
    rows, best = convergence(found), math.inf
    assert [row["trial"] for row in rows] == [n for n in range(40) if n % 7 != 6]
    for count, row in enumerate(rows, 1):
        best = min(best, row["value"])
        assert (row["best"], row["seconds"]) == (best, 2.0 * count)
    assert found.best["value"] == best
    assert overview([found])[0]["best trial"] == found.best["trial"]


def test_last_and_best_of_a_trial_that_was_judged_twice(tmp_path: Path) -> None:
    folder = weight_search(tmp_path / "halving", rungs=True)
    last, best = (read_searches(folder, take)[0] for take in ("last", "best"))
    assert len(last.trials) == len(best.trials) == 40
    assert len(last.lines) == 40 + 14
    assert {row["trial"] for row in last.trials if row["rung"] == 1} == set(range(0, 40, 3))
    assert all(row["taken"] == "best" for row in best.trials)
    assert {row["rung"] for row in comparable(last)} == {0}, "values of two rungs are not compared"
    assert {row["taken"] for row in table([last], every=True)} == {"every"}
    assert last.best["rung"] == 1


def test_sets_of_ratios(tmp_path: Path) -> None:
    found = read_searches(ratio_search(tmp_path / "asha"))[0]
    assert found.kind == "ratios"
    assert (len(found.trials), len(found.lines)) == (9, 13)
    assert (found.best["trial"], found.best["rung"]) == (4, 2)
    for row in found.trials:
        held = [name for name in row if name.startswith("has:") and row[name]]
        assert len(held) == row["members"] == len(row["ratios"].split(" + "))
        assert row["passes"] == pytest.approx(sum(float(name[4:-2]) / 100 for name in held))
    shares = {row["parameter"]: row["importance"] for row in importance(found)}
    assert max(shares, key=shares.__getitem__) == "has:60 %"
    assert overview([found])[0]["device-seconds"] == pytest.approx(42.5)


def test_half_b_and_several_searches_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    baselines = [
        {"name": "ratio", "a": 0.9, "b": 0.92, "b_score": 0.5, "b_interval": None},
        {"name": "searched", "a": 0.8, "b": 0.91, "b_score": 0.52, "b_interval": [0.02, -0.01, 0.05]},
    ]
    weight_search(tmp_path / "search" / "x-1", baselines=baselines)
    ratio_search(tmp_path / "ratio_searches" / "x-2")
    ratio_search(tmp_path / "scratch" / "ratio_search" / "unfinished")
    searches = read_searches(tmp_path)
    assert [found.kind for found in searches] == ["ratios", "weights"]
    assert {found.run for found in searches} == {tmp_path}
    rows = half_b(searches[1])
    assert [(row["model"], row["difference"], row["against"]) for row in rows] == [
        ("ratio", None, "ratio"), ("searched", 0.02, "ratio")
    ]  # fmt: skip
    assert len({tuple(row) for row in table(searches)}) == 1


def test_id_against_ood_is_what_the_report_says(tmp_path: Path) -> None:
    assert id_against_ood(tmp_path) == []
    means = {
        "member-0": {"in_domain": [0.1, 0.0, 0.2], "out_of_domain": [-0.1, -0.3, 0.1]},
        "merge-ratio": {"tasks": [0, 0, 0]},
    }
    summary = {"models": [{"name": "member-0", "kind": "member"}], "intervals": {"means": {"base": means}}}
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "summary.json").write_text(json.dumps(summary))
    (row,) = id_against_ood(tmp_path)
    assert (row["model"], row["kind"], row["id"], row["ood_low"], row["ood_high"]) == (
        "member-0",
        "member",
        0.1,
        -0.3,
        0.1,
    )
    (tmp_path / "report" / "summary.json").write_text("{")
    with pytest.raises(BoomError, match="boom-ray report"):
        id_against_ood(tmp_path)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_is_read_back_as_it_was(tmp_path: Path, found: Found, ending: str) -> None:
    rows, file = table([found]), tmp_path / f"t.{ending}"
    write_table(rows, file)
    if ending == "csv":
        read = list(csv.DictReader(file.open()))
        assert [float(row["scale"]) for row in read] == [row["scale"] for row in rows]
        assert [row["value"] for row in read if row["failed"] == "true"] == [""] * 5
    else:
        from pyarrow import parquet

        assert parquet.read_table(file).to_pylist() == rows
    with pytest.raises(BoomError, match=r"\.csv or \.parquet"):
        write_table(rows, tmp_path / "t.xls")


def test_what_is_no_search_is_refused_in_one_message(tmp_path: Path) -> None:
    with pytest.raises(BoomError, match="does not exist"):
        read_searches(tmp_path / "nowhere")
    with pytest.raises(BoomError, match="holds no search"):
        read_searches(tmp_path)
    (tmp_path / "x.jsonl").write_text("")
    with pytest.raises(BoomError, match=r"trials\.jsonl"):
        read_searches(tmp_path / "x.jsonl")
    (tmp_path / "trials.jsonl").write_text("")
    with pytest.raises(BoomError, match="no trial yet"):
        read_searches(tmp_path)
    (tmp_path / "trials.jsonl").write_text('{"number": 0}\n{"number": 1}\n')
    with pytest.raises(BoomError, match=r"trials\.jsonl:1"):
        read_searches(tmp_path)


def _tuned(folder: Path, loggers: bool, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Six trials of Ray Tune with three reports each, of which the second is the best."""
    from boom_ray.cluster.session import ray_session

    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "" if loggers else "1")
    with ray_session():
        from ray import tune

        def tried(config: dict[str, Any]) -> None:
            for step in range(3):
                tune.report({"loss": config["rate"] + (step - 1) ** 2, "nested": {"step": step}})

        space = {"rate": tune.grid_search([0.1, 0.2, 0.3]), "kind": tune.grid_search(["a", "b"])}
        return tune.Tuner(
            tried,
            param_space=space,
            tune_config=tune.TuneConfig(metric="loss", mode="min"),
            run_config=tune.RunConfig(name="mine", storage_path=str(folder), verbose=0),
        ).fit()


@pytest.mark.slow
def test_an_experiment_of_ray_tune_from_its_folder_and_its_results(tmp_path, monkeypatch) -> None:
    results = _tuned(tmp_path, True, monkeypatch)
    folder = tmp_path / "mine"
    for take, offset in (("last", 1.0), ("best", 0.0)):
        for found in (read_searches(folder, take)[0], read_results(results, take=take)):
            assert len(found.trials) == 6
            assert len(found.lines) == 18, "every report"
            for row in found.trials:
                assert row["value"] == pytest.approx(row["config:rate"] + offset)
                assert row["metric:nested/step"] == (2 if take == "last" else 1)
            assert {row["config:kind"] for row in found.trials} == {"a", "b"}
            assert found.best["config:rate"] == 0.1
            assert parameters(found) == ["config:rate", "config:kind"]
    for file in folder.glob("*/result.json"):  # as where Tune's loggers are off: the state has the last reports
        file.unlink()
    bare = read_searches(folder)[0]
    assert len(bare.lines) == 6
    assert sorted(row["value"] for row in bare.trials) == pytest.approx([1.1, 1.1, 1.2, 1.2, 1.3, 1.3])
    upside = read_searches(folder, metric="loss", mode="max")[0]
    assert upside.best["config:rate"] == 0.3
    with pytest.raises(BoomError, match="there are loss, nested/step"):
        read_searches(folder, metric="accuracy")
    with pytest.raises(BoomError, match="min or max"):
        read_searches(folder, metric="loss", mode="most")
