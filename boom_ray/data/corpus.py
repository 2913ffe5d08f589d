"""The corpus: one streaming Ray Data pipeline from sources to row shards, and from row shards to token shards.

Each file is a unit; the worker that reads it validates, names, decontaminates and writes its part to disk. The driver
only sees counts and 16-byte ids: it drops duplicates, applies the cap and streams the parts into shards. Ray Data never
decides an order: parts carry their place in the source order. Ray must be initialised by the caller.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from boom_ray.config import BoomError, Corpus, FilesSource, Instruction, PythonEnvironmentSource
from boom_ray.data import environment_sets, parts, reduce, tokens
from boom_ray.data.parts import COUNTS, Unit
from boom_ray.data.python_environment import Function, Package, list_packages, read_package
from boom_ray.data.schema import fold_digest
from boom_ray.data.sources import resolve

_ROWS_PER_FILE = 4000  # of the rows that the Python environment gives, so that workers share them
_NAMED_BAD_ROWS = 5
_LEAST_BLOCKS = 32  # tasks, unless there are fewer items: enough to share unequal items evenly

Counts = dict[str, dict[str, int]]


def build_corpus(corpus: Corpus, seed: int, evaluation_texts: Iterable[str], out: Path) -> Counts:
    """Read, clean and shard all sources of a recipe into the folder ``out``.

    Writes rows-NNNNN.arrow, datasets.json, counts.json, quarantine.jsonl and, where the Python environment is a
    source, eval/. Rows that hold one of ``evaluation_texts`` (or a text of eval/) are dropped and counted.

    Returns:
        ``{dataset: {rows_in, rejected, duplicates, decontaminated, negatives_decontaminated, capped, rows}}``;
        rows_in is the sum of rejected, decontaminated, duplicates, capped and rows.

    Raises:
        BoomError: a missing or unreadable source, more bad rows than ``max_bad_fraction``, no training rows, or a
            dataset with two task types or two instructions.
    """
    out = out.absolute()  # a worker may stand in another folder
    work = out / "parts"
    work.mkdir(parents=True)
    units, own_texts = _units(corpus, work, out / "eval")
    digests = sorted({fold_digest(text) for texts in (evaluation_texts, own_texts) for text in texts})
    (work / "evaluation.bin").write_bytes(b"".join(digests))
    per_unit = _on_workers(partial(parts.write_part, folder=work), units)
    counts = _total(per_unit)
    _write_quarantine(units, work, out / "quarantine.jsonl")
    _check_bad_rows(counts, corpus.max_bad_fraction, out / "quarantine.jsonl")
    index = _reduce(corpus, seed, [parts.part_path(work, u.index) for u in units], counts, out)
    if not any(c["rows"] for c in counts.values()):
        raise BoomError(_nothing_left(corpus, counts))
    _write_json(out / "datasets.json", _datasets(index, units, per_unit, counts))
    _write_json(out / "counts.json", counts)
    shutil.rmtree(work)
    return counts


def tokenise(corpus_dir: Path, tokenizer_dir: Path, max_tokens: int, out: Path) -> dict[str, Any]:
    """Tokenise every text of a corpus once, with its dataset's instruction, into ``out``/tokens-NNNNN.arrow.

    The ids are those of ``AutoTokenizer(text, truncation=True, max_length=max_tokens)``. One unit is one row shard.

    Returns:
        ``{"rows", "texts", "tokens"}`` over the whole corpus; ``texts`` and ``tokens`` count queries, positives and
        negatives.

    Raises:
        BoomError: the directory holds no fast tokenizer.
    """
    corpus_dir, out = corpus_dir.absolute(), out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(corpus_dir / "datasets.json", out / "datasets.json")
    effective = out / "tokenizer.tmp"
    tokens.save_effective_tokenizer(tokenizer_dir, max_tokens, effective)
    shards = sorted(corpus_dir.glob("rows-*.arrow"))
    work = partial(tokens.tokenise_shard, tokenizer=effective, datasets=out / "datasets.json", out=out)
    totals = _on_workers(work, shards)
    effective.unlink()
    return {key: sum(t[key] for t in totals) for key in ("rows", "texts", "tokens")}


def _units(corpus: Corpus, work: Path, evaluation: Path) -> tuple[list[Unit], list[str]]:
    """All files in source order, and the texts of the evaluation sets that a source brings with it."""
    files: list[tuple[Path, FilesSource]] = []
    own_texts: list[str] = []
    for source in corpus.datasets:
        if isinstance(source, FilesSource):
            files += [(file, source) for file in resolve(source)]
        elif evaluation.exists():
            raise BoomError("corpus.datasets names python_environment twice. One is enough: raise its max_functions.")
        else:
            made, own_texts = _read_environment(source, work / "environment", evaluation)
            files += [(file, FilesSource(path=str(file))) for file in made]
    return [Unit(index, file, source) for index, (file, source) in enumerate(files)], own_texts


def _read_environment(source: PythonEnvironmentSource, work: Path, evaluation: Path) -> tuple[list[Path], list[str]]:
    """Functions are read in parallel, chosen here, and handed on as jsonl files: at most ``max_functions`` of them."""
    work.mkdir()
    packages = list_packages(source)
    _on_workers(partial(_store_functions, folder=work), packages)
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


@dataclass(frozen=True)
class _Guarded:
    """``work(item)`` on a worker; a user's mistake comes back as a value, because Ray wraps what is raised."""

    work: Callable[[Any], dict[str, Any]]
    items: Sequence[Any]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        index = int(row["id"])
        try:
            result, mistake = self.work(self.items[index]), ""
        except BoomError as error:
            result, mistake = {}, str(error)
        return {"index": index, "result": json.dumps(result), "mistake": mistake}


def _on_workers(work: Callable[[Any], dict[str, Any]], items: Sequence[Any]) -> list[dict[str, Any]]:
    """Stream ``items`` through Ray Data, a few to a task; the results (small dicts) in the order of the items."""
    if not items:
        return []
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with ray.data.DataContext.current(context):
        blocks = min(len(items), max(_LEAST_BLOCKS, int(4 * ray.cluster_resources().get("CPU", 1))))
        stream = ray.data.range(len(items), override_num_blocks=blocks).map(_Guarded(work, items))
        rows = sorted(stream.iter_rows(), key=lambda row: row["index"])
    for row in rows:
        if row["mistake"]:
            raise BoomError(row["mistake"])
    return [json.loads(row["result"]) for row in rows]


def _total(per_unit: Sequence[Counts]) -> Counts:
    total: Counts = {}
    for counts in per_unit:
        for dataset, numbers in counts.items():
            sums = total.setdefault(dataset, dict.fromkeys(COUNTS, 0))
            for key, number in numbers.items():
                sums[key] += number
    return total


def _reduce(corpus: Corpus, seed: int, files: Sequence[Path], counts: Counts, out: Path) -> reduce.RowIndex:
    """Drop duplicates, apply the cap, write the shards; fills in ``counts``."""
    index = reduce.read_index(files)
    first = reduce.first_of_each(index.ids)
    kept = reduce.under_cap(index, first, corpus.max_rows_per_dataset, seed)
    for code, (name, _) in enumerate(index.datasets):
        here = index.codes == code
        rows, distinct, final = (int(np.count_nonzero(mask)) for mask in (here, here & first, here & kept))
        counts[name] |= {"duplicates": rows - distinct, "capped": distinct - final, "rows": final}
    reduce.write_rows(files, kept, out)
    return index


def _write_quarantine(units: Sequence[Unit], work: Path, target: Path) -> None:
    with open(target, "wb") as stream:
        for unit in units:
            with open(parts.quarantine_path(work, unit.index), "rb") as part:
                shutil.copyfileobj(part, stream)


def _check_bad_rows(counts: Counts, most: float, quarantine: Path) -> None:
    rows, bad = (sum(c[key] for c in counts.values()) for key in ("rows_in", "rejected"))
    if bad <= most * rows:
        return
    with open(quarantine, encoding="utf-8") as stream:
        named = [json.loads(line) for line, _ in zip(stream, range(_NAMED_BAD_ROWS), strict=False)]
    shown = "".join(f"\n  {row['file']}:{row['line']}: {row['reason']}" for row in named)
    more = f"\n  and {bad - len(named)} more" if bad > len(named) else ""
    raise BoomError(
        f"{bad} of {rows} training rows cannot be used; corpus.max_bad_fraction allows {most:g} of them:{shown}{more}\n"
        f"Correct them, or raise corpus.max_bad_fraction to go on without them."
    )


def _nothing_left(corpus: Corpus, counts: Counts) -> str:
    lost = {key: sum(c[key] for c in counts.values()) for key in ("rows_in", "rejected", "decontaminated")}
    where = ", ".join(s.path if isinstance(s, FilesSource) else s.source for s in corpus.datasets)
    return (
        f"no training rows: {where} gave {lost['rows_in']} rows, of which {lost['rejected']} were bad and "
        f"{lost['decontaminated']} hold an evaluation text. Give other files in corpus.datasets."
    )


def _datasets(
    index: reduce.RowIndex, units: Sequence[Unit], per_unit: Sequence[Counts], counts: Counts
) -> list[dict[str, Any]]:
    instructions: dict[str, Instruction] = {}
    for unit, seen in zip(units, per_unit, strict=True):
        for name in seen:
            if instructions.setdefault(name, unit.source.instruction) != unit.source.instruction:
                raise BoomError(
                    f"dataset '{name}' comes from two sources with different instructions. "
                    f"Give one of them another name in corpus.datasets."
                )
    return [
        {
            "name": name,
            "task_type": task_type,
            "rows": counts[name]["rows"],
            "instruction": instructions[name].model_dump(),
        }
        for name, task_type in index.datasets
        if counts[name]["rows"]
    ]


def _write_json(file: Path, value: Mapping[str, Any] | list[Any]) -> None:
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
