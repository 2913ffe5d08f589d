"""Updates of a published model from end to end: what is counted, found done, refused; kills; a chain of versions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driver_kills import kill_when
from finished_runs import content, timeless
from safetensors.numpy import load_file

from boom_ray.cluster.session import ray_session
from boom_ray.config import BoomError
from boom_ray.update.history import history
from boom_ray.update.pipeline import UpdateResult, update

NEW = 60  # new rows


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with ray_session():
        yield


@pytest.fixture(scope="module")
def inputs(road: Path, session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, an update's recipe, new data: 60 new rows, 7 old ones (3 under another name), 2 of a test set."""
    root = tmp_path_factory.mktemp("update")
    corpus, sets = road / "corpus", road / "eval"
    shutil.copytree(road / "run", root / "run")
    rows = [{"query": f"where is number {i}", "pos": [f"number {i} is here"], "neg": []} for i in range(NEW)]
    old = [json.loads(line) for line in (corpus / "finding.jsonl").read_text().splitlines()[:7]]
    queries = [json.loads(line)["text"] for line in (sets / "in_domain/finding/queries.jsonl").read_text().splitlines()]
    tested = [{"query": query, "pos": ["an answer"], "neg": []} for query in queries[:2]]
    _write(root / "new" / "asking.jsonl", [*rows, *old[:3], *tested])
    _write(root / "new" / "finding.jsonl", old[3:])
    _write_set(root / "new_domain" / "asking")
    text = f'update: {{datasets: [{{path: "{root / "new"}"}}], sets: ["{root / "new_domain"}"], probe: 40}}\n'
    (root / "update.yaml").write_text(text)
    return root


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps({**row, "task_type": "retrieval"}) + "\n" for row in rows))


def _write_set(folder: Path) -> None:
    """An evaluation set of the new data's own kind."""
    folder.mkdir(parents=True)
    meta = {"name": "asking", "task_type": "retrieval", "lang": "en", "main_metric": "ndcg_at_10"}
    (folder / "meta.json").write_text(json.dumps(meta))
    numbers = range(200, 230)
    for name, text in (("corpus", "number {} is here"), ("queries", "where is number {}")):
        lines = (json.dumps({"_id": f"{name[0]}{i}", "text": text.format(i)}) + "\n" for i in numbers)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    relevant = [f"q{i}\tc{i}\t1" for i in numbers]
    (folder / "qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *relevant]) + "\n")


def _update(root: Path, where: Path, *settings: str, **options: Any) -> UpdateResult:
    return update(root / "update.yaml", overrides=settings, run_dir=where, echo=lambda line: None, **options)


def _copy(inputs: Path, name: str) -> Path:
    return Path(shutil.copytree(inputs / "run", inputs / name))


@pytest.fixture(scope="module")
def updated(inputs: Path) -> tuple[Path, UpdateResult, dict[str, bytes]]:
    """A run with its second version, the result, and what the first version was before."""
    where = _copy(inputs, "updated")
    (first,) = (where / "published").iterdir()
    before = content(first)
    return where, _update(inputs, where), before


def test_an_update_counts_its_rows_and_publishes_beside_the_old_version(inputs: Path, updated: Any) -> None:
    where, result, before = updated
    assert result.made
    counts = result.summary["data"]
    assert counts["asking"]["rows"] == NEW
    assert (counts["asking"]["duplicates"], counts["asking"]["decontaminated"]) == (3, 2)
    assert (counts["finding"]["rows"], counts["finding"]["duplicates"]) == (0, 4)
    (first,) = (p for p in (where / "published").iterdir() if p != result.published)
    assert content(first) == before
    old, member, new = (
        load_file(folder / "model.safetensors")
        for folder in (first, next(where.glob("members/v2-member-*")), result.published)
    )
    for name, merged in new.items():  # multislerp of two by halves: the sum of directions, at the mean length
        lengths = [float(np.linalg.norm(tensor[name])) for tensor in (old, member)]
        if min(lengths) > 0.01:  # of shorter ones its eps of 1e-8 shows
            direction = old[name] / lengths[0] + member[name] / lengths[1]
            expected = direction * (sum(lengths) / 2 / np.linalg.norm(direction))
            assert np.abs(merged - expected).max() <= 1e-5 * np.abs(expected).max(), name
    manifest = json.loads((result.published / "boom_manifest.json").read_text())["meta"]
    assert manifest["update"]["parent"]["name"] == first.name
    assert {entry["name"] for entry in manifest["corpus"]} == {"finding", "grouping", "grading", "asking"}
    groups = result.summary["groups"]
    assert groups == {"finding": "old_id", "grading": "old_id", "elsewhere": "ood", "asking": "new"}
    labels = [row["label"] for row in result.summary["table"]]
    assert labels == ["old in-domain", "out-of-domain", "new domain", "asking"]
    cost = result.summary["cost"]
    assert cost["update"]["seconds"] > 0
    assert cost["retrain"]["how"] == "planned"

    from boom_ray.encoder import Encoder

    vectors = [Encoder.load(folder).encode(["ship harbour wave"]) for folder in (first, result.published)]
    assert np.abs(vectors[0] - vectors[1]).max() > 0


def test_the_second_call_does_nothing_and_old_rows_alone_make_no_version(inputs: Path, updated: Any) -> None:
    where, result, _ = updated
    files = {p: p.stat().st_mtime_ns for p in (where / "published").rglob("*")}
    again = _update(inputs, where)
    assert (again.made, again.published) == (False, result.published)
    moved = inputs / "moved"
    shutil.copytree(inputs / "new", moved, dirs_exist_ok=True)
    assert _update(inputs, where, f'update.datasets=[{{path: "{moved}"}}]').published == result.published
    (inputs / "old.jsonl").write_text((inputs / "new" / "finding.jsonl").read_text())
    nothing = _update(inputs, where, f'update.datasets=[{{path: "{inputs / "old.jsonl"}"}}]')
    assert (nothing.made, nothing.published) == (False, result.published)
    assert {p: p.stat().st_mtime_ns for p in (where / "published").rglob("*")} == files


def test_a_cap_of_no_set_is_refused_before_the_member_is_trained(inputs: Path) -> None:
    where = _copy(inputs, "capped")
    with pytest.raises(BoomError, match="did you mean 'asking'"):
        _update(inputs, where, "evaluate.cap={askings: 20}")
    assert not list(where.glob("members/v2-*"))


def test_a_model_that_has_changed_is_refused(inputs: Path) -> None:
    where = _copy(inputs, "changed")
    (weights,) = (where / "published").glob("*/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    done = subprocess.run(_command(inputs, where), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("boom-ray: ")
    assert "no longer the model that was published" in done.stderr


def _command(inputs: Path, where: Path, *settings: str) -> list[str]:
    command = [sys.executable, "-m", "boom_ray", "update", str(inputs / "update.yaml"), "--run-dir", str(where)]
    return command + [part for setting in settings for part in ("--set", setting)]


def test_killed_twice_and_called_again_it_publishes_the_same_bytes(inputs: Path, updated: Any) -> None:
    _, result, _ = updated
    where, kept = _copy(inputs, "killed"), dict[Path, int]()
    for moment in ("corpus/v2-new-*", "members/v2-member-*"):

        def made(pattern: str = f"{moment}/manifest.json") -> dict[Path, int]:
            return {p: p.stat().st_mtime_ns for p in where.glob(pattern)}

        kill_when(made, _command(inputs, where), 240)
        kept |= made()
    again = _update(inputs, where)
    assert len(kept) == 2
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert again.made
    assert timeless(again.published) == timeless(result.published)
    assert not list(where.rglob(".tmp-*"))


@pytest.mark.long
def test_a_chain_by_rows_with_a_bound_on_the_drift(inputs: Path, updated: Any) -> None:
    """The third version of an ensemble, the drift of the second one bounded; the history names both."""
    where = Path(shutil.copytree(updated[0], inputs / "chain"))
    more = inputs / "more.jsonl"
    _write(more, [{"query": f"what is in box {i}", "pos": [f"box {i} holds {i} things"], "neg": []} for i in range(40)])
    data = f'update.datasets=[{{path: "{more}"}}]'
    third = _update(inputs, where, data, "update.weights=ensemble", "update.max_drift=0.05")
    bound = third.summary["bound"]
    assert bound["drift"] <= 0.05
    assert 0 < bound["step"] <= 1
    assert sum(third.summary["parts"]) == pytest.approx(1)
    assert len(third.summary["parts"]) == 3
    sibling = _update(inputs, where, data, "update.weights=searched")  # onto the same parent
    assert sibling.summary["parent"] == third.summary["parent"]
    rows = history(third.published)
    assert [row["version"] for row in rows] == ["v1", "v2", "v3"]
    assert rows[2]["published"] == third.published.name
    assert [row["rows"] for row in rows[1:]] == [NEW, 40]
    with pytest.raises(BoomError, match="max_drift"):
        _update(inputs, where, data, "update.max_drift=0.00000001")


@pytest.mark.long
def test_against_a_full_retrain_both_are_measured(inputs: Path, updated: Any) -> None:
    where, _, _ = updated
    found = _update(inputs, where, against_retrain=True)
    assert not found.made
    assert found.summary["cost"]["retrain"]["how"] == "measured"
    assert found.summary["cost"]["retrain"]["members"] == 2
    models = found.summary["table"][0]["models"]
    assert set(models) == {"base", "current model", "new member", "update", "full retrain"}
    assert models["current model"]["to_current"] is None
    assert len(models["full retrain"]["to_current"]) == 3
    assert "full retrain" in (found.report.read_text() if found.report else "")
