"""Which datasets a recipe's corpus has, before it is made: where there is a member of each, the plan has to know.

What an entry leaves open is read from the first usable row of each of its files.
"""

from __future__ import annotations

from boom_ray.config import Corpus, FilesSource
from boom_ray.data.environment_sets import FUNCTIONS, MODULES, PACKAGES
from boom_ray.data.layouts import to_boom
from boom_ray.data.schema import RowError, parse_row
from boom_ray.data.sources import BadRow, SourceFile, dataset_stem, read_rows, resolve

_ENVIRONMENT = ((FUNCTIONS, "retrieval"), (MODULES, "clustering"), (PACKAGES, "classification"))


def datasets_of(corpus: Corpus) -> tuple[tuple[str, str], ...]:
    """(name, task type) of every dataset, in source order. A file whose rows name several shows its first only: the
    others are found, and refused, when the bags are drawn.

    Raises:
        BoomError: a source that cannot be read.
    """
    found: dict[str, str] = {}
    for source in corpus.datasets:
        for name, task_type in _datasets_of(source) if isinstance(source, FilesSource) else _ENVIRONMENT:
            found.setdefault(name, task_type)
    return tuple(found.items())


def _datasets_of(source: FilesSource) -> list[tuple[str, str]]:
    if source.name is not None and source.task_type is not None:
        return [(source.name, source.task_type)]
    found = (_first_dataset(file, source) for file in resolve(source))
    return [dataset for dataset in found if dataset is not None]


def _first_dataset(file: SourceFile, source: FilesSource) -> tuple[str, str] | None:
    for _, raw in read_rows(file):
        try:
            if not isinstance(raw, BadRow):
                row = raw if source.layout == "boom" else to_boom(raw, source.layout)
                example = parse_row(row, source, source.name or dataset_stem(file))
                return example.dataset, example.task_type
        except RowError:  # the corpus will say what is wrong with it
            continue
    return None
