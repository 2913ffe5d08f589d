"""``boom-ray bench merge``: our merge, the physical limit and mergekit, side by side on members made for it.

The limit reads every member once in blocks of 256 KiB and writes one member's size, on as many threads as there are
cores, and computes nothing. Every variant runs in a process of its own, in turn, several times, each right after a run
of the limit; ratios are medians of such pairs, so that a busy machine slows both. Wall is that of the merge itself,
libraries and kernels loaded (for mergekit: of the process less its import). Memory is the peak of anonymous and shared
pages, sampled every 5 ms; pages of mapped files are the system's cache and not counted. Nothing is flushed to the disk
in any variant, because the limit and mergekit do not.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boom_ray.config import BoomError
from boom_ray.merge.engine import load_kernels
from boom_ray.merge.gram import Grams, gram
from boom_ray.merge.job import MergePlan
from boom_ray.merge.layout import plan_layout, preallocate
from boom_ray.merge.mergekit_recipe import read_recipe
from boom_ray.merge.methods import coefficients
from boom_ray.merge.options import MergeOptions, parse_bytes
from boom_ray.merge.recipe_plan import plan_recipe
from boom_ray.merge.stream import plan_coefficients, write

_BLOCK = 256 << 10
_HIDDEN = 1024
_LAYER = {
    "self_attn.q_proj.weight": (2048, _HIDDEN),
    "self_attn.k_proj.weight": (1024, _HIDDEN),
    "self_attn.v_proj.weight": (1024, _HIDDEN),
    "self_attn.o_proj.weight": (_HIDDEN, 2048),
    "self_attn.q_norm.weight": (128,),
    "self_attn.k_norm.weight": (128,),
    "mlp.gate_proj.weight": (3072, _HIDDEN),
    "mlp.up_proj.weight": (3072, _HIDDEN),
    "mlp.down_proj.weight": (_HIDDEN, 3072),
    "input_layernorm.weight": (_HIDDEN,),
    "post_attention_layernorm.weight": (_HIDDEN,),
}
_MERGEKIT = ["--async-write", "--lazy-unpickle", "--no-write-model-card", "--quiet"]


Pair = tuple[dict[str, float], dict[str, float]]  # measurements of the limit and of the variant run after it


@dataclass(frozen=True)
class MergeBench:
    """What is measured: ``members`` float32 checkpoints of about ``size`` each, ``repeats`` turns.

    Attributes:
        memory: of the constant-memory variants; embedding: share of the elements in the largest tensor;
        mergekit: an interpreter that can import it; cold: members leave the page cache before every run;
        directory: where members and outputs are made (default: a temporary one).
    """

    size: str = "763MB"
    members: int = 5
    repeats: int = 5
    memory: str = "256MB"
    embedding: float = 0.18
    mergekit: str | None = None
    cold: bool = False
    directory: str | None = None


def bench_merge(bench: MergeBench, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Run the benchmark; returns settings, machine and one row per variant: wall, cpu, memory, ratio.

    Raises:
        BoomError: too little disk; a variant that fails.
    """
    root = Path(tempfile.mkdtemp(prefix="boom-ray-bench-", dir=bench.directory))
    try:
        need, free = (bench.members + 2) * parse_bytes(bench.size), shutil.disk_usage(root).free
        if need > free:
            raise BoomError(f"the benchmark needs {need / 1e9:.1f} GB in {root} and {free / 1e9:.1f} GB are free.")
        say(f"making {bench.members} members of {bench.size}")
        models = make_members(root, bench)
        variants = _variants(bench, models, root)
        pairs: dict[str, list[Pair]] = {name: [] for name in variants}
        limit = _own({**_paths(models, root), "kind": "limit", "workers": len(os.sched_getaffinity(0))})
        evict = models if bench.cold else []
        for turn in range(bench.repeats):
            for name in (name for name in variants if name != "mergekit" or turn < 3):
                before = _measure("limit", limit, evict, root)
                pairs[name].append((before, _measure(name, variants[name], evict, root)))
                say(f"turn {turn + 1} {name}: {pairs[name][-1][1]['wall']:.2f} s, limit {before['wall']:.2f} s")
        return {"settings": asdict(bench), "machine": _machine(), "rows": _rows(pairs)}
    finally:
        shutil.rmtree(root, ignore_errors=True)


def make_members(root: Path, bench: MergeBench) -> list[Path]:
    """Members with the tensor shapes of a Qwen3 encoder: a base of normal weights, and 5 % normal change in each."""
    elements = parse_bytes(bench.size) // 4
    per_layer = sum(int(np.prod(shape)) for shape in _LAYER.values())
    vocabulary = max(64, int(elements * bench.embedding) // _HIDDEN)
    layers = max(1, round((elements - vocabulary * _HIDDEN) / per_layer))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, _HIDDEN)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _LAYER.items()}
    shapes["model.norm.weight"] = (_HIDDEN,)
    layout = plan_layout({name: ("F32", shape) for name, shape in shapes.items()}, 260_000_000)
    models = [root / f"member-{k}" for k in range(bench.members)]
    for model in models:
        model.mkdir()
        (model / "config.json").write_text(json.dumps(_config(layers, vocabulary)))
        preallocate(layout, model)
    for number, (name, place) in enumerate(layout.tensors.items()):
        rng = np.random.default_rng(number)
        for start in range(0, place.size, 1 << 22):
            count = min(1 << 22, place.size - start)
            origin = 0.02 * rng.standard_normal(count, dtype=np.float32)
            for model in models:
                with open(model / layout.tensors[name].file, "r+b") as stream:
                    stream.seek(place.offset + 4 * start)
                    stream.write((origin + 0.001 * rng.standard_normal(count, dtype=np.float32)).tobytes())
    return models


def _config(layers: int, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": _HIDDEN,
        "head_dim": 128,
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
        "intermediate_size": 3072,
        "tie_word_embeddings": True,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
    }


def _paths(models: list[Path], root: Path) -> dict[str, Any]:
    return {"models": [str(m) for m in models], "out": str(root / "out"), "grams": str(root / "grams.npz")}


def _own(job: Mapping[str, Any]) -> list[str]:
    return [sys.executable, "-m", "boom_ray.bench.merge", json.dumps(job)]


def _variants(bench: MergeBench, models: list[Path], root: Path) -> dict[str, list[str]]:
    """Commands by name, the limit apart; makes the cached Gram matrix and the recipe they read."""
    cores, common = len(os.sched_getaffinity(0)), _paths(models, root)
    (root / "recipe.yml").write_text(json.dumps(_recipe(models)))
    commands = {}
    for passes in ("two passes", "cached Gram"):
        for reading in ("mmap", bench.memory):
            for workers in dict.fromkeys((cores, 1)):
                name = f"{passes}, {reading}, {workers} worker{'s' if workers > 1 else ''}"
                memory = {"mmap": True} if reading == "mmap" else {"memory": bench.memory}
                commands[name] = _own({**common, "kind": passes, "workers": workers, **memory})
    _measure("Gram", _own({**common, "kind": "Gram"}), [], root)
    if bench.mergekit:
        code = "from mergekit.scripts.run_yaml import main; main()"
        flags = [*_MERGEKIT, "-j", str(cores), "--out-shard-size", "250M"]
        commands["mergekit"] = [bench.mergekit, "-c", code, str(root / "recipe.yml"), str(root / "out"), *flags]
    return commands


def _recipe(models: list[Path]) -> dict[str, Any]:
    entries = [{"model": str(m), "parameters": {"weight": 0.2 * (k + 1)}} for k, m in enumerate(models)]
    return {"merge_method": "multislerp", "dtype": "float32", "models": entries}


def _measure(name: str, command: list[str], evict: list[Path], root: Path) -> dict[str, float]:
    """Run one variant in its own process: seconds of wall and processor, peak bytes of anonymous and shared pages."""
    shutil.rmtree(root / "out", ignore_errors=True)
    for file in (f for model in evict for f in model.iterdir()):
        _evict(file)
    extra = 0.0
    if name == "mergekit":
        started = time.perf_counter()
        subprocess.run([command[0], "-c", "import mergekit.scripts.run_yaml"], check=True, capture_output=True)
        extra = time.perf_counter() - started
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with ThreadPoolExecutor(1) as watcher:
        peak = watcher.submit(_watch, process)
        output, errors = process.communicate()
    wall = time.perf_counter() - started - extra
    if process.returncode:
        raise BoomError(f"benchmark variant '{name}' failed: {errors.strip()[-500:]}")
    found = json.loads(output.splitlines()[-1]) if name != "mergekit" else {"wall": wall, "cpu": peak.result()[1]}
    return {"wall": found["wall"], "cpu": found["cpu"], "memory": float(peak.result()[0])}


def _evict(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _watch(process: subprocess.Popen[str]) -> tuple[int, float]:
    """Peak of RssAnon + RssShmem and the last seen processor seconds, sampled until the process ends."""
    peak, cpu, tick = 0, 0.0, os.sysconf("SC_CLK_TCK")
    while process.poll() is None:
        with suppress(OSError, ValueError, IndexError):
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            fields = {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}
            peak = max(peak, sum(int(fields[key][0]) * 1024 for key in ("RssAnon", "RssShmem") if key in fields))
            stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            cpu = (int(stat[11]) + int(stat[12])) / tick
        time.sleep(0.005)
    return peak, cpu


def _rows(pairs: Mapping[str, list[Pair]]) -> list[dict[str, Any]]:
    limits = [limit for runs in pairs.values() for limit, _ in runs]
    rows = [_row("limit", [(limit, limit) for limit in limits])]
    return rows + [_row(name, runs) for name, runs in pairs.items()]


def _row(name: str, runs: list[Pair]) -> dict[str, Any]:
    medians = {key: statistics.median(run[key] for _, run in runs) for key in ("wall", "cpu", "memory")}
    ratios = {
        f"{key}_ratio": statistics.median(run[key] / limit[key] for limit, run in runs) for key in ("wall", "cpu")
    }
    return {"variant": name, **medians, **ratios, "runs": len(runs)}


def _machine() -> dict[str, Any]:
    return {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0], "kernel": os.uname().release}


def table(result: Mapping[str, Any]) -> str:
    """The rows as plain text."""
    head = f"{'variant':36} {'wall s':>8} {'× limit':>8} {'cpu s':>8} {'× limit':>8} {'memory MB':>10}"
    lines = [
        f"{r['variant']:36} {r['wall']:8.2f} {r['wall_ratio']:8.2f} {r['cpu']:8.2f} {r['cpu_ratio']:8.2f} "
        f"{r['memory'] / 1e6:10.0f}"
        for r in result["rows"]
    ]
    return "\n".join([head, *lines])


def _run_job(job: Mapping[str, Any]) -> None:
    """One variant, inside its own process: prints wall and processor seconds of the work itself."""
    models, out, kind = [Path(m) for m in job["models"]], Path(job["out"]), job["kind"]
    if kind == "Gram":
        gram(models).save(job["grams"])
    _load_kernels()
    started, cpu = time.perf_counter(), time.process_time()
    if kind == "limit":
        _limit(models, out, job["workers"])
    elif kind != "Gram":
        write(_plan(job, models, out))
    print(json.dumps({"wall": time.perf_counter() - started, "cpu": time.process_time() - cpu}))


def _plan(job: Mapping[str, Any], models: list[Path], out: Path) -> MergePlan:
    options = MergeOptions(job["workers"], job.get("memory", "256MB"), job.get("mmap", False), durable=False)
    if job["kind"] == "two passes":
        return plan_recipe(read_recipe(_recipe(models)), out, options)
    weights = [0.2 * (k + 1) for k in range(len(models))]
    values = coefficients("multislerp", Grams.load(job["grams"]), weights)
    return plan_coefficients(values, models, None, out, options=options)


def _load_kernels() -> None:
    """Bring the compiled kernels into the process, as an import does."""
    kernels, one = load_kernels(), np.zeros(1, np.float32)
    sources = np.array([[one.ctypes.data, 0]])
    kernels.gram_piece(sources, np.zeros((1, 2), np.int64), -1, 0, 1, np.zeros(1))
    kernels.combine_piece(sources, np.ones(1), np.array([one.ctypes.data, 0, 0, 0]), 0, 1)


def _limit(models: list[Path], out: Path, workers: int) -> None:
    """Read every file once and write the size of one member, and nothing else."""
    out.mkdir()
    files = [file for model in models for file in sorted(model.glob("*.safetensors"))]
    size = sum(file.stat().st_size for file in models[0].glob("*.safetensors"))

    def read(file: Path) -> None:
        descriptor, buffer = os.open(file, os.O_RDONLY), bytearray(_BLOCK)
        for start in range(0, os.fstat(descriptor).st_size, _BLOCK):
            os.preadv(descriptor, [buffer], start)
        os.close(descriptor)

    def write(part: int) -> None:  # each worker its own file: in one file they would wait for each other
        descriptor, buffer = os.open(out / f"part-{part}", os.O_RDWR | os.O_CREAT), bytes(_BLOCK)
        for start in range(0, size // workers, _BLOCK):
            os.pwrite(descriptor, buffer, start)
        os.close(descriptor)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(read, files))
        list(pool.map(write, range(workers)))


if __name__ == "__main__":
    _run_job(json.loads(sys.argv[1]))
