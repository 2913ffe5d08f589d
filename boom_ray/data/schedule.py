"""Schedules: the global order of batches, a pure function of (bag, settings, seed, pass).

The order is the same for any number of workers; a step number is all that a resume needs. One batch holds rows of one
dataset, across all workers; only ``example_shuffle`` mixes them. docs/data.md says what each schedule is.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from boom_ray.config.bags import ScheduleName
from boom_ray.data.bagging import derive_seed
from boom_ray.data.rules import DatasetRule

SMALLEST_TAIL = 2  # rows of a last incomplete batch that is kept: one row alone has no in-batch negatives
FIRST_STAGE = ("retrieval", "reranking")
MIXED = "mixed"  # stands for the dataset's name where a batch has rows of several

Bag = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Batch:
    """One global step: the dataset's name, its row numbers (int64 [B]) and the pass over the rows, from 0.

    ``in_batch`` false: no row is compared with candidates of other rows, whatever its dataset's rule.
    """

    dataset: str
    rows: np.ndarray
    epoch: int
    in_batch: bool = True


@dataclass(frozen=True)
class Plan:
    """The batches of a run or of one pass.

    Attributes:
        dropped: rows in tails that were left out, by dataset, summed over passes.
        tail: row numbers that the last pass left out so.
        ended_early: the run ended before its last pass was over: at ``max_steps``, or after a fraction of a pass.
    """

    batches: tuple[Batch, ...]
    dropped: Mapping[str, int]
    tail: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    ended_early: bool = False


@dataclass(frozen=True)
class Schedule:
    """How rows become batches; ``rules`` by dataset, in the order of the corpus.

    A last incomplete batch is kept from ``smallest_tail`` rows on; None drops every tail, as the paper does.
    """

    name: ScheduleName
    batch_size: int
    smallest_tail: int | None
    rules: Mapping[str, DatasetRule]

    def sizes(self) -> dict[str, int]:
        """Rows of one batch, by dataset."""
        return {name: rows_per_batch(rule.symmetric, self.batch_size) for name, rule in self.rules.items()}

    def in_first_stage(self, dataset: str) -> bool:
        rule = self.rules[dataset]
        return rule.in_batch and not rule.graded and rule.task_type in FIRST_STAGE


def rows_per_batch(symmetric: bool, batch_size: int) -> int:
    return max(2, batch_size // 2) if symmetric else batch_size


def batch_shuffle(bag: Bag, sizes: Mapping[str, int], smallest_tail: int | None, seed: int, epoch: int) -> Plan:
    """Batch-level shuffling as BOOM's code does it (boom.md 1.4): shuffle rows inside each dataset, cut into batches
    of one dataset, shuffle the list of batches.

    Args:
        bag: row numbers by dataset; a row may stand there more than once.
        sizes: rows of one batch by dataset.
        smallest_tail: as in :class:`Schedule`.
    """
    rng = np.random.default_rng(derive_seed(seed, "batch_shuffle", epoch))
    cut, plan = _cut(bag, sizes, smallest_tail, rng, epoch)
    return replace(plan, batches=_shuffled(cut, sorted(cut), rng))


def one_pass(bag: Bag, schedule: Schedule, seed: int, number: int, first_stage: bool = False) -> Plan:
    """One pass over a bag; ``first_stage`` matters to ``two_stage`` only."""
    sizes, least, names = schedule.sizes(), schedule.smallest_tail, [n for n in schedule.rules if n in bag]
    if schedule.name == "batch_shuffle":
        return batch_shuffle(bag, sizes, least, seed, number)
    if schedule.name == "two_stage":
        if first_stage:
            return batch_shuffle({n: bag[n] for n in names if schedule.in_first_stage(n)}, sizes, least, seed, number)
        plan = batch_shuffle(bag, sizes, least, seed, number)
        return replace(plan, batches=tuple(replace(batch, in_batch=False) for batch in plan.batches))
    rng = np.random.default_rng(derive_seed(seed, schedule.name, number))
    if schedule.name == "example_shuffle":
        return _example_shuffle(bag, schedule, rng, number)
    cut, plan = _cut(bag, sizes, least, rng, number)
    if schedule.name == "dataset_sequential":
        return replace(plan, batches=tuple(batch for name in names for batch in cut[name]))
    types = dict.fromkeys(schedule.rules[name].task_type for name in names)
    members = {t: [name for name in names if schedule.rules[name].task_type == t] for t in types}
    return replace(plan, batches=tuple(b for t in types for b in _shuffled(cut, sorted(members[t]), rng)))


def split_passes(epochs: float) -> tuple[int, float]:
    """Whole passes, and the share of one more: 1.8 epochs are ``(1, 0.8)``."""
    whole = int(epochs)
    return whole, round(epochs - whole, 9)


def whole_run(bag: Bag, schedule: Schedule, seed: int, epochs: float, max_steps: int | None) -> Plan:
    """The batches of all passes, cut at ``max_steps``: a pass that the run does not reach is not made.

    A pass is an epoch, of the last one only the first batches where ``epochs`` is no whole number; ``two_stage`` has
    ``epochs`` passes of its first stage and then as many of its second.
    """
    whole, rest = split_passes(epochs)
    stage = whole + (rest > 0)
    batches: list[Batch] = []
    dropped: Counter[str] = Counter(dict.fromkeys(bag, 0))
    tail, early = np.empty(0, np.int64), False
    for number in range(2 * stage if schedule.name == "two_stage" else stage):
        early = max_steps is not None and len(batches) >= max_steps
        if early:
            break
        plan = one_pass(bag, schedule, seed, number, first_stage=number < stage)
        batches += plan.batches[: part_of(len(plan.batches), rest) if number % stage == whole else None]
        dropped.update(plan.dropped)
        tail = plan.tail
    early = early or rest > 0 or (max_steps is not None and len(batches) > max_steps)
    return Plan(tuple(batches[:max_steps]), dict(dropped), tail, early)


def part_of(batches: int, share: float) -> int:
    """Batches of a share of a pass: at least one, where the pass has any."""
    return min(batches, max(1, round(share * batches)))


def epoch_size(schedule: Schedule, drawn: Mapping[str, int]) -> tuple[int, int]:
    """(rows, steps) of an epoch, both stages of ``two_stage`` together, without making it.

    Args:
        drawn: rows of the bag by dataset, repetitions counted.
    """
    if schedule.name == "example_shuffle":
        return _size([(sum(drawn.values()), schedule.batch_size)], schedule.smallest_tail)
    sizes = schedule.sizes()
    groups = [(rows, sizes[name]) for name, rows in drawn.items()]
    if schedule.name == "two_stage":
        groups += [(rows, sizes[name]) for name, rows in drawn.items() if schedule.in_first_stage(name)]
    return _size(groups, schedule.smallest_tail)


def _size(groups: Iterable[tuple[int, int]], smallest_tail: int | None) -> tuple[int, int]:
    rows = steps = 0
    for count, size in groups:
        whole, tail = divmod(count, size)
        kept = bool(tail) and smallest_tail is not None and tail >= smallest_tail
        steps += whole + kept
        rows += whole * size + kept * tail
    return rows, steps


def rank_rows(rows: np.ndarray, rank: int, width: int) -> np.ndarray:
    """One of ``width`` workers' slice of a global batch; slices are disjoint and differ by one row at most."""
    return rows[rank::width]


def global_order(counts: Sequence[int]) -> np.ndarray:
    """int64 [sum of counts]: puts the slices of all ranks, one after the other, back into the order of the batch."""
    width = len(counts)
    places = [rank + width * np.arange(count) for rank, count in enumerate(counts)]
    return np.argsort(np.concatenate(places), kind="stable")


def _cut(
    bag: Bag, sizes: Mapping[str, int], smallest_tail: int | None, rng: np.random.Generator, epoch: int
) -> tuple[dict[str, list[Batch]], Plan]:
    """Batches by dataset, rows shuffled; and a plan that knows the tails, but no order yet."""
    cut: dict[str, list[Batch]] = {}
    tails: dict[str, np.ndarray] = {}
    for name in sorted(bag):  # a fixed order first, so that the result does not depend on the mapping's
        pieces, tails[name] = _pieces(rng.permutation(np.sort(bag[name])), sizes[name], smallest_tail)
        cut[name] = [Batch(name, piece, epoch) for piece in pieces]
    tail = np.concatenate([np.empty(0, np.int64), *tails.values()])
    return cut, Plan((), {name: len(rows) for name, rows in tails.items()}, tail)


def _pieces(rows: np.ndarray, size: int, smallest_tail: int | None) -> tuple[list[np.ndarray], np.ndarray]:
    """(batches of rows, the tail that is left out)."""
    whole = len(rows) // size * size
    pieces, tail = [rows[i : i + size] for i in range(0, whole, size)], rows[whole:]
    if smallest_tail is not None and len(tail) >= max(1, smallest_tail):
        return [*pieces, tail], tail[:0]
    return pieces, tail


def _shuffled(cut: Mapping[str, list[Batch]], names: Sequence[str], rng: np.random.Generator) -> tuple[Batch, ...]:
    batches = list(itertools.chain.from_iterable(cut[name] for name in names))
    return tuple(batches[i] for i in rng.permutation(len(batches)))


def _example_shuffle(bag: Bag, schedule: Schedule, rng: np.random.Generator, number: int) -> Plan:
    names = sorted(bag)
    rows = np.concatenate([np.empty(0, np.int64), *(np.sort(bag[name]) for name in names)])
    dataset = np.repeat(np.arange(len(names)), [len(bag[name]) for name in names])
    order = rng.permutation(len(rows))
    pieces, _ = _pieces(rows[order], schedule.batch_size, schedule.smallest_tail)
    left = order[sum(map(len, pieces)) :]
    dropped = np.bincount(dataset[left], minlength=len(names)).tolist()
    batches = tuple(Batch(MIXED, piece, number) for piece in pieces)
    return Plan(batches, dict(zip(names, dropped, strict=True)), rows[left])
