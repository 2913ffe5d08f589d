"""Scores as tables: means per domain, differences in points, and plain sentences that say who won.

A point is a hundredth of a main score. A mean is shown only for a model that has a score on every set of the domain:
a mean over fewer sets would not be comparable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from boom_ray.report.intervals import benchmark_of, benchmarks_of, format_difference, mean_reach, means_of, set_reach

Summary = Mapping[str, Any]
DOMAINS = {"in_domain": "in-domain", "out_of_domain": "out-of-domain"}


@dataclass(frozen=True)
class ScoreRow:
    """One model. Means and differences in points (0..100); ``dev_b`` relative to base, lower is better.

    ``reach``: half the widths of the differences' 95 % intervals, by reference (base, members, chosen) and domain.
    """

    model: str
    kind: str
    id_mean: float | None
    ood_mean: float | None
    id_to_base: float | None
    ood_to_base: float | None
    id_to_members: float | None
    ood_to_members: float | None
    dev_b: float | None
    reach: Mapping[tuple[str, str], float | None] = field(default_factory=dict)

    @property
    def marker(self) -> str:
        """What the model is drawn as: its own name for merges, else its kind."""
        return self.model if self.kind == "merge" else self.kind


def sets_of(summary: Summary, domain: str) -> list[dict[str, Any]]:
    """The evaluation sets of ``in_domain`` or ``out_of_domain``."""
    return [s for s in summary.get("sets") or [] if s["domain"] == domain]


def domain_mean(summary: Summary, model: Mapping[str, Any], domain: str) -> float | None:
    """Mean score of a model in points, or None where there is no set or a score is missing."""
    names = [s["name"] for s in sets_of(summary, domain)]
    scores = [(model.get("scores") or {}).get(name) for name in names]
    known = [score for score in scores if score is not None]
    return 100 * sum(known) / len(known) if known and len(known) == len(scores) else None


def members_mean(summary: Summary, domain: str) -> float | None:
    """Mean of the members' means, or None where a member has none."""
    means = [domain_mean(summary, m, domain) for m in summary["models"] if m["kind"] == "member"]
    known = [mean for mean in means if mean is not None]
    return sum(known) / len(known) if known and len(known) == len(means) else None


def score_table(summary: Summary) -> list[ScoreRow]:
    """One row per model, in the order of the summary."""
    base: Mapping[str, Any] = next((m for m in summary["models"] if m["kind"] == "base"), {})
    reference = {domain: domain_mean(summary, base, domain) for domain in DOMAINS}
    members = {domain: members_mean(summary, domain) for domain in DOMAINS}
    rows = []
    for model in summary["models"]:
        mean = {domain: domain_mean(summary, model, domain) for domain in DOMAINS}
        to_base = {d: None if model["kind"] == "base" else _minus(mean[d], reference[d]) for d in DOMAINS}
        to_members = {d: _minus(mean[d], members[d]) for d in DOMAINS}
        name = model["name"]
        rows.append(
            ScoreRow(
                model=name,
                kind=model["kind"],
                id_mean=mean["in_domain"],
                ood_mean=mean["out_of_domain"],
                id_to_base=to_base["in_domain"],
                ood_to_base=to_base["out_of_domain"],
                id_to_members=to_members["in_domain"],
                ood_to_members=to_members["out_of_domain"],
                dev_b=model.get("dev_b"),
                reach={(r, d): mean_reach(summary, r, name, d) for r in ("base", "members") for d in DOMAINS},
            )
        )
    return rows


def weighted_mean(summary: Summary, model: Mapping[str, Any], mean: str) -> float | None:
    """One of :func:`boom_ray.report.intervals.means_of` in points, or None where a score is missing."""
    weights = means_of(summary.get("sets") or []).get(mean)
    scores = model.get("scores") or {}
    if not weights or any(scores.get(name) is None for name in weights):
        return None
    return 100 * sum(weight * scores[name] for name, weight in weights.items())


LEADERBOARD = ("model", "mean of sets", "to base", "mean of types", "to base", "published minus it, ID", "OOD")


def leaderboard(summary: Summary, of: str = "") -> list[list[str]]:
    """A row per model: its means over sets and over types, each with the difference to base, as mteb's leaderboard has
    them; then the published model minus it, in-domain and out-of-domain, or in the mean over the benchmark ``of``.
    Nothing without sets."""
    models = summary["models"] if summary.get("sets") else []
    base: Mapping[str, Any] = next((m for m in models if m["kind"] == "base"), {})
    chosen: Mapping[str, Any] = next((m for m in models if m["name"] == summary.get("chosen")), {})
    part = f" of {of}" if of else ""

    def gap(first: Mapping[str, Any], second: Mapping[str, Any], mean: str, reference: str, shown: str) -> str:
        value = None if first is second else _minus(*(weighted_mean(summary, m, mean) for m in (first, second)))
        return format_difference(value, mean_reach(summary, reference, shown, mean))

    return [
        [m["name"]]
        + [cell for mean in (f"tasks{part}", f"types{part}")
           for cell in (format_points(weighted_mean(summary, m, mean)), gap(m, base, mean, "base", m["name"]))]
        + [gap(chosen, m, mean, "chosen", m["name"]) for mean in ([f"tasks{part}"] if of else DOMAINS)]
        for m in models
    ]  # fmt: skip


def leaderboards(summary: Summary) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, heads, rows) of :func:`leaderboard` for each of several benchmarks, and for all sets."""
    sets = summary.get("sets") or []
    counts = {name: sum(benchmark_of(s) == name for s in sets) for name in benchmarks_of(sets)}
    parts = [(f"{name}, {n} {'set' if n == 1 else 'sets'}", [*LEADERBOARD[:5], "published minus it"], name)
             for name, n in counts.items()]  # fmt: skip
    whole = (f"All {len(sets)} {'set' if len(sets) == 1 else 'sets'}", [*LEADERBOARD], "")
    return [(title, head, leaderboard(summary, of)) for title, head, of in (*parts, whole)] if sets else []


def published_gain(summary: Summary, name: str) -> str:
    """The published model minus the base on a set, or on the mean of a domain; with its interval, for people."""
    base: Mapping[str, Any] = next((m for m in summary["models"] if m["kind"] == "base"), {})
    chosen: Mapping[str, Any] = next((m for m in summary["models"] if m["name"] == summary.get("chosen")), {})
    if name in DOMAINS:
        value = _minus(domain_mean(summary, chosen, name), domain_mean(summary, base, name))
        return format_difference(value, mean_reach(summary, "base", chosen.get("name", ""), name))
    scores = [(m.get("scores") or {}).get(name) for m in (chosen, base)]
    gain = _minus(*(None if score is None else 100 * score for score in scores))
    return format_difference(gain, set_reach(summary, "base", chosen.get("name", ""), name))


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def best_models(rows: Sequence[ScoreRow], domain: str) -> tuple[list[str], float] | None:
    """Names and mean of the best of a domain; several where the table shows the same two decimals."""
    means = [(row.id_mean if domain == "in_domain" else row.ood_mean, row.model) for row in rows]
    known = [(round(mean, 2), name) for mean, name in means if mean is not None]
    if not known:
        return None
    top = max(mean for mean, _ in known)
    return [name for mean, name in known if mean == top], top


def headline(summary: Summary) -> str:
    """The answer in one sentence: what was published and what it is worth against base and members."""
    chosen = summary.get("chosen") or "no model"
    row = next((r for r in score_table(summary) if r.model == chosen), None)
    parts = []
    for domain, mean, base, members in _domains(row):
        if mean is not None and row is not None:
            label = DOMAINS[domain]
            against = [_short(delta, row.reach.get((reference, domain))) + f" to {who}"
                       for delta, reference, who in ((base, "base", "base"), (members, "members", "the members' mean"))
                       if delta is not None]  # fmt: skip
            parts.append(f"{mean:.1f} points {label}" + (f" ({', '.join(against)})" if against else ""))
    return f"{chosen} was published: {', '.join(parts) if parts else 'it has no complete scores'}."


def _short(value: float, reach: float | None) -> str:
    return f"{value:+.1f}" if reach is None else f"{value:+.1f} ±{reach:.1f}"


def _domains(row: ScoreRow | None) -> list[tuple[str, float | None, float | None, float | None]]:
    if row is None:
        return []
    return [
        ("in_domain", row.id_mean, row.id_to_base, row.id_to_members),
        ("out_of_domain", row.ood_mean, row.ood_to_base, row.ood_to_members),
    ]


def verdict(summary: Summary) -> list[str]:
    """Plain sentences: which is best, whether every member beats base, whether the merge holds the members' mean."""
    rows = score_table(summary)
    lines = [_best_sentence(rows, domain, summary) for domain in DOMAINS if sets_of(summary, domain)]
    lines += [_members_sentence(rows), _merge_sentence(rows, summary.get("chosen")), _over_sets_sentence(summary)]
    lines += [_lost_sentence(lost, len(summary["members"])) for lost in summary.get("lost") or []]
    if any(row.id_mean is not None or row.ood_mean is not None for row in rows):
        lines.append(_note(summary))
    return [line for line in lines if line]


def _note(summary: Summary) -> str:
    if (summary.get("intervals") or {}).get("means"):
        return "±: 95 % interval over other queries and texts of these sets; other tasks and seeds are not in it."
    return "Differences are of means over the sets, from one run and without confidence intervals."


def _over_sets_sentence(summary: Summary) -> str:
    """Whether what was published would hold on other sets; wider, as the sets differ more than their queries do."""
    parts = []
    for reference, who in (("base", "base"), ("members", "the members' mean")):
        found = (summary.get("intervals") or {}).get("over_sets", {}).get(reference)
        if found is not None and not (
            reference == "members" and sum(m["kind"] == "member" for m in summary["models"]) < 2
        ):
            middle, low, high = (100 * end for end in found)
            parts.append(f"{middle:+.2f} [{low:+.2f}, {high:+.2f}] to {who}")
    return f"Over other sets like these {summary.get('chosen')} is {', '.join(parts)}." if parts else ""


def _best_sentence(rows: Sequence[ScoreRow], domain: str, summary: Summary) -> str:
    best = best_models(rows, domain)
    if best is None:
        return f"Best {DOMAINS[domain]}: unknown, no model has a score on every set."
    names = [f"{name} (published)" if name == summary.get("chosen") else name for name in best[0]]
    return f"Best {DOMAINS[domain]}: {' and '.join(names)} with {best[1]:.2f} points."


def _members_sentence(rows: Sequence[ScoreRow]) -> str:
    members = [row for row in rows if row.kind == "member"]
    known = [row for row in members if row.id_to_base is not None]
    if not members or len(known) < len(members):
        return "Whether every member beats base in-domain is unknown: scores are missing." if members else ""
    behind = [row.model for row in known if row.id_to_base is not None and row.id_to_base <= 0]
    unsure = [row.model for row in known if _within(row.id_to_base, row.reach.get(("base", "in_domain")))]
    if not behind and unsure:
        return f"Every member is above base in-domain, but within its interval: {', '.join(unsure)}."
    if behind:
        return f"Not every member beats base in-domain: {', '.join(behind)} {'does' if len(behind) == 1 else 'do'} not."
    return "The member beats base in-domain." if len(members) == 1 else "Every member beats base in-domain."


def _within(delta: float | None, reach: float | None) -> bool:
    """A difference that its interval does not tell from none."""
    return delta is not None and reach is not None and abs(delta) <= reach


def _merge_sentence(rows: Sequence[ScoreRow], chosen: str | None) -> str:
    row = next((r for r in rows if r.model == chosen and r.kind == "merge"), None)
    if row is None or sum(r.kind == "member" for r in rows) < 2:
        return ""
    parts = []
    for domain, _, _, delta in _domains(row):
        if delta is not None:
            # half a hundredth of a point is below what the table shows
            word = "at least as good" if delta > -0.005 else "worse"
            reach = row.reach.get(("members", domain))
            if _within(delta, reach):
                word = "no difference can be told"
            parts.append(f"{DOMAINS[domain]} {word} ({format_difference(delta, reach)})")
    if not parts:
        return f"Whether {row.model} is at least the members' mean is unknown: scores are missing."
    return f"{row.model} against the members' mean: {', '.join(parts)}."


def _lost_sentence(lost: Mapping[str, Any], others: int) -> str:
    reason = str(lost["reason"]).rstrip(".")
    return f"{lost['name']} ({lost['bag']}) is missing: it failed for good ({reason}). The other {others} were merged."


def finished_trials(search: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trials with a finite value; a failed one has none."""
    return [t for t in search.get("trials") or [] if t.get("value") is not None and math.isfinite(t["value"])]


def best_trial(search: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The trial whose number is ``best``, or None where no trial has a value."""
    trials = finished_trials(search or {})
    return next((t for t in trials if t["number"] == (search or {}).get("best")), trials[0] if trials else None)


def lower_is_better(search: Mapping[str, Any]) -> bool:
    """The direction of the objective, read off the best trial."""
    best = best_trial(search)
    return best is not None and best["value"] <= min(t["value"] for t in finished_trials(search))


def format_points(value: float | None, sign: bool = False) -> str:
    """Two decimals, with a sign for differences; '-' where unknown."""
    return "-" if value is None else f"{value:+.2f}" if sign else f"{value:.2f}"


def format_dev(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
