"""Many like pieces of work on all cores of the cluster, through Ray Data; results are small and come back in order.

Files that pieces read and write lie where all nodes see them, or in mirrors of a run directory in a bucket: there a
piece names them, and they are brought and sent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boom_ray.cluster.autoscale import cpus_ahead
from boom_ray.config import BoomError
from boom_ray.exit_codes import Infrastructure
from boom_ray.stores.disks import write_told
from boom_ray.stores.mirrors import fetch, made_ready, send

_LEAST_BLOCKS = 32  # tasks, unless there are fewer items: enough to share unequal items evenly


@dataclass(frozen=True)
class Files:
    """What a piece of work reads and writes, by its item: files or folders."""

    reads: Callable[[Any], Iterable[Path]] = lambda item: ()
    writes: Callable[[Any], Iterable[Path]] = lambda item: ()

    def around(self, work: Callable[[Any], Any], item: Any) -> Any:
        """``work(item)``, with its files brought before and sent after."""
        written = list(self.writes(item))
        for path in self.reads(item):
            fetch(path)
        for path in written:
            made_ready(path)
        with write_told(written[0] if written else Path.cwd()):
            result = work(item)
        for path in written:
            send(path)
        return result


@dataclass(frozen=True)
class _Guarded:
    """``work(item)`` on a worker; a user's mistake comes back as a value, because Ray wraps what is raised."""

    work: Callable[[Any], dict[str, Any]]
    items: Sequence[Any]
    files: Files

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        index = int(row["id"])
        try:
            return {"index": index, "result": json.dumps(self.files.around(self.work, self.items[index])), **told()}
        except BoomError as error:
            return {"index": index, "result": "{}", **told(error)}


def told(error: BoomError | None = None) -> dict[str, Any]:
    """A mistake as a value; of none it is empty."""
    return {"mistake": "" if error is None else str(error), "passes": isinstance(error, Infrastructure)}


def raise_told(row: Mapping[str, Any]) -> None:
    """Raise what :func:`told` says.

    Raises:
        BoomError: there was a mistake; Infrastructure, where it may pass.
    """
    if row["mistake"]:
        raise (Infrastructure if row["passes"] else BoomError)(row["mistake"])


def on_workers(
    work: Callable[[Any], dict[str, Any]], items: Sequence[Any], files: Files = Files()
) -> list[dict[str, Any]]:
    """Stream ``items`` through Ray Data, a few to a task; the results (small dicts) in the order of the items.

    What was written is here when it returns.

    Raises:
        BoomError: the first one, in the order of the items, that ``work`` raised.
    """
    if not items:
        return []
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with ray.data.DataContext.current(context), cpus_ahead(len(items)) as cpus:
        blocks = min(len(items), max(_LEAST_BLOCKS, 4 * cpus))
        stream = ray.data.range(len(items), override_num_blocks=blocks).map(_Guarded(work, items, files))
        rows = sorted(stream.iter_rows(), key=lambda row: row["index"])
    for row in rows:
        raise_told(row)
    for path in (path for item in items for path in files.writes(item)):
        fetch(path)
    return [json.loads(row["result"]) for row in rows]
