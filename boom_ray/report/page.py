"""The report page: one self-contained HTML file, the answer first. No script, no request to anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from boom_ray.redact import scrub
from boom_ray.report.contamination import contamination_section, marked
from boom_ray.report.corpus import corpus_section
from boom_ray.report.drawing import GRID, INK, MUTED, PAPER, to_svg
from boom_ray.report.drift import drift_section
from boom_ray.report.figures import FIGURES
from boom_ray.report.html import table
from boom_ray.report.layout import bag_label, busy, duration
from boom_ray.report.style import STYLE
from boom_ray.report.tables import (
    DOMAINS,
    ScoreRow,
    best_models,
    domain_mean,
    format_dev,
    format_points,
    headline,
    leaderboards,
    published_gain,
    score_table,
    sets_of,
    verdict,
)
from boom_ray.report.training import training_section

Summary = Mapping[str, Any]
_THEME = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"}


def write_page(summary: Summary) -> str:
    """The whole report as HTML text; every word of the run is escaped."""
    summary = scrub(summary)
    name = escape(str(summary["name"]))
    sections = [
        _header(summary),
        _figures(summary),
        _section("Means as on mteb's leaderboard", _leaderboards(summary)),
        _section("Scores, set by set", _per_set(summary)),
        _section("Test texts among the training texts", contamination_section(summary)),
        _section("Drift: the index of the model before", drift_section(summary)),
        _section("Corpus", corpus_section(summary)),
        _section("Members", _members(summary)),
        _section("Training", training_section(summary)),
        _section("Loading the model", _loading(summary)),
        _section("Recipe", f"<details><summary>as it was run</summary>{_pre(summary['recipe_yaml'])}</details>"),
        _section("Made with", _versions(summary)),
    ]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name} · boom_ray report</title>\n"
        f'<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n</head>\n<body>\n'
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


def _pre(text: str) -> str:
    return f"<pre>{escape(text.strip())}</pre>"


def _header(summary: Summary) -> str:
    ended = datetime.fromtimestamp(summary["finished"], UTC).strftime("%Y-%m-%d %H:%M UTC")
    answer = escape(headline(summary)).replace("-", "\N{NON-BREAKING HYPHEN}")
    lines = "".join(f"<li>{escape(line)}</li>" for line in verdict(summary))
    return (
        f'<header>\n<p class="name">boom_ray · {escape(str(summary["name"]))} · {ended}</p>\n'
        f"<h1>{answer}</h1>\n{_means(summary)}\n"
        f'<ul class="verdict">{lines}</ul>\n{_facts(summary)}\n</header>'
    )


def _facts(summary: Summary) -> str:
    members, hardware = summary["members"], summary["hardware"]
    wall = busy([(s["started"], s["finished"]) for s in summary["stages"] if s.get("finished")])
    devices = sum(s.get("device_seconds") or 0 for s in summary["stages"])
    machine = f"{hardware.get('gpus') or 0} GPUs" if hardware.get("gpus") else f"{hardware.get('cpus', '-')} CPUs"
    facts = {
        "members": str(len(members)),
        "at once, at most": str(most_at_once(members)) if members else "-",
        "corpus rows": f"{sum(d['rows'] for d in summary['corpus']):,}",
        "time at work": duration(wall),
        "device time": duration(devices),
        "hardware": f"{machine}, {hardware.get('memory_gib', 0):.0f} GiB",
    }
    return f'<dl class="facts">{"".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())}</dl>'


def most_at_once(members: Sequence[Mapping[str, Any]]) -> int:
    """The largest number of members that trained at the same moment."""
    spans = [(m["started"], m["finished"]) for m in members if m.get("finished")]
    return max((sum(a <= start < b for a, b in spans) for start, _ in spans), default=0)


def _means(summary: Summary) -> str:
    rows = score_table(summary)
    best = {domain: (best_models(rows, domain) or ([], 0.0))[0] for domain in DOMAINS}
    groups = "".join(f'<th class="group" colspan="3">{label.capitalize()}</th>' for label in DOMAINS.values())
    head = '<th class="group">mean</th><th>to base</th><th>to members</th>' * len(DOMAINS)
    body = "\n".join(_means_row(row, best, summary.get("chosen")) for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr><th></th>{groups}<th class="group">Dev half B</th></tr>\n'
        f'<tr><th>Model</th>{head}<th class="group">loss / base</th></tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _means_row(row: ScoreRow, best: Mapping[str, list[str]], chosen: str | None) -> str:
    cells = ""
    for domain, mean, to_base, to_members in (
        ("in_domain", row.id_mean, row.id_to_base, row.id_to_members),
        ("out_of_domain", row.ood_mean, row.ood_to_base, row.ood_to_members),
    ):
        mark = "group best" if row.model in best[domain] else "group"
        cells += f'<td class="{mark}">{format_points(mean)}</td>'
        cells += _delta(to_base, row.reach.get(("base", domain)), row.kind != "base")
        cells += _delta(to_members, row.reach.get(("members", domain)), row.kind == "merge")
    mine = row.model == chosen
    name = escape(row.model) + (' <span class="tag">published</span>' if mine else "")
    cells += f'<td class="group">{format_dev(row.dev_b)}</td>'
    return f"<tr{' class=chosen' if mine else ''}><th>{name}</th>{cells}</tr>"


def _delta(value: float | None, reach: float | None, matters: bool) -> str:
    """A difference and half its interval. Quiet where it may be chance, marked where it matters and is bad news:
    below base, or a merge below the members' mean."""
    if value is None:
        return '<td class="quiet">-</td>'
    chance = abs(value) <= (0.005 if reach is None else reach)
    tone = "quiet" if chance or not matters else "down" if value < 0 else ""
    half = "" if reach is None else f" <small>±{reach:.2f}</small>"
    return f'<td class="{tone}">{format_points(value, sign=True)}{half}</td>'


def _figures(summary: Summary) -> str:
    shown = []
    captions = _captions(summary)
    for name, draw in FIGURES.items():
        title, caption = captions[name]
        figure = draw(summary)
        if figure is not None:
            text = f"<figcaption><b>{escape(title)}</b><span>{escape(caption)}</span></figcaption>"
            shown.append(f"<figure>{text}{inline_svg(to_svg(figure), name, title)}</figure>")
    return f'<h2>How it went</h2>\n<div class="figures">\n{chr(10).join(shown)}\n</div>' if shown else ""


def _captions(summary: Summary) -> dict[str, tuple[str, str]]:
    at_once = most_at_once(summary["members"])
    objective = (summary.get("search") or {}).get("objective") or "the objective, on dev half A"
    split = "; in-domain above the dotted line" if all(sets_of(summary, domain) for domain in DOMAINS) else ""
    return {
        "scatter": (
            "Scores of base, members and merges",
            "Right and up is better; dotted lines pass through the base.",
        ),
        "timeline": ("Timeline", f"At most {at_once} member{'s' * (at_once != 1)} trained at the same moment."),
        "nodes": ("Nodes", "Worker nodes of the cluster, as the driver counted them."),
        "gains": (
            "Gain over base, set by set",
            f"Right of the line is better than base{split}; the bar is the published model's 95 % interval.",
        ),
        "losses": ("Loss of the members", "A dot is a batch of one dataset, so dots scatter; lines are smoothed."),
        "dataset_losses": ("Loss of every dataset", "A panel per dataset with its own scale; colours as above."),
        "cost": ("Cost of every stage", "Wall time multiplied by the CPUs or GPUs held."),
        "weights": ("Merge weights", "The share of each member: by bag ratio, even, and searched."),
        "bags": ("Bags", "Distinct rows that each member may see, by dataset."),
        "lengths": ("Lengths", "Tokens of a row: query, positives and negatives together."),
        "search": ("Search of weights and scale", objective[:1].upper() + objective[1:] + "."),
        "cosine": (
            "Do the members agree?",
            "Cosine of their task vectors, member minus base; 1 is the same direction.",
        ),
    }


def inline_svg(svg: bytes, prefix: str, title: str) -> str:
    """An SVG file as an element of the page: unique ids, neutral colours bound to the theme, a name for readers."""
    text = re.sub(r"^.*?(?=<svg)", "", svg.decode(), flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", text)
    for colour, variable in _THEME.items():
        text = re.sub(colour, f"var({variable})", text, flags=re.IGNORECASE)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)


def _leaderboards(summary: Summary) -> str:
    note = (
        '<p class="muted">Means over sets and over task types, as mteb\'s leaderboard has them, and the published '
        "model minus each other one. ± is half a 95 % interval.</p>"
    )
    tables = [f"<h3>{escape(title)}</h3>{table(head, rows)}" for title, head, rows in leaderboards(summary)]
    return note + "\n".join(tables) if tables else ""


def _per_set(summary: Summary) -> str:
    models = summary["models"]
    tables = []
    for domain, label in DOMAINS.items():
        sets = sets_of(summary, domain)
        if not sets:
            continue
        head = [label.capitalize(), "task", "metric"] + [m["name"] for m in models] + ["published to base"]
        rows = [
            [marked(summary, s["name"]), s["task_type"], s.get("metric")]
            + [_points((m.get("scores") or {}).get(s["name"])) for m in models]
            + [published_gain(summary, s["name"])]
            for s in sets
        ]
        means = [format_points(domain_mean(summary, m, domain)) for m in models]
        foot = ["mean", "", "", *means, published_gain(summary, domain)]
        tables.append(table(head, rows, foot, text=3).replace("<table>", '<table class="tight">', 1))
    note = '<p class="muted">Main score of each set in points; a mean needs every set.</p>'
    return note + "\n<br>\n".join(tables) if tables else ""


def _points(score: float | None) -> str:
    return format_points(None if score is None else 100 * score)


def _members(summary: Summary) -> str:
    columns: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "Member": lambda m: m["name"],
        "identity": lambda m: str(m["identity"])[:16],
        "bag": bag_label,
        "seed": lambda m: str(m["seed"]),
        "rows": lambda m: m["rows"],
        "steps": lambda m: m["steps"],
        "workers × threads": lambda m: f"{m['width']} × {m['threads']}",
        "device time": lambda m: duration(m["device_seconds"]),
        "texts": lambda m: m["texts"],
        "tokens": lambda m: m["tokens"],
    }
    bags = [d["name"] for d in summary["corpus"]]
    rows = [
        [cell(m) for cell in columns.values()] + [m["per_dataset"].get(b) for b in bags] for m in summary["members"]
    ]
    return table([*columns, *(f"in bag: {bag}" for bag in bags)], rows, text=2) if rows else ""


def _loading(summary: Summary) -> str:
    if not summary.get("published"):
        return ""
    path = str(summary["published"])
    code = (
        "from sentence_transformers import SentenceTransformer\n\n"
        f"model = SentenceTransformer({path!r})\n"
        'vectors = model.encode(["first text", "second text"])\n'
        "print(model.similarity(vectors, vectors))"
    )
    note = "in the run directory; its README.md is the model card."
    return f"<p>Published at <code>{escape(path)}</code> {note}</p>{_pre(code)}"


def _versions(summary: Summary) -> str:
    shown = " · ".join(f"{escape(str(k))} {escape(str(v))}" for k, v in summary["versions"].items())
    return f'<p class="muted">{shown}</p>' if shown else ""
