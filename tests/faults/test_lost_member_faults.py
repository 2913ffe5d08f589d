"""The whole road with a member that fails for good."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from road_data import recipe_text, write_corpus

from boom_ray.cluster.session import ray_session
from boom_ray.config import BoomError
from boom_ray.ledger import Ledger
from boom_ray.pipeline import run
from boom_ray.plan import derive_keys
from boom_ray.runs import look, look_at
from boom_ray.train.placing import Assumed, ensemble_plan, forecast_jobs

pytestmark = pytest.mark.long


def test_a_run_goes_on_without_a_member_and_takes_it_in_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that cannot start is left out where min_members allows it, and named; planned anew it trains, alone, for
    about as long as the plan says."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # never somebody else's cluster
    text = recipe_text(write_corpus(tmp_path / "corpus", 300), tmp_path, "[0.5, 0.8, 1.0]").partition("evaluate:")[0]
    text = text.replace("{max_width: 1}", "{max_width: 1, min_members: 2}").replace("trials: 16", "trials: 4")
    text = text.replace("train: {", "train: {epochs: 15, ")
    recipe, root = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(text)
    Ledger.open(root, "road")
    parsed, ledger, keys = look_at(recipe, run_dir=root)
    obstacle = ledger.scratch("members", f"{keys.members[1].name}.jsonl")  # a folder where the step log should be
    with ray_session():
        with pytest.raises(BoomError, match="1 of 3 members failed; the others are kept") as refused:
            run(recipe, run_dir=root, overrides=["resources.min_members=3"])
        assert "member-1: step 0" in str(refused.value)
        assert "IsADirectoryError" in str(refused.value)

        run(recipe, run_dir=root)
        _check_without_member_1(root)
        assert run(recipe, run_dir=root).planned == 0
        command = [sys.executable, "-m", "boom_ray", "plan", str(recipe), "--run-dir", str(root)]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
        assert "nothing to do" in shown
        assert "! member-1 failed for good and is left out (step 0" in shown

        obstacle.rmdir()
        keys = derive_keys(parsed, look(parsed))
        jobs, speed = forecast_jobs(parsed, ledger, keys, Assumed())
        plan = ensemble_plan(parsed, jobs, [{"CPU": float(len(os.sched_getaffinity(0)))}], speed)
        assert [job.name for job in jobs] == ["member-1"]
        run(recipe, run_dir=root, replan=True)
    summary = json.loads((root / "report" / "summary.json").read_text())
    assert summary["lost"] == []
    assert all(len(m["weights"]) == 3 for m in summary["models"] if m["kind"] == "merge")
    taken = json.loads((root / "placement" / f"{keys.members[1].name}.json").read_text())["seconds"]
    assert 0.5 < plan.makespan / taken < 2  # other work shares the cores of a test


def _check_without_member_1(root: Path) -> None:
    summary = json.loads((root / "report" / "summary.json").read_text())
    assert [(gone["name"], gone["bag"]) for gone in summary["lost"]] == [("member-1", "80 %")]
    assert "IsADirectoryError" in (root / "report" / "index.html").read_text()
    assert {m["name"] for m in summary["models"] if m["kind"] == "member"} == {"member-0", "member-2"}
    assert all(len(m["weights"]) == 2 for m in summary["models"] if m["kind"] == "merge")
