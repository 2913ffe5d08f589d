"""``boom-ray drift`` and ``boom-ray contamination``: is an index still good, and has a model seen its tests?"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from boom_ray.commands.evaluate import Benchmarks, Caps, Sets, Tasks
from boom_ray.stores.mirrors import opened

if TYPE_CHECKING:
    from boom_ray.evaluate.marks import Mark
    from boom_ray.evaluate.sets import EvalSet
    from boom_ray.evaluate.settings import Cap

RunDir = Annotated[Path | None, typer.Option("--run-dir", help="Run of the model. Default: the run that it is in.")]
KeepIn = Annotated[
    Path | None,
    typer.Option("--run-dir", help="Run of NEW: its sets are used, and its report shows the drift from then on."),
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write all numbers here, too.")]


@dataclass(frozen=True)
class _Wanted:
    """What is to be looked at."""

    folders: tuple[Path, ...]
    benchmarks: tuple[str, ...]
    tasks: tuple[str, ...]
    cap: Cap
    run_dir: Path | None


def drift(
    old: Annotated[Path, typer.Argument(help="The model that the index was made with.")],
    new: Annotated[Path, typer.Argument(help="The model that is to replace it.")],
    sets: Sets = None,
    benchmarks: Benchmarks = None,
    tasks: Tasks = None,
    texts: Annotated[
        list[Path] | None,
        typer.Option("--texts", help="Texts of your own index: .txt, a line each, or JSON lines, parquet… Repeatable."),
    ] = None,
    cap: Caps = None,
    queries: Annotated[int, typer.Option(help="Texts that ask, where a set has no queries of its own.")] = 1000,
    run_dir: KeepIn = None,
    json_file: JsonFile = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it into this file, .png or .svg.")] = None,
) -> None:
    """Compare two versions of a model on the same texts, and say whether an index of the old one may stay.

    Examples:

      boom-ray drift runs/first/published/NAME runs/second/published/NAME --sets my_sets/

      boom-ray drift old/ new/ --texts my_documents.jsonl --plot drift.png
    """
    from boom_ray.evaluate.drift import DriftOptions
    from boom_ray.evaluate.drift import drift as compare
    from boom_ray.evaluate.settings import read_cap
    from boom_ray.overlaps import plain_texts
    from boom_ray.report.drawing import check_plot
    from boom_ray.report.drift import format_drift

    check_plot(plot)
    old, new = opened(old), opened(new)
    limit = read_cap(cap or ())
    own = {file.name: plain_texts(file, limit if isinstance(limit, int) else None) for file in texts or ()}
    wanted = _Wanted(tuple(sets or ()), tuple(benchmarks or ()), tuple(tasks or ()), limit, run_dir)
    entries = [] if own and not (sets or benchmarks or tasks) else _entries(new, wanted)
    told = compare(old, new, entries, own, DriftOptions(queries=queries)).to_json()
    _write_json(json_file, told)
    if plot is not None:
        _draw(told, plot)
    if run_dir is not None:
        _keep_in_run(told, run_dir)
    typer.echo(format_drift(told))


def contamination(
    model: Annotated[Path, typer.Argument(help="A model directory; one in a run directory has a known corpus.")],
    sets: Sets = None,
    benchmarks: Benchmarks = None,
    tasks: Tasks = None,
    training: Annotated[
        list[str] | None,
        typer.Option("--training", help="Training texts: a file, folder or pattern. Repeatable. Default: the run's."),
    ] = None,
    ngram: Annotated[
        int, typer.Option(min=0, help="Words in a row that make a near duplicate; 0: only whole texts count.")
    ] = 13,
    cap: Caps = None,
    run_dir: RunDir = None,
    results: Annotated[
        Path, typer.Option(help="Results of `boom-ray evaluate`: scores without what is touched.")
    ] = Path("results"),
    json_file: JsonFile = None,
) -> None:
    """Say which evaluation sets have test texts that the model was trained on.

    Examples:

      boom-ray contamination runs/quickstart/published/NAME --sets my_sets/

      boom-ray contamination some-model/ --sets my_sets/ --training their_data/*.jsonl.gz
    """
    from boom_ray.evaluate.settings import read_cap
    from boom_ray.overlaps import find_marks, keep_marks, kept_samples, training_texts

    wanted = _Wanted(tuple(sets or ()), tuple(benchmarks or ()), tuple(tasks or ()), read_cap(cap or ()), run_dir)
    model = opened(model)
    entries = _entries(model, wanted)
    texts = training_texts(None if training else _corpus(model, run_dir), training or ())
    samples = {str(model): kept_samples(model, entries, results)}
    marks = find_marks(entries, texts, ngram or None, samples)
    keep_marks(marks, model, results)
    _write_json(json_file, {name: asdict(mark) for name, mark in marks.items()})
    for line in mark_lines(marks):
        typer.echo(line)


def mark_lines(marks: dict[str, Mark]) -> list[str]:
    """One line per set, and what it comes to."""
    head = (
        f"{'set':32} {'texts':>9} {'occur':>7} {'near':>7} {'units':>8} {'touched':>8} {'clean':>7}  training datasets"
    )
    lines = [head]
    for name, m in marks.items():
        clean = next((f"{100 * score:.2f}" for score in m.clean.values() if m.touched), "-")
        counts = f"{m.texts:>9,} {m.exact:>7,} {m.near:>7,} {m.units:>8,} {m.touched:>8,} {clean:>7}"
        lines.append(f"{name:32} {counts}  {', '.join(m.datasets) or '-'}")
    hit = [name for name, m in marks.items() if m.footnote]
    verdict = f"{len(hit)} of {len(marks)} sets have test texts in the training data"
    return [*lines, f"{verdict}: {', '.join(hit)}." if hit else f"{verdict}."]


def _entries(model: Path, wanted: _Wanted) -> list[EvalSet]:
    """The sets that are asked for, else those of the run, with their caps; in-domain or not is no matter."""
    from boom_ray.evaluate.downloads import require_data
    from boom_ray.runs import Evaluation, find_evaluation

    given = Evaluation(cap=wanted.cap, benchmarks=wanted.benchmarks, tasks=wanted.tasks)
    entries = find_evaluation(model, wanted.folders, wanted.run_dir, (), given).sets(None)
    require_data(entries)
    return entries


def _corpus(model: Path, run_dir: Path | None) -> Path | None:
    """The corpus of the run that a model is in, or that is named; None where it is in none."""
    from boom_ray.runs import open_run

    root = opened(run_dir) if run_dir else model.resolve().parent.parent
    if run_dir is None and not (root / "world.json").is_file():
        return None
    _, ledger, keys = open_run(root)
    ledger.manifest(keys.mined)  # says what to do where there is none
    return ledger.path(keys.mined)


def _write_json(file: Path | None, told: Any) -> None:
    if file is not None:
        file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _draw(told: Any, file: Path) -> None:
    from boom_ray.report.drawing import to_file
    from boom_ray.report.drift import drift_figure

    figure = drift_figure(told)
    if figure is not None:
        file.write_bytes(to_file(figure, file))


def _keep_in_run(told: Any, run_dir: Path) -> None:
    from boom_ray.ledger import Ledger
    from boom_ray.report.drift import DRIFT_FILE

    Ledger(run_dir).write_text(DRIFT_FILE, json.dumps(told, indent=1) + "\n")
