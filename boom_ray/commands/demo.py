"""``boom-ray search-demo``: type a question, see the nearest texts of the base and of the model side by side."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from boom_ray.config import BoomError

if TYPE_CHECKING:
    from boom_ray.demo.models import Pair
    from boom_ray.demo.passages import Texts
    from boom_ray.demo.search import Side


def search_demo(
    model: Annotated[Path, typer.Argument(help="A model directory, or a run directory (its newest version).")],
    base: Annotated[
        Path | None, typer.Option(help="The model to show beside it. Default: the base of its run or of its card.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Search these text and code files. Default: functions of this environment.")
    ] = None,
    queries: Annotated[
        list[str] | None, typer.Option("--query", help="Answer this, and end. Repeatable. Default: ask for questions.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Texts to show.")] = 5,
    limit: Annotated[int, typer.Option(min=1, help="Passages at most; both models encode each of them once.")] = 2000,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write the answers to --query to standard output as JSON.")
    ] = False,
) -> None:
    """Type a question and see the nearest texts by the base and by the model, side by side.

    An empty line, Ctrl-D or Ctrl-C ends it. What is read and how far it is goes to standard error.

    Examples:

      boom-ray search-demo runs/quickstart

      boom-ray search-demo runs/quickstart --folder docs --query "how is a killed run resumed" --top 3

      boom-ray search-demo my-model/ --base all-MiniLM-L6-v2/ --folder notes --query "tax" --json
    """
    asked = [query.strip() for query in queries or ()]
    if not all(asked):
        raise BoomError("--query is empty. Give a question, or leave it out to be asked.")
    if as_json and not asked:
        raise BoomError("--json writes the answers to --query: give at least one.")
    from boom_ray.demo.models import find_pair
    from boom_ray.demo.passages import from_environment, from_folder
    from boom_ray.demo.show import heading

    pair = find_pair(model, base)
    texts = from_environment(limit) if folder is None else from_folder(folder, limit)
    for line in heading(pair, texts):
        typer.echo(line, err=True)
    _answer(asked, pair, texts, top, as_json)


def _answer(asked: list[str], pair: Pair, texts: Texts, top: int, as_json: bool) -> None:
    from boom_ray.demo.search import answer
    from boom_ray.demo.show import show, to_json

    sides = _load(pair, texts)
    if as_json:
        typer.echo(json.dumps(to_json([answer(query, sides, top) for query in asked], pair, texts), indent=1))
        return
    for query in asked or questions():
        show(answer(query, sides, top), pair, texts.passages)


def _load(pair: Pair, texts: Texts) -> dict[str, Side]:
    from boom_ray.demo.search import BASE, MODEL, load_side
    from boom_ray.demo.show import progress

    plain, sides = [passage.text for passage in texts.passages], {}
    for name, directory in ((BASE, pair.base), (MODEL, pair.model)):
        if directory is not None:
            with progress(name, len(plain)) as advance:
                sides[name] = load_side(directory, plain, advance)
    return sides


def questions() -> Iterator[str]:
    """What a person types, or what is piped in, line by line, up to an empty line or the end.

    Raises:
        BoomError: what is piped in is not UTF-8.
    """
    with suppress(ImportError):
        import readline  # noqa: F401  # lines can be edited and called back

    prompt = "question> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    while True:
        try:
            with _interrupts_end_the_line():
                line = input(prompt).strip()
        except (EOFError, KeyboardInterrupt):
            typer.echo("", err=True)
            return
        except UnicodeDecodeError as error:
            raise BoomError(f"the questions are not UTF-8: {error}.") from None
        if not line:
            return
        yield line


@contextmanager
def _interrupts_end_the_line() -> Iterator[None]:
    """At the prompt Ctrl-C is a way to leave, not the interruption of a command that has work to finish."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
