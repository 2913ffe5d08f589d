"""Many like pieces of work on all cores of the cluster, through Ray Data; results are small and come back in order."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from boom_ray.config import BoomError

_LEAST_BLOCKS = 32  # tasks, unless there are fewer items: enough to share unequal items evenly


@dataclass(frozen=True)
class _Guarded:
    """``work(item)`` on a worker; a user's mistake comes back as a value, because Ray wraps what is raised."""

    work: Callable[[Any], dict[str, Any]]
    items: Sequence[Any]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        index = int(row["id"])
        try:
            result, mistake = self.work(self.items[index]), ""
        except BoomError as error:
            result, mistake = {}, str(error)
        return {"index": index, "result": json.dumps(result), "mistake": mistake}


def on_workers(work: Callable[[Any], dict[str, Any]], items: Sequence[Any]) -> list[dict[str, Any]]:
    """Stream ``items`` through Ray Data, a few to a task; the results (small dicts) in the order of the items.

    Raises:
        BoomError: the first one, in the order of the items, that ``work`` raised.
    """
    if not items:
        return []
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with ray.data.DataContext.current(context):
        blocks = min(len(items), max(_LEAST_BLOCKS, int(4 * ray.cluster_resources().get("CPU", 1))))
        stream = ray.data.range(len(items), override_num_blocks=blocks).map(_Guarded(work, items))
        rows = sorted(stream.iter_rows(), key=lambda row: row["index"])
    for row in rows:
        if row["mistake"]:
            raise BoomError(row["mistake"])
    return [json.loads(row["result"]) for row in rows]
