"""``boom-ray evaluate`` and ``boom-ray compare``: scores of models, and whether a difference is more than chance."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from boom_ray.commands.plan import Overrides
from boom_ray.config import BoomError
from boom_ray.stores.mirrors import opened, told

if TYPE_CHECKING:
    from boom_ray.contenders import Contender
    from boom_ray.evaluate.compare import Comparison
    from boom_ray.evaluate.sets import EvalSet
    from boom_ray.evaluate.table import ScoreTable
    from boom_ray.runs import Evaluation

Sets = Annotated[
    list[Path] | None,
    typer.Option(
        "--sets",
        help="Folder of evaluation sets (docs/evaluation.md). Repeatable. Default: the run's, or what is kept.",
    ),
]
Benchmarks = Annotated[
    list[str] | None, typer.Option("--benchmark", help="Benchmark of mteb by name, as 'MTEB(eng, v2)'. Repeatable.")
]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="Task of mteb by name. Repeatable.")]
Caps = Annotated[
    list[str] | None,
    typer.Option("--cap", help="Texts per set at most, the same for all models: N, or NAME=N for a set. Repeatable."),
]
Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", help="YAML or JSON of prompts by task, task type or side, instead of the model's own."),
]
Precision = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option(help="What linear layers compute in; bfloat16 is quicker. Default: the run's, else float32."),
]
Results = Annotated[Path, typer.Option(help="mteb result cache; finished sets are not run again.")]
Trained = Annotated[
    list[str] | None,
    typer.Option("--trained", help="Name of a training dataset, to tell in-domain sets. Repeatable."),
]
RunOption = Annotated[
    Path | None,
    typer.Option("--run-dir", help="Run whose sets, cap and training datasets are used. Default: the run MODEL is in."),
]
Actors = Annotated[int | None, typer.Option(min=0, help="Ray actors; 0: none. Default: none on a machine alone.")]
Offline = Annotated[bool, typer.Option("--offline", help="Ask no hub for anything; what is missing is named first.")]


def evaluate(
    models: Annotated[
        list[Path] | None, typer.Argument(help="Sentence-transformers or Hugging Face directories.")
    ] = None,
    sets: Sets = None,
    benchmarks: Benchmarks = None,
    tasks: Tasks = None,
    overrides: Overrides = None,
    run_dir: RunOption = None,
    cap: Caps = None,
    prompts: Prompts = None,
    precision: Precision = None,
    results: Results = Path("results"),
    trained: Trained = None,
    actors: Actors = None,
    offline: Offline = False,
    prefetch: Annotated[bool, typer.Option("--prefetch", help="Download the data that are missing, and stop.")] = False,
) -> None:
    """Score models on evaluation sets and mteb's benchmarks, in-domain and out-of-domain.

    Examples:

      boom-ray evaluate runs/quickstart/published/NAME

      boom-ray evaluate my-model/ other-model/ --sets my_sets/ --cap 500 --trained my_dataset

      boom-ray evaluate my-model/ --benchmark 'MTEB(eng, v2)' --prefetch
    """
    if offline:
        _go_offline()
    if not models and not prefetch:
        raise typer.BadParameter("which model? Give its directory: boom-ray evaluate MODEL --sets FOLDER.")
    models = [opened(model) for model in models or ()]
    given = _evaluation(benchmarks, tasks, cap, prompts, precision, trained)
    asked = _Asked(tuple(sets or ()), given, run_dir, overrides or ())
    entries = asked.entries(models[0] if models else Path())
    if prefetch:
        from boom_ray.evaluate.downloads import prefetch as fetch

        fetch(entries, typer.echo)
        typer.echo("every dataset is there: --offline works from now on.")
        return
    scores = _score(models, entries, asked, results, actors)
    from boom_ray.evaluate.table import table

    for line in score_lines(table(dict(zip(map(told, models), scores, strict=True)), entries)):
        typer.echo(line)
    for line in _remarks(benchmarks or (), entries, asked.trained(models[0])):
        typer.echo(line)
    if len(models) > 1:
        typer.echo(f"which differences are more than chance: boom-ray compare {' '.join(map(str, models))}")


def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Two or more, the reference first: a model directory, a run's directory (RUN:MODEL for one of its "
            "models), or a model's name in the results folder. A1,A2,A3 are training seeds of one; NAME=PATH names it."
        ),
    ],
    sets: Sets = None,
    benchmarks: Benchmarks = None,
    tasks: Tasks = None,
    cap: Caps = None,
    prompts: Prompts = None,
    precision: Precision = None,
    results: Results = Path("results"),
    trained: Trained = None,
    actors: Actors = None,
    offline: Offline = False,
    plot: Annotated[Path | None, typer.Option(help="Forest plot, .png or .svg.")] = None,
    html: Annotated[Path | None, typer.Option(help="The same as one page.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="All numbers.")] = None,
) -> None:
    """Compare models task by task and in the mean, with 95 % intervals and a plain verdict.

    Scores that are kept are used as they are: a run's own, else those in the results folder. With --sets, --benchmark
    or --task, what is missing is scored first.

    Examples:

      boom-ray compare old-model/ new-model/ --sets my_sets/ --plot compare.png

      boom-ray compare runs/first runs/second runs/second:merge-uniform

      boom-ray compare plain=a1/,a2/,a3/ ensemble=b1/,b2/,b3/ --html compare.html
    """
    if offline:
        _go_offline()
    from boom_ray.contenders import find_contender, split_sides
    from boom_ray.overlaps import touched_tasks
    from boom_ray.report.drawing import check_plot

    check_plot(plot)
    sides = {label: [find_contender(name) for name in names] for label, names in split_sides(models).items()}
    if sets or benchmarks or tasks:
        asked = _Asked(tuple(sets or ()), _evaluation(benchmarks, tasks, cap, prompts, precision, trained))
        found = _score_sides(sides, asked, results, actors)
    else:
        found = _kept_sides(sides, results)
    trained_here = {
        name if len(side) == 1 else f"{name} {c.name}": c.directory
        for name, side in sides.items()
        for c in side
        if c.name != "base"  # of a run: its corpus is not what the base was trained on
    }
    _write(replace(found, touched=touched_tasks(trained_here, results)), plot, html, json_file)


@dataclass(frozen=True)
class _Asked:
    """What models are to be scored on, as far as the command line says."""

    folders: tuple[Path, ...]
    given: Evaluation
    run_dir: Path | None = None
    overrides: Sequence[str] = ()

    def entries(self, model: Path) -> list[EvalSet]:
        """The sets, in-domain where this model was trained on them."""
        found = self._found(model)
        return found.sets(found.trained or None)

    def trained(self, model: Path) -> tuple[str, ...]:
        """Names of the datasets that the model was trained on, if known."""
        return self._found(model).trained

    def _found(self, model: Path) -> Evaluation:
        from boom_ray.runs import find_evaluation

        return find_evaluation(model, self.folders, self.run_dir, self.overrides, self.given)


def _evaluation(
    benchmarks: Sequence[str] | None,
    tasks: Sequence[str] | None,
    cap: Sequence[str] | None,
    prompts: Path | None,
    precision: str | None,
    trained: Sequence[str] | None,
) -> Evaluation:
    from boom_ray.evaluate.settings import read_cap, read_prompts
    from boom_ray.runs import Evaluation

    return Evaluation(
        cap=read_cap(cap or ()),
        trained=tuple(trained or ()),
        benchmarks=tuple(benchmarks or ()),
        tasks=tuple(tasks or ()),
        prompts=read_prompts(prompts) if prompts else {},
        precision=precision,
    )


def _go_offline() -> None:
    """Before anything that may ask a hub is imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def _score(
    models: Sequence[Path], entries: Sequence[EvalSet], asked: _Asked, results: Path, actors: int | None
) -> list[dict[str, float]]:
    from boom_ray.evaluate.queue import ModelToScore, evaluate_many

    wanted = [ModelToScore(str(model), str(results), trained=asked.trained(model)) for model in models]
    return evaluate_many(wanted, entries, actors=actors, say=_echo)


def _score_sides(
    sides: Mapping[str, Sequence[Contender]], asked: _Asked, results: Path, actors: int | None
) -> Comparison:
    """Score what is missing, and compare. A set is in-domain where the last model was trained on it."""
    from boom_ray.evaluate.compare import Scored, Task
    from boom_ray.evaluate.compare import compare as compare_models
    from boom_ray.evaluate.results import load_samples

    directories = {c.label: c.directory for side in sides.values() for c in side if c.directory is not None}
    if unknown := [c.label for side in sides.values() for c in side if c.directory is None]:
        raise BoomError(f"{unknown[0]} is neither a model's directory nor a run's: it cannot be scored.")
    models = list(directories.values())
    entries = asked.entries(models[-1])
    scores = dict(zip(directories, _score(models, entries, asked, results, actors), strict=True))
    scored = {
        label: Scored(label, scores[label], load_samples(directory, entries, results=results))
        for label, directory in directories.items()
    }
    return compare_models(
        {name: [scored[c.label] for c in side] for name, side in sides.items()}, [Task.of(entry) for entry in entries]
    )


def _kept_sides(sides: Mapping[str, Sequence[Contender]], results: Path) -> Comparison:
    from boom_ray.contenders import kept
    from boom_ray.evaluate.compare import compare as compare_models

    found = {name: [kept(contender, results) for contender in side] for name, side in sides.items()}
    tasks = {task.name: task for side in found.values() for _, told in side for task in told}
    return compare_models({name: [scored for scored, _ in side] for name, side in found.items()}, tasks.values())


def _write(found: Comparison, plot: Path | None, html: Path | None, json_file: Path | None) -> None:
    from boom_ray.report.comparison import forest, format_comparison, to_json, write_comparison
    from boom_ray.report.drawing import to_file

    files: list[tuple[Path | None, Callable[[Path], bytes]]] = [
        (plot, lambda file: to_file(forest(found), file)),
        (html, lambda _: write_comparison(found).encode()),
        (json_file, lambda _: (json.dumps(to_json(found), indent=1) + "\n").encode()),
    ]
    typer.echo(format_comparison(found))
    for file, made in files:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(made(file))
            typer.echo(f"written: {file}")


def score_lines(scores: ScoreTable) -> list[str]:
    """One line per set and mean, in points: a column per model, named above where there are several."""
    several = len(scores.models) > 1
    lines = [f"{_letter(i)}  {name}" for i, name in enumerate(scores.models)] if several else []
    head = " " * 81 + "".join(f"{_letter(i):>7}" for i in range(len(scores.models)))
    lines += [head] if several else []
    for entry, values in scores.rows:
        lines.append(_line(entry.domain.replace("_", "-"), entry.name, entry.task_type, entry.metric, values))
    return lines + [_line("", label, "", "", values) for label, values in scores.means]


def _line(domain: str, name: str, kind: str, metric: str, values: Sequence[float | None]) -> str:
    cells = "".join("      -" if value is None else f"{100 * value:7.2f}" for value in values)
    return f"{domain:14} {name:32} {kind:15} {metric:16} {cells}"


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else str(number + 1)


def _remarks(benchmarks: Sequence[str], entries: Sequence[EvalSet], trained: Sequence[str]) -> list[str]:
    """What the scores leave out, and how many of the sets the model was not trained for."""
    from boom_ray.evaluate.benchmarks import left_out, zero_shot_share

    share = zero_shot_share(entries, trained or None)
    lines = [] if share is None else [f"zero-shot: {100 * share:.0f} % of the sets"]
    private = left_out(benchmarks) if benchmarks else []
    return lines + ([f"left out, as their data are private: {', '.join(private)}"] if private else [])


def _echo(line: str) -> None:
    print(line, flush=True)
