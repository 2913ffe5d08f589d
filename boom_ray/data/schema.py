"""One training row: its checks, its identity, and the folded text that decontamination compares."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from boom_ray.config.corpus import TASK_TYPES, Columns, FilesSource

FOLDED_CHARACTERS = 500
_HEAD = 2 * FOLDED_CHARACTERS  # of a long ASCII text this much is folded first: nearly always enough
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class RowError(ValueError):
    """Why a row cannot be used; it goes to the quarantine with file and line."""


class Example(NamedTuple):
    """One training row: a query, at least one positive, any number of negatives; a score and a label where it has."""

    dataset: str
    task_type: str
    query: str
    pos: tuple[str, ...]
    neg: tuple[str, ...]
    score: float | None
    label: str | None = None


def parse_row(raw: Any, source: FilesSource, default_name: str) -> Example:
    """Check and normalise (NFC, stripped) one row of a source.

    Dataset and task type come from the recipe where it names them, else from the row's own fields; the dataset's
    name is at last ``default_name`` (the stem of the file).

    Raises:
        RowError: the row is not an object, a field is missing, empty, of a wrong type or holds a NUL, the task type
            is unknown, there is no positive, the score is not a finite number, or the label is no text or number.
    """
    if not isinstance(raw, Mapping):
        raise RowError(f"a row must be a JSON object, not {_kind(raw)}")
    columns = source.columns
    task_type = _task_type(raw, source)
    query = _text(_field(raw, columns.query), columns.query)
    pos = _texts(_field(raw, columns.pos), columns.pos)
    if not pos:
        raise RowError(f"no positive: '{columns.pos}' is an empty list")
    neg = _texts(raw.get(columns.neg), columns.neg)
    score = _score(raw.get(columns.score), columns.score)
    if score is None and needs_score(task_type, source.loss):
        raise RowError(
            f"missing field '{columns.score}': {'task type sts' if source.loss == 'auto' else 'loss cosent'} needs it"
        )
    dataset, label = dataset_of(raw, source, default_name), _label(raw.get(columns.label), columns)
    return Example(dataset, task_type, query, pos, neg, score, label)


def needs_score(task_type: str, loss: str) -> bool:
    """Whether every row has to bring a score: it is trained with CoSENT (``loss`` as in the recipe)."""
    return loss == "cosent" or (loss == "auto" and task_type == "sts")


def dataset_of(raw: Any, source: FilesSource, default_name: str) -> str:
    """The dataset that a row is counted for, even if the row is bad.

    Raises:
        RowError: the row's own ``dataset`` field is not a usable name.
    """
    if source.name is not None:
        return source.name
    name = raw.get("dataset") if isinstance(raw, Mapping) else None
    return default_name if name is None else _text(name, "dataset")


def row_id(dataset: str, query: str, pos: Sequence[str]) -> bytes:
    """16 bytes that name a row by its content (blake2b of dataset, query and positives, each with its length).

    Negatives and score are left out on purpose: mining new negatives must not move a row between bags. Rows of
    equal id are duplicates.
    """
    pieces: list[bytes] = []
    for text in (dataset, query, *pos):
        encoded = text.encode()
        pieces += (len(encoded).to_bytes(8, "little"), encoded)
    return hashlib.blake2b(b"".join(pieces), digest_size=16).digest()


def fold(text: str) -> str:
    """What makes two texts equal for decontamination: NFKC, lower case, single spaces, the first 500 characters."""
    if not text.isascii():
        return " ".join(unicodedata.normalize("NFKC", text).lower().split())[:FOLDED_CHARACTERS]
    folded = " ".join(text[:_HEAD].lower().split())
    if len(folded) < FOLDED_CHARACTERS and len(text) > _HEAD:  # mostly white space
        folded = " ".join(text.lower().split())
    return folded[:FOLDED_CHARACTERS]


def fold_digest(text: str) -> bytes:
    """16 bytes that stand for ``fold(text)``."""
    return hashlib.blake2b(fold(text).encode(), digest_size=16).digest()


def _task_type(raw: Mapping[str, Any], source: FilesSource) -> str:
    task_type = source.task_type or raw.get("task_type")
    if task_type is None:
        raise RowError("missing field 'task_type': name it in the recipe's dataset entry or in every row")
    if task_type not in TASK_TYPES:
        raise RowError(f"unknown task type {task_type!r}: one of {', '.join(TASK_TYPES)}")
    return str(task_type)


def _field(raw: Mapping[str, Any], name: str) -> Any:
    value = raw.get(name)
    if value is None:
        raise RowError(f"missing field '{name}' (the row has: {', '.join(map(str, raw)) or 'nothing'})")
    return value


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (_text(value, name),)
    if not isinstance(value, list | tuple):
        raise RowError(f"'{name}' must be a text or a list of texts, not {_kind(value)}")
    return tuple([_plain(text) or _text(text, f"{name}[{index}]") for index, text in enumerate(value)])


def _plain(value: Any) -> str:
    """The quick way for what most texts are: the stripped text if it is ASCII and good, else the empty text."""
    return value.strip() if type(value) is str and value.isascii() and "\0" not in value else ""


def _text(value: Any, name: str) -> str:
    if plain := _plain(value):
        return plain
    if not isinstance(value, str):
        raise RowError(f"'{name}' must be a text, not {_kind(value)}")
    if "\0" in value:
        raise RowError(f"'{name}' holds a NUL character")
    if not value.isascii() and _LONE_SURROGATE.search(value):
        raise RowError(f"'{name}' holds half of a surrogate pair, which is no character")
    text = unicodedata.normalize("NFC", value).strip()
    if not text:
        raise RowError(f"empty text in '{name}'")
    return text


def _score(value: Any, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(f"'{name}' must be a number, not {_kind(value)}")
    if not abs(value) <= 3e38 or not math.isfinite(value):  # scores are stored as float32
        raise RowError(f"'{name}' is not finite: {value}")
    return float(value)


def _label(value: Any, columns: Columns) -> str | None:
    """Numbers of classes become their text; texts of equal label are no negatives of each other."""
    if value is None or value == "" or columns.label == columns.score:
        return None
    if isinstance(value, int):
        return str(int(value))
    if not isinstance(value, str):
        raise RowError(f"'{columns.label}' must be a text or a whole number, not {_kind(value)}")
    return _text(value, columns.label)


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a text"}
    return names.get(type(value), "a list" if isinstance(value, list) else f"a {type(value).__name__}")
