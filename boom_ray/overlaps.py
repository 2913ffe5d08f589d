"""Which test texts of the evaluation sets a model was trained on: the corpus of its run, or files that are named.

The rooms for data and for evaluation do not know one another; here the texts of one meet the texts of the other.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boom_ray.config import BoomError, Recipe
from boom_ray.evaluate.sets import EvalSet
from boom_ray.ledger import Ledger
from boom_ray.plan import Keys

if TYPE_CHECKING:
    from boom_ray.evaluate.marks import Mark
    from boom_ray.evaluate.significance import Samples

NGRAM = 13  # words in a row that make two texts near duplicates, where the recipe names no number
RUN_FILE = "report/contamination.json"


def find_marks(
    sets: Sequence[EvalSet],
    training: Iterable[tuple[str, Sequence[str]]],
    ngram: int | None = NGRAM,
    samples: Mapping[str, Mapping[str, Samples]] | None = None,
) -> dict[str, Mark]:
    """What of every set occurs in training texts. Training texts go past once; memory holds hashes of test texts.

    Args:
        training: ``(dataset, texts)``, any number of times.
        ngram: words in a row that count as a near duplicate; None: only whole texts.
        samples: by model and set, what the scores were made from; for scores without what is touched.

    Returns:
        ``{set: Mark}``.
    """
    from boom_ray.data.overlap import Overlap
    from boom_ray.evaluate.contamination import evaluation_texts, mark

    with tempfile.TemporaryDirectory() as folder:
        overlap = Overlap(evaluation_texts(sets), ngram, Path(folder))
        for dataset, texts in training:
            overlap.look(dataset, texts)
        marks = {}
        for entry in sets:
            known = {model: kept[entry.name] for model, kept in (samples or {}).items() if entry.name in kept}
            marks[entry.name] = mark(entry, overlap.found, known)
    return marks


def training_texts(corpus: Path | None, files: Sequence[str]) -> Iterable[tuple[str, Sequence[str]]]:
    """``(dataset, texts)`` of a run's corpus, where there is one, and of named files.

    Raises:
        BoomError: neither is given, or a file is not there.
    """
    from boom_ray.data.overlap import corpus_texts, file_texts

    if corpus is None and not files:
        raise BoomError(
            "the training data of this model are not known: it is in no run directory. Give them with --training FILE "
            "(or a folder or pattern), or --run-dir of the run that trained it."
        )
    return chain(corpus_texts(corpus) if corpus else (), *(file_texts(file) for file in files))


def mark_run(
    recipe: Recipe, ledger: Ledger, keys: Keys, sets: Sequence[EvalSet], samples: Mapping[str, Mapping[str, Samples]]
) -> dict[str, Mark]:
    """What of the sets that a run is scored on occurs in its corpus; kept for its report, and found again there.

    Evaluation texts that were known when the corpus was built are no longer in it: there it is 0. Tasks of mteb's
    registry were not known.
    """
    scored = {name: key for name, key in keys.scores.items() if ledger.has(key)}
    of = {"corpus": keys.mined.identity, "scores": sorted(key.identity for key in scored.values())}
    told = _run_file(ledger)
    if told.get("of") != of or told["marks"].keys() != {entry.name for entry in sets}:
        ngram = recipe.corpus.ngram or NGRAM
        marks = find_marks(sets, training_texts(ledger.path(keys.mined), ()), ngram, samples)
        told = {"of": of, "ngram": ngram, "marks": {name: asdict(mark) for name, mark in marks.items()}}
        ledger.write_text(RUN_FILE, json.dumps(told, indent=1, sort_keys=True) + "\n")
    return _marks(told)


def run_marks(ledger: Ledger, keys: Keys) -> dict[str, Mark]:
    """What :func:`mark_run` kept for this corpus; empty before."""
    told = _run_file(ledger)
    return _marks(told) if told.get("of", {}).get("corpus") == keys.mined.identity else {}


def keep_marks(marks: Mapping[str, Mark], model: Path, results: Path) -> None:
    """Keep the marks of a model beside its results; those of other sets stay."""
    file = _marks_file(model, results)
    kept = {name: asdict(mark) for name, mark in {**known_marks(model, results), **marks}.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}")
    temporary.write_text(json.dumps({"marks": kept}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(file)


def known_marks(model: Path, results: Path) -> dict[str, Mark]:
    """What is known of a model: from the run that it is in, and what :func:`keep_marks` kept, by set. Without mteb."""
    kept = _marks(_read(_marks_file(model, results))) if (results / "contamination").is_dir() else {}
    return {**_marks(_read(model.resolve().parent.parent / RUN_FILE)), **kept}


def touched_tasks(models: Mapping[str, Path | None], results: Path) -> dict[str, list[str]]:
    """``{set: footnotes}`` of the sets whose test texts some of these models (by label) are known to be trained on."""
    found: dict[str, list[str]] = {}
    for label, model in models.items():
        for name, mark in (known_marks(model, results) if model else {}).items():
            if mark.footnote:
                found.setdefault(name, []).append(f"{label}: {mark.footnote}")
    return found


def kept_samples(model: Path, sets: Sequence[EvalSet], results: Path) -> dict[str, Samples]:
    """What the kept scores of a model were made from, by set; without the sets that have not been scored yet."""
    from boom_ray.evaluate.results import model_meta, open_cache, read_kept

    meta, cache = model_meta(model, None, None, ()), open_cache(results)
    found = {entry.name: read_kept(cache, meta, entry) for entry in sets}
    return {name: samples for name, samples in found.items() if samples is not None}


def plain_texts(file: Path, cap: int | None = None) -> list[str]:
    """The distinct texts of a file: the lines of .txt, else all texts of its rows; at most ``cap``, chosen by a hash.

    Raises:
        BoomError: the file is not there or holds no text.
    """
    from boom_ray.data.overlap import file_texts
    from boom_ray.evaluate.rows import cap_rows

    if file.suffix == ".txt" and file.is_file():
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        found = list(dict.fromkeys(line.strip() for line in lines if not line.isspace() and line))
    else:
        found = list(dict.fromkeys(text for _, texts in file_texts(str(file)) for text in texts))
    if not found:
        raise BoomError(f"{file} holds no text.")
    return [found[i] for i in cap_rows(found, cap)] if cap else found


def _run_file(ledger: Ledger) -> dict[str, Any]:
    return _read(ledger.root / RUN_FILE)


def _read(file: Path) -> dict[str, Any]:
    """A file of marks; empty where it is not there or cannot be read."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        return told if isinstance(told["marks"], dict) else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _marks(told: Mapping[str, Any]) -> dict[str, Mark]:
    from boom_ray.evaluate.marks import mark_of

    return {name: mark_of(values) for name, values in told.get("marks", {}).items()}


def _marks_file(model: Path, results: Path) -> Path:
    from boom_ray.evaluate.results import model_revision

    return results / "contamination" / f"{model_revision(model)}.json"
