"""A run directory whose members are there without training: tiny models, each the base plus its own noise."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from boom_ray.config import Recipe, parse_recipe
from boom_ray.data.bagging import draw
from boom_ray.data.membership import corpus_rows
from boom_ray.data.rules import dataset_rules
from boom_ray.ledger import Key, Ledger
from boom_ray.merge.gram import gram
from boom_ray.plan import Keys, World, derive_keys


def small_recipe(base: Path, ratios: tuple[float, ...], search: dict[str, Any]) -> Recipe:
    raw: dict[str, Any] = {"name": "small", "seed": 3, "base": {"model": str(base), "max_tokens": 24}}
    raw |= {"corpus": {"datasets": [{"path": "not-read.jsonl"}], "dev": {"fraction": 0.1, "min_rows": 12}}}
    raw |= {"bags": {"ratios": list(ratios)}, "train": {"temperature": 0.05, "hard_negatives": 2}, "search": search}
    return parse_recipe(raw)


def make_run(
    root: Path, tokens: Path, make_base: Callable[..., Path], ratios: tuple[float, ...] = (0.3, 0.5, 0.8), **search: Any
) -> tuple[Recipe, Ledger, Keys]:
    """Write a run directory up to its Gram matrices; ``search`` is the recipe's section."""
    recipe = small_recipe(make_base(0), ratios, search)
    world = World(sources=("small",), base="small", sets=())
    keys, ledger = derive_keys(recipe, world), Ledger.open(root, recipe.name)
    ledger.write_text("recipe.yaml", recipe.to_yaml())
    ledger.write_text("world.json", json.dumps(dataclasses.asdict(world)))
    for key, content in ((keys.tokens, tokens), (keys.base, make_base(0))):
        _commit(ledger, key, lambda out, content=content: shutil.copytree(content, out, dirs_exist_ok=True))
    rows = corpus_rows(tokens)
    rules = dataset_rules(ledger.read_json(keys.tokens, "datasets.json"))
    drawn = draw(rows, keys.rules, (0.1, 12), recipe.seed, {name: rule.weight for name, rule in rules.items()})
    _commit(ledger, keys.bags, lambda out: (out / "draw.json").write_text(json.dumps(drawn.to_json())))
    for number, key in enumerate(keys.members):
        _commit(ledger, key, lambda out, number=number: _member(make_base(0), out, number))
    members = [ledger.path(key) for key in keys.members]
    _commit(ledger, keys.grams, lambda out: gram(members, ledger.path(keys.base)).save(out / "grams.npz"))
    return recipe, ledger, keys


def _commit(ledger: Ledger, key: Key, fill: Callable[[Path], Any]) -> None:
    with ledger.stage(key) as stage:
        fill(stage.path)


def _member(base: Path, out: Path, number: int) -> None:
    """The base with noise of a tenth of each tensor's own size."""
    shutil.copytree(base, out, dirs_exist_ok=True)
    rng = np.random.default_rng(number)
    state = load_file(base / "model.safetensors")
    noisy = {
        name: (value + 0.1 * value.std() * rng.standard_normal(value.shape)).astype(value.dtype)
        for name, value in state.items()
    }
    save_file(noisy, out / "model.safetensors", metadata={"format": "pt"})
