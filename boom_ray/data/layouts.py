"""Rows of other tools as rows of boom_ray: FlagEmbedding, sentence-transformers, tevatron.

A row keeps its own ``dataset``, ``task_type`` and ``label``. Sources of the layouts: FlagEmbedding's AbsDataset and
its README (jsonl with ``type``), sentence-transformers' dataset formats (columns), tevatron's README (passages with
title and text; its first version had plain lists).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from boom_ray.config.corpus import Layout
from boom_ray.data.schema import RowError

_FLAG_TYPES = {
    "normal": None,
    "only_1neg": None,
    "symmetric_sts": "sts",
    "symmetric_class": "classification",
    "symmetric_clustering": "clustering",
}
_ANCHORS = ("anchor", "query", "question", "sentence1")
_POSITIVES = ("positive", "positives", "answer", "answers", "document", "passage", "response", "sentence2")
_PAIR_SCORES = ("score", "similarity_score", "label")
_NEGATIVE = re.compile(r"negatives?(_\d+)?")
_KEPT = ("dataset", "task_type", "label")


def to_boom(raw: Any, layout: Layout) -> Any:
    """A row with the fields of docs/data.md; its texts are checked later, by ``parse_row``.

    Raises:
        RowError: the row is not of this layout. One that is of another layout says which.
    """
    if not isinstance(raw, Mapping):
        return raw  # parse_row tells of it
    return _READERS[layout](raw)


def guess(raw: Mapping[str, Any]) -> Layout | None:
    """The layout of another tool that a row's field names give away."""
    if _is_flag_type(raw.get("type")) or "pos_scores" in raw or "neg_scores" in raw:
        return "flagembedding"
    if "pos" in raw:
        return "boom"
    if any(name in raw for name in ("positive_passages", "positive_document_ids", "negatives")):
        return "tevatron"
    if _first(raw, _ANCHORS) and _first(raw, _POSITIVES):
        return "sentence_transformers"
    return None


def _boom(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    if "query" in raw and "pos" in raw and "type" not in raw:
        return raw
    found = guess(raw)
    if found in (None, "boom"):
        return raw
    raise RowError(f"this is a row of {_NAMES[found]}: set 'layout: {found}' in the recipe's dataset entry")


def _flagembedding(raw: Mapping[str, Any]) -> dict[str, Any]:
    """``pos_scores``, ``neg_scores`` (of a teacher) and ``prompt`` are not read: the recipe says the instruction."""
    if "pos" not in raw:
        raise _other(raw, "flagembedding", "pos")
    kind = raw.get("type") or "normal"
    if not _is_flag_type(kind):
        raise RowError(f"unknown type {kind!r} of FlagEmbedding: one of {', '.join(_FLAG_TYPES)}")
    row = _kept(raw) | {"query": raw.get("query"), "pos": raw["pos"], "neg": raw.get("neg")}
    if kind == "only_1neg" and isinstance(row["neg"], list):
        row["neg"] = row["neg"][:1]
    if _FLAG_TYPES[kind]:
        row.setdefault("task_type", _FLAG_TYPES[kind])
    if raw.get("category") is not None:
        row.setdefault("label", raw["category"])
    return row


def _sentence_transformers(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Columns by name: an anchor, one or several positives, any ``negative…``; or a pair with a score."""
    anchor, positive = _first(raw, _ANCHORS), _first(raw, _POSITIVES)
    if not anchor or not positive:
        raise _other(raw, "sentence_transformers", "anchor" if not anchor else "positive")
    negatives = [raw[name] for name in sorted(filter(_NEGATIVE.fullmatch, raw), key=_number) if raw[name]]
    row = _kept(raw) | {"query": raw[anchor], "pos": raw[positive], "neg": _flat(negatives)}
    if anchor == "sentence1" and (score := _first(raw, _PAIR_SCORES)):
        row.pop("label", None)
        row |= {"score": raw[score]}
        row.setdefault("task_type", "sts")
    elif raw.get("score") is not None:
        row["score"] = raw["score"]
    return row


def _tevatron(raw: Mapping[str, Any]) -> dict[str, Any]:
    if "positive_document_ids" in raw:
        raise RowError("the row names its documents by id: join it with the corpus first, as in positive_passages")
    query = raw.get("query", raw.get("query_text"))
    if "positive_passages" in raw:
        pos, neg = (_passages(raw.get(f"{side}_passages"), side) for side in ("positive", "negative"))
    elif "positives" in raw:
        pos, neg = raw["positives"], raw.get("negatives")
    else:
        raise _other(raw, "tevatron", "positive_passages")
    return {"task_type": "retrieval"} | _kept(raw) | {"query": query, "pos": pos, "neg": neg}


def _is_flag_type(value: Any) -> bool:
    return isinstance(value, str) and value in _FLAG_TYPES


def _passages(value: Any, side: str) -> Any:
    """Title and text of every passage, with a space between them, as tevatron puts them together."""
    if not isinstance(value, list):
        return value
    for passage in value:
        if not isinstance(passage, Mapping) or not isinstance(passage.get("text"), str):
            raise RowError(f"'{side}_passages' must be a list of objects with a text")
    return [f"{passage.get('title') or ''} {passage['text']}".strip() for passage in value]


def _kept(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {name: raw[name] for name in _KEPT if raw.get(name) is not None}


def _first(raw: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if raw.get(name) is not None), None)


def _number(name: str) -> int:
    return int(name.rpartition("_")[2]) if "_" in name else -1


def _flat(values: list[Any]) -> list[Any]:
    return [text for value in values for text in (value if isinstance(value, list) else [value])]


def _other(raw: Mapping[str, Any], layout: Layout, field: str) -> RowError:
    found = guess(raw)
    hint = f". This is a row of {_NAMES[found]}: set 'layout: {found}'" if found and found != layout else ""
    return RowError(
        f"missing field '{field}' of the layout {layout} (the row has: {', '.join(map(str, raw)) or 'nothing'}){hint}"
    )


_NAMES: dict[Layout, str] = {
    "boom": "boom_ray",
    "flagembedding": "FlagEmbedding",
    "sentence_transformers": "sentence-transformers",
    "tevatron": "tevatron",
}
_READERS: dict[Layout, Callable[[Mapping[str, Any]], Any]] = {
    "boom": _boom,
    "flagembedding": _flagembedding,
    "sentence_transformers": _sentence_transformers,
    "tevatron": _tevatron,
}
