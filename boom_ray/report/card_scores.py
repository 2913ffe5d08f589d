"""The card's part on scores: means, differences with their intervals, and each set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from boom_ray.report.contamination import footnotes, marked
from boom_ray.report.intervals import format_difference
from boom_ray.report.tables import (
    DOMAINS,
    domain_mean,
    format_dev,
    format_points,
    published_gain,
    score_table,
    sets_of,
    verdict,
)

Summary = Mapping[str, Any]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]], text: int = 1) -> str:
    """A table in Markdown; the first ``text`` columns are words, the others numbers."""
    rule = ["---" if i < text else "---:" for i in range(len(head))]

    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), line(rule), *(line(row) for row in rows)])


def scores_section(summary: Summary) -> str:
    """``## Scores``, or nothing where there are none."""
    rows = score_table(summary)
    if not rows:
        return ""
    head = ["model", "ID mean", "to base", "to members", "OOD mean", "to base", "to members", "dev B loss / base"]
    body = [
        [f"**{r.model}**" if r.model == summary.get("chosen") else r.model]
        + [format_points(r.id_mean), format_difference(r.id_to_base, r.reach.get(("base", "in_domain")))]
        + [format_difference(r.id_to_members, r.reach.get(("members", "in_domain")))]
        + [format_points(r.ood_mean), format_difference(r.ood_to_base, r.reach.get(("base", "out_of_domain")))]
        + [format_difference(r.ood_to_members, r.reach.get(("members", "out_of_domain")))]
        + [format_dev(r.dev_b)]
        for r in rows
    ]
    blocks = [
        "## Scores",
        "Main scores of mteb's tasks in points (0 to 100). In-domain (ID) sets belong to datasets that were trained "
        "on; out-of-domain (OOD) sets do not. The published model is in bold.",
        markdown_table(head, body),
        "\n".join(f"- {line}" for line in verdict(summary)),
    ]
    blocks += [_domain_scores(summary, domain) for domain in DOMAINS if sets_of(summary, domain)]
    blocks += ["\n".join(f"- {line}" for line in footnotes(summary))]
    return "\n\n".join(block for block in blocks if block)


def _domain_scores(summary: Summary, domain: str) -> str:
    chosen = summary.get("chosen")
    shown = [m for m in summary["models"] if m["kind"] == "base" or m["name"] == chosen]
    body = [
        [marked(summary, s["name"]), s["task_type"], s.get("metric") or "-"]
        + [_points((m.get("scores") or {}).get(s["name"])) for m in shown]
        + [published_gain(summary, s["name"])]
        for s in sets_of(summary, domain)
    ]
    means = [format_points(domain_mean(summary, m, domain)) for m in shown]
    body.append(["mean", "", "", *means, published_gain(summary, domain)])
    head = [DOMAINS[domain], "task", "metric", *(m["name"] for m in shown), "difference"]
    return markdown_table(head, body, text=3)


def _points(score: float | None) -> str:
    return format_points(None if score is None else 100 * score)
