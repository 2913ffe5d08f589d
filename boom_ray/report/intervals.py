"""Intervals on the differences that a run's tables show, and how a difference with its interval is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from boom_ray.evaluate.means import LOCAL, even, over_types

if TYPE_CHECKING:
    from boom_ray.evaluate.significance import Bootstrap, Contrast, Interval, Paired, Samples

Summary = Mapping[str, Any]
REFERENCES = ("base", "members", "chosen")


def run_intervals(summary: Summary, samples: Mapping[str, Mapping[str, Samples]], how: Bootstrap | None = None) -> Any:
    """95 % intervals of every difference between a run's models, in score units (0..1).

    Args:
        summary: with ``models``, ``sets`` and ``chosen``.
        samples: ``{model: {set: samples}}``.

    Returns:
        ``{"means": {reference: {model: {mean: [difference, low, high]}}}, "sets": the same by set}``. The model minus
        ``base`` or the ``members``' mean, and the ``chosen`` model minus the model; a mean is one of
        :func:`means_of`. What cannot be known is left out. ``"over_sets": {reference: ...}`` is the chosen model's
        mean over all sets, over other sets.
    """
    from boom_ray.evaluate.significance import Paired

    names = [m["name"] for m in summary["models"] if samples.get(m["name"])]
    paired = Paired({name: samples[name] for name in names}, how)
    means = means_of(summary.get("sets") or [])
    sets = {s["name"]: {s["name"]: 1.0} for s in summary.get("sets") or []}
    contrasts = _contrasts(summary, names)
    return {
        "means": {r: {m: _known(paired, c, means) for m, c in found.items()} for r, found in contrasts.items()},
        "sets": {r: {m: _known(paired, c, sets) for m, c in found.items()} for r, found in contrasts.items()},
        "over_sets": {r: _over_sets(summary, contrasts[r].get(summary.get("chosen") or "")) for r in REFERENCES[:2]},
    }


def _over_sets(summary: Summary, contrast: Contrast | None) -> list[float] | None:
    """The published model's difference in the mean over all sets, over other sets like these; at least three sets, and
    a single member is no mean of members."""
    from boom_ray.evaluate.significance import over_tasks

    scores = {m["name"]: m.get("scores") or {} for m in summary["models"]}
    names = [s["name"] for s in summary.get("sets") or []]
    if contrast is None or contrast.second == ("member-0",) or len(names) < 3:
        return None
    if any(n not in scores[m] for m in contrast.weights for n in names):
        return None
    found = over_tasks(scores, contrast, names)
    return [round(end, 8) for end in (found.difference, found.low, found.high)]


def means_of(sets: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Weights of the sets in each mean: ``in_domain``, ``out_of_domain``, ``tasks`` (all), ``types`` (the mean of their
    means), and ``tasks of NAME`` and ``types of NAME`` for each of several :func:`benchmarks_of`."""
    means: dict[str, dict[str, float]] = {}
    for domain in ("in_domain", "out_of_domain"):
        names = [s["name"] for s in sets if s["domain"] == domain]
        means |= {domain: even(names)} if names else {}
    groups = {
        "": list(sets),
        **{f" of {name}": [s for s in sets if benchmark_of(s) == name] for name in benchmarks_of(sets)},
    }
    for of, group in groups.items():
        if group:
            means[f"tasks{of}"] = even([s["name"] for s in group])
            means[f"types{of}"] = over_types({s["name"]: s["task_type"] for s in group})
    return means


def benchmarks_of(sets: Sequence[Mapping[str, Any]]) -> list[str]:
    """The benchmarks that the sets belong to, ``local sets`` among them; nothing where all belong to one."""
    names = list(dict.fromkeys(benchmark_of(entry) for entry in sets))
    return names if len(names) > 1 else []


def benchmark_of(entry: Mapping[str, Any]) -> str:
    """The benchmark that a set belongs to."""
    return entry.get("benchmark") or LOCAL


def _contrasts(summary: Summary, names: Sequence[str]) -> dict[str, dict[str, Contrast]]:
    from boom_ray.evaluate.significance import Contrast

    members = tuple(m["name"] for m in summary["models"] if m["kind"] == "member")
    chosen = summary.get("chosen")
    found: dict[str, dict[str, Contrast]] = {reference: {} for reference in REFERENCES}
    for name in names:
        if "base" in names and name != "base":
            found["base"][name] = Contrast((name,), ("base",))
        if members and set(members) <= set(names):
            found["members"][name] = Contrast((name,), members)
        if chosen in names and name != chosen:
            found["chosen"][name] = Contrast((str(chosen),), (name,))
    return found


def _known(paired: Paired, contrast: Contrast, weights: Mapping[str, Mapping[str, float]]) -> dict[str, list[float]]:
    intervals = {key: paired.interval(contrast, sets) for key, sets in weights.items()}
    return {
        key: [round(end, 8) for end in (i.difference, i.low, i.high)] for key, i in intervals.items() if i is not None
    }


def mean_reach(summary: Summary, reference: str, model: str, mean: str) -> float | None:
    """Half the width, in points, of the interval of a model's mean against a reference; None where not known."""
    return _reach(summary, "means", reference, model, mean)


def set_reach(summary: Summary, reference: str, model: str, name: str) -> float | None:
    """The same for one set."""
    return _reach(summary, "sets", reference, model, name)


def _reach(summary: Summary, part: str, reference: str, model: str, key: str) -> float | None:
    found = (summary.get("intervals") or {}).get(part, {}).get(reference, {}).get(model, {}).get(key)
    return None if found is None else 50 * (found[2] - found[1])


def format_difference(value: float | None, reach: float | None) -> str:
    """Points with a sign and, where it is known, half the width of the 95 % interval: ``+0.42 ±0.31``."""
    if value is None:
        return "-"
    return f"{value:+.2f}" if reach is None else f"{value:+.2f} ±{reach:.2f}"


def format_interval(found: Interval | None) -> str:
    """In points, with both ends: ``+0.42 [+0.11, +0.73]``."""
    if found is None:
        return "-"
    return f"{100 * found.difference:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
