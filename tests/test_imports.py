"""The shape of the house: arrows run one way, each heavy library has its rooms, and light modules stay light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import boom_ray

ROOT = Path(boom_ray.__file__).parent
# A room may import itself and what stands before it. Rooms of one line do not know one another.
ORDER = [
    ("redact",),
    ("config",),
    ("exit_codes", "paths"),
    ("catalogue", "model_files"),
    ("stores",),
    ("recipe", "ledger", "resources", "encoder"),
    ("cluster",),
    ("placement", "failures"),
    ("records", "chain"),
    ("base",),
    ("data", "merge", "evaluate"),
    ("plan", "costs", "progress"),
    ("overlaps", "digests"),
    ("train",),
    ("search",),
    ("study",),
    ("report",),
    ("runs",),
    ("stages", "contenders"),
    ("pipeline", "submit", "push", "inspection", "ratio_run", "demo"),
    ("weight_search", "study_stages"),
    ("study_run",),
    ("update",),
    ("bench",),
    ("commands",),
    ("cli",),
    ("__main__",),
]
INSIDE_A_LINE = {("costs", "plan")}  # pairs (from, to) that are allowed all the same
RAY = {
    "data.corpus", "data.workers", "data.actors", "data.feed", "train.worker", "train.ensemble", "train.gate",
    "search.trials", "search.rounds", "evaluate.actors", "stages.final", "stages.merging", "stages.tasks", "pipeline",
    "update.stages", "search.ratios", "search.ratio_judge", "train.asked", "train.word", "train.watchdog",
    "train.causes", "train.rendezvous", "cluster.session", "cluster.autoscale", "cluster.jobs_api",
    "cluster.spot_notice", "cluster.one_machine", "cluster.orphans",
}  # fmt: skip
ONLY = {
    "deepspeed": {"train.engine", "train.state"},
    "peft": {"train.lora"},
    "mteb": {
        "evaluate.tasks",
        "evaluate.local_tasks",
        "evaluate.cutting",
        "evaluate.keeping",
        "evaluate.score",
        "evaluate.results",
        "evaluate.vectors",
        "evaluate.benchmarks",
        "evaluate.downloads",
        "bench.evaluate_jobs",
        "evaluate.drift",
    },
    "optuna": {"search.searchers", "search.analysis"},
    "numba": {"merge.kernels", "merge.vectors"},
    "typer": {
        "cli",
        "commands.analyze",
        "commands.bench",
        "commands.corpus",
        "commands.demo",
        "commands.drift",
        "commands.evaluate",
        "commands.plan",
        "commands.push",
        "commands.ratios",
        "commands.search",
        "commands.study",
        "commands.submit",
        "commands.update",
    },
    "rich": {"progress", "cli", "demo.show"},
}
HEAVY = ("torch", "ray", "transformers", "sentence_transformers", "mteb", "deepspeed", "numba", "pyarrow", "datasets")
HEAVY += ("matplotlib", "sklearn", "scipy", "optuna", "tokenizers", "huggingface_hub", "pandas")


@cache
def _modules() -> dict[str, ast.Module]:
    """Every module below boom_ray, by its name without ``boom_ray.``; the package itself is ``""``."""
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(file.read_text(), str(file))
    return found


def _imports(tree: ast.AST, lazy: bool = True) -> Iterator[str]:
    """Dotted names of imported modules; those under ``if TYPE_CHECKING`` are left out, those in functions by choice."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not lazy:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from _imports(node, lazy)


def _own(name: str) -> str | None:
    """The module of boom_ray that an imported name lies in."""
    if name != "boom_ray" and not name.startswith("boom_ray."):
        return None
    inner = name.removeprefix("boom_ray").removeprefix(".")
    while inner not in _modules():
        inner = inner.rpartition(".")[0]
    return inner


def _room(module: str) -> str:
    return module.partition(".")[0]


def _rank(room: str) -> int:
    return next(i for i, line in enumerate(ORDER) if room in line)


def test_every_room_has_its_place():
    rooms = {_room(module) for module in _modules()} - {"", "bench"}
    assert rooms <= {room for line in ORDER for room in line}


@pytest.mark.parametrize("module", [m for m in _modules() if _room(m) not in ("", "bench")])
def test_arrows_run_one_way(module):
    room = _room(module)
    for name in _imports(_modules()[module]):
        target = _own(name)
        if target is None or _room(target) == room:
            continue
        assert target != "", f"boom_ray.{module} imports the package: import the module"
        arrow = (room, _room(target))
        allowed = _rank(arrow[1]) < _rank(room) or arrow in INSIDE_A_LINE
        assert allowed, f"boom_ray.{module} imports boom_ray.{target}: the arrow runs back"


def test_no_cycle_between_modules():
    """Also inside a room: what is imported at the top of modules is a graph without cycles."""
    edges = {m: {t for n in _imports(tree, lazy=False) if (t := _own(n))} - {m} for m, tree in _modules().items()}
    while edges:
        free = {module for module, targets in edges.items() if not targets & edges.keys()}
        assert free, f"cycle among {sorted(edges)}"
        edges = {module: targets for module, targets in edges.items() if module not in free}


@pytest.mark.parametrize("module", list(_modules()))
def test_heavy_libraries_stay_in_their_rooms(module):
    libraries = {name.partition(".")[0] for name in _imports(_modules()[module])}
    assert "ray" not in libraries or module in RAY
    for library, rooms in ONLY.items():
        assert library not in libraries or module in rooms, f"boom_ray.{module} imports {library}"
    if _room(module) == "merge":
        assert not libraries & {"torch", "ray", "deepspeed", "transformers"}
    if module == "train.loop":
        assert not libraries & {"ray", "deepspeed"}


def _loaded(*modules: str) -> set[str]:
    """Top-level names in ``sys.modules`` of a fresh process after importing some modules."""
    script = f"import {', '.join(modules)}, json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_light_modules_load_nothing_heavy():
    light = ("boom_ray", "boom_ray.cli", "boom_ray.config", "boom_ray.ledger", "boom_ray.plan", "boom_ray.resources")
    light += ("boom_ray.placement", "boom_ray.train.placing", "boom_ray.report.gantt")
    assert not _loaded(*light, "boom_ray.costs", "boom_ray.pipeline") & set(HEAVY)


def test_the_training_loop_runs_without_ray_and_deepspeed():
    assert not _loaded("boom_ray.train.loop", "boom_ray.train.member") & {"ray", "deepspeed", "mteb"}


def test_the_merge_runs_without_torch():
    merge = [f"boom_ray.{m}" for m in _modules() if m.startswith("merge.")]
    assert not _loaded(*merge) & {"torch", "ray", "deepspeed", "transformers", "mteb"}


def test_no_environment_is_changed_by_an_import():
    """``os.environ`` is read and set in functions only."""
    for module, tree in _modules().items():
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert "os.environ" not in ast.unparse(node), module
