"""The report's part on the corpus: counts as they are, of every member and dataset; what is not known is left out."""

from __future__ import annotations

import re

from report_example import DATASETS, example

from boom_ray.report.corpus import bags, corpus_section, lengths


def _cells(html: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_every_dataset_and_every_member_have_their_counts():
    summary = example()
    cells = _cells(corpus_section(summary))
    head = cells[0]
    for data in summary["corpus"]:
        row = next(c for c in cells if c[0] == data["name"])
        assert row[head.index("rows read")] == f"{data['rows_in']:,}"
        assert row[head.index("tokens")] == f"{data['tokens']:,}"
    places = next(c for c in cells if c[0] == "Member")
    for member in summary["members"]:
        for name, account in member["accounts"].items():
            row = next(c for c in cells if c[:2] == [member["name"], name])
            numbers = [int(n.replace(",", "")) for n in row[2:]]
            assert numbers[0] == account["rows_in"] == sum(numbers[1:])
            assert numbers[places.index("out-of-bag") - 2] == account["out_of_bag"]
        total = next(c for c in cells if c[:2] == [member["name"], "all"])
        assert int(total[2].replace(",", "")) == sum(a["rows_in"] for a in member["accounts"].values())


def test_a_run_of_which_less_is_known_shows_less():
    summary = example()
    for data in summary["corpus"]:
        for key in ("tokens", "longest", "histogram"):
            del data[key]
    for member in summary["members"]:
        del member["accounts"], member["bag"]
    section = corpus_section(summary)
    assert "tokens" not in section
    assert "out-of-bag" not in section
    assert lengths(summary) is None
    assert bags(summary) is not None
    assert corpus_section({**summary, "corpus": []}) == ""


def test_figures_show_the_counts():
    summary = example()
    figure = bags(summary)
    drawn = sorted(round(bar.get_width()) for bar in figure.axes[0].patches)
    assert drawn == sorted(count for m in summary["members"] for count in m["per_dataset"].values())
    curves = lengths(summary).axes[0].lines
    assert len(curves) == len(DATASETS)
    assert all(abs(sum(line.get_ydata()) - 100) < 1e-9 for line in curves)
    assert list(curves[0].get_xdata()) == [64, 128, 256, 512, 1024]


def test_many_datasets_share_a_colour():
    summary = example()
    for member in summary["members"]:
        member["per_dataset"] = {f"d{i:02d}": 100 + i for i in range(40)}
    figure = bags(summary)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [f"d{i:02d}" for i in range(39, 32, -1)] + ["others"]
    drawn = sum(bar.get_width() for bar in figure.axes[0].patches)
    assert drawn == sum(sum(m["per_dataset"].values()) for m in summary["members"])
