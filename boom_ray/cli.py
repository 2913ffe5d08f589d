"""The ``boom-ray`` command. It starts at once: nothing heavy is imported before a command needs it."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from boom_ray.cluster import interrupts
from boom_ray.commands import bench, corpus, demo, drift, evaluate, plan, push, search, study, submit, update
from boom_ray.commands.plan import Overrides, RecipeArgument, Replan, RunDir
from boom_ray.config import BoomError
from boom_ray.exit_codes import FAILED, INFRASTRUCTURE, MISTAKE, TERMINATED, Stopped, code_of
from boom_ray.redact import redact
from boom_ray.stores import disks
from boom_ray.stores.mirrors import told

app = typer.Typer(
    name="boom-ray",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="""Train ensembles of text embedding models on bags of a corpus, merge them into one, score and publish it.

    Start with:  boom-ray run jobs/recipes/quickstart.yaml
    """,
)

_AGAIN = "Run the same command again to go on from here."
app.add_typer(bench.app, name="bench")
app.add_typer(corpus.app, name="corpus")
app.add_typer(search.app, name="search")

app.command()(plan.plan)
app.command()(evaluate.evaluate)
app.command()(evaluate.compare)
app.command()(drift.drift)
app.command()(drift.contamination)
app.command()(update.update)
app.command()(update.history)
app.command()(submit.submit)
app.command()(push.push)
app.command()(study.study)
app.command()(demo.search_demo)


@app.command()
def run(recipe: RecipeArgument, overrides: Overrides = None, run_dir: RunDir = None, replan: Replan = False) -> None:
    """Carry out a recipe: corpus, bags, members, merge, scores, publish. A second call finds everything done.

    Examples:

      boom-ray run jobs/recipes/quickstart.yaml

      boom-ray run jobs/recipes/multitask.yaml --set base.model=./my-base --set train.max_steps=200
    """
    from boom_ray.pipeline import run as carry_out
    from boom_ray.report.text import format_tables

    result = carry_out(recipe, overrides=overrides or (), run_dir=run_dir, replan=replan, echo=_echo)
    typer.echo("")
    typer.echo(format_tables(result.summary))
    typer.echo(f"report: {told(result.report)}")
    typer.echo(f"published: {told(result.published)}")


@app.command()
def mine(
    recipe: RecipeArgument,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="Directory, hub name, or a model of the run (member-0). Repeatable: take turns."),
    ] = None,
    count: Annotated[int | None, typer.Option(help="Negatives per row.")] = None,
    ranks: Annotated[tuple[int, int] | None, typer.Option(help="Window of ranks, from and to (exclusive).")] = None,
    share: Annotated[float | None, typer.Option(help="Share of the positive's score that they lie below.")] = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
) -> None:
    """Mine hard negatives in the recipe's own corpus; the result is a new corpus. Options override corpus.mine.

    Examples:

      boom-ray mine recipe.yaml --model all-MiniLM-L6-v2/ --count 7 --ranks 10 210

      boom-ray mine recipe.yaml --model member-0 --model member-1    # members mine for each other
    """
    import json

    import yaml

    from boom_ray.pipeline import mine as carry_out

    given = {"models": model, "count": count, "ranks": ranks, "share": share}
    settings = [f"corpus.mine.{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    result = carry_out(recipe, overrides=(*(overrides or ()), *settings), run_dir=run_dir, echo=_echo)
    for line in mined_lines(result.counts):
        typer.echo(line)
    typer.echo(f"mined: {told(result.corpus)}\nTo train on it, put this into the recipe:")
    typer.echo(yaml.safe_dump({"corpus": {"mine": result.settings.model_dump(mode="json")}}, sort_keys=False))


@app.command()
def merge(
    config: Annotated[Path, typer.Argument(help="A merge recipe in mergekit's YAML (docs/merging.md).")],
    out: Annotated[Path, typer.Argument(help="Directory to write; it appears complete or not at all.")],
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Run directory that the recipe's relative model paths are in.")
    ] = None,
    memory: Annotated[
        str, typer.Option(help="Weights and buffers held at once, beside the interpreter and libraries (about 76 MB).")
    ] = "256MB",
    workers: Annotated[int | None, typer.Option(help="Threads; default: one per core.")] = None,
    mmap: Annotated[bool, typer.Option("--mmap", help="Read through memory mappings: fastest.")] = False,
    shard_size: Annotated[str, typer.Option(help="Largest file of weights.")] = "4GB",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing output by a swap at the end.")
    ] = False,
) -> None:
    """Merge models by a mergekit recipe, streaming, in constant memory.

    Examples:

      boom-ray merge merge.yml merged/ --memory 128MB --workers 2

      boom-ray merge runs/quickstart/published/NAME/mergekit_config.yml half/ --run-dir runs/quickstart
          --set parameters.scale=0.5
    """
    from boom_ray.merge.stream import MergeOptions, in_directory
    from boom_ray.merge.stream import merge as merge_models
    from boom_ray.recipe import apply_overrides, read_yaml

    recipe = apply_overrides(read_yaml(config), overrides or ())
    options = MergeOptions(workers, memory, mmap, overwrite, shard_size)
    typer.echo(f"merged: {merge_models(in_directory(recipe, run_dir) if run_dir else recipe, out, options)}")


@app.command()
def report(
    run: Annotated[Path | None, typer.Argument(help="Run directory.")] = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
) -> None:
    """Print a run's tables and write report/index.html again; works while the run is under way, too.

    Examples:

      boom-ray report runs/quickstart

      boom-ray report runs/quickstart --set bags.ratios='[0.5, 1.0]'   # an earlier variant kept in the same directory
    """
    from boom_ray.report.text import format_tables
    from boom_ray.runs import report as write_report

    directory = run or run_dir
    if directory is None:
        raise BoomError("which run? Give its directory: boom-ray report runs/NAME.")
    summary, page = write_report(directory, overrides=overrides or ())
    typer.echo(format_tables(summary))
    typer.echo(f"report: {told(page)}")


def mined_lines(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """One line per dataset: rows, and texts in their windows of ranks, by what became of them."""
    columns = ("rows", "mined", "unchanged", "negatives", "equal", "label", "margin")
    head = f"{'dataset':32} " + " ".join(f"{name:>10}" for name in columns)
    return [head, *(f"{name:32} " + " ".join(f"{count[c]:>10,}" for c in columns) for name, count in counts.items())]


def _echo(line: str) -> None:
    print(redact(line), flush=True)


def main() -> None:
    """Run the command. A user's mistake ends in one readable message, never a traceback; boom_ray.exit_codes has the
    codes."""
    with interrupts.handled() as stop:
        try:
            app()
        except Stopped as stopped:
            _say(str(stopped), code_of(stopped) if stop.code is None else stop.code)
        except BoomError as error:
            _end(stop, str(error), code_of(error))
        except SystemExit as ended:
            if ended.code == signal.SIGTERM:  # it came while Ray was starting, which takes it for itself
                _end(stop, f"stopped by SIGTERM. {_AGAIN}", TERMINATED)
            if stop.code is not None:
                _end(stop, "", stop.code)
            raise
        except Exception as error:
            if stop.code is None and disks.is_full(error):
                _end(stop, disks.full_text(Path(), error), INFRASTRUCTURE)
            if stop.code is None and (refused := disks.refused_text(error)):
                _end(stop, refused, MISTAKE)
            if stop.code is None and code_of(error) != INFRASTRUCTURE:
                print(redact(traceback.format_exc()), end="", file=sys.stderr)
                sys.exit(FAILED)
            reason = (str(error).strip().splitlines() or [""])[-1]
            _end(stop, f"the cluster has lost what the run needs ({reason}). {_AGAIN}", INFRASTRUCTURE)


def _end(stop: interrupts.Stop, text: str, code: int) -> NoReturn:
    """One line, and the code. Whatever else went wrong after a signal came of the signal."""
    if stop.reason is not None:
        text = str(stop.reason)
    elif stop.signal is not None:
        text = f"stopped by {signal.Signals(stop.signal).name}. {_AGAIN}"
    _say(text, code if stop.code is None else stop.code)


def _say(text: str, code: int) -> NoReturn:
    print(f"boom-ray: {redact(text)}", file=sys.stderr)
    sys.exit(code)
