"""Small evaluation sets of every type, in the layouts that users have."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WORDS = [
    f"{a}{b}" for a in ("red", "blue", "old", "new", "big", "low") for b in ("cat", "ship", "tree", "song", "town")
]


def sentence(rng: random.Random, length: int = 8) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, length)))


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if file.suffix == ".gz":
        file.write_bytes(gzip.compress(text.encode(), mtime=0))
    else:
        file.write_text(text)


def write_set(folder: Path, task_type: str, files: Mapping[str, Sequence[Mapping[str, Any]]], **meta: Any) -> Path:
    folder.mkdir(parents=True)
    for name, rows in files.items():
        write_rows(folder / name, rows)
    (folder / "meta.json").write_text(json.dumps({"name": folder.name, "task_type": task_type, "lang": "en", **meta}))
    return folder


def write_qrels(folder: Path, rows: Sequence[tuple[str, str, int]]) -> None:
    lines = ["query-id\tcorpus-id\tscore", *(f"{q}\t{d}\t{s}" for q, d, s in rows)]
    (folder / "qrels.tsv").write_text("\n".join(lines) + "\n")


def make_sets(root: Path, seed: int = 0) -> Path:
    """One set of each type in ``root/in_domain`` and ``root/out_of_domain``."""
    rng = random.Random(seed)
    documents = [{"_id": f"d{i}", "title": "note" if i % 3 == 0 else "", "text": sentence(rng)} for i in range(40)]
    queries = [{"_id": f"q{i}", "text": sentence(rng, 4)} for i in range(12)]
    for name, task_type in (("find", "retrieval"), ("rank", "reranking")):
        files: dict[str, Any] = {"corpus.jsonl.gz": documents, "queries.jsonl": queries}
        if task_type == "reranking":
            files["top_ranked.jsonl.gz"] = [
                {"query-id": f"q{i}", "corpus-ids": [f"d{(3 * i + k) % 40}" for k in range(6)]} for i in range(12)
            ]
        folder = write_set(root / "in_domain" / name, task_type, files)
        write_qrels(folder, [(f"q{i}", f"d{(3 * i + k) % 40}", 1) for i in range(12) for k in range(1 + i % 2)])
    labelled = [{"text": f"{sentence(rng)} {label}cat", "label": label} for label in ("red", "blue", "old") * 30]
    write_set(
        root / "in_domain" / "sort", "classification", {"train.jsonl": labelled[:45], "test.jsonl.gz": labelled[45:]}
    )
    write_set(root / "out_of_domain" / "group", "clustering", {"test.jsonl": labelled})
    pairs = [{"sentence1": sentence(rng), "sentence2": sentence(rng), "score": i / 30} for i in range(30)]
    write_set(root / "out_of_domain" / "alike", "sts", {"test.jsonl": pairs})
    return root
