"""The page: one file, escaped, small, well formed, without a request to anywhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from report_example import example, with_intervals

from boom_ray.redact import redact
from boom_ray.report.page import most_at_once, write_page

VOID = {"meta", "link", "br"}


class Tree(HTMLParser):
    """Checks that tags close in order; collects ids and references."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self._collect(attrs)

    def handle_startendtag(self, tag, attrs):
        self._collect(attrs)

    def _collect(self, attrs):
        self.ids += [v for k, v in attrs if k == "id"]
        self.links += [v for k, v in attrs if k in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(html: str) -> Tree:
    tree = Tree()
    tree.feed(html)
    assert tree.open == []
    return tree


def test_self_contained_small_and_well_formed():
    html = write_page(example())
    tree = parse(html)
    assert len(html.encode()) < 400_000
    assert len(tree.ids) == len(set(tree.ids))
    assert all(link.startswith(("#", "data:")) for link in tree.links)
    assert {link[1:] for link in tree.links if link.startswith("#")} <= set(tree.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(tree.ids)
    assert "<script" not in html
    assert not re.findall(r"@import|url\((?!#)", html)
    assert html.count("<svg") == 12
    assert write_page(example()) == html


def test_the_answer_comes_first():
    html = write_page(example())
    assert html.index("<h1>") < html.index("<table") < html.index("<svg") < html.index("Corpus")
    assert "47.88" in html
    assert "member-3" in html


def test_every_difference_has_its_interval():
    html = write_page(with_intervals(example(), 0.0123))
    parse(html)
    assert html.count("<small>±1.23</small>") == 9 * 4 - 2, "to base and members in both domains, but base to base"
    assert "95 % interval over other queries and texts of these sets" in html


def test_everything_is_escaped():
    summary = example()
    evil = "<script>alert('x')</script>&\"'"
    summary["name"] = summary["published"] = evil
    summary["recipe_yaml"] += f"note: {evil}\n"
    summary["sets"][0]["name"] = summary["corpus"][0]["name"] = evil
    summary["members"][0]["name"] = summary["models"][1]["name"] = summary["chosen"] = evil
    summary["cosine"]["names"][0] = summary["stages"][0]["name"] = summary["search"]["objective"] = evil
    summary["versions"][evil] = evil
    for model in summary["models"]:
        model["scores"][evil] = model["scores"].pop("python_functions")
    html = write_page(summary)
    parse(html)
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_dollar_signs_are_text_and_not_formulas():
    summary = example()
    summary["stages"][0]["name"] = "a $\\frac{1}$ b $"
    assert "frac" in write_page(summary)


@pytest.mark.parametrize("case", ["single", "no_ood", "no_scores", "no_search"])
def test_poor_runs_have_a_page_too(case):
    summary = example(ratios=(1.0,)) if case == "single" else example(ood=case != "no_ood")
    if case == "no_scores":
        summary["sets"] = []
        summary["models"] = [{**m, "scores": {}, "dev_a": None, "dev_b": None} for m in summary["models"]]
    if case == "no_search":
        summary["search"] = summary["cosine"] = None
    parse(write_page(summary))


def test_long_runs_have_a_small_page_too():
    summary = example()
    for member in summary["members"]:
        member["losses"] = [[step, 2.0 + 0.5 * (step % 7)] for step in range(20_000)]
    assert len(write_page(summary).encode()) < 1_000_000


def test_most_at_once():
    spans = [(0, 10), (5, 15), (10, 20), (12, 13)]
    assert most_at_once([{"started": a, "finished": b} for a, b in spans]) == 3
    assert most_at_once([]) == 0


def test_secrets_do_not_reach_the_page():
    summary = example()
    summary["recipe_yaml"] += (
        "storage: s3://user:hunter2secret@bucket/x\nhub_token: abcdefgh123\nkey: hf_"
        + "A" * 34
        + "\nmax_tokens: 16384\n"
    )
    html = write_page(summary)
    for secret in ("hunter2secret", "abcdefgh123", "A" * 34):
        assert secret not in html
    assert "max_tokens: 16384" in html, "a number of tokens is no secret"


def test_redact_leaves_code_alone():
    code = 'tokenizer = AutoTokenizer.from_pretrained("x")\nchunk_tokens: 16384\npooling: lasttoken\nhttps://example.org/a:b'
    assert redact(code) == code
    assert redact("password='abc def'").startswith("password='***")
