"""What a model directory says of the datasets that it was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml


def trained_on(model: Path) -> tuple[str, ...]:
    """Names of a published model's training datasets, of its manifest or else of its card; () where neither says so.

    Cards of other projects are not read: they name datasets in words of their own, and in part.
    """
    manifest = _read_json(model / "boom_manifest.json")
    corpus = manifest.get("meta", {}).get("corpus") if isinstance(manifest.get("meta"), dict) else None
    if isinstance(corpus, list) and corpus:
        return tuple(str(d["name"]) for d in corpus if isinstance(d, dict) and d.get("name") and d.get("rows", 1))
    return tuple(_of_card(model / "README.md"))


def _of_card(card: Path) -> list[str]:
    """``datasets`` of a model card's front matter."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if not text.startswith("---\n"):
        return []
    try:
        head = yaml.safe_load(text[4:].split("\n---", 1)[0])
    except yaml.YAMLError:
        return []
    ours = isinstance(head, dict) and "boom_ray" in (head.get("tags") or ())
    named = head.get("datasets") if ours else None
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
