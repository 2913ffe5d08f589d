"""``boom-ray bench``: ratios measured side by side in one run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from boom_ray.config import BoomError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Benchmarks: ratios measured side by side.")

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the figures here, too.")]


@app.command("merge")
def merge(
    size: Annotated[str, typer.Option(help="Size of one member.")] = "763MB",
    members: Annotated[int, typer.Option(help="Number of members.")] = 5,
    turns: Annotated[int, typer.Option(help="Turns; figures are medians over them.")] = 5,
    memory: Annotated[str, typer.Option(help="What the constant-memory variants may allocate.")] = "256MB",
    cold: Annotated[bool, typer.Option("--cold", help="Members leave the page cache before every run.")] = False,
    mergekit: Annotated[
        str | None, typer.Option(help="Python of an environment with mergekit, to be measured beside ours.")
    ] = None,
    directory: Annotated[str | None, typer.Option(help="Where members are made; default: a temporary one.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Our merge beside the physical limit of this machine, and beside mergekit where it is installed.

    Example:  boom-ray bench merge --size 763MB --json merge.json
    """
    from boom_ray.bench.merge import MergeBench, table
    from boom_ray.bench.merge import bench_merge as measure

    bench = MergeBench(size, members, turns, memory, mergekit=mergekit, cold=cold, directory=directory)
    show(measure(bench, say=say), table, json_file)


@app.command("corpus")
def corpus(
    rows: Annotated[int, typer.Option(min=50_000, help="Rows that both sides tokenise.")] = 500_000,
    turns: Annotated[int, typer.Option(help="Turns; figures are medians over them.")] = 1,
    memory_rows: Annotated[int, typer.Option(help="Measure memory with this many short rows, too; 0: not.")] = 0,
    directory: Annotated[str | None, typer.Option(help="Where rows are made; default: a temporary one.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Rows tokenised per second beside datasets.map, the rate of the feed, the time to resume it, and memory.

    Example:  boom-ray bench corpus --rows 500000 --memory-rows 5000000 --json corpus.json
    """
    from boom_ray.bench.corpus import CorpusBench, table
    from boom_ray.bench.corpus import bench_corpus as measure

    bench = CorpusBench(rows, turns, memory_rows, directory=directory)
    show(measure(bench, say=say), table, json_file)


@app.command("train")
def train(
    data: Annotated[
        Path | None, typer.Option(help="Directory of medquad, scitldr, fairytaleqa, nl2bash (.jsonl.gz).")
    ] = None,
    model: Annotated[str, typer.Option(help="Directory or hub name of the model to train.")] = MINILM,
    batch: Annotated[int | None, typer.Option(help="Rows of a step; default: 96, or 256 with --device cuda.")] = None,
    steps: Annotated[int | None, typer.Option(help="Measured steps of every run; default: 1, with --ray 6.")] = None,
    turns: Annotated[int | None, typer.Option(help="Turns of every variant; default: 3, with --ray 2.")] = None,
    large: Annotated[int, typer.Option(help="Rows of the large batch of lean; 0: not measured.")] = 1024,
    graph_tokens: Annotated[int | None, typer.Option(help="Tokens whose graphs fast keeps; default: all.")] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Ray Train and DeepSpeed beside the plain loop, instead.")] = False,
    device: Annotated[str, typer.Option(help="cuda: a Qwen3-0.6B of random weights on made texts, in bf16.")] = "cpu",
    tiny: Annotated[bool, typer.Option("--tiny", help="The benchmark of --device cuda at a tiny size.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Our training step beside sentence-transformers' two contrastive losses, and beside a limit.

    Example:  boom-ray bench train --data data/train --json train.json
    """
    options = {"batch": batch, "steps": steps, "turns": turns, "graph_tokens": graph_tokens}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if device != "cpu" or tiny:
        from boom_ray.bench.train import ON_GPU, TINY_ON_GPU, bench_device, table

        made, shape, negatives = TINY_ON_GPU if tiny else ON_GPU
        show(bench_device(replace(made, device=device, **given), shape, negatives, say), table, json_file)
    elif data is None:
        raise BoomError("--data DIRECTORY is missing: medquad, scitldr, fairytaleqa and nl2bash as .jsonl.gz.")
    elif ray:
        from boom_ray.bench.train_ray import RayBench, bench_ray
        from boom_ray.bench.train_ray import table as ray_table

        given.pop("graph_tokens", None)
        show(bench_ray(RayBench(str(data), model, **given), say), ray_table, json_file)
    else:
        from boom_ray.bench.train import TrainBench, bench_train, table

        show(bench_train(TrainBench(str(data), model, large=large, **given), say), table, json_file)


@app.command("evaluate")
def evaluate(
    sets: Annotated[Path, typer.Option(help="Folder of evaluation sets, such as data/eval/in_domain.")],
    model: Annotated[str, typer.Option(help="Directory or hub name of the model to score.")] = MINILM,
    turns: Annotated[int, typer.Option(help="Turns of every variant; figures are medians over them.")] = 1,
    cap: Annotated[int | None, typer.Option(help="Texts of an evaluation set at most; default: whole sets.")] = None,
    actors: Annotated[int | None, typer.Option(help="Ray actors of ours; 0: none; default: what is sooner.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Scoring a model, and a second one, beside mteb.evaluate with sentence-transformers called directly.

    Example:  boom-ray bench evaluate --sets data/eval/in_domain --json evaluate.json
    """
    from boom_ray.bench.evaluate import EvaluateBench, bench_evaluate, table

    show(bench_evaluate(EvaluateBench(str(sets), model, turns, cap, actors), say), table, json_file)


@app.command("learn")
def learn(
    data: Annotated[Path, typer.Option(help="Directory with train and eval/in_domain.")],
    directory: Annotated[Path, typer.Option(help="Where everything is made, and found again.")],
    model: Annotated[str, typer.Option(help="Directory or hub name of the model to train.")] = MINILM,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 300,
    every: Annotated[int, typer.Option(help="Steps between two scored models.")] = 100,
    batch: Annotated[int, typer.Option(help="Rows of a step.")] = 64,
    max_tokens: Annotated[int, typer.Option(help="Tokens of a text, in training and in scoring.")] = 64,
    cap: Annotated[int | None, typer.Option(help="Texts of an evaluation set at most; 0: whole sets.")] = 1200,
    json_file: JsonFile = None,
) -> None:
    """In-domain scores of one member, before it trains and while it does.

    Example:  boom-ray bench learn --data data --directory learn --json learn.json
    """
    from boom_ray.bench.learn import LearnBench, table
    from boom_ray.bench.learn import bench_learn as measure

    bench = LearnBench(str(data), str(directory), model, steps, every, batch, max_tokens, cap=cap or None)
    show(measure(bench, say=say), table, json_file)


@app.command("search")
def search(
    data: Annotated[Path, typer.Option(help="Directory of training files, such as data/train.")],
    model: Annotated[str, typer.Option(help="Directory or hub name of the model that members are made of.")] = MINILM,
    directory: Annotated[Path | None, typer.Option(help="Where everything is made; default: a temporary one.")] = None,
    members: Annotated[int, typer.Option(min=2, help="Members: the model plus noise.")] = 5,
    rows: Annotated[int, typer.Option(min=20, help="Rows that every trial of both sides is judged on.")] = 500,
    points: Annotated[int, typer.Option(min=3, help="Points that ours judges, also for the rank correlation.")] = 30,
    turns: Annotated[int, typer.Option(min=1, help="Points that the slower variants judge.")] = 3,
    max_tokens: Annotated[int, typer.Option(min=8, help="Tokens of a text, on both sides.")] = 64,
    negatives: Annotated[int, typer.Option(min=0, help="Negatives of a row at most, on both sides.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Cores of every variant.")] = 2,
    bfloat16: Annotated[bool, typer.Option(help="Ours also with search.precision bfloat16.")] = True,
    json_file: JsonFile = None,
) -> None:
    """Trials per minute of a weight search beside merging to disk, loading and evaluating, on the same rows.

    Also: the share of a trial that is not encoding, what a second trial actor takes in memory, and how well smaller
    proxies rank points. Takes about ten minutes on two cores.

    Example:  boom-ray bench search --data data/train --json search.json
    """
    from boom_ray.bench.search import SearchBench, table
    from boom_ray.bench.search import bench_search as measure

    where = None if directory is None else str(directory)
    bench = SearchBench(str(data), model, where, members, rows, points, turns, negatives, max_tokens, threads)
    show(measure(replace(bench, bfloat16=bfloat16), say), table, json_file)


@app.command("update")
def update(
    data: Annotated[Path, typer.Option(help="Directory with train, new_domain_train and eval.")],
    directory: Annotated[Path, typer.Option(help="Where everything is made, and found again.")],
    part: Annotated[
        list[str] | None,
        typer.Option(help="main (all seeds, against a full retrain), grid or chain. Repeatable; default: all."),
    ] = None,
    model: Annotated[str, typer.Option(help="Directory or hub name of the model to train.")] = MINILM,
    seeds: Annotated[str, typer.Option(help="Of main; grid and chain take the first.")] = "17,18,19",
    rows: Annotated[
        int, typer.Option(min=100, help="Rows of the old corpus, stratified over the training files.")
    ] = 10_000,
    cap: Annotated[
        int | None, typer.Option(help="Texts of each group of sets: in-domain, out-of-domain, new; 0: whole sets.")
    ] = 3000,
    only_plan: Annotated[bool, typer.Option("--plan", help="Say what would be trained and scored, and stop.")] = False,
    rows_per_second: Annotated[float, typer.Option(min=0.01, help="Of training, for the plan.")] = 25.0,
    seconds_per_model: Annotated[float, typer.Option(min=1, help="Of scoring a model, for the plan.")] = 240.0,
    plot: Annotated[Path | None, typer.Option(help="Draw the updates in a row, into a .png or .svg.")] = None,
    json_file: JsonFile = None,
) -> None:
    """What an update gains on a new domain, costs, and breaks: against a full retrain, by setting, and five in a row.

    Hours on two cores: a part that is interrupted goes on when it is called again; results lie in DIRECTORY/results.

    Example:  boom-ray bench update --data data --directory update --part main --seeds 17 --plan
    """
    from boom_ray.bench.update import PARTS, UpdateBench, bench_update, plan_lines
    from boom_ray.bench.update_curve import curve
    from boom_ray.bench.update_table import table
    from boom_ray.report.drawing import check_plot, to_file

    check_plot(plot)
    chosen = tuple(int(seed) for seed in seeds.split(",")) if seeds.replace(",", "").isdigit() else ()
    if not chosen:
        raise BoomError(f"--seeds {seeds}: whole numbers with commas between them, as in 17,18,19.")
    bench = UpdateBench(str(data), str(directory), model, chosen, rows, cap=cap or None)
    parts = part or list(PARTS)
    for line in plan_lines(bench, parts, rows_per_second, seconds_per_model):
        say(line)
    if only_plan:
        return
    found = bench_update(bench, parts, say)
    drawn = curve(found["parts"].get("chain", ()))
    if plot is not None and drawn is not None:
        plot.write_bytes(to_file(drawn, plot))
    show(found, table, json_file)


def show(result: Mapping[str, Any], table: Callable[[Mapping[str, Any]], str], json_file: Path | None) -> None:
    if json_file:
        json_file.write_text(json.dumps(result, indent=1) + "\n")
    typer.echo(table(result))


def say(line: str) -> None:
    print(line, flush=True)
