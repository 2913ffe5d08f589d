"""The demo: exact neighbours of both models, their ranks and prompts, what of a folder is read, and how it looks."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.numpy import load_file, save_file
from small_corpus import WORDS
from typer.testing import CliRunner, Result

from boom_ray.cli import app
from boom_ray.config import BoomError, parse_recipe
from boom_ray.demo.models import find_pair, prompts_of
from boom_ray.demo.passages import Texts, describe, from_environment, from_folder, split
from boom_ray.demo.search import Answer, Hit, Side, answer, load_side, rank
from boom_ray.demo.show import heading, show, to_json
from boom_ray.encoder import Encoder
from boom_ray.evaluate.vectors import MtebEncoder, default_prompt
from boom_ray.ledger import Key, Ledger
from boom_ray.plan import Keys, World, derive_keys

Models = Callable[..., Path]
QUERY = "oldship bigtree 7"


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 files of one passage each."""
    folder = tmp_path_factory.mktemp("notes")
    rng = np.random.default_rng(4)
    for number in range(40):
        words = rng.choice(WORDS, rng.integers(2, 12))
        (folder / f"note-{number:02d}.md").write_text(f"\n\n{' '.join(words)} {number}\n")
    return folder


@pytest.fixture(scope="module")
def run(small_base: Models, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ledger, Keys, str]:
    """A run directory with its base, the merge that it has published, and the name of that; nothing was trained."""
    raw = {"name": "small", "base": {"model": str(small_base(0))}, "bags": {"ratios": [0.5, 1.0]}}
    recipe = parse_recipe({**raw, "corpus": {"datasets": [{"path": "not-read.jsonl"}]}})
    world = World(sources=("small",), base="small", sets=())
    ledger, keys = Ledger.open(tmp_path_factory.mktemp("run") / "small", recipe.name), derive_keys(recipe, world)
    ledger.write_text("recipe.yaml", recipe.to_yaml())
    ledger.write_text("world.json", json.dumps(asdict(world)))
    chosen = keys.merges[recipe.merge.weights]
    source = {"members": [key.identity for key in keys.members], "base": keys.base.identity}
    _commit(ledger, keys.base, small_base(0), {})
    _commit(ledger, chosen, small_base(1), source)
    _commit(ledger, keys.published, ledger.path(chosen), {"merge": chosen.identity})
    return ledger, keys, recipe.merge.weights


def _commit(ledger: Ledger, key: Key, content: Path, inputs: dict[str, Any]) -> None:
    with ledger.stage(key, inputs) as stage:
        shutil.copytree(content, stage.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))


def _call(*arguments: str | Path, typed: str | None = None) -> Result:
    words = ["search-demo", *map(str, arguments)]
    return CliRunner().invoke(app, words, input=typed, catch_exceptions=False)


def _brute(
    directory: Path, texts: list[str], query: str, before: tuple[str, str] = ("", "")
) -> list[tuple[int, float]]:
    """(number, cosine) of every text by a plain loop over all of them, the nearest first."""
    encoder = Encoder.load(directory, device="cpu")
    asked = encoder.encode([before[0] + query])[0]
    cosines = [float(np.dot(encoder.encode([before[1] + text])[0], asked)) for text in texts]
    return sorted(enumerate(cosines), key=lambda pair: -pair[1])


def test_both_lists_are_those_of_a_plain_loop_and_know_each_other(notes, small_base):
    told = _call(small_base(1), "--base", small_base(0), "--folder", notes, "--query", QUERY, "--top", "6", "--json")
    found = json.loads(told.stdout)
    passages = from_folder(notes, 1000).passages
    places = [passage.place for passage in passages]
    assert places == [f"note-{number:02d}.md:3" for number in range(40)]
    orders = {
        name: _brute(small_base(seed), [p.text for p in passages], QUERY) for name, seed in (("base", 0), ("model", 1))
    }
    assert [i for i, _ in orders["base"]] != [i for i, _ in orders["model"]]
    for name, other in (("base", "model"), ("model", "base")):
        hits = found["answers"][0][name]
        assert [places.index(hit["place"]) for hit in hits] == [i for i, _ in orders[name][:6]]
        assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5, 6]
        np.testing.assert_allclose([hit["cosine"] for hit in hits], [c for _, c in orders[name][:6]], atol=2e-6)
        elsewhere = {i: place for place, (i, _) in enumerate(orders[other], 1)}
        assert [hit[f"{other}_rank"] for hit in hits] == [elsewhere[i] for i, _ in orders[name][:6]]
    assert found["texts"] == {"origin": f"40 files in {notes}", "passages": 40, "found": 40, "left_out": {}}
    assert (found["base"], found["model"]) == (str(small_base(0)), str(small_base(1)))


@given(st.lists(st.sampled_from([-0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=20))
def test_ranks_count_what_is_nearer_and_equal_ones_keep_their_order(scores):
    expected = [
        1 + sum(s > score for s in scores) + sum(s == score for s in scores[:i]) for i, score in enumerate(scores)
    ]
    assert rank(np.array(scores, np.float32)).tolist() == expected


def _with_prompts(source: Path, out: Path, prompts: dict[str, str], default: str | None = None) -> Path:
    shutil.copytree(source, out)
    file = out / "config_sentence_transformers.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "prompts": prompts, "default_prompt_name": default}))
    return out


def test_queries_and_passages_get_the_prompts_of_each_model(notes, small_base, tmp_path):
    prompts = {"query": "redcat redtown ", "passage": "lowsong "}
    model = _with_prompts(small_base(1), tmp_path / "model", prompts)
    told = _call(model, "--base", small_base(1), "--folder", notes, "--query", QUERY, "--json")
    found = json.loads(told.stdout)["answers"][0]
    texts = [passage.text for passage in from_folder(notes, 1000).passages]
    for name, before in (("base", ("", "")), ("model", (prompts["query"], prompts["passage"]))):
        expected = _brute(small_base(1), texts, QUERY, before)[:5]
        assert [texts.index(hit["text"]) for hit in found[name]] == [i for i, _ in expected]
        np.testing.assert_allclose([hit["cosine"] for hit in found[name]], [c for _, c in expected], atol=2e-6)
    assert "query prompt 'redcat redtown ', passage prompt 'lowsong '" in told.stderr
    assert found["base"][0]["cosine"] != found["model"][0]["cosine"]


@pytest.mark.parametrize(
    ("prompts", "default"),
    [
        ({}, None),
        ({"query": "q: ", "document": "d: "}, None),
        ({"query": "q: ", "passage": "p: ", "corpus": "c: "}, "query"),
        ({"corpus": "c: ", "plain": "x: "}, "plain"),
        ({"Retrieval": "r: ", "query": "q: ", "document": "d: "}, None),
        ({"Retrieval-query": "rq: ", "Retrieval": "r: ", "STS": "s: "}, "STS"),
        ({"Retrieval-document": "", "query": "", "document": "d: "}, "document"),
    ],
)
def test_prompts_are_those_of_an_evaluation(small_base, tmp_path, prompts, default):
    from mteb.types import PromptType

    model = _with_prompts(small_base(0), tmp_path / "model", prompts, default)
    adapter = MtebEncoder(Encoder.load(model, device="cpu"), None, 64, default_prompt(model))
    task = SimpleNamespace(name="anything", type="Retrieval")
    own = prompts_of(model)
    assert own.query == adapter._prompt(task, PromptType.query)
    assert own.passage == adapter._prompt(task, PromptType.document)


LINES = st.lists(st.lists(st.sampled_from(["cat", "ship", "x" * 90, "tree"]), max_size=30).map(" ".join), max_size=40)


@given(LINES)
def test_passages_hold_every_word_once_and_begin_where_they_say(lines):
    text = "\n".join(lines)
    found = list(split(text))
    assert " ".join(part for _, part in found).split() == text.split()
    for line, part in found:
        assert len(part) <= 500
        assert part.split("\n")[0].split()[0] in lines[line - 1].split()
        assert part == part.rstrip()
        assert not part.startswith("\n")


def test_a_passage_ends_at_a_blank_line():
    first, second = ["one two three"] * 13, ["four five"] * 5
    text = "\r\n".join(["", *first, "", "---", "", *second])
    assert list(split(text)) == [(2, "\n".join(first)), (16, "\n".join(["---", "", *second]))]
    assert list(split("---\n\n}\n{")) == []
    long = " ".join(["word"] * 250)
    assert [line for line, _ in split(f"begin\n{long}")] == [1, 2, 2, 2]


def test_of_a_folder_text_is_read_and_the_rest_is_counted(tmp_path):
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    for directory in (folder / "code", folder / ".git", outside):
        directory.mkdir(parents=True)
        (directory / "main.c").write_text(f"int {directory.name.strip('.')};\n")
    (folder / ".env").write_text("hidden text\n")
    (folder / "README").write_text("\ufeffread me\n", encoding="utf-8")
    (folder / "again.txt").write_text("read me\n")
    (folder / "latin.txt").write_bytes("Äpfel und Öl".encode("latin-1"))
    (folder / "image.png").write_bytes(b"text\0more")
    (folder / "large.json").write_text("word " * 300_000)
    (folder / "linked.c").symlink_to(outside / "main.c")
    (folder / "linked").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe")
    texts = from_folder(folder, 100)
    assert {passage.text for passage in texts.passages} == {"int code;", "read me"}
    assert "code/main.c:1" in [passage.place for passage in texts.passages]
    assert texts.left_out == {"binary": 2, "larger than 1 MB": 1, "links": 4, "unreadable": 1}
    told = describe(texts)
    assert told == (
        f"2 passages of 2 files in {folder} (files left out: 2 binary, 1 larger than 1 MB, 4 links, 1 unreadable)"
    )
    if os.geteuid():
        (folder / "code").chmod(0)
        assert from_folder(folder, 100).left_out["unreadable"] == 2
        (folder / "code").chmod(0o755)


def test_a_folder_without_text_is_one_error(tmp_path, small_base):
    (tmp_path / "only.bin").write_bytes(b"\0\1")
    with pytest.raises(BoomError, match=r"no text to search \(files left out: 1 binary\)"):
        _call(small_base(0), "--folder", tmp_path, "--query", "x")
    with pytest.raises(BoomError, match="is not a folder"):
        from_folder(tmp_path / "only.bin", 10)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BoomError, match=r"no text to search\. Give"):
        from_folder(tmp_path / "empty", 10)


def test_a_limit_takes_a_sample_of_all_files(notes, tmp_path):
    shutil.copytree(notes, tmp_path / "folder")
    (tmp_path / "folder" / "large.txt").write_text("\n\n".join(f"redcat {number} " * 20 for number in range(160)))
    every, some, few = (from_folder(tmp_path / "folder", limit) for limit in (1000, 50, 2))
    assert (len(every.passages), every.found, every.left_out) == (200, 200, {})
    assert some.passages == every.passages[::4]
    assert sum(passage.place.startswith("large.txt") for passage in some.passages) == 40
    assert describe(some).startswith("50 of 200 passages of 41 files in ")
    assert (len(few.passages), len(set(few.passages))) == (2, 2)
    assert few.found >= 20
    files = int(few.origin.partition(" ")[0])
    assert few.left_out == {"not read": 41 - files}


def test_without_a_folder_functions_of_the_environment_are_searched():
    texts = from_environment(60)
    assert len({passage.text for passage in texts.passages}) == 60
    assert len({passage.place.partition(".")[0] for passage in texts.passages}) > 10
    assert all(re.match(r"(async )?def \w+", passage.text) for passage in texts.passages)
    assert all(passage.excerpt for passage in texts.passages)
    assert texts.origin.endswith("packages of this Python environment")


def test_a_run_shows_its_published_model_beside_its_base(run):
    ledger, keys, _ = run
    pair = find_pair(ledger.root)
    assert (pair.model, pair.base) == (ledger.path(keys.published), ledger.path(keys.base))
    assert find_pair(ledger.path(keys.published)) == pair
    assert find_pair(ledger.path(keys.base)).base is None


def test_a_newer_version_is_shown_beside_the_same_base(run, tmp_path):
    ledger, keys, weights = run
    root = tmp_path / "copy"
    shutil.copytree(ledger.root, root)
    copied, chosen = Ledger(root), keys.merges[weights]
    merge, version = (Key(kind, "v2", digit * 16) for kind, digit in (("merges", "a"), ("published", "b")))
    _commit(copied, merge, copied.path(chosen), {"members": [chosen.identity], "base": keys.base.identity})
    parent = {"identity": keys.published.identity}
    with copied.stage(version, {"merge": merge.identity, "parent": parent["identity"]}) as stage:
        shutil.copytree(copied.path(chosen), stage.path, dirs_exist_ok=True)
        stage.meta.update(update={"version": 2, "parent": parent})
    pair = find_pair(root)
    assert (pair.model, pair.base) == (copied.path(version), copied.path(keys.base))
    shutil.rmtree(copied.path(merge))
    assert find_pair(root).why == "the manifests of its run lead to none"


def test_a_run_that_has_published_nothing_says_what_to_do(run, tmp_path):
    ledger, keys, _ = run
    shutil.copytree(ledger.root, tmp_path / "early", ignore=shutil.ignore_patterns("published"))
    with pytest.raises(BoomError, match=r"has published no model yet. Finish it first: boom-ray run .*recipe.yaml"):
        find_pair(tmp_path / "early")
    with pytest.raises(BoomError, match="is the model itself"):
        find_pair(ledger.root, ledger.path(keys.published))
    with pytest.raises(BoomError, match=r"is not a directory\. Give a model directory, or a run's"):
        find_pair(tmp_path / "none")


def test_the_base_that_a_card_names_is_taken_where_it_is_here(small_base, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model = tmp_path / "model"
    shutil.copytree(small_base(1), model)
    assert find_pair(model).why == "it is in no run, and its card names none"
    for named, why in (("me/base", "not on this machine"), ("../../etc", "not on this machine"), (["a", "b"], "none")):
        (model / "README.md").write_text(f"---\nbase_model: {json.dumps(named)}\n---\n# model\n")
        assert why in find_pair(model).why
    (model / "README.md").write_text("---\nbase_model:\n- me/base\n---\n# model\n")
    stored = tmp_path / "hub" / "models--me--base"
    commit = "0123456789" * 4
    shutil.copytree(small_base(0), stored / "snapshots" / commit)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(commit)
    assert find_pair(model).base == stored / "snapshots" / commit
    assert find_pair(model, small_base(2)).base == small_base(2)


def test_without_a_base_only_the_model_is_shown_and_it_says_so(notes, small_base, tmp_path):
    shutil.copytree(small_base(1), tmp_path / "model")
    told = _call(tmp_path / "model", "--folder", notes, "--query", QUERY, "--top", "2")
    assert "base: none is known" in told.stderr
    assert "only the model is shown. Name it with --base DIR." in told.stderr
    assert "nearest by model: model" in told.stdout
    assert "base" not in told.stdout
    assert len(re.findall(r"^ +\d  ", told.stdout, re.M)) == 2
    found = json.loads(_call(tmp_path / "model", "--folder", notes, "--query", QUERY, "--json").stdout)
    assert found["base"] is None
    assert set(found["answers"][0]) == {"query", "model"}
    assert "base_rank" not in found["answers"][0]["model"][0]


@pytest.fixture(scope="module")
def shown(notes: Path, small_base: Models) -> tuple[Answer, Any, Texts]:
    texts, pair = from_folder(notes, 100), find_pair(small_base(1), small_base(0))
    plain = [passage.text for passage in texts.passages]
    sides = {name: _side(folder, plain) for name, folder in (("base", pair.base), ("model", pair.model))}
    return answer(QUERY, sides, 4), pair, texts


def _side(directory: Path | None, texts: list[str]) -> Side:
    assert directory is not None
    return load_side(directory, texts, lambda done: None)


def _screen(shown: tuple[Answer, Any, Texts], **options: Any) -> str:
    found, pair, texts = shown
    stream = io.StringIO()
    show(found, pair, texts.passages, Console(file=stream, highlight=False, color_system=None, **options))
    return stream.getvalue()


def test_a_wide_terminal_has_both_lists_side_by_side(shown):
    found, _, texts = shown
    text = _screen(shown, force_terminal=True, width=120)
    assert "nearest by" not in text
    assert max(map(len, text.splitlines())) <= 120
    for left, right in zip(found.hits["base"], found.hits["model"], strict=True):
        line = next(line for line in text.splitlines() if line.split()[:1] == [str(left.rank)])
        cells = [f"{left.cosine:.3f}", str(left.other), texts.passages[left.passage].place]
        assert line.split()[1:] == [
            *cells,
            *(f"{right.cosine:.3f}", str(right.other), texts.passages[right.passage].place),
        ]


def test_narrow_terminals_and_pipes_have_one_list_after_the_other(shown):
    found, _, texts = shown
    narrow, piped = _screen(shown, force_terminal=True, width=40), _screen(shown, width=40)
    assert max(map(len, narrow.splitlines())) <= 40
    for text in (narrow, piped):
        assert text.index("nearest by base: ") < text.index("nearest by model: ")
        for hits, other in ((found.hits["base"], "model"), (found.hits["model"], "base")):
            for hit in hits:
                place = texts.passages[hit.passage].place
                assert re.search(rf"^ +{hit.rank} +{hit.cosine:.3f}  {other} #{hit.other} +{place}$", text, re.M)
    for hit in (*found.hits["base"], *found.hits["model"]):
        assert f"     {texts.passages[hit.passage].excerpt}\n" in piped  # whole, however narrow


def test_what_files_hold_cannot_steer_the_terminal(tmp_path, small_base):
    (tmp_path / "bad\x1b[2Jname.txt").write_text("red\x1b[31mcat [bold]redcat[/bold] :smile:\u202e\n\n")
    texts, pair = from_folder(tmp_path, 10), find_pair(small_base(1), small_base(0))
    found = Answer("\x1b[1mask", {"base": (Hit(0, 1, 0.5, 1),), "model": (Hit(0, 1, 0.5, 1),)})
    for options in ({"force_terminal": True, "width": 200}, {"force_terminal": True, "width": 60}, {}):
        text = _screen((found, pair, texts), **options)
        assert all(c.isprintable() or c == "\n" for c in text)
        assert "[bold]redcat[/bold] :smile:" in text
    assert json.loads(json.dumps(to_json([found], pair, texts)))["answers"][0]["base"][0]["text"].startswith("red\x1b")
    assert all(line.isprintable() for line in heading(pair, texts))


def test_questions_are_asked_for_until_an_empty_line_or_the_end(notes, small_base):
    arguments = (small_base(1), "--base", small_base(0), "--folder", notes, "--top", "1")
    for typed, count in ((f"{QUERY}\n redcat \n\nnot read\n", 2), ("redcat", 1), ("\n", 0), ("", 0)):
        told = _call(*arguments, typed=typed)
        assert told.exit_code == 0
        assert len(re.findall(r"^question: ", told.stdout, re.M)) == count
    first = _call(*arguments, "--query", "redcat", "--query", "lowsong")
    assert re.findall(r"^question: (.*)$", first.stdout, re.M) == ["redcat", "lowsong"]


def test_mistakes_are_one_error(notes, small_base, tmp_path):
    with pytest.raises(BoomError, match="--json writes the answers to --query"):
        _call(small_base(0), "--json")
    with pytest.raises(BoomError, match="--query is empty"):
        _call(small_base(0), "--query", " ")
    with pytest.raises(BoomError, match="has no tokenizer"):
        _call(notes, "--folder", notes, "--query", "x")
    assert _call(small_base(0), "--top", "0").exit_code == 2
    assert "boom-ray search-demo runs/quickstart --folder docs" in _call("--help").stdout
    shutil.copytree(small_base(0), tmp_path / "broken")
    state = load_file(tmp_path / "broken" / "model.safetensors")
    state = {name: value * np.float32("nan") for name, value in state.items()}
    save_file(state, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BoomError, match="NaN or infinite"):
        _call(tmp_path / "broken", "--folder", notes, "--query", "x")


def test_half_characters_of_a_terminal_are_no_error(notes, small_base):
    told = _call(small_base(0), "--base", small_base(1), "--folder", notes, "--query", "caf\udce9", "--json")
    assert json.loads(told.stdout)["answers"][0]["query"] == "caf?"


ASKING = """
from boom_ray.cluster.interrupts import handled
from boom_ray.commands.demo import questions
with handled() as stop:
    for question in questions():
        print("asked:", question)
    print("left:", stop.code)
"""


def test_control_c_at_the_prompt_ends_it_in_order():
    """On a real terminal, under the command's own handling of signals: a question goes through, then Ctrl-C leaves."""
    ours, theirs = os.openpty()
    process = subprocess.Popen([sys.executable, "-c", ASKING], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        _read_until(ours, "question> ")
        os.write(ours, f" {QUERY} \n".encode())
        assert f"asked: {QUERY}\r\n" in _read_until(ours, "question> ", after="asked:")
        time.sleep(1)  # a signal between the prompt and the wait for a key is seen at the next key only
        process.send_signal(signal.SIGINT)
        assert "left: None" in _read_until(ours, "\0")  # to its end: it waits for the terminal to take all
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _read_until(terminal: int, what: str, after: str = "") -> str:
    """What a terminal shows up to ``what``, or to its end."""
    text, deadline = "", time.monotonic() + 90
    while what not in text.partition(after)[2] if after else what not in text:
        assert time.monotonic() < deadline, text
        try:
            text += os.read(terminal, 4096).decode(errors="replace")
        except OSError:  # the other end is closed
            break
    return text
