"""A version as a published directory: the merge, its card, and a manifest that names parent, data and weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from boom_ray.config.corpus import FilesSource
from boom_ray.ledger import file_sha256
from boom_ray.redact import scrub
from boom_ray.report.card_scores import markdown_table
from boom_ray.report.update import data_rows, score_rows
from boom_ray.runs import Evaluation
from boom_ray.stores.files import shown
from boom_ray.update.keys import Stand
from boom_ray.update.summary import collect
from boom_ray.update.task import Job


def publish_version(job: Job, found: Evaluation, stand: Stand) -> None:
    """Copy the merge, write card and manifest, and commit; the parent stays as it is.

    Args:
        stand: what the new version stands on.
    """
    keys, ledger = job.keys, job.ledger
    ledger.verify(keys.merge)
    summary = collect(job)
    inputs = {"merge": keys.merge.identity, "parent": job.stand.version.key.identity}
    with ledger.stage(keys.published, inputs) as stage:
        source = ledger.path(keys.merge)
        shutil.copytree(source, stage.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        (stage.path / "README.md").write_text(write_card(summary), encoding="utf-8")
        stage.meta.update(
            update=manifest_entry(job, summary, stand),
            corpus=_corpus(ledger.path(keys.corpus)),
            members=[{"identity": member.key.identity, "rows": member.rows} for member in stand.members],
            models=[{"name": name, "scores": scores} for name, scores in summary["scores"].items()],
            seed=job.recipe.seed,
        )


def manifest_entry(job: Job, summary: Mapping[str, Any], stand: Stand) -> dict[str, Any]:
    """What a version's manifest says of its update."""
    parent = job.stand.version
    manifest = job.ledger.path(parent.key) / parent.key.manifest
    means = {row["label"]: row["models"]["update"]["score"] for row in summary["table"]}
    return {
        "version": job.keys.number,
        "parent": {"name": parent.key.name, "identity": parent.key.identity, "manifest_sha256": file_sha256(manifest)},
        "settings": _without_places(job),
        "data": {"digest": job.keys.data, "datasets": summary["data"]},
        "bag": summary["bag"],
        "point": summary["weights"],
        "share": summary["share"],
        "parts": summary["parts"],
        "bound": summary["bound"],
        "scores": means,
        "cost": summary["cost"],
        "drift": {"text": summary["drift"]["verdict"]["text"], "reembed": summary["drift"]["verdict"]["reembed"]},
        "stand": stand.to_json(),
    }


def _without_places(job: Job) -> dict[str, Any]:
    """The settings of the update without paths of this machine: sources by their last part."""
    dump = job.settings.model_dump(mode="json", exclude={"datasets", "model", "sets"})
    named = [
        Path(shown(source.origin)).name if isinstance(source, FilesSource) else source.source
        for source in job.settings.datasets
    ]
    return {**dump, "datasets": named}


def _corpus(corpus: Path) -> list[dict[str, Any]]:
    entries = json.loads((corpus / "datasets.json").read_text(encoding="utf-8"))
    return [{name: entry[name] for name in ("name", "task_type", "rows")} for entry in entries]


def write_card(summary: Mapping[str, Any]) -> str:
    """README.md of a version: where it comes from, its data, scores, cost and drift."""
    summary = scrub(summary)
    tags = ["sentence-transformers", "sentence-similarity", "feature-extraction", "dense", "mteb", "boom_ray", "merge"]
    head = {"library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity", "tags": tags}
    head_of_data, rows_of_data = data_rows(summary)
    head_of_scores, rows_of_scores = score_rows(summary)
    name = Path(summary["published"]).name
    parent = Path(summary["parent"]["published"]).name
    shares = " and ".join(f"{part:.3f}" for part in (1 - summary["share"], summary["share"]))
    sections = [
        "---\n" + yaml.safe_dump(head, sort_keys=False) + "---",
        f"# {name}",
        f"Version {summary['version'].removeprefix('v')} of `{summary['name']}`, made by boom_ray from `{parent}`: one "
        f"member was trained on {summary['bag']['rows']:,} rows, new ones and a core of the old, and merged into it "
        f"with weights {shares}.",
        f"## Use\n\n```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        f'model = SentenceTransformer("{name}")\nvectors = model.encode(["first text", "second text"])\n```',
        "## New data\n\n" + markdown_table(head_of_data, rows_of_data),
        "## Scores\n\nPoints of mteb's main scores; differences to the version before, with 95 % intervals.\n\n"
        + markdown_table(head_of_scores, rows_of_scores),
        "## What it came to\n\n" + "\n".join(f"- {line}" for line in summary["verdict"]),
    ]
    return "\n\n".join(sections) + "\n"
