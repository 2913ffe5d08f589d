"""The page's part on training shows what was measured, and a panel for every dataset."""

from __future__ import annotations

import re

import pytest
from report_example import DATASETS, RATIOS, example

from boom_ray.report.training import dataset_losses, training_section


def _cells(html: str, first: str) -> list[str]:
    row = next(line for line in html.splitlines() if re.search(rf"<td[^>]*>{first}</td>", line))
    return re.findall(r"<td[^>]*>(.*?)</td>", row)


def test_a_row_for_every_member_and_no_column_without_a_value():
    html = training_section(example())
    head = re.findall(r"<th\b[^>]*>(.*?)</th>", html.split("</thead>")[0])
    assert head[:3] == ["Member", "s a step", "texts/s"]
    assert not any("peak" in heading for heading in head)  # a CPU has none
    cells = dict(zip(head, _cells(html, "member-4"), strict=True))
    assert cells["texts/s"] == "61.2"
    assert cells["tokens/s"] == "3,512"
    assert cells["waiting for data %"] == "0.42"
    assert cells["memory GiB"] == "1.50"


def test_losses_of_a_dataset_are_means_of_its_first_and_last_third():
    summary = example((1.0,))
    summary["members"][0]["datasets"] = {
        "few": {"steps": 4, "rows": 8, "losses": [[0, 4.0], [1, 3.0], [2, 2.0], [9, 1.0]]}
    }
    assert _cells(training_section(summary), "few") == ["few", "3.500", "1.500"]


def test_a_member_that_has_not_seen_a_dataset_has_no_loss_of_it():
    summary = example((0.5, 1.0))
    del summary["members"][0]["datasets"]["python_modules"]
    assert _cells(training_section(summary), "python_modules")[1:3] == ["-", "-"]
    panel = next(p for p in dataset_losses(summary).axes if p.get_title(loc="left") == "python_modules")
    assert len(panel.lines) == 1


def test_a_panel_per_dataset_and_a_line_per_member():
    panels = [panel for panel in dataset_losses(example()).axes if panel.get_visible()]
    assert [panel.get_title(loc="left") for panel in panels] == [name for name, *_ in DATASETS]
    for place, panel in enumerate(panels):
        assert len(panel.lines) == len(RATIOS)
        drawn = panel.collections[-1].get_offsets()
        assert drawn.tolist() == [pytest.approx(point) for point in example()["members"][-1]["losses"][place::3]]


def test_a_run_of_before_these_measurements_has_no_section():
    summary = example()
    for member in summary["members"]:
        del member["measured"], member["datasets"]
    assert training_section(summary) == ""
    assert dataset_losses(summary) is None
