"""Rows of a local evaluation set: read, checked, and cut to a cap.

Every bad row is a :class:`BoomError` with its file and line. A cap keeps the same texts whatever the model, the
machine and the order of the rows, because it goes by a hash of each text.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boom_ray.config import BoomError


@dataclass(frozen=True)
class Document:
    text: str
    title: str = ""

    @property
    def joined(self) -> str:
        """What a model reads: title and text, as mteb joins them."""
        return f"{self.title} {self.text}".strip() if self.title else self.text.strip()


@dataclass(frozen=True)
class Retrieval:
    """A retrieval or (with ``candidates``) a reranking set. Every query has at least one relevant document."""

    queries: Mapping[str, str]
    documents: Mapping[str, Document]
    relevant: Mapping[str, Mapping[str, int]]
    candidates: Mapping[str, tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Labelled:
    texts: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Pairs:
    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: tuple[float, ...]


def data_file(folder: Path, stem: str) -> Path | None:
    """``STEM.jsonl.gz`` or ``STEM.jsonl`` of a set, whichever is there."""
    found = (folder / f"{stem}{suffix}" for suffix in (".jsonl.gz", ".jsonl"))
    return next((file for file in found if file.is_file()), None)


def read_retrieval(folder: Path, *, reranking: bool) -> Retrieval:
    """Read corpus, queries, qrels.tsv and, for reranking, top_ranked. Queries with no relevant document are dropped."""
    documents = {key: document for key, document, _ in _documents(folder)}
    queries = {key: _text(raw, "text", where) for key, raw, where in _with_ids(folder, "queries")}
    relevant = _qrels(folder / "qrels.tsv", queries, documents)
    answered = {query: text for query, text in queries.items() if any(s > 0 for s in relevant.get(query, {}).values())}
    if not answered:
        raise BoomError(f"{folder / 'qrels.tsv'} gives no query a relevant document (a score above 0).")
    candidates = _candidates(folder, queries, documents) if reranking else None
    if candidates is not None and (missing := next((q for q in answered if not candidates.get(q)), None)):
        raise BoomError(f"{data_file(folder, 'top_ranked')}: query '{missing}' has no candidates.")
    kept = {query: relevant[query] for query in answered}
    return Retrieval(answered, documents, kept, candidates and {query: candidates[query] for query in answered})


def read_labelled(folder: Path, stem: str) -> Labelled:
    """Rows ``{text, label}`` of classification and clustering sets; a label is text or a whole number."""
    texts, labels = [], []
    for raw, where in _rows(folder, stem):
        label = raw.get("label")
        if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
            raise BoomError(f"{where}: 'label' must be text or a whole number, got {label!r}.")
        texts.append(_text(raw, "text", where))
        labels.append(str(label))
    if len(set(labels)) < 2:
        raise BoomError(f"{data_file(folder, stem)} has {len(set(labels))} distinct labels; at least two are needed.")
    return Labelled(tuple(texts), tuple(labels))


def read_pairs(folder: Path) -> Pairs:
    """Rows ``{sentence1, sentence2, score}`` of an sts set."""
    rows = []
    for raw, where in _rows(folder, "test"):
        score = raw.get("score")
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise BoomError(f"{where}: 'score' must be a finite number, got {score!r}.")
        rows.append((_text(raw, "sentence1", where), _text(raw, "sentence2", where), float(score)))
    if len({score for *_, score in rows}) < 2:
        raise BoomError(f"{data_file(folder, 'test')}: all scores are the same, so a correlation has no meaning.")
    first, second, scores = zip(*rows, strict=True)
    return Pairs(first, second, scores)


def cap_retrieval(data: Retrieval, cap: int) -> Retrieval:
    """At most ``cap`` texts (queries and documents).

    Queries come whole, in hash order, each with its relevant documents (for reranking: with all its candidates, and
    no other document is kept). In retrieval they take half of the cap, and other documents, in hash order, the rest:
    without them every document would be an answer and every model would look perfect.

    Raises:
        BoomError: no query fits.
    """
    if len(data.queries) + len(data.documents) <= cap:
        return data
    queries, documents = _whole_queries(data, cap)
    if not queries:
        raise BoomError(f"a cap of {cap} texts leaves no query with its documents: raise the cap.")
    if data.candidates is None:
        others = hash_order({key: d.joined for key, d in data.documents.items() if key not in documents})
        documents.update(others[: cap - len(queries) - len(documents)])
    return Retrieval(
        {key: text for key, text in data.queries.items() if key in queries},
        {key: document for key, document in data.documents.items() if key in documents},
        {key: found for key, found in data.relevant.items() if key in queries},
        data.candidates and {key: found for key, found in data.candidates.items() if key in queries},
    )


def cap_rows(texts: Iterable[str], cap: int) -> list[int]:
    """Row numbers, ascending, of the ``cap`` texts with the lowest hash."""
    return sorted(hash_order(dict(enumerate(texts)))[:cap])


def hash_order(texts: Mapping[Any, str]) -> list[Any]:
    """Keys sorted by a hash of their text; equal texts keep their order."""
    return sorted(texts, key=lambda key: hashlib.blake2b(texts[key].encode(), digest_size=16).digest())


def _whole_queries(data: Retrieval, cap: int) -> tuple[set[str], set[str]]:
    """Queries in hash order, and the documents they need, as long as there is room for both."""
    queries: set[str] = set()
    documents: set[str] = set()
    for query in hash_order(data.queries):
        needed = data.relevant[query] if data.candidates is None else data.candidates[query]
        grown = documents.union(needed)
        count = len(queries) + 1
        if data.candidates is None:  # half is for distractors, unless the whole corpus fits
            fits = count + len(grown) <= cap // 2 or count + len(data.documents) <= cap
        else:
            fits = count + len(grown) <= cap
        if fits:
            queries.add(query)
            documents = grown
    return queries, documents


def _documents(folder: Path) -> Iterator[tuple[str, Document, str]]:
    for key, raw, where in _with_ids(folder, "corpus"):
        title = raw.get("title") or ""
        if not isinstance(title, str):
            raise BoomError(f"{where}: 'title' must be text, got {title!r}.")
        text = raw.get("text") if title.strip() else _text(raw, "text", where)
        if not isinstance(text, str):
            raise BoomError(f"{where}: 'text' must be text, got {text!r}.")
        yield key, Document(text, title), where


def _with_ids(folder: Path, stem: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    seen: set[str] = set()
    for raw, where in _rows(folder, stem):
        key = raw.get("_id", raw.get("id"))
        if isinstance(key, bool) or not isinstance(key, str | int) or key == "":
            raise BoomError(f"{where}: '_id' must be text or a whole number, got {key!r}.")
        if str(key) in seen:
            raise BoomError(f"{where}: _id '{key}' occurs twice in this file.")
        seen.add(str(key))
        yield str(key), raw, where


def _qrels(file: Path, queries: Mapping[str, str], documents: Mapping[str, Document]) -> dict[str, dict[str, int]]:
    relevant: dict[str, dict[str, int]] = {}
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        fields = line.rstrip("\n").split("\t")
        if number == 1 and len(fields) == 3 and not fields[2].strip().lstrip("-").isdigit():
            continue  # the header: query-id, corpus-id, score
        if len(fields) != 3:
            raise BoomError(f"{file}:{number}: expected query-id, corpus-id and score with tabs between them.")
        query, document, score = (field.strip() for field in fields)
        if not score.isdigit():
            raise BoomError(f"{file}:{number}: the score must be a whole number from 0 up, got {score!r}.")
        if query not in queries:
            raise BoomError(f"{file}:{number}: query '{query}' is not in the queries file.")
        if document not in documents:
            raise BoomError(f"{file}:{number}: document '{document}' is not in the corpus file.")
        relevant.setdefault(query, {})[document] = int(score)
    return relevant


def _candidates(
    folder: Path, queries: Mapping[str, str], documents: Mapping[str, Document]
) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for raw, where in _rows(folder, "top_ranked"):
        query, listed = str(raw.get("query-id")), raw.get("corpus-ids")
        if query not in queries:
            raise BoomError(f"{where}: query '{query}' is not in the queries file.")
        if query in found:
            raise BoomError(f"{where}: query '{query}' occurs twice in this file.")
        if not isinstance(listed, list):
            raise BoomError(f"{where}: 'corpus-ids' must be a list of document ids.")
        ids = tuple(dict.fromkeys(str(key) for key in listed))
        if unknown := next((key for key in ids if key not in documents), None):
            raise BoomError(f"{where}: document '{unknown}' is not in the corpus file.")
        found[query] = ids
    return found


def _rows(folder: Path, stem: str) -> Iterator[tuple[dict[str, Any], str]]:
    """(row, ``file:line``) of every line that is not blank."""
    file = data_file(folder, stem)
    if file is None:
        raise BoomError(f"{folder} has neither {stem}.jsonl.gz nor {stem}.jsonl.")
    empty = True
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        empty = False
        where = f"{file}:{number}"
        try:
            raw = json.loads(line)
        except json.JSONDecodeError as error:
            raise BoomError(f"{where}: not valid JSON ({error.msg}).") from None
        if not isinstance(raw, dict):
            raise BoomError(f"{where}: expected a JSON object, got {type(raw).__name__}.")
        yield raw, where
    if empty:
        raise BoomError(f"{file} has no rows.")


def _lines(file: Path) -> Iterator[str]:
    number = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
            for line in stream:
                number += 1
                yield line.decode("utf-8")
    except FileNotFoundError:
        raise BoomError(f"{file} does not exist.") from None
    except UnicodeDecodeError:
        raise BoomError(f"{file}:{number}: not valid UTF-8.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BoomError(f"{file}: damaged after line {number} ({error}). Fetch the file again.") from None


def _text(raw: Mapping[str, Any], key: str, where: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str):
        raise BoomError(f"{where}: '{key}' must be text, got {value!r}.")
    if not value.strip():
        raise BoomError(f"{where}: '{key}' is empty.")
    return value
