"""Means, differences and sentences, checked against numbers computed by hand."""

from __future__ import annotations

import copy

import pytest
from report_example import example, with_intervals

from boom_ray.report.tables import (
    best_trial,
    headline,
    leaderboard,
    leaderboards,
    lower_is_better,
    score_table,
    verdict,
)
from boom_ray.report.text import format_tables


def small() -> dict:
    """Two members, one merge, two in-domain sets and one out-of-domain set, with round scores."""
    summary = example(ratios=(0.5, 1.0))
    summary["sets"] = [
        {"name": "a", "task_type": "sts", "domain": "in_domain", "metric": "cosine_spearman", "language": "eng-Latn"},
        {"name": "b", "task_type": "sts", "domain": "in_domain", "metric": "cosine_spearman", "language": "eng-Latn"},
        {
            "name": "c",
            "task_type": "sts",
            "domain": "out_of_domain",
            "metric": "cosine_spearman",
            "language": "eng-Latn",
        },
    ]
    scores = {
        "base": (0.4, 0.5, 0.6),
        "member-0": (0.5, 0.6, 0.6),
        "member-1": (0.6, 0.7, 0.5),
        "merge-ratio": (0.6, 0.65, 0.58),
    }
    summary["models"] = [
        {**m, "scores": dict(zip("abc", scores[m["name"]], strict=True))}
        for m in summary["models"]
        if m["name"] in scores
    ]
    summary["chosen"] = "merge-ratio"
    return summary


def row_of(summary: dict, name: str):
    return next(row for row in score_table(summary) if row.model == name)


def test_means_and_differences_by_hand():
    row = row_of(small(), "merge-ratio")
    assert row.id_mean == pytest.approx(62.5)
    assert row.id_to_base == pytest.approx(17.5)
    assert row.id_to_members == pytest.approx(62.5 - (55 + 65) / 2)
    assert row.ood_mean == pytest.approx(58.0)
    assert row.ood_to_base == pytest.approx(-2.0)
    assert row.ood_to_members == pytest.approx(58 - 55)
    base = row_of(small(), "base")
    assert base.id_to_base is None
    assert base.id_to_members == pytest.approx(-15)


def test_missing_score_leaves_no_mean_and_no_comparison():
    summary = small()
    del summary["models"][1]["scores"]["b"]
    member, merge = row_of(summary, "member-0"), row_of(summary, "merge-ratio")
    assert (member.id_mean, member.id_to_base) == (None, None)
    assert member.ood_mean == pytest.approx(60)
    assert merge.id_to_members is None, "the members' mean needs every member"
    assert merge.id_to_base == pytest.approx(17.5)
    assert any("unknown" in line for line in verdict(summary))
    assert " - " in format_tables(summary) or "  -" in format_tables(summary)


def test_verdict_says_who_loses():
    summary = small()
    text = "\n".join(verdict(summary))
    assert "Best in-domain: member-1 with 65.00 points." in text
    assert "Best out-of-domain: base and member-0 with 60.00 points." in text
    assert "Every member beats base in-domain." in text
    assert (
        "merge-ratio against the members' mean: in-domain at least as good (+2.50), "
        "out-of-domain at least as good (+3.00)." in text
    )
    summary["models"][1]["scores"] = {"a": 0.4, "b": 0.5, "c": 0.9}
    text = "\n".join(verdict(summary))
    assert "Not every member beats base in-domain: member-0 does not." in text, "equal is not better"
    assert "out-of-domain worse (-12.00)" in text


def test_headline_is_one_sentence_about_what_was_published():
    assert headline(small()) == (
        "merge-ratio was published: 62.5 points in-domain (+17.5 to base, +2.5 to the members' mean), "
        "58.0 points out-of-domain (-2.0 to base, +3.0 to the members' mean)."
    )


def test_intervals_decide_what_can_be_told():
    text = "\n".join(verdict(with_intervals(small(), 0.027)))
    assert (
        "merge-ratio against the members' mean: in-domain no difference can be told (+2.50 ±2.70), "
        "out-of-domain at least as good (+3.00 ±2.70)." in text
    )
    assert "Every member beats base in-domain." in text
    assert "without confidence intervals" not in text
    wide = with_intervals(small(), 0.12)
    assert "Every member is above base in-domain, but within its interval: member-0." in verdict(wide)
    assert "62.5 points in-domain (+17.5 ±12.0 to base, +2.5 ±12.0 to the members' mean)" in headline(wide)


def test_means_over_sets_and_types_and_the_published_model_against_each():
    summary = small()
    summary["sets"][2]["task_type"] = "retrieval"
    rows = {name: cells for name, *cells in leaderboard(summary)}
    assert rows["base"] == ["50.00", "-", "52.50", "-", "+17.50", "-2.00"]
    assert rows["member-1"] == ["60.00", "+10.00", "57.50", "+5.00", "-2.50", "+8.00"]
    assert rows["merge-ratio"][4:] == ["-", "-"]
    assert leaderboard(with_intervals(summary, 0.01))[0][1:] == [
        "50.00",
        "-",
        "52.50",
        "-",
        "+17.50 ±1.00",
        "-2.00 ±1.00",
    ]
    assert leaderboard({**summary, "sets": []}) == []


def test_each_benchmark_has_its_means():
    summary = small()
    assert [title for title, *_ in leaderboards(summary)] == ["All 3 sets"]
    summary["sets"][0]["benchmark"] = summary["sets"][2]["benchmark"] = "MTEB(eng, v2)"
    summary["sets"][2]["task_type"] = "retrieval"
    found = {title: (head, rows) for title, head, rows in leaderboards(with_intervals(summary, 0.01))}
    assert list(found) == ["MTEB(eng, v2), 2 sets", "local sets, 1 set", "All 3 sets"]
    head, rows = found["MTEB(eng, v2), 2 sets"]
    assert len(head) == len(rows[0]) == 6
    assert rows[1] == ["member-0", "55.00", "+5.00 ±1.00", "55.00", "+5.00 ±1.00", "+4.00 ±1.00"]
    assert "MTEB(eng, v2), 2 sets, as mteb's leaderboard takes them" in format_tables(summary)


def test_what_holds_over_other_sets_is_a_sentence_of_its_own():
    summary = small()
    summary["intervals"] = {"over_sets": {"base": [0.1, -0.05, 0.25], "members": None}, "means": {}}
    assert "Over other sets like these merge-ratio is +10.00 [-5.00, +25.00] to base." in verdict(summary)


def test_terminal_text_with_intervals_fits():
    text = format_tables(with_intervals(example(), 0.0123))
    assert "±1.23" in text
    tables = text.rsplit("\n\n", 1)[0]
    assert max(map(len, tables.splitlines())) <= 120


def test_terminal_text_names_every_set_and_marks_the_published_model():
    text = format_tables(example())
    for name in ("python_functions", "python_modules_ood", "merge-", "searched*", "Out-of-domain, 2 sets"):
        assert name in text
    assert max(map(len, text.splitlines())) <= 120
    assert text.endswith("\n")


def test_no_out_of_domain_sets():
    text = format_tables(example(ood=False))
    assert "Out-of-domain" not in text
    assert row_of(example(ood=False), "base").ood_mean is None


def test_single_member_is_not_compared_with_itself():
    text = "\n".join(verdict(example(ratios=(1.0,))))
    assert "The member beats base in-domain." in text
    assert "members' mean" not in text


def test_members_without_scores():
    summary = example()
    for model in summary["models"]:
        if model["kind"] == "member":
            model["scores"] = {}
    assert row_of(summary, "merge-ratio").id_to_members is None
    assert "Whether every member beats base in-domain is unknown" in format_tables(summary)


def test_best_trial_and_direction_follow_from_the_number():
    search = {"objective": "x", "best": 1, "trials": [{"number": 0, "value": 0.9}, {"number": 1, "value": 0.8}]}
    assert best_trial(search)["number"] == 1
    assert lower_is_better(search)
    assert not lower_is_better({**search, "best": 0})
    assert best_trial({"trials": [], "best": 0}) is None
    assert best_trial(None) is None


def test_tables_leave_the_summary_alone():
    summary = example()
    before = copy.deepcopy(summary)
    format_tables(summary)
    assert summary == before


def test_equals_share_the_first_place():
    summary = small()
    summary["models"][3]["scores"] = dict(summary["models"][2]["scores"])
    assert "Best in-domain: member-1 and merge-ratio (published) with 65.00 points." in verdict(summary)
