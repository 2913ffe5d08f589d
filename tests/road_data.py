"""A small multi-task corpus that is learned in seconds, and evaluation sets over it, in the layouts of docs/data.md."""

from __future__ import annotations

import json
import random
from pathlib import Path

_TOPICS = {
    "sea": ["ship", "harbour", "wave", "anchor", "sailor", "tide", "captain", "island", "storm", "coral"],
    "kitchen": ["oven", "recipe", "butter", "flour", "knife", "spoon", "dough", "sugar", "pepper", "roast"],
    "forest": ["oak", "river", "moss", "deer", "trail", "mushroom", "bark", "fern", "owl", "pine"],
    "city": ["tram", "bridge", "market", "tower", "street", "museum", "square", "cafe", "station", "neon"],
    "space": ["comet", "orbit", "rocket", "moon", "crater", "gravity", "planet", "lens", "dust", "galaxy"],
    "music": ["violin", "chord", "drum", "melody", "choir", "piano", "tempo", "flute", "concert", "verse"],
}


def sentence(rng: random.Random, topic: str, words: int = 7) -> str:
    return " ".join(rng.choices(_TOPICS[topic], k=words))


def write_corpus(folder: Path, rows: int = 160, seed: int = 5) -> Path:
    """Retrieval, clustering and sts rows, ``rows`` of each, as jsonl files."""
    rng = random.Random(seed)
    topics = list(_TOPICS)
    folder.mkdir(parents=True, exist_ok=True)
    retrieval, clustering, sts = [], [], []
    for number in range(rows):
        topic, other = rng.sample(topics, 2)
        text = sentence(rng, topic, 12)
        query = " ".join(text.split()[:5]) + f" {number}"
        retrieval.append({"query": query, "pos": [text], "neg": [sentence(rng, other, 12)]})
        pair = (sentence(rng, topic), sentence(rng, topic))
        clustering.append({"query": pair[0], "pos": [pair[1]], "neg": [sentence(rng, other)]})
        words = text.split()
        kept = rng.randint(0, 12)
        changed = words[:kept] + sentence(rng, other, 12 - kept).split()
        sts.append({"query": text, "pos": [" ".join(changed)], "neg": [], "score": kept / 12})
    for name, task_type, content in (
        ("finding", "retrieval", retrieval),
        ("grouping", "clustering", clustering),
        ("grading", "sts", sts),
    ):
        lines = (json.dumps({**row, "task_type": task_type}) for row in content)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_sets(folder: Path, seed: int = 6) -> Path:
    """In-domain retrieval (``finding``) and sts (``grading``), out-of-domain clustering (``elsewhere``)."""
    rng = random.Random(seed)
    topics = list(_TOPICS)
    documents = {f"d{i}": sentence(rng, topics[i % len(topics)], 12) for i in range(40)}
    queries = {f"q{i}": " ".join(documents[f"d{i}"].split()[:5]) for i in range(12)}
    found = folder / "in_domain" / "finding"
    _set(found, "finding", "retrieval", "ndcg_at_10")
    _lines(found / "corpus.jsonl", [{"_id": k, "text": v} for k, v in documents.items()])
    _lines(found / "queries.jsonl", [{"_id": k, "text": v} for k, v in queries.items()])
    qrels = ["query-id\tcorpus-id\tscore"] + [f"q{i}\td{i}\t1" for i in range(12)]
    (found / "qrels.tsv").write_text("\n".join(qrels) + "\n")
    graded = folder / "in_domain" / "grading"
    _set(graded, "grading", "sts", "cosine_spearman")
    pairs = []
    for number in range(30):
        text, kept = sentence(rng, topics[number % 6], 12), number % 13
        other = text.split()[:kept] + sentence(rng, topics[(number + 1) % 6], 12 - kept).split()
        pairs.append({"sentence1": text, "sentence2": " ".join(other), "score": kept / 12})
    _lines(graded / "test.jsonl", pairs)
    elsewhere = folder / "out_of_domain" / "elsewhere"
    _set(elsewhere, "elsewhere", "clustering", "v_measure")
    texts = [{"text": sentence(rng, topics[i % 6], 9), "label": topics[i % 6]} for i in range(48)]
    _lines(elsewhere / "test.jsonl", texts)
    return folder


def recipe_text(corpus: Path, sets: Path, ratios: str = "[0.5, 1.0]") -> str:
    """A recipe of two members over this corpus, on a base of one layer of 32."""
    return f"""
name: road
seed: 3
base:
  build: {{layers: 1, hidden: 32, heads: 2, vocab: 400, warm_steps: 4}}
  max_tokens: 24
corpus:
  datasets: [{{path: "{corpus}"}}]
  dev: {{fraction: 0.1, min_rows: 20}}
bags: {{ratios: {ratios}}}
train: {{batch_size: 32, learning_rate: 2.0e-3, temperature: 0.05, hard_negatives: 1}}
resources: {{max_width: 1}}
search: {{trials: 16, round: 4, actors: 1}}
evaluate: {{sets: ["{sets}"]}}
"""


def _set(folder: Path, name: str, task_type: str, metric: str) -> None:
    folder.mkdir(parents=True)
    meta = {"name": name, "task_type": task_type, "lang": "en", "main_metric": metric}
    (folder / "meta.json").write_text(json.dumps(meta))


def _lines(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
