"""``boom-ray bench update``: what an update gains, costs and breaks, on real data, in parts that can be run one by one.

``main``: base, current model, update and full retrain, for each seed. ``grid``: both initialisations, core shares and
merge weights, one seed. ``chain``: the new data in five parts, one update each, by merge weight. Everything is made in
run directories below ``directory`` and found again there, so a part that was interrupted goes on.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from boom_ray.bench.train import local_model, machine
from boom_ray.config import BoomError
from boom_ray.report.layout import duration

Say = Callable[[str], None]
PARTS = ("main", "grid", "chain")
_INITS, _CORES, _WEIGHTS = ("base", "current"), (0.1, 0.2, 0.4), ("fixed", "mass", "searched")
_CHAINED = ("fixed", "mass", "ensemble")
_GROUPS = ("in_domain", "out_of_domain", "new_domain")
_RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class UpdateBench:
    """What is run.

    Attributes:
        data: directory with ``train``, ``new_domain_train`` and ``eval/{in_domain,out_of_domain,new_domain}``.
        directory: of everything that is made.
        rows: of the old corpus, stratified over the files of ``train``; max_tokens: of a text.
        precision: that members compute in; their weights and optimiser stay in float32.
        negatives: hard negatives of a row at most.
        cap: texts that the sets of a group (old in-domain, out-of-domain, new domain) have together, in equal shares,
            the same for all models; None: whole sets.
        pieces: that the new data are cut into for ``chain``.
        trials, judged: of a search of an update's weights, and the rows of each dataset that it judges by.
    """

    data: str
    directory: str
    model: str
    seeds: tuple[int, ...] = (17, 18, 19)
    rows: int = 10_000
    max_tokens: int = 64
    batch: int = 64
    learning_rate: float = 1e-4
    precision: str = "bfloat16"
    negatives: int = 1
    cap: int | None = 3000
    pieces: int = 5
    trials: int = 12
    judged: int = 25


def bench_update(bench: UpdateBench, parts: Sequence[str], say: Say = lambda line: None) -> dict[str, Any]:
    """Carry out parts; returns settings, machine, and the rows of each part that has results, of earlier calls too.

    Raises:
        BoomError: missing or bad data.
    """
    if "main" in parts:
        for seed in bench.seeds:
            _keep(bench, f"main-{seed}", _main(bench, seed, say))
    if "grid" in parts:
        _keep(bench, "grid", list(_grid(bench, say)))
    if "chain" in parts:
        _keep(bench, "chain", list(_chain(bench, say)))
    return {"settings": asdict(bench), "machine": machine(), "parts": _kept(bench)}


def _keep(bench: UpdateBench, name: str, rows: Any) -> None:
    folder = Path(bench.directory) / "results"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _kept(bench: UpdateBench) -> dict[str, Any]:
    files = sorted((Path(bench.directory) / "results").glob("*.json"))
    return {file.stem: json.loads(file.read_text("utf-8")) for file in files}


def plan_lines(bench: UpdateBench, parts: Sequence[str], rows_per_second: float, seconds_per_model: float) -> list[str]:
    """What each part trains and scores, and about how long that takes, at speeds that the caller assumes.

    Raises:
        BoomError: an unknown part, or data that are not there.
    """
    for part in parts:
        if part not in PARTS:
            raise BoomError(f"bench update has no part '{part}': it has {', '.join(PARTS)}.")
    new = sum(lines_of(file) for file in _files(Path(bench.data) / "new_domain_train"))
    old = bench.rows
    full, cores = sum(_RATIOS), {core: core * old + new for core in _CORES}
    counted = {  # rows trained on, models scored
        "main": (len(bench.seeds) * (full * (old + old + new) + cores[0.4]), len(bench.seeds) * 7),
        "grid": (full * old + len(_INITS) * sum(cores.values()), 4 + len(_INITS) * len(_CORES) * len(_WEIGHTS)),
        "chain": (full * old + bench.pieces * (0.4 * (old + new / 2) + new / bench.pieces), 4 + 3 * bench.pieces),
    }
    lines = [f"{'part':8} {'rows trained on':>16} {'models scored':>14} {'about':>10}"]
    for part in parts:
        rows, models = counted[part]
        seconds = rows / rows_per_second + models * seconds_per_model
        lines.append(f"{part:8} {rows:>16,.0f} {models:>14} {duration(seconds):>10}")
    lines.append(
        f"{old:,} old rows, {new:,} new rows; at {rows_per_second:g} rows a second and {seconds_per_model:g} s to "
        "score a model. The run of the first seed serves all parts."
    )
    return lines


def stratified(files: Sequence[Path], rows: int) -> list[dict[str, Any]]:
    """Entries of ``corpus.datasets`` with caps in proportion to the rows of the files, in sum ``rows``."""
    counts = [lines_of(file) for file in files]
    exact = [min(rows, sum(counts)) * count / sum(counts) for count in counts]
    caps = [int(value) for value in exact]
    order = sorted(range(len(files)), key=lambda i: (caps[i] - exact[i], i))
    for i in order[: min(rows, sum(counts)) - sum(caps)]:
        caps[i] += 1
    return [{"path": str(file), "cap": cap} for file, cap in zip(files, caps, strict=True) if cap]


def caps(evaluation: Path, texts: int | None) -> dict[str, int] | None:
    """Cap of every set below ``evaluation``: each group of sets has ``texts``; ``default`` is of the new domain's.

    The interval of a mean hangs on the texts behind it: at one cap for all, three sets of a new domain would have a
    sixth of those of 19 in-domain sets.
    """
    if texts is None:
        return None
    names = {group: [folder.name for folder in sorted(evaluation.glob(f"{group}/*/"))] for group in _GROUPS}
    shares = {group: max(10, texts // max(1, len(found))) for group, found in names.items()}
    old = {name: shares[group] for group in _GROUPS[:2] for name in names[group]}
    return {**old, "default": shares["new_domain"]}  # a run knows no set of the new domain by its name


def lines_of(file: Path) -> int:
    with gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb") as stream:
        return sum(1 for line in stream if line.strip())


def _files(folder: Path) -> list[Path]:
    found = sorted((*folder.glob("*.jsonl.gz"), *folder.glob("*.jsonl")))
    if not found:
        raise BoomError(f"{folder} holds no .jsonl.gz: bench update needs data with train and new_domain_train.")
    return found


def recipe_of(bench: UpdateBench, seed: int) -> dict[str, Any]:
    """The recipe of a run with its update, as plain values."""
    data = Path(bench.data).resolve()
    evaluation = data / "eval"
    return {
        "name": f"update-{seed}",
        "seed": seed,
        "base": {"model": str(local_model(bench.model)), "max_tokens": bench.max_tokens},
        "corpus": {"datasets": stratified(_files(data / "train"), bench.rows)},
        "bags": {"ratios": list(_RATIOS)},
        "train": {
            "batch_size": bench.batch,
            "learning_rate": bench.learning_rate,
            "temperature": 0.05,
            "hard_negatives": bench.negatives,
            "precision": bench.precision,
        },
        "resources": {"max_width": 1},
        "merge": {"weights": "ratio"},
        "search": {"trials": 4, "max_rows": 10, "precision": "bfloat16"},  # of the run: nothing here hangs on it
        "evaluate": {
            "sets": [str(evaluation / "in_domain"), str(evaluation / "out_of_domain")],
            "cap": caps(evaluation, bench.cap),
            "precision": "bfloat16",
            "members": False,
        },
        "update": {
            "datasets": [{"path": str(data / "new_domain_train")}],
            "sets": [str(evaluation / "new_domain")],
        },
    }


def _run(bench: UpdateBench, seed: int, say: Say) -> tuple[Path, Path]:
    """The recipe's file and the run directory, its first version published."""
    import yaml

    from boom_ray.pipeline import run

    home = Path(bench.directory)
    home.mkdir(parents=True, exist_ok=True)
    file, where = home / f"update-{seed}.yaml", home / f"run-{seed}"
    file.write_text(yaml.safe_dump(recipe_of(bench, seed), sort_keys=False), encoding="utf-8")
    run(file, run_dir=where, echo=say)
    return file, where


def _told(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a part keeps of an update."""
    kept = ("version", "table", "cost", "share", "parts", "bound", "dev", "verdict")
    drift = {"verdict": summary["drift"]["verdict"], "mean": summary["drift"]["mean"]}
    return {**{name: summary[name] for name in kept}, "drift": drift}


def _main(bench: UpdateBench, seed: int, say: Say) -> dict[str, Any]:
    from boom_ray.update.pipeline import update

    file, where = _run(bench, seed, say)
    found = update(file, overrides=[f"update.model={_first(where)}"], run_dir=where, against_retrain=True, echo=say)
    return {"seed": seed, **_told(found.summary)}


def _first(where: Path) -> Path:
    """The run's own version."""
    from boom_ray.update.task import find_place

    place = find_place(where, None, None)
    return place.ledger.path(place.keys.published)


def _grid(bench: UpdateBench, say: Say) -> Iterator[dict[str, Any]]:
    from boom_ray.update.pipeline import update

    file, where = _run(bench, bench.seeds[0], say)
    for init, core, weights in product(_INITS, _CORES, _WEIGHTS):
        say(f"grid: init {init}, core {core:g}, weights {weights}")
        chosen = [f"update.model={_first(where)}", f"update.init={init}", f"update.core={core}"]
        chosen += [f"update.weights={weights}", f"search.trials={bench.trials}", f"search.max_rows={bench.judged}"]
        found = update(file, overrides=chosen, run_dir=where, echo=say)
        yield {"init": init, "core": core, "weights": weights, **_told(found.summary)}


def _chain(bench: UpdateBench, say: Say) -> Iterator[dict[str, Any]]:
    """Five updates in a row; ``since_first`` sets each against the first version, ``table`` against the one before."""
    from boom_ray.update.pipeline import update
    from boom_ray.update.summary import CURRENT, UPDATED, scored_model, table
    from boom_ray.update.task import load_job

    file, where = _run(bench, bench.seeds[0], say)
    pieces = cut(_files(Path(bench.data) / "new_domain_train"), bench.pieces, Path(bench.directory) / "pieces")
    for weights in _CHAINED:
        model, first = _first(where), None
        groups: Mapping[str, str] = {}
        for number, piece in enumerate(pieces, start=1):
            say(f"chain: weights {weights}, piece {number} of {len(pieces)}")
            chosen = [f"update.model={model}", f"update.weights={weights}"]
            chosen += [f"update.datasets={json.dumps([{'path': str(piece)}])}"]
            found = update(file, overrides=chosen, run_dir=where, echo=say)
            job = load_job(file, chosen, where, say)
            first = first or scored_model(job, CURRENT, job.keys.scores[job.stand.score_name])
            groups = groups or found.summary["groups"]  # to the next update the new domain is an old one
            since_first = table([first, scored_model(job, UPDATED, job.keys.scores[job.keys.name])], groups)
            model = found.published
            yield {"weights": weights, "piece": number, "since_first": since_first, **_told(found.summary)}


def cut(files: Sequence[Path], count: int, out: Path) -> list[Path]:
    """Folders with every ``count``-th row of each file, as jsonl: stratified pieces."""
    folders = [out / f"piece-{number}" for number in range(1, count + 1)]
    for file in files:
        with (
            gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else open(file, encoding="utf-8") as stream
        ):
            rows = [line for line in stream if line.strip()]
        for number, folder in enumerate(folders):
            folder.mkdir(parents=True, exist_ok=True)
            name = file.name.removesuffix(".gz")
            (folder / name).write_text("".join(rows[number::count]), encoding="utf-8")
    return folders
