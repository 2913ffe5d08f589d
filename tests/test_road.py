"""The whole road on a small corpus: one recipe in, a merged, scored, published model out; then the same again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from road_data import recipe_text, write_corpus, write_sets
from safetensors.numpy import load_file

from boom_ray.config import BoomError

MODEL_FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "modules.json")


def boom(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "boom_ray", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=540, cwd=cwd)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("road")
    recipe = recipe_text(write_corpus(root / "corpus"), write_sets(root / "eval"))
    recipe = recipe.replace("train: {", "train: {averages: {ema: 0.9, last: null, every: 2}, ")
    (root / "recipe.yaml").write_text(recipe)
    return root


@pytest.fixture(scope="module")
def finished(inputs: Path) -> tuple[Path, str]:
    """(run directory, what the command printed)."""
    done = boom("run", inputs / "recipe.yaml", "--run-dir", inputs / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    return inputs / "run", done.stdout


def published_dir(output: str) -> Path:
    last = output.strip().splitlines()[-1]
    assert last.startswith("published: ")
    return Path(last.removeprefix("published: "))


@pytest.mark.slow
def test_published_directory_is_complete_and_loads_anywhere(finished: tuple[Path, str]) -> None:
    published = published_dir(finished[1])
    for name in (*MODEL_FILES, "README.md", "mergekit_config.yml", "boom_manifest.json", "_SUCCESS"):
        assert (published / name).is_file(), name
    assert (published / "1_Pooling" / "config.json").is_file()
    manifest = json.loads((published / "boom_manifest.json").read_text())
    for name, entry in manifest["files"].items():
        assert hashlib.sha256((published / name).read_bytes()).hexdigest() == entry["sha256"], name
    on_disk = {p.relative_to(published).as_posix() for p in published.rglob("*") if p.is_file()}
    assert on_disk - set(manifest["files"]) == {"boom_manifest.json", "_SUCCESS"}
    newest = max(published.rglob("*"), key=lambda p: p.stat().st_mtime_ns)
    assert newest.name in ("_SUCCESS", published.name)

    from sentence_transformers import SentenceTransformer

    from boom_ray.encoder import Encoder

    texts = ["ship harbour wave", "oven recipe", "a longer text about the moon and the planet " * 4]
    ours = Encoder.load(published).encode(texts)
    theirs = SentenceTransformer(str(published), device="cpu").encode(texts)
    assert np.abs(ours - theirs).max() <= 1e-5


@pytest.mark.slow
def test_no_other_artifact_carries_the_success_marker(finished: tuple[Path, str]) -> None:
    found = {p.parent.parent.name for p in finished[0].rglob("_SUCCESS")}
    assert found == {"published"}


@pytest.mark.slow
def test_tables_report_and_members_at_the_same_moment(finished: tuple[Path, str]) -> None:
    root, output = finished
    summary = json.loads((root / "report" / "summary.json").read_text())
    names = {m["name"] for m in summary["models"]}
    merges = {"merge-ratio", "merge-uniform", "merge-searched"}
    assert names == {"base", "member-0", "member-1", "member-0-ema", "member-1-ema", *merges}
    assert {m["name"] for m in summary["models"] if m["kind"] == "average"} == {"member-0-ema", "member-1-ema"}
    domains = {s["name"]: s["domain"] for s in summary["sets"]}
    assert domains == {"finding": "in_domain", "grading": "in_domain", "elsewhere": "out_of_domain"}
    for model in summary["models"]:
        assert set(model["scores"]) == set(domains)
        assert all(0 <= s <= 1 for s in model["scores"].values())
    assert len(summary["search"]["trials"]) == 16
    for name in names - {"base"}:
        assert set(summary["intervals"]["means"]["base"][name]) == {"in_domain", "out_of_domain", "tasks", "types"}
        assert set(summary["intervals"]["sets"]["members"][name]) == set(domains)
    assert set(summary["intervals"]["means"]["chosen"]) == names - {"merge-searched"}
    marks = summary["contamination"]
    assert {name: (m["exact"], m["touched"]) for name, m in marks.items()} == dict.fromkeys(domains, (0, 0))
    assert {name: m["units"] for name, m in marks.items()} == {"finding": 12, "grading": 30, "elsewhere": 48}
    for name in names:
        assert name in output
    first, second = sorted(summary["members"], key=lambda m: m["started"])
    if len(os.sched_getaffinity(0)) >= 2:
        assert second["started"] < first["finished"], "the members trained one after the other"
    page = (root / "report" / "index.html").read_text()
    assert not re.search(r"""(src|href)=["']?https?://[^"']+\.(js|css|png|svg)""", page)
    assert "merge-searched" in page


@pytest.mark.slow
def test_bags_are_exact_and_dev_rows_are_in_none(finished: tuple[Path, str]) -> None:
    root, _ = finished
    counts = json.loads(next(root.glob("bags/*/counts.json")).read_text())
    corpus = json.loads(next(root.glob("corpus/*/counts.json")).read_text())
    for name, dataset in counts["datasets"].items():
        rows = corpus[name]["rows"]
        assert dataset["dev_a"] + dataset["dev_b"] == 20
        assert dataset["train"] == rows - 20
        for ratio, member in zip(counts["ratios"], dataset["members"], strict=True):
            assert member["in_bag"] == round(ratio * dataset["train"])
            assert member["in_bag"] + member["out_of_bag"] == dataset["train"]


@pytest.mark.slow
def test_second_run_plans_nothing_and_starts_no_ray(inputs: Path, finished: tuple[Path, str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished[0].rglob("*") if p.is_file()}
    script = (
        "import sys, boom_ray\n"
        f"result = boom_ray.run({str(inputs / 'recipe.yaml')!r}, run_dir={str(finished[0])!r})\n"
        "assert result.planned == 0, result.planned\n"
        "assert 'ray' not in sys.modules and 'torch' not in sys.modules\n"
        "print(result.published)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == str(published_dir(finished[1]))
    after = {p: p.stat().st_mtime_ns for p in finished[0].rglob("*") if p.is_file()}
    assert after == before


@pytest.mark.slow
def test_changed_ratio_plans_one_member(inputs: Path, finished: tuple[Path, str]) -> None:
    from boom_ray.runs import plan

    _, steps = plan(inputs / "recipe.yaml", overrides=["bags.ratios=[0.4, 1.0]"], run_dir=finished[0])
    todo = {step.name for step in steps if not step.done}
    assert "member-0" in todo
    assert not todo & {"corpus", "start", "tokens", "warm base", "member-1", "score base", "score member-1"}


@pytest.mark.slow
def test_merge_command_writes_what_the_run_published(finished: tuple[Path, str], tmp_path: Path) -> None:
    """The mergekit recipe beside the published model gives the same weights again, to one rounding of float32.

    (Not bit for bit: the run's Gram matrices come from task vectors, the command's from the weights themselves.)
    """
    root, output = finished
    published = published_dir(output)
    done = boom("merge", published / "mergekit_config.yml", tmp_path / "merged", "--run-dir", root)
    assert done.returncode == 0, done.stderr
    again, first = (load_file(d / "model.safetensors") for d in (tmp_path / "merged", published))
    assert again.keys() == first.keys()
    for name, tensor in first.items():
        np.testing.assert_allclose(again[name], tensor, rtol=2.4e-7, atol=1e-9, err_msg=name)


@pytest.mark.slow
def test_a_scale_is_a_part_of_the_way_from_the_base(finished: tuple[Path, str], inputs: Path, tmp_path: Path) -> None:
    """The same run with another recipe trains nothing, and publishes base + 0.8 (merge - base)."""
    root = shutil.copytree(finished[0], tmp_path / "run")
    before = {path.name for path in (root / "members").iterdir()}
    settings = ("--set", "merge.weights=ratio", "--set", "merge.scale=0.8")
    done = boom("run", inputs / "recipe.yaml", "--run-dir", root, *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (root / "members").iterdir()} == before
    published = published_dir(done.stdout)
    recipe = yaml.safe_load((published / "mergekit_config.yml").read_text())
    assert recipe["parameters"]["scale"] == 0.8
    assert "multiplied by 0.8" in (published / "README.md").read_text()
    whole = {**recipe, "parameters": {**recipe["parameters"], "scale": 1.0}}
    (tmp_path / "whole.yml").write_text(yaml.safe_dump(whole))
    merged = boom("merge", tmp_path / "whole.yml", tmp_path / "whole", "--run-dir", root)
    assert merged.returncode == 0, merged.stderr
    found, far, near = (
        load_file(d / "model.safetensors") for d in (published, tmp_path / "whole", root / recipe["base_model"])
    )
    for name, tensor in found.items():
        expected = near[name] + 0.8 * (far[name].astype(np.float64) - near[name])
        np.testing.assert_allclose(tensor, expected, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.slow
def test_evaluate_command_gives_the_table_of_the_run(finished: tuple[Path, str], tmp_path: Path) -> None:
    summary = json.loads((finished[0] / "report" / "summary.json").read_text())
    expected = next(m for m in summary["models"] if m["name"] == summary["chosen"])["scores"]
    done = boom("evaluate", published_dir(finished[1]), cwd=tmp_path)  # the run's own sets
    assert done.returncode == 0, done.stderr
    for name, score in expected.items():
        assert re.search(rf"{name} .*{100 * score:.2f}", done.stdout), (name, score, done.stdout)


@pytest.mark.slow
def test_compare_command_reads_the_scores_of_a_run(finished: tuple[Path, str], tmp_path: Path) -> None:
    root, output = finished
    done = boom("compare", f"{root}:base", published_dir(output), "--json", tmp_path / "compare.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "compare.json").read_text())
    summary = json.loads((root / "report" / "summary.json").read_text())
    rows = {row["label"]: row["differences"][0] for row in found["rows"]}
    for label, mean in (("in-domain", "in_domain"), ("out-of-domain", "out_of_domain"), ("mean over tasks", "tasks")):
        ends = [rows[label][end] for end in ("difference", "low", "high")]
        assert ends == pytest.approx(summary["intervals"]["means"]["base"]["merge-searched"][mean], abs=1e-6), label


@pytest.mark.slow
def test_report_command_needs_no_sources(finished: tuple[Path, str], tmp_path: Path) -> None:
    done = boom("report", finished[0], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "merge-searched" in done.stdout


def test_run_directory_of_another_recipe_is_refused(inputs: Path, tmp_path: Path) -> None:
    from boom_ray.ledger import Ledger

    Ledger.open(tmp_path / "run", "other")
    done = boom("run", inputs / "recipe.yaml", "--run-dir", tmp_path / "run")
    assert done.returncode == 2
    assert "belongs to recipe 'other'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_cap_of_no_set_is_refused_before_anything_is_trained(inputs: Path, tmp_path: Path) -> None:
    """Which sets there are is known once the corpus has been made: it may bring some of its own."""
    made = boom("run", inputs / "recipe.yaml", "--set", "evaluate.cap={findings: 20}", "--run-dir", tmp_path / "run")
    assert made.returncode == 2, made.stdout + made.stderr
    assert "did you mean 'finding'" in made.stderr
    assert (tmp_path / "run" / "corpus").is_dir()
    assert not [folder for folder in ("tokens", "bags", "members") if (tmp_path / "run" / folder).exists()]


def test_folder_that_disagrees_with_the_training_data_is_refused(tmp_path: Path) -> None:
    from boom_ray.evaluate.sets import find_sets

    sets = write_sets(tmp_path / "eval")
    with pytest.raises(BoomError, match="elsewhere"):
        find_sets([sets], ["finding", "grading", "elsewhere"])


def test_relative_run_directory_is_refused_in_a_job(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from boom_ray.recipe import load_recipe
    from boom_ray.runs import resolve_run_dir

    recipe = load_recipe(inputs / "recipe.yaml")
    monkeypatch.delenv("BOOM_RAY_HOME", raising=False)
    assert resolve_run_dir(recipe, None) == Path("runs/road")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert resolve_run_dir(recipe, None) == Path.home() / "boom_ray" / "runs" / "road"
    with pytest.raises(BoomError, match="relative"):
        resolve_run_dir(recipe, "runs/road")
    monkeypatch.setenv("BOOM_RAY_HOME", "/shared/boom")
    assert resolve_run_dir(recipe, None) == Path("/shared/boom/road")
