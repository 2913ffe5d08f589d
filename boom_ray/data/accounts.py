"""Where every row of the corpus went, for one member: exact counts per dataset that have to add up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from boom_ray.config import BoomError
from boom_ray.data.bagging import Bag, Draw, Rows, bag_rows, dev_rows, out_of_bag_rows
from boom_ray.data.schedule import Plan

CLEANED = ("rejected", "decontaminated", "duplicates", "near_duplicates", "capped")  # never became rows of the corpus
PLACES = ("used", "out_of_bag", "dev", "tail", "cut", *CLEANED)

Account = dict[str, int]


def member_account(
    corpus: Mapping[str, Mapping[str, int]], rows: Rows, drawn: Draw, bag: Bag, plan: Plan
) -> dict[str, Account]:
    """Counts by dataset: ``rows_in`` and every place of ``PLACES``; each row that was read is in exactly one.

    ``used``: distinct rows in at least one batch. ``tail``: in the bag, never in a batch, left out of the last pass
    with an incomplete batch. ``cut``: in the bag, and the run ended before they came: at ``train.max_steps``, or after
    a fraction of a pass.

    Args:
        corpus: ``counts.json`` of the corpus; it also has the datasets of which no row is left.

    Raises:
        BoomError: the counts do not add up.
    """
    size = len(rows.dataset)
    used = _mask(size, [batch.rows for batch in plan.batches])
    tail = _mask(size, [plan.tail]) & ~used
    inside = _mask(size, bag_rows(rows, drawn, bag).values())
    masks = {
        "used": used,
        "out_of_bag": _mask(size, out_of_bag_rows(rows, drawn, bag).values()),
        "dev": _mask(size, dev_rows(rows, drawn).values()),
        "tail": tail,
        "cut": inside & ~used & ~tail,
    }
    counted = {place: np.bincount(rows.dataset[mask], minlength=len(rows.names)) for place, mask in masks.items()}
    accounts = {}
    for name, told in corpus.items():
        index = rows.names.index(name) if name in rows.names else None
        own = {place: 0 if index is None else int(numbers[index]) for place, numbers in counted.items()}
        accounts[name] = {"rows_in": told["rows_in"], **own, **{place: told.get(place, 0) for place in CLEANED}}
    _check(accounts, plan)
    return accounts


def _mask(size: int, rows: Iterable[np.ndarray]) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    for part in rows:
        mask[part] = True
    return mask


def check_account(name: str, account: Mapping[str, int]) -> None:
    """Every row that was read is in exactly one place.

    Raises:
        BoomError: it is not.
    """
    total = sum(account[place] for place in PLACES)
    if total != account["rows_in"] or min(account.values()) < 0:
        shown = ", ".join(f"{account[place]} {place}" for place in PLACES)
        raise BoomError(
            f"dataset '{name}': {account['rows_in']} rows were read, but {total} are accounted for: {shown}."
        )


def _check(accounts: Mapping[str, Account], plan: Plan) -> None:
    for name, account in accounts.items():
        check_account(name, account)
        if account["cut"] and not plan.ended_early:
            raise BoomError(f"dataset '{name}': {account['cut']} rows of the bag are in no batch.")
