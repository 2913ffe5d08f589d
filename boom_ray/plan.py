"""(recipe, world, ledger) -> the steps of a run, each with its identity, its cost and whether it is done. Pure.

An identity is derived from what a step reads: its settings and the identities of its inputs. So the same recipe finds
its artifacts again, and changing one member's ratio makes that member, the merges and the scores new, nothing else.
What a step does *not* depend on (how wide a member is, where files lie) is left out on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boom_ray.config import Averages, Recipe
from boom_ray.data.bag_rules import BagRule, bag_rules
from boom_ray.data.bagging import derive_seed
from boom_ray.ledger import Key, identity

# Raise a number when a step's output changes meaning: artifacts of older code are then made again, not mixed in.
_VERSIONS = {"corpus": 2, "start": 1, "tokens": 2, "bags": 2, "base": 3, "members": 3, "search": 2, "scores": 1}
_MINING = 1  # the same for a corpus that is mined
MERGES = ("ratio", "uniform", "searched")


@dataclass(frozen=True)
class World:
    """Digests of what a recipe points at: sources, base checkpoint, evaluation sets, models that mine.

    ``datasets``: (name, task type) of the corpus, where the number of members follows from them, else empty.
    ``tasks``: of mteb's registry; unlike the sets, no part of the corpus, which drops the texts of local sets only.
    """

    sources: tuple[Any, ...]
    base: str | None
    sets: tuple[Any, ...]
    datasets: tuple[tuple[str, str], ...] = ()
    miners: tuple[str, ...] = ()
    tasks: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Keys:
    """The artifacts of a run, and the rule of each member's bag. ``mined`` is the corpus where nothing is mined.

    ``members`` are all that the recipe asks for; what is merged, searched and scored leaves out the ``lost`` ones
    (numbers of members that failed for good), so its artifacts are those of an ensemble without them. ``averages``, by
    name, are of members' own weights: controls that are scored, never merged.
    """

    corpus: Key
    mined: Key
    start: Key
    tokens: Key
    bags: Key
    base: Key
    members: tuple[Key, ...]
    grams: Key
    search: Key
    merges: Mapping[str, Key]
    scores: Mapping[str, Key]
    published: Key
    rules: tuple[BagRule, ...]
    averages: Mapping[str, Key]
    lost: tuple[int, ...] = ()

    @property
    def ensemble(self) -> dict[int, Key]:
        """The members that are merged, by their number."""
        return {i: key for i, key in enumerate(self.members) if i not in self.lost}

    @property
    def ratios(self) -> list[float]:
        """Of the bags of the ensemble."""
        return [self.rules[i].ratio for i in self.ensemble]

    @property
    def models(self) -> dict[str, Key]:
        """Every model that stands in the table, by name."""
        members = {f"member-{i}": key for i, key in self.ensemble.items()}
        merges = {f"merge-{name}": key for name, key in self.merges.items()}
        return {"base": self.base, **members, **self.averages, **merges}


@dataclass(frozen=True)
class Cost:
    """What a step takes, as far as it is known before it runs."""

    rows: int | None = None
    tokens: int | None = None
    steps: int | None = None
    bytes: int | None = None
    device_hours: float | None = None


@dataclass(frozen=True)
class Step:
    name: str
    key: Key
    done: bool
    cost: Cost


def key(kind: str, label: str, *inputs: Any) -> Key:
    """The artifact of a kind that is made of these."""
    return Key(kind, label, identity([kind, _VERSIONS.get(kind, 1), *inputs]))


def derive_keys(recipe: Recipe, world: World, lost: tuple[int, ...] = (), base: Key | None = None) -> Keys:
    """All identities of a run, before anything has been made.

    Args:
        lost: members that it goes on without.
        base: that of another recipe, where members share it although they train otherwise; default: the recipe's own.
    """
    dump = recipe.model_dump(mode="json")
    # paths are left out: the digests in `world` say what the files hold, wherever they lie
    datasets = [{k: v for k, v in d.items() if k != "path"} for d in dump["corpus"]["datasets"]]
    corpus_settings = {**dump["corpus"], "datasets": datasets, "dev": None, "mine": None}
    corpus = key("corpus", recipe.name, corpus_settings, recipe.seed, world.sources, world.sets)
    mined = _mined_key(recipe, dump, world, corpus)
    base_settings = {k: dump["base"][k] for k in ("pooling", "max_tokens")}
    base_settings |= {"append_eos": True} if recipe.base.append_eos else {}
    base_settings |= {"layers": recipe.base.layers} if recipe.base.layers else {}
    if recipe.base.build:
        shape = {k: dump["base"]["build"][k] for k in ("layers", "hidden", "heads", "vocab")}
        start = key("start", "built", base_settings, shape, recipe.seed, corpus.identity)
    else:
        start = key("start", "imported", base_settings, world.base)
    tokens = key("tokens", recipe.name, start.identity, mined.identity, recipe.base.max_tokens)
    dev_settings = [dump["corpus"]["dev"], recipe.seed]
    # numbers that are the places of the members are left out, as in runs that know of none
    bag_settings = {name: value for name, value in dump["bags"].items() if name != "numbers" or value is not None}
    bags = key("bags", recipe.name, dev_settings, bag_settings, corpus.identity)
    base = base or _base_key(recipe, dump, start, tokens, dev_settings)
    rules = bag_rules(recipe.bags, world.datasets)
    members = tuple(
        key(
            "members",
            f"member-{number}",
            dump["train"],
            base.identity,
            tokens.identity,
            dev_settings,
            [number, *rule.identity()],
            recipe.seed,
        )
        for number, rule in zip(recipe.bags.numbers or range(len(rules)), rules, strict=True)
    )
    ensemble = [m.identity for i, m in enumerate(members) if i not in lost]
    ratios = [rule.ratio for i, rule in enumerate(rules) if i not in lost]
    merge_settings = [dump["merge"]["method"], dump["merge"]["task_vectors"], dump["merge"]["shard_size"]]
    grams = key("grams", recipe.name, ensemble, base.identity)
    search_settings = {k: v for k, v in dump["search"].items() if k != "actors"}
    search = key(
        "search", recipe.name, search_settings, merge_settings, ensemble, recipe.seed, recipe.train.temperature
    )
    merges = {
        "ratio": key("merges", "ratio", merge_settings, ensemble, ratios),
        "uniform": key("merges", "uniform", merge_settings, ensemble),
    }
    if (scale := recipe.merge.scale) != 1.0:
        merges = {name: key("merges", name, merge.identity, scale) for name, merge in merges.items()}
    merges["searched"] = key("merges", "searched", merge_settings, search.identity)
    landing = {f"member-{i}": m for i, m in enumerate(members) if i not in lost}
    averages = {k.label: k for m in landing.values() for k in average_keys(m, recipe.train.averages).values()}
    models = {"base": base, **(landing | averages if recipe.evaluate.members else {})}
    models |= {f"merge-{name}": merge for name, merge in merges.items()}
    scores = {name: score_key(recipe, world, mined, name, model) for name, model in models.items()}
    chosen = merges[recipe.merge.weights]
    published = key("published", recipe.name, chosen.identity, [k.identity for k in scores.values()])
    made = (corpus, mined, start, tokens, bags, base, members, grams, search)
    return Keys(*made, merges, scores, published, rules, averages, lost)


def score_key(recipe: Recipe, world: World, mined: Key, name: str, model: Key) -> Key:
    """The scores of a model of a recipe, which calls it ``name``; ``mined`` is the corpus of its dev rows."""
    dev = [recipe.corpus.dev.model_dump(mode="json"), recipe.seed]
    settings = [recipe.evaluate.cap, world.sets, mined.identity, dev]
    settings += [[recipe.evaluate.prompts, world.tasks]] if recipe.evaluate.prompts or world.tasks else []
    settings += [recipe.evaluate.precision] if recipe.evaluate.precision != "float32" else []
    return key("scores", name, settings, model.identity)


def _mined_key(recipe: Recipe, dump: dict[str, Any], world: World, corpus: Key) -> Key:
    """The corpus with mined negatives: another corpus of the same rows. Models are known by what they hold."""
    if recipe.corpus.mine is None:
        return corpus
    settings = {k: v for k, v in dump["corpus"]["mine"].items() if k != "models"}
    return key("corpus", f"{recipe.name}-mined", _MINING, settings, world.miners, corpus.identity)


def _base_key(recipe: Recipe, dump: dict[str, Any], start: Key, tokens: Key, dev: list[Any]) -> Key:
    """A built base is warmed up; any other base is the start itself."""
    if not (recipe.base.build and recipe.base.build.warm_steps):
        return start
    warm = [dump["base"]["build"]["warm_steps"], dump["base"]["build"]["learning_rate"]]
    train = {name: value for name, value in dump["train"].items() if name != "averages"}  # those are of members
    return key("base", "warm", warm, train, start.identity, tokens.identity, dev, recipe.seed)


def member_seed(recipe: Recipe, member: int) -> int:
    """The seed of a member's order of batches and draws of negatives."""
    numbers = recipe.bags.numbers
    return derive_seed(recipe.seed, "member", numbers[member] if numbers else member)


def paused_key(member: Key, step: int) -> Key:
    """The member as it is after ``step`` of its batches, where a search has stopped it there."""
    return Key("rungs", f"{member.label}-step{step}", identity([member.identity, "step", step]))


def average_keys(member: Key, settings: Averages | None) -> dict[str, Key]:
    """The averages of a member's own weights, by name: they land just before it."""
    if settings is None:
        return {}
    names = ["ema"] * (settings.ema is not None) + [f"last{settings.last}"] * (settings.last is not None)
    return {name: Key("members", f"{member.label}-{name}", identity([member.identity, name])) for name in names}


def steps(keys: Keys, has: Callable[[Key], bool], costs: Mapping[str, Cost]) -> list[Step]:
    """All steps in order. A step that only feeds finished ones is not wanted, so it counts as done."""
    named: list[tuple[str, Key]] = [
        ("corpus", keys.corpus),
        *([("mine", keys.mined)] if keys.mined != keys.corpus else []),
        ("start", keys.start),
        ("tokens", keys.tokens),
        ("bags", keys.bags),
    ]
    if keys.base != keys.start:
        named.append(("warm base", keys.base))
    named += [(f"member-{i}", key) for i, key in keys.ensemble.items()]
    named += [("gram", keys.grams), ("search", keys.search)]
    named += [(f"merge-{name}", key) for name, key in keys.merges.items()]
    named += [(f"score {name}", key) for name, key in keys.scores.items()]
    named.append(("publish", keys.published))
    finished = has(keys.published)
    return [Step(name, key, finished or has(key), costs.get(name, Cost())) for name, key in named]


def missing(all_steps: Sequence[Step]) -> list[Step]:
    return [step for step in all_steps if not step.done]
