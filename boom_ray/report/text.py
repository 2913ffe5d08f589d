"""A run's scores as plain text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from boom_ray.report.contamination import footnotes, marked
from boom_ray.report.intervals import format_difference
from boom_ray.report.tables import (
    DOMAINS,
    Summary,
    domain_mean,
    format_dev,
    format_points,
    leaderboards,
    score_table,
    sets_of,
    verdict,
)


def format_tables(summary: Summary) -> str:
    """All scores as plain text for the terminal: means, each domain set by set, then the verdict."""
    blocks = [_means_text(summary), *(_leaderboard_text(*found, summary) for found in leaderboards(summary))]
    blocks += [_domain_text(summary, domain) for domain in DOMAINS if sets_of(summary, domain)]
    blocks += ["\n".join(footnotes(summary)), "\n".join(verdict(summary))]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _means_text(summary: Summary) -> str:
    head = [["", "ID", "vs", "vs", "OOD", "vs", "vs", "dev B"],
            ["model", "mean", "base", "members", "mean", "base", "members", "/ base"]]  # fmt: skip
    body = [
        [_starred(row.model, summary), format_points(row.id_mean)]
        + [format_difference(row.id_to_base, row.reach.get(("base", "in_domain")))]
        + [format_difference(row.id_to_members, row.reach.get(("members", "in_domain")))]
        + [format_points(row.ood_mean)]
        + [format_difference(row.ood_to_base, row.reach.get(("base", "out_of_domain")))]
        + [format_difference(row.ood_to_members, row.reach.get(("members", "out_of_domain")))]
        + [format_dev(row.dev_b)]
        for row in score_table(summary)
    ]
    return "Means in points (* published)\n" + grid(head, body)


def _leaderboard_text(title: str, head: list[str], rows: list[list[str]], summary: Summary) -> str:
    body = [[_starred(name, summary), *cells] for name, *cells in rows]
    return f"{title}, as mteb's leaderboard takes them\n{grid([head], body)}"


def _domain_text(summary: Summary, domain: str) -> str:
    models, sets = summary["models"], sets_of(summary, domain)
    halves = [_starred(m["name"], summary).rpartition("-") for m in models]
    head = [["", ""] + [first + dash for first, dash, _ in halves], ["set", "metric"] + [last for *_, last in halves]]
    body = [
        [marked(summary, s["name"]), s.get("metric") or "-"]
        + [format_points(_score(m, s["name"])) for m in models]  # in points
        for s in sets
    ]
    body.append(["mean", ""] + [format_points(domain_mean(summary, m, domain)) for m in models])
    title = f"{DOMAINS[domain].capitalize()}, {len(sets)} {'set' if len(sets) == 1 else 'sets'}, points"
    return f"{title}\n{grid(head, body, left=2, last_apart=True)}"


def _score(model: Mapping[str, Any], name: str) -> float | None:
    score = (model.get("scores") or {}).get(name)
    return None if score is None else 100 * score


def _starred(name: str, summary: Summary) -> str:
    return f"{name}*" if name == summary.get("chosen") else name


def grid(head: list[list[str]], body: list[list[str]], left: int = 1, last_apart: bool = False) -> str:
    """A table of plain text: heads, a rule, rows; the first ``left`` columns are words, the others numbers."""
    widths = [max(len(row[i]) for row in head + body) for i in range(len(head[0]))]
    rule = "  ".join("-" * width for width in widths)

    def line(row: list[str]) -> str:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return "  ".join(cells).rstrip()

    lines = [line(row) for row in head] + [rule] + [line(row) for row in body]
    if last_apart:
        lines.insert(-1, rule)
    return "\n".join(lines)
