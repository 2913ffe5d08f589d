"""What a user asks for on top of a set: how many of its texts, which prompts before them, and how exact."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from boom_ray.config import BoomError
from boom_ray.evaluate.sets import EvalSet

Cap = int | Mapping[str, int | None] | None
SIDES = ("query", "document")
MTEB_TYPES = (
    "BitextMining", "Classification", "MultilabelClassification", "Clustering", "PairClassification", "Regression",
    "Reranking", "Retrieval", "STS", "Summarization", "InstructionRetrieval", "InstructionReranking",
    "ZeroShotClassification",
)  # fmt: skip


def snake_case(mteb_type: str) -> str:
    """mteb's name of a task type as ours: ``PairClassification`` is ``pair_classification``, ``STS`` is ``sts``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", mteb_type).lower()


_OF_MTEB = {snake_case(name): name for name in MTEB_TYPES}


def asked(
    sets: Sequence[EvalSet], cap: Cap = None, prompts: Mapping[str, str] | None = None, precision: str | None = None
) -> list[EvalSet]:
    """The sets with the cap and the prompts that concern them.

    Args:
        sets: entries; what they carry already stays where nothing is asked for here.
        cap: texts per set at most, or ``{NAME: cap or None}`` where NAME is a set, its task, a task type or
            ``default``, the most exact first. None: whole sets.
        prompts: by mteb's keys, the most exact first: ``TASK-query``, ``TASK-document``, ``TASK``, the same of a task
            type, written as mteb's or ours (``STS``, ``sts``), then ``query`` and ``document``.
        precision: that linear layers compute in, ``float32`` or ``bfloat16``.

    Raises:
        BoomError: a key of ``cap`` or ``prompts`` that names nothing here.
    """
    named = {n for e in sets for n in (e.name, e.result_name)}
    if isinstance(cap, Mapping):
        _check(cap, named | {*_OF_MTEB, *MTEB_TYPES, "default"}, "cap")
    given = {_mteb_key(key): text for key, text in (prompts or {}).items()}
    _check([_target(key) for key in given], named | {*MTEB_TYPES, *SIDES}, "prompts")
    found = []
    for entry in sets:
        concerned = (entry.result_name, mteb_type(entry.task_type), *SIDES)
        mine = tuple(sorted((key, text) for key, text in given.items() if _target(key) in concerned))
        with_prompts = replace(entry, prompts=mine or entry.prompts)
        found.append(replace(with_prompts, cap=_cap_of(entry, cap), precision=precision or entry.precision))
    return found


def read_prompts(file: Path) -> dict[str, str]:
    """Prompts of a YAML or JSON file, one mapping of text to text.

    Raises:
        BoomError: no such file, or something else in it.
    """
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BoomError(f"prompts file {file} cannot be read: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(x, str) for pair in found.items() for x in pair):
        raise BoomError(f"prompts file {file} must map task, task type or side to a text, as in 'query: \"query: \"'.")
    return found


def read_cap(given: Sequence[str]) -> Cap:
    """The cap of ``--cap 500`` or of ``--cap default=500 --cap NAME=100 --cap NAME=none``.

    Raises:
        BoomError: something else, or a cap below 10.
    """
    caps: dict[str, int | None] = {}
    for item in given:
        name, _, number = item.rpartition("=")
        if number.isdigit() and int(number) >= 10:
            caps[name or "default"] = int(number)
        elif number == "none" and name:
            caps[name] = None
        else:
            raise BoomError(f"--cap {item}: a number of texts from 10 up, NAME=NUMBER or NAME=none.")
    return caps["default"] if list(caps) == ["default"] else caps or None


def general(cap: Cap, prompts: Mapping[str, str], names: Collection[str] = ()) -> tuple[Cap, dict[str, str]]:
    """What of a cap and of prompts holds for other sets than they were written for: nothing that names another set.

    Args:
        names: of those other sets.
    """
    kinds = {*_OF_MTEB, *MTEB_TYPES, *SIDES, "default", *names}
    of_kinds = {key: most for key, most in cap.items() if key in kinds} or None if isinstance(cap, Mapping) else cap
    return of_kinds, {key: text for key, text in prompts.items() if _target(key) in kinds}


def mteb_type(task_type: str) -> str:
    """mteb's name of a task type that is written in snake case."""
    return _OF_MTEB.get(task_type, task_type)


def _cap_of(entry: EvalSet, cap: Cap) -> int | None:
    if cap is None or isinstance(cap, int):
        return entry.cap if cap is None else cap
    for name in (entry.name, entry.result_name, entry.task_type, mteb_type(entry.task_type), "default"):
        if name in cap:
            return cap[name]
    return entry.cap


def _mteb_key(key: str) -> str:
    """A prompt's key with the task type as mteb writes it."""
    target = _target(key)
    return mteb_type(target) + key[len(target) :]


def _target(key: str) -> str:
    """What a prompt's key is about: a task, a task type or a side."""
    return next((key.removesuffix(f"-{side}") for side in SIDES if key.endswith(f"-{side}")), key)


def _check(keys: Iterable[str], known: set[str], what: str) -> None:
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else "no set here is called like that."
            raise BoomError(f"{what}: '{key}' is no evaluation set, task type or side that is scored here; {hint}")
