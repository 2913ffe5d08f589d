"""Every figure draws what the summary says, for whole runs and for poor ones."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import matplotlib
import pytest
from matplotlib.text import Text
from report_example import example

from boom_ray.report.drawing import to_png, to_svg
from boom_ray.report.figures import FIGURES, cost, gains, losses, scatter, search, timeline, weights


@pytest.mark.parametrize("name", FIGURES)
def test_svg_is_deterministic_and_png_is_png(name):
    first, second = to_svg(FIGURES[name](example())), to_svg(FIGURES[name](example()))
    assert first == second
    assert b"<svg" in first
    assert len(first) < 100_000
    assert to_png(FIGURES[name](example()), dpi=40)[:8] == b"\x89PNG\r\n\x1a\n"


def test_style_is_not_left_behind():
    before = dict(matplotlib.rcParams)
    to_svg(losses(example()))
    assert dict(matplotlib.rcParams) == before


def test_no_pyplot_and_nothing_heavy():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import boom_ray.report.page, boom_ray.report.card, boom_ray.report.tables\n"
        "assert not {'matplotlib', 'numpy', 'scipy', 'torch', 'ray'} & set(sys.modules), 'at import'\n"
        "from report_example import example\n"
        "boom_ray.report.page.write_page(example())\n"
        "assert not {'matplotlib.pyplot', 'torch', 'ray'} & set(sys.modules), 'when drawing'\n"
    )
    subprocess.run([sys.executable, "-c", code, str(__file__).rpartition("/")[0]], check=True)


def test_scatter_shows_one_point_per_model_at_its_means():
    axes = scatter(example()).axes[0]
    drawn = [tuple(c.get_offsets()[0]) for c in axes.collections if len(c.get_offsets())]
    assert len(drawn) == 9
    assert drawn[0] == pytest.approx((100 * (0.291 + 0.412 + 0.548) / 3, 100 * (0.334 + 0.437) / 2))
    labels = [t.get_text() for t in axes.texts]
    assert "member-2 · 60 %" in labels
    assert "merge-searched" in labels


def test_labels_of_close_points_do_not_overlap():
    figure = scatter(example())
    figure.draw_without_rendering()
    boxes = sorted((Text.get_window_extent(t) for t in figure.axes[0].texts), key=lambda b: b.y0)
    assert all(low.y1 <= high.y0 for low, high in pairwise(boxes))


def test_without_out_of_domain_the_scatter_becomes_a_ranked_strip():
    axes = scatter(example(ood=False)).axes[0]
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert labels[0] == "base"
    assert labels[-1] == "merge-searched"
    assert axes.get_xlabel() == "in-domain mean, points"


def test_timeline_has_a_lane_for_every_stage_and_member():
    summary = example()
    axes = timeline(summary).axes[0]
    lanes = [t.get_text() for t in axes.get_yticklabels()]
    members = [f"member-{i} · {20 * (i + 1)} %" for i in range(5)]
    assert lanes == ["corpus", "base", *members, "search", "merge", "score", "publish"]
    bars = [len(c.get_paths()) for c in axes.collections]
    assert bars == [2, 2, 1, 1, 1, 1, 1, 2, 3, 8, 1]
    assert axes.get_xlabel() == "minutes since the start"


def test_timeline_cuts_the_night_between_a_kill_and_its_resumption():
    summary = example()
    for stage in summary["stages"][9:]:
        stage["started"] += 36_000
        stage["finished"] += 36_000
    axes = timeline(summary).axes[0]
    assert any("10.0 h idle" in t.get_text() for t in axes.texts)
    assert axes.get_xlim()[1] < 12


def test_gains_are_differences_to_base():
    axes = gains(example()).axes[0]
    member = axes.collections[0].get_offsets()
    gain = example()["models"][1]["scores"]["python_functions"] - 0.291
    assert member[0][0] == pytest.approx(100 * gain)


def test_weights_are_normalised():
    summary = example()
    summary["models"][-1]["weights"] = [1, 1, 1, 1, 4]
    heights = [bar.get_height() for bar in weights(summary).axes[0].patches[-5:]]
    assert heights == pytest.approx([0.125, 0.125, 0.125, 0.125, 0.5])


def test_cost_adds_up_what_a_stage_made():
    axes = cost(example()).axes[0]
    lanes = [t.get_text() for t in axes.get_yticklabels()]
    assert lanes == ["corpus", "base", "members", "search", "merge", "score", "publish"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([64, 86, 510, 54, 1.5, 120, 2])


def test_search_line_is_the_best_so_far():
    line = search(example()).axes[0].lines[0].get_ydata()
    values = [t["value"] for t in example()["search"]["trials"]]
    assert list(line) == [min(values[: i + 1]) for i in range(len(values))]


def test_failed_trials_are_left_out():
    summary = example()
    summary["search"]["trials"][3]["value"] = None
    summary["search"]["trials"][4]["value"] = float("nan")
    assert len(search(summary).axes[0].lines[0].get_ydata()) == 22


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_to_show_gives_no_figure(name):
    empty = {
        **example(),
        "corpus": [],
        "members": [],
        "models": [],
        "sets": [],
        "stages": [],
        "nodes": [],
        "search": None,
        "cosine": None,
    }
    assert FIGURES[name](empty) is None


@pytest.mark.parametrize("ratios", [(1.0,), tuple(0.1 * k for k in range(1, 11)), (0.5,) * 20])
def test_any_number_of_members(ratios):
    for draw in FIGURES.values():
        figure = draw(example(ratios=ratios))
        assert figure is None or to_svg(figure)
