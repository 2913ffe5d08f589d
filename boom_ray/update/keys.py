"""The artifacts of an update by identity, before anything has been made. Pure.

As in :mod:`boom_ray.plan`, an identity follows from what a step reads: the same data onto the same version find
everything done, another merge weight makes a merge and its scores new and no member.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from boom_ray.chain import Version
from boom_ray.config import Recipe
from boom_ray.config.update import Update
from boom_ray.data.bag_rules import BagRule
from boom_ray.ledger import Key, identity
from boom_ray.plan import Keys, World, derive_keys

_VERSION = 1  # raise it when a step's output changes meaning


@dataclass(frozen=True)
class Trained:
    """A member of the chain and the distinct rows of its bag."""

    key: Key
    rows: int


@dataclass(frozen=True)
class Stand:
    """What a version stands on: what the next update starts from.

    Attributes:
        model: the artifact with its weights. ``score_name``: what its scores are kept under.
        corpus, tokens, bags: of all rows that the version and its ancestors were trained on.
        behind: distinct rows behind the version. members: all members ever trained, the run's first.
        scores: artifacts with the scores of ``base`` and of the ``current`` model.
        trained: names of the datasets.
    """

    version: Version
    model: Key
    score_name: str
    corpus: Key
    tokens: Key
    bags: Key
    behind: int
    members: tuple[Trained, ...]
    scores: Mapping[str, Key]
    trained: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All but the version, which is the manifest that this is written into."""
        keys = {name: _plain(getattr(self, name)) for name in ("model", "corpus", "tokens", "bags")}
        members = [{"key": _plain(member.key), "rows": member.rows} for member in self.members]
        scores = {name: _plain(key) for name, key in self.scores.items()}
        told = {"score_name": self.score_name, "behind": self.behind, "trained": list(self.trained)}
        return {**keys, **told, "members": members, "scores": scores}

    @classmethod
    def from_json(cls, version: Version, raw: Mapping[str, Any]) -> Stand:
        return cls(
            version=version,
            model=Key(*raw["model"]),
            score_name=raw["score_name"],
            corpus=Key(*raw["corpus"]),
            tokens=Key(*raw["tokens"]),
            bags=Key(*raw["bags"]),
            behind=raw["behind"],
            members=tuple(Trained(Key(*member["key"]), member["rows"]) for member in raw["members"]),
            scores={name: Key(*key) for name, key in raw["scores"].items()},
            trained=tuple(raw["trained"]),
        )


def _plain(key: Key) -> list[str]:
    return [key.kind, key.label, key.identity]


@dataclass(frozen=True)
class UpdateKeys:
    """The artifacts of one update.

    Attributes:
        number: of the version that it makes. data: names the new data.
        fresh: the corpus of the new rows; corpus, tokens: old and new rows together.
        everyone, ensemble: Gram matrices and merge of all members ever trained, where weights are ``ensemble``.
        candidate: what is merged into the current model: the new member, or that ensemble.
        pair: Gram matrices of current model and candidate. bound: how far a bound on the drift lets the merge go.
        scores: by the name in the table.
    """

    number: int
    data: str
    fresh: Key
    corpus: Key
    tokens: Key
    bags: Key
    member: Key
    everyone: Key
    ensemble: Key
    candidate: Key
    pair: Key
    search: Key
    bound: Key
    merge: Key
    drift: Key
    scores: Mapping[str, Key]
    published: Key

    @property
    def name(self) -> str:
        """What tables and scores call the new version."""
        return f"v{self.number}"


@dataclass(frozen=True)
class TableKeys(Keys):
    """Keys whose models are those of an update's table."""

    table: Mapping[str, Key] = field(default_factory=dict)

    @property
    def models(self) -> dict[str, Key]:
        return dict(self.table)


def _key(kind: str, label: str, *inputs: Any) -> Key:
    return Key(kind, label, identity(["update", _VERSION, kind, *inputs]))


def data_digest(settings: Update, world: World) -> str:
    """Names the new data: what their sources hold, and how they are read."""
    return identity([_without_paths(settings), world.sources])


def _without_paths(settings: Update) -> list[dict[str, Any]]:
    datasets = settings.model_dump(mode="json")["datasets"]
    return [{name: value for name, value in dataset.items() if name != "path"} for dataset in datasets]


def derive_update(recipe: Recipe, settings: Update, world: World, stand: Stand, run: Keys) -> UpdateKeys:
    """All identities of an update.

    Args:
        recipe: of the run, with what the update's recipe changes.
        world: digests of the new data and of all evaluation sets.
        run: keys of the run that made the first version.
    """
    dump, number = recipe.model_dump(mode="json"), stand.version.number + 1
    label, seed, base = f"v{number}", recipe.seed, run.base
    cleaning = {k: v for k, v in dump["corpus"].items() if k not in ("datasets", "dev", "mine")}
    sources = [_without_paths(settings), world.sources, world.sets, cleaning]
    fresh = _key("corpus", f"{label}-new", sources, seed, stand.corpus.identity)
    corpus = _key("corpus", label, stand.corpus.identity, fresh.identity)
    tokens = _key("tokens", label, run.start.identity, stand.tokens.identity, corpus.identity)
    dev = [dump["corpus"]["dev"], seed]
    bags = _key("bags", label, stand.bags.identity, corpus.identity, settings.core, dev)
    init = base if settings.init == "base" else stand.model
    member = _key("members", f"{label}-member", dump["train"], init.identity, tokens.identity, bags.identity, number)
    merging = [dump["merge"][name] for name in ("method", "task_vectors", "shard_size")]
    all_members = [m.key.identity for m in stand.members] + [member.identity]
    everyone = _key("grams", f"{label}-all", all_members, base.identity)
    scaled = [scale] if (scale := recipe.merge.scale) != 1.0 else []
    ensemble = _key("merges", f"{label}-all", merging, everyone.identity, *scaled)
    candidate = ensemble if settings.weights == "ensemble" else member
    pair = _key("grams", label, [stand.model.identity, candidate.identity], base.identity)
    searching = {k: v for k, v in dump["search"].items() if k != "actors"}
    search = _key("search", label, searching, merging, pair.identity, tokens.identity, bags.identity, seed)
    target: list[Any] = [settings.weights, pair.identity]
    target += [settings.share] if settings.weights == "fixed" else []
    target += [search.identity] if settings.weights == "searched" else []
    limit = [settings.max_drift, settings.probe] if settings.max_drift is not None else None
    bound = _key("bounds", label, merging, target, limit)
    merge = _key("merges", label, merging, target, limit)
    scored = [recipe.evaluate.cap, world.sets, corpus.identity, dev, recipe.evaluate.prompts, world.tasks]
    exact = [recipe.evaluate.precision] if recipe.evaluate.precision != "float32" else []
    scored += exact
    models = {"base": base, stand.score_name: stand.model, f"{label}-member": member, label: merge}
    if not recipe.evaluate.members:
        del models[f"{label}-member"]
    scores = {name: _key("scores", name, scored, model.identity) for name, model in models.items()}
    compared = [stand.model.identity, merge.identity, recipe.evaluate.cap, world.sets, world.tasks, *exact]
    drift = _key("drift", label, *compared)
    data = data_digest(settings, world)
    made = [merge.identity, drift.identity, [key.identity for key in scores.values()]]
    published = _key("published", f"{recipe.name}-{label}", made, stand.version.key.identity, data)
    corpora = (fresh, corpus, tokens, bags, member, everyone, ensemble, candidate, pair)
    return UpdateKeys(number, data, *corpora, search, bound, merge, drift, scores, published)


def pair_keys(keys: UpdateKeys, stand: Stand, run: Keys, core: float) -> TableKeys:
    """The update as a run of two members: the current model, which has seen all old rows, and the candidate."""
    models = {"base": run.base, stand.score_name: stand.model, keys.member.label: keys.member, keys.name: keys.merge}
    rules = (BagRule("subset", 1.0, 0, label="all old rows"), BagRule("subset", core, 1, label=core_label(core)))
    return TableKeys(
        corpus=keys.corpus,
        mined=keys.corpus,
        start=run.start,
        tokens=keys.tokens,
        bags=keys.bags,
        base=run.base,
        members=(stand.model, keys.candidate),
        grams=keys.pair,
        search=keys.search,
        merges={keys.name: keys.merge},
        scores=keys.scores,
        published=keys.published,
        rules=rules,
        averages={},
        table=models,
    )


def core_label(core: float) -> str:
    return f"new rows and {100 * core:.3g} % of the old" if core else "new rows"


def training_keys(keys: UpdateKeys, stand: Stand, run: Keys, settings: Update) -> TableKeys:
    """The same for the training of the new member, from what it starts from."""
    init = run.base if settings.init == "base" else stand.model
    return replace(pair_keys(keys, stand, run, settings.core), members=(stand.model, keys.member), base=init)


def retrain_keys(recipe: Recipe, keys: UpdateKeys, run: Keys, world: World) -> Keys:
    """A full retrain: all members of the recipe on old and new rows, from the run's own base."""
    whole = replace(world, sources=("retrain", keys.corpus.identity))
    found = derive_keys(recipe, whole)
    bags = _key("bags", "retrain", found.bags.identity, keys.bags.identity)
    return replace(
        found,
        corpus=keys.corpus,
        mined=keys.corpus,
        start=run.start,
        tokens=keys.tokens,
        bags=bags,
        base=run.base,
    )
