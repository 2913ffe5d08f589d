"""Which datasets a recipe's corpus has, before it is made: where there is a member of each, the plan has to know.

What an entry leaves open is read from the first usable row of each of its files.
"""

from __future__ import annotations

from boom_ray.config.corpus import Corpus, FilesSource
from boom_ray.data.environment_sets import FUNCTIONS, MODULES, PACKAGES
from boom_ray.data.parts import first_example
from boom_ray.data.sources import resolve

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
    examples = (first_example(file, source) for file in resolve(source))
    return [(example.dataset, example.task_type) for example in examples if example is not None]
