import json
import os
import subprocess
import sys

from boom_ray.bench import corpus
from boom_ray.bench.made_rows import SHORT, Lengths, evaluation_texts, write_rows


def test_made_rows_are_the_same_twice_and_some_are_copies(tmp_path):
    for name in ("one", "two"):
        write_rows(tmp_path / name, 3000, Lengths())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    lines = (tmp_path / "one").read_text().splitlines()
    assert len(lines) == 3000
    assert 2960 <= len(set(lines)) <= 2985  # one in a hundred, now and then a copy of a copy
    rows = [json.loads(line) for line in lines]
    assert {len(row["query"].split()) for row in rows} == set(range(4, 13))
    assert {len(row["neg"]) for row in rows} == {0, 1}
    assert not set(evaluation_texts(50)) & {text for row in rows for text in (row["query"], *row["pos"], *row["neg"])}
    write_rows(tmp_path / "short", 1, SHORT)
    assert len((tmp_path / "short").read_text().splitlines()) == 1


def test_memory_is_that_of_the_whole_tree():
    child = "import time; block = bytearray(b'x' * (64 << 20)); print('ready', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        tree = list(corpus._tree(process.pid))
        assert tree[0] == process.pid
        assert len(tree) == 2
        assert corpus._pss(tree[1]) > 64 << 20 > corpus._pss(tree[0])
        assert corpus._pss(os.getpid()) > 0
    finally:
        for pid in reversed(tree):
            os.kill(pid, 9)
        process.wait()
    assert corpus._pss(process.pid) == 0


def test_the_table_shows_medians_of_turns():
    side = {"rate": 20_000.0, "start": 5.0, "seconds": 30.0}
    turns = [{"ours": side | {"rate": r}, "datasets": side, "ratio": r / 20_000} for r in (50_000, 90_000, 60_000)]
    feed = {"rows": 9e3, "tokens": 9e5, "trained": 3e3, "ratio": 300.0, "resume": 1.25, "step": 10_000, "steps": 15_625}
    memory = {"rows": 5_000_000, "seconds": 90.0, "idle": 500 << 20, "peak": 1500 << 20, "above_idle": 1000 << 20}
    text = corpus.table({"settings": {"rows": 500_000}, "turns": turns, "feed": feed, "memory": memory})
    assert "ours              60,000" in text
    assert "ours / datasets.map: 3.00" in text
    assert "300 times" in text
    assert "step 10,000 of 15,625 in 1.25 s" in text
    assert "1,000 MiB above an idle Ray (500 MiB) for 5,000,000 short rows" in text
