"""The model card: README.md of the published directory, in the dialect that model hubs read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml

from boom_ray.redact import scrub
from boom_ray.report.card_scores import markdown_table, scores_section
from boom_ray.report.drift import drift_lines
from boom_ray.report.layout import bag_label, busy, duration, percent
from boom_ray.report.tables import DOMAINS, sets_of

Summary = Mapping[str, Any]
_LANGUAGES = {"ara": "ar", "ces": "cs", "dan": "da", "deu": "de", "ell": "el", "eng": "en", "fin": "fi", "fra": "fr",
              "heb": "he", "hin": "hi", "hun": "hu", "ind": "id", "ita": "it", "jpn": "ja", "kor": "ko", "nld": "nl",
              "nob": "nb", "pol": "pl", "por": "pt", "ron": "ro", "rus": "ru", "spa": "es", "swe": "sv", "tha": "th",
              "tur": "tr", "ukr": "uk", "vie": "vi", "zho": "zh", "cmn": "zh"}  # fmt: skip
_POOLING = {
    "mean": "mask = batch['attention_mask'].unsqueeze(-1).float()\n"
    "    vectors = (hidden * mask).sum(1) / mask.sum(1)",
    "cls": "vectors = hidden[:, 0]  # the first token",
    "lasttoken": "last = batch['attention_mask'].sum(1) - 1  # padding on the right\n"
    "    vectors = hidden[torch.arange(len(last)), last]",
}  # fmt: skip


def write_card(summary: Summary, *, published_name: str) -> str:
    """The card as Markdown with YAML front matter; holds no path of the machine and no secret.

    Args:
        summary: the run's summary.
        published_name: what a user loads the model by; of a path only the last part is written.
    """
    summary = scrub(summary)
    name = _bare(published_name)
    recipe = yaml.safe_load(summary["recipe_yaml"]) or {}
    sections = [
        _front_matter(summary, recipe),
        f"# {name}",
        _introduction(summary, recipe),
        _usage(name, summary, recipe),
        scores_section(summary),
        drift_lines(summary),
        _merge(summary, recipe),
        _training(summary),
        _cost(summary),
        _limits(summary, recipe),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _bare(text: str) -> str:
    """A name without the machine's directories: a hub name stays, of a path the last part stays."""
    local = text.startswith((".", "~")) or os.path.isabs(text) or text.count("/") > 1 or os.path.exists(text)
    return PurePosixPath(text).name if local else text


def _base_name(recipe: Mapping[str, Any]) -> tuple[str | None, str]:
    """(hub name or None, what to call the base in a sentence)."""
    model = (recipe.get("base") or {}).get("model")
    if not model:
        return None, "an encoder built from a config, its tokenizer trained on the corpus"
    bare = _bare(model)
    if bare == model and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        return model, f"`{model}`"
    return None, f"a local checkpoint, `{bare}`"


def _chosen(summary: Summary) -> Mapping[str, Any]:
    return next((m for m in summary["models"] if m["name"] == summary.get("chosen")), {})


def _front_matter(summary: Summary, recipe: Mapping[str, Any]) -> str:
    base, _ = _base_name(recipe)
    merged = _chosen(summary).get("kind") == "merge" and len(summary["members"]) > 1
    languages = {_language(s["language"]) for s in summary.get("sets") or [] if s.get("language")}
    fields: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "sentence-similarity", "feature-extraction", "dense", "mteb", "boom_ray"]
        + (["merge"] if merged else []),
        "base_model": [base] if base else None,
        "base_model_relation": ("merge" if merged else "finetune") if base else None,
        "datasets": [d["name"] for d in summary["corpus"]] or None,
        "language": sorted(languages) or None,
        "license": summary.get("license"),
    }
    known = {key: value for key, value in fields.items() if value}
    return "---\n" + yaml.safe_dump(known, sort_keys=False, allow_unicode=True) + "---"


def _language(code: str) -> str:
    """A hub's language tag: ``eng-Latn`` is ``en``; ``python-Code`` and ``code:python`` are ``code``."""
    language, _, script = code.partition("-")
    return "code" if script == "Code" or code.startswith("code:") else _LANGUAGES.get(language, language)


def _introduction(summary: Summary, recipe: Mapping[str, Any]) -> str:
    members, (_, base) = summary["members"], _base_name(recipe)
    method = (recipe.get("merge") or {}).get("method", "multislerp")
    rows = f"{sum(d['rows'] for d in summary['corpus']):,} rows of {len(summary['corpus'])} datasets"
    tokens = (recipe.get("base") or {}).get("max_tokens")
    cut = f" Texts are cut at {tokens} tokens." if tokens else ""
    if len(members) == 1:
        scale = _chosen(summary).get("scale")
        scaled = "" if scale in (None, 1.0) else f" It is {scale:.4g} of the way from there to where it ended."
        made = f"One model, trained from {base} on {percent(members[0]['ratio'])} of {rows}.{scaled}"
    else:
        made = (
            f"{len(members)} members were trained from {base}, each on its own bag of {rows}, and merged into this one "
            f"model by `{method}`. It costs no more to serve than a single member."
        )
    return f"A text embedding model made by boom_ray from the recipe `{summary['name']}`. {made}{cut}"


def _usage(name: str, summary: Summary, recipe: Mapping[str, Any]) -> str:
    base = recipe.get("base") or {}
    pooling = summary.get("pooling") or base.get("pooling") or ("mean" if base.get("build") else None)
    guess = "" if pooling else "\nThe pooling below is the mean; `1_Pooling/config.json` says what this model uses.\n"
    return f"""## Use

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}")
vectors = model.encode(["first text", "second text"], normalize_embeddings=True)
print(model.similarity(vectors, vectors))
```

Without sentence-transformers:
{guess}
```python
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}", padding_side="right")
model = AutoModel.from_pretrained("{name}").eval()
texts = ["first text", "second text"]
batch = tokenizer(texts, padding=True, truncation=True{_max_length(base)}, return_tensors="pt")
with torch.no_grad():
    hidden = model(**batch).last_hidden_state
    {_POOLING[pooling or "mean"]}
vectors = torch.nn.functional.normalize(vectors, dim=1)
```

Prompts, where the datasets had instructions, are in `config_sentence_transformers.json`."""


def _max_length(base: Mapping[str, Any]) -> str:
    tokens = base.get("max_tokens")
    return f", max_length={tokens}" if tokens else ""


def _merge(summary: Summary, recipe: Mapping[str, Any]) -> str:
    chosen, settings = _chosen(summary), recipe.get("merge") or {}
    weights = chosen.get("weights")
    if not weights:
        return ""
    base, _ = _base_name(recipe)
    body: dict[str, Any] = {
        "merge_method": chosen.get("method") or settings.get("method", "multislerp"),
        "base_model": (base or "base") if settings.get("task_vectors") else None,
        "models": [
            {"model": m["name"], "parameters": {"weight": round(float(w), 6)}}
            for m, w in zip(summary["members"], weights, strict=True)
        ],
        "dtype": "float32",
    }
    text = yaml.safe_dump({key: value for key, value in body.items() if value}, sort_keys=False)
    scale = chosen.get("scale")
    note = ""
    if scale not in (None, 1.0):
        note = f"\n\nThe merged task vector (model minus base) was then multiplied by {scale:.4g}."
    if len((chosen.get("point") or {}).get("weights", {})) > 1:
        note += "\n\nThe weights shown are means over tensor groups; `mergekit_config.yml` has them tensor by tensor."
    return f"## Merge\n\nThe recipe in mergekit's form:\n\n```yaml\n{text}```{note}"


def _training(summary: Summary) -> str:
    members = summary["members"]
    if not members:
        return ""
    weights = _chosen(summary).get("weights") or [None] * len(members)
    bags = [d["name"] for d in summary["corpus"]]
    head = ["member", "bag", "seed", "weight", "rows", "steps", "device time", *(f"rows: {bag}" for bag in bags)]
    body = [
        [m["name"], bag_label(m), m["seed"], "-" if w is None else f"{w:.3f}", f"{m['rows']:,}", m["steps"],
         duration(m["device_seconds"]), *(f"{m['per_dataset'].get(bag, 0):,}" for bag in bags)]
        for m, w in zip(members, weights, strict=True)
    ]  # fmt: skip
    data = [
        [
            d["name"],
            d["task_type"],
            *(f"{d.get(key) or 0:,}" for key in ("rows_in", "duplicates", "decontaminated", "rows")),
        ]
        for d in summary["corpus"]
    ]
    corpus = markdown_table(["dataset", "task", "rows read", "duplicates", "in evaluation", "kept"], data, text=2)
    return f"## Members and bags\n\n{markdown_table(head, body)}\n\n## Corpus\n\n{corpus}"


def _cost(summary: Summary) -> str:
    stages = [s for s in summary["stages"] if s.get("finished")]
    if not stages:
        return ""
    hardware, total = summary["hardware"], sum(s.get("device_seconds") or 0 for s in stages)
    devices = f"{hardware['gpus']} GPUs" if hardware.get("gpus") else f"{hardware.get('cpus', 'unknown')} CPU cores"
    made: dict[str, list[Any]] = {}
    for stage in stages:
        made.setdefault(stage["name"], []).append(stage)
    rows = [
        [name, duration(busy([(s["started"], s["finished"]) for s in group]))]
        + [f"{sum(s.get('device_seconds') or 0 for s in group):,.0f}"]
        for name, group in made.items()
    ]
    table = markdown_table(["stage", "wall time", "device-seconds"], rows)
    versions = ", ".join(f"{k} {v}" for k, v in summary["versions"].items())
    return f"## Cost\n\nOn {devices}, {duration(total)} of device time in all.\n\n{table}\n\nMade with {versions}."


def _limits(summary: Summary, recipe: Mapping[str, Any]) -> str:
    counts = {domain: len(sets_of(summary, domain)) for domain in DOMAINS}
    lines = [
        f"The scores rest on {counts['in_domain']} in-domain and {counts['out_of_domain']} out-of-domain sets and on "
        "one run; its intervals leave out other tasks and other training seeds.",
        "It knows what its corpus knew: other languages, domains and much longer texts were not measured.",
    ]
    if not counts["out_of_domain"]:
        lines.append("Nothing out-of-domain was measured: how it does on other data is unknown.")
    if _chosen(summary).get("name") == "merge-searched":
        lines.append(
            "Merge weights and scale were searched on dev half A; dev half B and the sets above had no part in it."
        )
    cap = (recipe.get("evaluate") or {}).get("cap")
    if cap:
        lines.append(
            f"Evaluation sets were capped at {cap} texts: the scores compare these models, not published ones."
        )
    if (recipe.get("base") or {}).get("build"):
        lines.append(
            "Its base is a small encoder that saw no text but this corpus: expect no general knowledge of language."
        )
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)
