"""How answers look: two columns on a wide terminal, one list after the other elsewhere, and JSON for scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from boom_ray.demo.models import Pair, prompts_of
from boom_ray.demo.passages import Passage, Texts, describe, one_line
from boom_ray.demo.search import BASE, MODEL, Answer, Hit
from boom_ray.stores.mirrors import told

_WIDE = 100  # columns of a terminal that two lists fit in side by side


def heading(pair: Pair, texts: Texts) -> list[str]:
    """What is shown: the texts, the models, their prompts, and why there is no base."""
    lines = [f"texts: {one_line(describe(texts))}"]
    if pair.base is None:
        lines.append(f"base: none is known, {pair.why}: only the model is shown. Name it with --base DIR.")
    for name, directory in ((BASE, pair.base), (MODEL, pair.model)):
        if directory is not None:
            own = prompts_of(directory)
            prompts = f" (query prompt {own.query!r}, passage prompt {own.passage!r})"
            lines.append(f"{name}: {told(directory)}{prompts if own.query or own.passage else ''}")
    return lines


@contextmanager
def progress(name: str, passages: int) -> Iterator[Callable[[int], None]]:
    """Show on standard error how many passages a model has encoded: a bar on a terminal, else one line."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(Text(f"{name}: encoding {passages:,} passages"), soft_wrap=True)
        yield lambda done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(f"{name}: encoding", total=passages)
        yield lambda done: bars.advance(task, done)


def show(found: Answer, pair: Pair, passages: Sequence[Passage], console: Console | None = None) -> None:
    """Print one answer, to standard output where no console is given."""
    console = console or Console(highlight=False)
    console.print(Text(f"question: {one_line(found.query)}", style="bold"), soft_wrap=True)
    names = _names(pair)
    if console.is_terminal and console.width >= _WIDE and BASE in found.hits:
        console.print(_table(found, names, passages))
        return
    for name, hits in found.hits.items():
        console.print()
        console.print(Text(f"nearest by {names[name]}"), soft_wrap=True)
        for hit in hits:
            passage = passages[hit.passage]
            console.print(Text(_head(hit, name, one_line(passage.place))), soft_wrap=True)
            fit: dict[str, Any] = {"no_wrap": True, "overflow": "ellipsis"} if console.is_terminal else {}
            console.print(Text(f"     {passage.excerpt}"), soft_wrap=not fit, **fit)
    console.print()


def to_json(found: Sequence[Answer], pair: Pair, texts: Texts) -> dict[str, Any]:
    """All answers as plain values; passages with their whole text."""
    return {
        BASE: None if pair.base is None else told(pair.base),
        MODEL: told(pair.model),
        "texts": {
            "origin": texts.origin,
            "passages": len(texts.passages),
            "found": texts.found,
            "left_out": dict(texts.left_out),
        },
        "answers": [
            {
                "query": answer.query,
                **{name: [_plain(hit, name, texts.passages) for hit in hits] for name, hits in answer.hits.items()},
            }
            for answer in found
        ],
    }


def _plain(hit: Hit, name: str, passages: Sequence[Passage]) -> dict[str, Any]:
    passage = passages[hit.passage]
    other = {} if hit.other is None else {f"{_other(name)}_rank": hit.other}
    text = {"place": passage.place, "excerpt": passage.excerpt, "text": passage.text}
    return {"rank": hit.rank, "cosine": round(hit.cosine, 6), **other, **text}


def _head(hit: Hit, name: str, place: str) -> str:
    other = "" if hit.other is None else f"{_other(name)} #{hit.other:<6,}"
    return f"{hit.rank:>3}  {hit.cosine:6.3f}  {other}{place}"


def _table(found: Answer, names: Mapping[str, str], passages: Sequence[Passage]) -> Table:
    """The k-th of both models in one line; the rank that the other one gives it is green where the model has moved it
    up, red where it has moved it down."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    table.add_column("#", justify="right")
    for name in (BASE, MODEL):
        table.add_column("cosine", justify="right")
        table.add_column(f"{_other(name)} #", justify="right")
        table.add_column(Text(names[name]), ratio=1)
    for pair in zip(found.hits[BASE], found.hits[MODEL], strict=True):
        cells = [_cells(hit, name, passages[hit.passage]) for hit, name in zip(pair, (BASE, MODEL), strict=True)]
        table.add_row(str(pair[0].rank), *cells[0], *cells[1])
    return table


def _cells(hit: Hit, name: str, passage: Passage) -> tuple[Text, Text, Group]:
    place = Text(one_line(passage.place), style="bold", overflow="fold")
    excerpt = Text(passage.excerpt, no_wrap=True, overflow="ellipsis")
    return Text(f"{hit.cosine:.3f}"), Text(f"{hit.other:,}", style=_moved(hit, name)), Group(place, excerpt)


def _moved(hit: Hit, name: str) -> str:
    up = (hit.other or hit.rank) - hit.rank  # places that this model ranks it higher than the other one
    up = up if name == MODEL else -up
    return "green" if up > 0 else "red" if up < 0 else "dim"


def _names(pair: Pair) -> dict[str, str]:
    found = {BASE: pair.base, MODEL: pair.model}
    return {name: f"{name}: {folder.resolve().name}" for name, folder in found.items() if folder is not None}


def _other(name: str) -> str:
    return MODEL if name == BASE else BASE
