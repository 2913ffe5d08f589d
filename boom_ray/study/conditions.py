"""Conditions and their seeds as variants of one recipe: which members each needs, and which of them are shared. Pure.

A member is named by its ratio, its copy and its seed, whatever condition it is in: conditions that train alike share
it. So {20..100}, {80, 100} and one model on all rows need five members, not eight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from boom_ray.config import BoomError, Recipe
from boom_ray.config.bags import BY_RATIO, Bags
from boom_ray.config.errors import explain
from boom_ray.config.ratios import RATIO_STEP
from boom_ray.config.study import Condition, Study
from boom_ray.data.bag_rules import BagRule
from boom_ray.ledger import Key, canonical_json
from boom_ray.plan import Keys, World, average_keys, derive_keys, key, score_key

KIND = "conditions"
_COPIES = 100  # members of one ratio and seed at most
_RATIOS = round(1 / RATIO_STEP) + 1
_WHOLE: dict[str, Any] = {"kind": "subset", "ratios": [1.0]}  # bags of a trunk
_NO_MEMBERS: dict[str, list[float]] = {"ratios": [], "numbers": []}
_OF_ANY_KIND = ("dataset_ratios", "temperature")  # keys of bags that stay where a condition changes the kind


@dataclass(frozen=True)
class Case:
    """A condition with one seed: its recipe, its artifacts, the model that is scored (a name in ``keys.models``), and
    the artifact that says what was found. ``trunk``: the one member that its members start from, as a case of its own.
    """

    condition: Condition
    seed: int
    recipe: Recipe
    keys: Keys
    model: str
    key: Key
    trunk: Case | None = None

    @property
    def name(self) -> str:
        return f"{self.condition.name} (seed {self.seed})"

    @property
    def scores(self) -> Key:
        return self.keys.scores[self.model]

    @property
    def base(self) -> Key:
        """Of the study; that of ``keys`` is the trunk, where there is one."""
        return self.trunk.base if self.trunk else self.keys.base

    @property
    def trained(self) -> dict[Key, tuple[Case, BagRule]]:
        """All that is trained for it, the trunk first, with the case whose recipe says how, and the rule of its bag."""
        own = {key: (self, rule) for key, rule in zip(self.keys.members, self.keys.rules, strict=True)}
        return {**self.trunk.trained, **own} if self.trunk else own

    @property
    def merged(self) -> bool:
        """Its model is a merge, no member and no average."""
        return self.model.startswith("merge-")

    def done(self, has: Callable[[Key], bool]) -> bool:
        """It is finished: nothing but its scores, the base's, and what was found is asked for."""
        return all(has(k) for k in (self.key, self.scores, self.keys.scores["base"]))


def cases(recipe: Recipe, world: World) -> tuple[Case, ...]:
    """All conditions of a recipe with all their seeds, in the order in which they are carried out: whole seeds first,
    and what is exploratory last.

    Raises:
        BoomError: no conditions, or one that cannot be carried out.
    """
    study = recipe.study
    if not study.conditions:
        raise BoomError(f"{recipe.name} has no study.conditions. jobs/recipes/study.yaml shows some.")
    base = derive_keys(recipe, world).base
    found = [
        _case(recipe, world, base, condition, seed)
        for condition in study.conditions
        for seed in range(study.seeds_of(condition))
    ]
    return tuple(sorted(found, key=lambda case: (case.condition.exploratory, case.seed)))  # stable: the recipe's order


def _case(recipe: Recipe, world: World, base: Key, condition: Condition, seed: int) -> Case:
    own = variant(recipe, condition, seed)
    trunk = _trunk(recipe, world, base, condition, seed)
    keys = derive_keys(own, world, base=trunk.keys.members[0] if trunk else base)
    keys = replace(keys, merges={condition.weights: keys.merges[condition.weights]})
    model = _model(own, condition, keys)
    scored = {"base": ("base", base), model: (keys.models[model].label, keys.models[model])}
    scores = {name: score_key(own, world, keys.mined, label, of) for name, (label, of) in scored.items()}
    made = [keys.models[model].identity, scores[model].identity, [member.identity for member in keys.members]]
    artifact = key(KIND, f"{condition.name}-s{seed}", made)
    return Case(condition, seed, own, replace(keys, scores=scores), model, artifact, trunk)


def _trunk(recipe: Recipe, world: World, base: Key, condition: Condition, seed: int) -> Case | None:
    """One model trained on all rows, as a reference of so many passes is."""
    if condition.trunk is None:
        return None
    name = f"trunk-{condition.trunk:g}"
    alone = Condition(name=name, role="reference", bags=_WHOLE, passes=condition.trunk, seeds=condition.seeds)
    return _case(recipe, world, base, alone, seed)


def variant(recipe: Recipe, condition: Condition, seed: int) -> Recipe:
    """The recipe that a condition with one seed stands for.

    Raises:
        BoomError: bags that cannot be, or that cannot have several seeds.
    """
    train = {"epochs": condition.passes, "schedule": condition.schedule or recipe.train.schedule}
    method = condition.method or recipe.merge.method
    merge = {"weights": condition.weights, "method": method, "scale": condition.scale}
    changed = {
        "bags": _bags(recipe, condition, seed),
        "train": recipe.train.model_copy(update=train),
        "merge": recipe.merge.model_copy(update=merge),
        "resources": recipe.resources.model_copy(update={"min_members": None}),  # a condition has all its members
        "study": Study(),
    }
    return recipe.model_copy(update=changed)


def _bags(recipe: Recipe, condition: Condition, seed: int) -> Bags:
    told = recipe.bags.model_dump()
    if condition.bags.get("kind", told["kind"]) != told["kind"]:
        told = {name: told[name] for name in _OF_ANY_KIND}
    try:
        bags = Bags.model_validate({**told, "numbers": None, **condition.bags})
    except ValidationError as error:
        raise BoomError(f"study condition '{condition.name}', bags: {explain(error, Bags)}") from None
    if recipe.study.seeds_of(condition) > 1:
        _check_seeds(condition, bags)
    if bags.kind not in BY_RATIO:
        return bags
    return bags.model_copy(update={"numbers": member_numbers(condition, bags.ratios, seed)})


def _check_seeds(condition: Condition, bags: Bags) -> None:
    why = f"bags of kind {bags.kind} are not drawn" if bags.kind not in BY_RATIO else None
    if bags.nested:
        why = "nested bags all come from one draw"
    if why:
        raise BoomError(
            f"study condition '{condition.name}' cannot have several seeds: {why}, so every seed would see the same "
            f"rows. Give it seeds: 1."
        )


def member_numbers(condition: Condition, ratios: Sequence[float], seed: int) -> tuple[int, ...]:
    """Of the members of a condition: the same for the same ratio, seed and copy, in every condition.

    Raises:
        BoomError: too many members of one ratio.
    """
    grains = [round(ratio / RATIO_STEP) for ratio in ratios]
    first = 0 if condition.trunk is None else 1  # the first copy of the whole corpus is the trunk, which has its order
    copies = [first + grains[:place].count(grain) for place, grain in enumerate(grains)]
    if max(copies) >= _COPIES:
        raise BoomError(f"study condition '{condition.name}' has more than {_COPIES} members of one ratio.")
    return tuple((_COPIES * seed + copy) * _RATIOS + grain for grain, copy in zip(grains, copies, strict=True))


def _model(recipe: Recipe, condition: Condition, keys: Keys) -> str:
    """The model of a condition that is scored, by its name in ``keys.models``.

    Raises:
        BoomError: an average that no member has.
    """
    if condition.average is None:
        alone = len(keys.members) == 1 and condition.scale == 1.0 and condition.weights != "searched"
        return "member-0" if alone else f"merge-{condition.weights}"
    if len(keys.members) != 1:
        raise BoomError(
            f"study condition '{condition.name}' is the average of one member's own weights, but its bags make "
            f"{len(keys.members)} members. Give it one ratio: bags: {{ratios: [1.0]}}."
        )
    averages = average_keys(keys.members[0], recipe.train.averages)
    found = [k.label for name, k in averages.items() if name.startswith(condition.average)]
    if not found:
        raise BoomError(
            f"study condition '{condition.name}' needs the average '{condition.average}' of a member's weights. Switch "
            f"it on: train: {{averages: {{}}}} has both, ema and last."
        )
    return found[0]


def choose(listed: Sequence[Case], only: Sequence[str], seeds: int | None) -> list[Case]:
    """The cases of some conditions, by name, and of the first seeds.

    Raises:
        BoomError: a condition that is not there, or no seed.
    """
    names = list(dict.fromkeys(case.condition.name for case in listed))
    if unknown := [name for name in only if name not in names]:
        raise BoomError(f"the study has no condition '{unknown[0]}'; it has {', '.join(names)}.")
    if seeds is not None and seeds < 1:
        raise BoomError(f"--seeds {seeds}: give how many seeds of each condition, at least 1.")
    return [c for c in listed if (not only or c.condition.name in only) and (seeds is None or c.seed < seeds)]


def pools(listed: Sequence[Case], wanted: Callable[[Key], bool]) -> list[tuple[Recipe, Key]]:
    """Recipes that train all ``wanted`` members of these cases, each once, and the model that they start from; members
    that train alike stand in one. Trunks are not among them."""
    found: dict[tuple[str, Key], tuple[Recipe, dict[int, float]]] = {}
    for case in listed:
        bags = case.recipe.bags
        numbers = bags.numbers or range(len(case.keys.members))
        ratios = [rule.ratio for rule in case.keys.rules]
        members = {
            number: ratio
            for number, ratio, member in zip(numbers, ratios, case.keys.members, strict=True)
            if wanted(member)
        }
        if members:
            found.setdefault((_alike(case.recipe), case.keys.base), (case.recipe, {}))[1].update(members)
    return [(_pool(recipe, members), base) for (_, base), (recipe, members) in found.items()]


def _alike(recipe: Recipe) -> str:
    """Equal where members can stand in one pool. The bags of a partition follow from one another."""
    bags = recipe.bags.model_dump(mode="json")
    return canonical_json([recipe.train.model_dump(mode="json"), bags | _NO_MEMBERS if _free(recipe.bags) else bags])


def _free(bags: Bags) -> bool:
    return bags.kind in ("subset", "bootstrap")


def _pool(recipe: Recipe, members: dict[int, float]) -> Recipe:
    if not _free(recipe.bags):
        return recipe
    slots = {"numbers": tuple(members), "ratios": tuple(members.values())}
    return recipe.model_copy(update={"bags": recipe.bags.model_copy(update=slots)})
