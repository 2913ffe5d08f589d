"""What a step of the gradient search costs beside the encoding of its batch: a part of ``boom-ray bench search``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from boom_ray.search.points import Point

_BATCH = 32
_STEPS = 10  # one batch of each of the benchmark's datasets


def measure_steps(resident: Any, source: Any, settings: Any, point: Point) -> dict[str, Any]:
    """Median seconds of a step's parts over ``_STEPS`` probe batches of 32 rows at a point.

    ``step``: all of it; ``apply``: the merge into the model; ``slope``: inner products of the gradient with members
    and base; ``chain``: from these to the gradient of weights and scale; ``encode``: the same texts, no gradient.
    """
    import numpy as np

    from boom_ray.merge.methods import Setting
    from boom_ray.search.forms import Direct
    from boom_ray.search.gradient import SpanSlopes, inner_products
    from boom_ray.search.groups import tensor_groups
    from boom_ray.search.objective_rows import judged_rows
    from boom_ray.search.probe import Probe

    probe = Probe(source, judged_rows(source, "a", settings), _BATCH, seed=17)
    slopes = SpanSlopes(resident, probe, settings, relative=False)
    engine, encoder = resident.engine, resident.encoder
    gradients = {n: np.ones(size, np.float32) for n, size in engine.members.floats.items()}
    setting = Setting(point.method, point.of("all"), {}, point.scale, resident.spec.task_vectors)
    form = Direct(resident.grams, setting, tensor_groups(list(gradients), "coarse"))

    def all_inner() -> None:
        for name, array in gradients.items():
            inner_products(engine, name, array)

    slopes(point, 0)  # the first call of every kernel is not counted
    parts: dict[str, list[float]] = {}
    for step in range(_STEPS):
        batch = probe.batch(step)
        _, slope = _timed(parts, "step", slopes, point, step)
        _timed(parts, "apply", resident.apply, point)
        _timed(parts, "slope", all_inner)
        _timed(parts, "chain", form.pull, form.start(), slope)
        _timed(parts, "encode", encoder.encode_tokens, batch.queries + batch.candidates)
    return {"rows": _BATCH, "seconds": {name: statistics.median(found) for name, found in parts.items()}}


def _timed(parts: dict[str, list[float]], name: str, work: Callable[..., Any], *given: Any) -> Any:
    started = time.perf_counter()
    found = work(*given)
    parts.setdefault(name, []).append(time.perf_counter() - started)
    return found


def step_line(found: Mapping[str, Any]) -> str:
    """The figures in a sentence."""
    s = found["seconds"]
    return (
        f"a gradient step on {found['rows']} rows: {s['step']:.2f} s, {s['step'] / s['encode']:.1f} × the encoding of "
        f"its texts ({s['encode']:.2f} s); of that {s['apply']:.3f} s apply, {s['slope']:.3f} s inner products, "
        f"{s['chain']:.3f} s chain rule"
    )
