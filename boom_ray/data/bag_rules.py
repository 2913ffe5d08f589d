"""What decides a member's rows, from the recipe alone: kind, ratio, datasets, factors. Pure, known before any data is.

The shares that follow from a rule and the sizes of the datasets are in :func:`shares`; docs/data.md has the formulas.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal

from boom_ray.config import BoomError
from boom_ray.config.bags import Bags
from boom_ray.config.corpus import TASK_TYPES

BagKind = Literal["subset", "partition", "poisson", "multinomial"]
ONE_PER_GROUP = ("dataset", "task_type", "groups")  # kinds of the recipe that make a member of each


@dataclass(frozen=True)
class BagRule:
    """One member's rule.

    Attributes:
        kind: without replacement, of a partition, or which way with.
        ratio: the share of every dataset, before factors and temperature.
        stream: number of the stream of hashes; rules of one stream draw nested bags.
        datasets: the only ones in the bag; None: all.
        factors: on the shares of single datasets.
        temperature: above 1 evens out the datasets' sizes.
        label: what people call the bag.
        start: of a partition, the ratios of the bags before it: it takes the rows from there on.
    """

    kind: BagKind
    ratio: float
    stream: int
    datasets: tuple[str, ...] | None = None
    factors: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    label: str = ""
    start: float = 0.0

    def identity(self) -> list[Any]:
        """Exactly what the bag's rows depend on, beside the corpus and the run's seed; labels are not."""
        names = None if self.datasets is None else sorted(self.datasets)
        rows = [self.kind, self.ratio, self.stream, names, dict(sorted(self.factors.items())), self.temperature]
        return [*rows, self.start] if self.kind == "partition" else rows

    def holds(self, dataset: str) -> bool:
        return self.datasets is None or dataset in self.datasets


def bag_rules(bags: Bags, datasets: Sequence[tuple[str, str]] = ()) -> tuple[BagRule, ...]:
    """One rule per member.

    Args:
        datasets: (name, task type) of the corpus; only kinds ``dataset`` and ``task_type`` need it.

    Raises:
        BoomError: the number of members follows from datasets that are not known.
    """
    if bags.kind in ONE_PER_GROUP:
        return tuple(_group_rule(bags, i, *group) for i, group in enumerate(_groups(bags, datasets)))
    kind: BagKind = bags.resample if bags.kind == "bootstrap" else "partition" if bags.kind == "partition" else "subset"
    factors = {name: f for name, f in bags.dataset_ratios.items() if f != 1.0}
    numbers = bags.numbers or tuple(range(len(bags.ratios)))
    *starts, _ = accumulate(bags.ratios, _sum, initial=0.0)
    common = numbers[0] if bags.kind == "partition" else 0 if bags.nested else None
    return tuple(
        BagRule(
            kind,
            ratio,
            number if common is None else common,
            None,
            factors,
            bags.temperature,
            f"{100 * ratio:.3g} %" + ("" if kind == "subset" else f" {kind}"),
            start if kind == "partition" else 0.0,
        )
        for number, ratio, start in zip(numbers, bags.ratios, starts, strict=True)
    )


def _sum(before: float, ratio: float) -> float:
    """Where a bag of a partition ends, and the next begins: one number, whichever of the two asks."""
    return round(before + ratio, 10)


def _groups(bags: Bags, datasets: Sequence[tuple[str, str]]) -> list[tuple[str, tuple[str, ...]]]:
    if bags.kind == "groups":
        return list(bags.groups.items())
    if not datasets:
        raise BoomError(f"bags.kind {bags.kind} makes a member of each, but no dataset of the corpus is known yet.")
    if bags.kind == "dataset":
        return [(name, (name,)) for name, _ in datasets]
    types = [t for t in TASK_TYPES if any(task_type == t for _, task_type in datasets)]
    return [(t, tuple(name for name, task_type in datasets if task_type == t)) for t in types]


def _group_rule(bags: Bags, index: int, label: str, datasets: tuple[str, ...]) -> BagRule:
    factors = {name: bags.dataset_ratios[name] for name in datasets if bags.dataset_ratios.get(name, 1.0) != 1.0}
    temperature = bags.temperature if len(datasets) > 1 else 1.0  # one dataset is even with itself
    return BagRule("subset", bags.ratios[0], index, datasets, factors, temperature, label)


def shares(rule: BagRule, sizes: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, float]:
    """Share of every dataset of a bag, over its training rows.

    With n the training rows of a dataset, f its factor and T the temperature, a subset takes
    ``min(1, ratio * f * (n_min / n) ** (1 - 1/T))`` of it; a bootstrap, whose draws in all stay ``ratio * sum(n)``,
    ``ratio * f * n ** (1/T - 1) * sum(n) / sum(f * n ** (1/T))``, which may be above 1. A bag of a partition takes what
    lies between two subsets, see :func:`edges`.

    Args:
        sizes: training rows by dataset.
        weights: factors that the sources themselves bring.
    """
    if rule.kind == "partition":
        before, upto = edges(rule, sizes, weights)
        return {name: upto[name] - before[name] for name in sizes}
    inside = {name: n for name, n in sizes.items() if rule.holds(name) and n}
    factor = {name: rule.factors.get(name, 1.0) * weights.get(name, 1.0) for name in inside}
    found = dict.fromkeys(sizes, 0.0)
    if not inside:
        return found
    power = 1 / rule.temperature
    if rule.kind == "subset":
        smallest = min(inside.values())
        for name, n in inside.items():
            found[name] = min(1.0, rule.ratio * factor[name] * (smallest / n) ** (1 - power))
        return found
    if all(f == 1.0 for f in factor.values()) and rule.temperature == 1.0:
        return {**found, **dict.fromkeys(inside, rule.ratio)}  # exactly, not to a rounding
    pull = {name: factor[name] * n**power for name, n in inside.items()}
    total = math.fsum(pull.values())
    every = rule.ratio * sum(inside.values())
    return {**found, **{name: every * pull[name] / total / n for name, n in inside.items() if total}}


def edges(
    rule: BagRule, sizes: Mapping[str, int], weights: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Shares of every dataset at which a bag of a partition begins and ends: those of the subsets before it, without
    and with it."""
    ends = (rule.start, min(1.0, _sum(rule.start, rule.ratio)))
    before, upto = (shares(replace(rule, kind="subset", ratio=ratio), sizes, weights) for ratio in ends)
    return before, upto


def check_rules(rules: Sequence[BagRule], names: Sequence[str]) -> None:
    """Every dataset of the corpus is in some bag, and every dataset that a rule names is in the corpus.

    Raises:
        BoomError: names the dataset.
    """
    for rule in rules:
        for name in (*(rule.datasets or ()), *rule.factors):
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
                hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(names)}."
                raise BoomError(f"bags name dataset '{name}', which has no rows in the corpus: {hint}")
    for name in names:
        if not any(rule.holds(name) for rule in rules):
            raise BoomError(
                f"dataset '{name}' of the corpus is in no bag. Name it in bags.groups, or, where rows name their own "
                f"dataset, give it an entry of its own in corpus.datasets."
            )
