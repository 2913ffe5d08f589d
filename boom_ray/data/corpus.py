"""The corpus: one streaming Ray Data pipeline from sources to row shards, and from row shards to token shards.

A unit is a span of a file; the worker that reads it validates, names, decontaminates and writes its part to disk. The
driver only sees counts and 16-byte ids: it decides which rows stay, and workers cut the shards. Ray Data never decides
an order: parts carry their place in the source order. Finished parts and token shards lie in a scratch folder, where
the next run of the same recipe finds them. Ray must be initialised by the caller.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from boom_ray.config import BoomError
from boom_ray.config.corpus import Corpus, FilesSource, PythonEnvironmentSource
from boom_ray.data import environment_sets, minhash, quarantine, reduce, tokens
from boom_ray.data.datasets import agree, resolve_rules
from boom_ray.data.decontaminate import write_evaluation
from boom_ray.data.known import NothingNew, write_known
from boom_ray.data.parts import COUNTS, Part, Unit, part_folder, read_part, write_part
from boom_ray.data.python_environment import Function, Package, list_packages, read_package
from boom_ray.data.sources import SourceFile, resolve, spans
from boom_ray.data.workers import Files, on_workers
from boom_ray.stores.mirrors import send

SPAN_BYTES = 16 << 20  # of an uncompressed file: a unit of work of some seconds
_ROWS_PER_FILE = 4000  # of the rows that the Python environment gives, so that workers share them

Counts = dict[str, dict[str, int]]


def build_corpus(
    corpus: Corpus,
    seed: int,
    evaluation_texts: Iterable[str],
    out: Path,
    scratch: Path | None = None,
    known: tuple[np.ndarray, Sequence[str]] | None = None,
) -> Counts:
    """Read, clean and shard all sources of a recipe into the folder ``out``.

    Writes rows-NNNNN.arrow, datasets.json, counts.json, quarantine.jsonl and, where the Python environment is a
    source, eval/. Rows that hold one of ``evaluation_texts`` (or a text of eval/) are dropped and counted.

    Args:
        scratch: where parts are kept while the corpus is made, and finished ones of an earlier call are found again;
            it belongs to these arguments alone. The caller deletes it. Default: inside ``out``, and deleted.
        known: ids (uint8 [n, 16]) of the rows of earlier corpora and the names of their datasets: rows that are among
            them are dropped and counted as duplicates.

    Returns:
        ``{dataset: {rows_in, rejected, duplicates, near_duplicates, decontaminated, negatives_decontaminated, capped,
        rows}}``; rows_in is the sum of rejected, decontaminated, duplicates, near_duplicates, capped and rows.

    Raises:
        BoomError: a missing or unreadable source, more bad rows than ``max_bad_fraction``, no training rows, or a
            dataset with two task types or two sources of different rules.
        NothingNew: no rows are left, because they are known.
    """
    out = out.absolute()  # a worker may stand in another folder
    work = scratch.absolute() if scratch else out / "parts"
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    units, own_texts = _units(corpus, work, out / "eval")
    _claim(work, units)
    write_evaluation((t for texts in (evaluation_texts, own_texts) for t in texts), corpus.ngram, work)
    if known is not None:
        write_known(*known, work)
    parts = _write_parts(units, work, corpus.near_duplicates)
    counts = _total(parts)
    twice = sum(count["duplicates"] for count in counts.values())  # so far only those of earlier corpora
    quarantine.write_quarantine(units, parts, out / "quarantine.jsonl")
    quarantine.check_bad_rows(counts, corpus.max_bad_fraction, out / "quarantine.jsonl")
    sources = _sources(units, parts)
    index, kept = _choose(corpus, seed, parts, sources, counts)
    if not kept.any() and twice:
        raise NothingNew(f"all rows of the new data that can be used, {twice} of them, are in the corpus already.")
    if not kept.any():
        raise quarantine.nothing_left(corpus, counts)
    plans = reduce.plan_shards(parts, kept, work, out)
    send(work / reduce.KEPT)
    on_workers(reduce.write_shard, plans, Files(lambda plan: (plan.kept, *plan.tables), lambda plan: [plan.target]))
    _write_json(out / "datasets.json", _datasets(index, parts, sources, counts))
    _write_json(out / "counts.json", counts)
    if scratch is None:
        shutil.rmtree(work)
    return counts


def tokenise(
    corpus_dir: Path, tokenizer_dir: Path, max_tokens: int, out: Path, scratch: Path | None = None
) -> dict[str, Any]:
    """Tokenise every text of a corpus once, with its dataset's instruction, into ``out``/tokens-NNNNN.arrow.

    The ids are those of ``AutoTokenizer(text, truncation=True, max_length=max_tokens)``. One unit is one row shard.

    Args:
        scratch: as in :func:`build_corpus`, for token shards.

    Returns:
        ``{"rows", "texts", "tokens", "cut"}`` over the whole corpus; ``texts`` and ``tokens`` count queries, positives
        and negatives, ``cut`` the texts that are longer than ``max_tokens``.

    Raises:
        BoomError: the directory holds no fast tokenizer.
    """
    corpus_dir, out = corpus_dir.absolute(), out.absolute()
    work = scratch.absolute() if scratch else out / "shards"
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(corpus_dir / "datasets.json", out / "datasets.json")
    job = tokens.TokenJob(work / "tokenizer.json", corpus_dir / "datasets.json", work)
    tokens.save_effective_tokenizer(tokenizer_dir, max_tokens, job.tokenizer)
    shards = sorted(corpus_dir.glob("rows-*.arrow"))
    done = job.finished(shards)
    todo = [shard for shard in shards if shard not in done]
    send(job.tokenizer)
    files = Files(lambda shard: (shard, job.tokenizer, job.datasets), job.files)
    done |= dict(zip(todo, on_workers(partial(tokens.tokenise_shard, job=job), todo, files), strict=True))
    totals = [done[shard] for shard in shards]
    for shard in shards:
        shutil.move(job.target(shard), out)
    if scratch is None:
        shutil.rmtree(work)
    return {key: sum(t.get(key, 0) for t in totals) for key in ("rows", "texts", "tokens", "cut")}


def _units(corpus: Corpus, work: Path, evaluation: Path) -> tuple[list[Unit], list[str]]:
    """All spans of all files in source order, and the texts of the evaluation sets that a source brings with it."""
    files: list[tuple[SourceFile, FilesSource]] = []
    own_texts: list[str] = []
    for source in corpus.datasets:
        if isinstance(source, FilesSource):
            files += [(file, source) for file in resolve(source)]
        elif evaluation.exists():
            raise BoomError("corpus.datasets names python_environment twice. One is enough: raise its max_functions.")
        else:
            made, own_texts = _read_environment(source, work / "environment", evaluation)
            for path in made:
                own = FilesSource(path=str(path))
                files += [(file, own) for file in resolve(own)]
    spread = [(place, *pair, span) for place, pair in enumerate(files) for span in spans(pair[0], SPAN_BYTES)]
    units = [Unit(index, place, file, span, source) for index, (place, file, source, span) in enumerate(spread)]
    return units, own_texts


def _claim(work: Path, units: Sequence[Unit]) -> None:
    """Make ``work`` the scratch of these units: parts of files that have changed since are deleted."""
    marker, text = work / "units.txt", "\n".join(f"{u.file} {u.file.size} {u.file.digest} {u.span!r}" for u in units)
    if marker.is_file() and marker.read_text("utf-8") == text:
        return
    for part in work.glob("part-*"):
        shutil.rmtree(part)
    marker.write_text(text, encoding="utf-8")


def _write_parts(units: Sequence[Unit], work: Path, near: float | None) -> list[Part]:
    """The parts of all units; those that an earlier run has finished are not read again."""
    there = set(os.listdir(work))  # asking for each by name would let NFS remember for a while that it is not there
    done = {u.index: read_part(work, u.index) for u in units if part_folder(work, u.index).name in there}
    todo = [unit for unit in units if unit.index not in done]
    inputs = [file for file in work.iterdir() if file.is_file()]
    for file in inputs:
        send(file)
    files = Files(
        lambda unit: inputs + ([unit.file] if isinstance(unit.file, Path) else []),
        lambda unit: [part_folder(work, unit.index)],
    )
    written = on_workers(partial(write_part, work=work, near=near), todo, files)
    done |= {unit.index: Part.of(work, unit.index, result) for unit, result in zip(todo, written, strict=True)}
    return [done[unit.index] for unit in units]


def _read_environment(source: PythonEnvironmentSource, work: Path, evaluation: Path) -> tuple[list[Path], list[str]]:
    """Functions are read in parallel, chosen here, and handed on as jsonl files: at most ``max_functions`` of them."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    packages = list_packages(source)
    on_workers(partial(_store_functions, folder=work), packages, Files(writes=lambda package: [work / package.name]))
    functions = (f for package in packages for f in _stored_functions(work / package.name))
    selection = environment_sets.select(functions, source)
    evaluation.mkdir()
    own_texts = environment_sets.write_evaluation(selection, source, evaluation)
    rows = list(environment_sets.training_rows(selection.train, source))
    files = []
    for start in range(0, len(rows), _ROWS_PER_FILE):
        files.append(work / f"rows-{start:08d}.jsonl")
        with open(files[-1], "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows[start : start + _ROWS_PER_FILE])
        send(files[-1])
    return files, own_texts


def _store_functions(package: Package, folder: Path) -> dict[str, int]:
    functions = read_package(package)
    temporary = folder / f"{package.name}.tmp"
    with open(temporary, "w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(asdict(f)) + "\n" for f in functions)
    os.replace(temporary, folder / package.name)
    return {"functions": len(functions)}


def _stored_functions(file: Path) -> Iterator[Function]:
    with open(file, encoding="utf-8") as stream:
        yield from (Function(**json.loads(line)) for line in stream)


def _total(parts: Sequence[Part]) -> Counts:
    total: Counts = {}
    for part in parts:
        for dataset, numbers in part.counts.items():
            sums = total.setdefault(dataset, dict.fromkeys(COUNTS, 0))
            for key, number in numbers.items():
                sums[key] += number
    return total


def _sources(units: Sequence[Unit], parts: Sequence[Part]) -> dict[str, FilesSource]:
    """The first source of every dataset; the others must have the same rules."""
    first: dict[str, FilesSource] = {}
    for unit, part in zip(units, parts, strict=True):
        for name in part.counts:
            agree(name, first.setdefault(name, unit.source), unit.source)
    return first


def _choose(
    corpus: Corpus, seed: int, parts: Sequence[Part], sources: Mapping[str, FilesSource], counts: Counts
) -> tuple[reduce.RowIndex, np.ndarray]:
    """Which rows stay: without duplicates, near-duplicates and what is over a cap; fills in ``counts``."""
    index = reduce.read_index(parts)
    first = reduce.first_of_each(index.ids)
    distinct = first
    if corpus.near_duplicates is not None:
        signatures = [part.signatures for part in parts]
        distinct = first & ~minhash.near_rows(signatures, index.codes, first, corpus.near_duplicates)
    caps = {name: source.cap or corpus.max_rows_per_dataset for name, source in sources.items()}
    kept = reduce.under_cap(index, distinct, caps, seed)
    for code, (name, _) in enumerate(index.datasets):
        here = index.codes == code
        masks = (here, here & first, here & distinct, here & kept)
        rows, exact, apart, final = (int(np.count_nonzero(mask)) for mask in masks)
        counts[name] |= {
            "duplicates": counts[name]["duplicates"] + rows - exact,
            "near_duplicates": exact - apart,
            "capped": apart - final,
            "rows": final,
        }
    return index, kept


def _datasets(
    index: reduce.RowIndex, parts: Sequence[Part], sources: Mapping[str, FilesSource], counts: Counts
) -> list[dict[str, Any]]:
    with_negatives = {name: sum(part.with_negatives.get(name, 0) for part in parts) for name, _ in index.datasets}
    return [
        {"rows": counts[name]["rows"], **resolve_rules(name, task_type, sources[name], with_negatives[name])}
        for name, task_type in index.datasets
        if counts[name]["rows"]
    ]


def _write_json(file: Path, value: Mapping[str, Any] | list[Any]) -> None:
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
