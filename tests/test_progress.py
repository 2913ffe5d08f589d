"""What a person sees: numbers from the log, right while a line is being written, plain lines without a terminal."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from boom_ray.progress import State, read_state, watch


@dataclass
class Member:
    name: str
    steps: int
    log_file: Path


def _log(file: Path, losses: list[float], seconds: float = 2.0, texts: int = 10) -> None:
    lines = [{"name": "member-0", "steps": 100, "started": 0}]
    lines += [
        {"step": i, "loss": loss, "seconds": seconds, "texts": texts, "tokens": 9, "waited": 0.5}
        for i, loss in enumerate(losses)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_member_that_has_not_begun(tmp_path):
    member = Member("member-0", 100, tmp_path / "log.jsonl")
    empty = State("member-0", "40%", 0, 100, None, None, None)
    assert read_state(member, "40%") == empty
    _log(member.log_file, [])
    assert read_state(member, "40%") == empty


def test_figures_are_means_over_the_last_steps(tmp_path):
    member = Member("member-0", 100, tmp_path / "log.jsonl")
    _log(member.log_file, [9.0] * 5 + [3.0] * 10 + [1.0] * 10)
    state = read_state(member, "40%")
    assert (state.step, state.steps, state.bag) == (25, 100, "40%")
    assert state.loss == pytest.approx(2.0)  # the last 20
    assert state.speed == pytest.approx(5.0)
    assert state.left == pytest.approx(75 * 2.0)


def test_one_step_is_enough_for_figures_and_the_last_has_no_time_left(tmp_path):
    member = Member("member-0", 2, tmp_path / "log.jsonl")
    _log(member.log_file, [4.0])
    assert read_state(member, "") == State("member-0", "", 1, 2, 4.0, 5.0, 2.0, 4.5, 0.25)
    _log(member.log_file, [4.0, 2.0])
    assert read_state(member, "") == State("member-0", "", 2, 2, 3.0, 5.0, 0.0, 4.5, 0.25)


def test_a_line_that_is_being_written_is_left_for_the_next_look(tmp_path):
    member = Member("member-0", 9, tmp_path / "log.jsonl")
    _log(member.log_file, [4.0, 2.0])
    whole = read_state(member, "")
    with open(member.log_file, "a") as stream:
        stream.write('{"step": 2, "lo')
    assert read_state(member, "") == whole


def test_plain_lines_show_those_that_train_and_not_every_second(tmp_path, capsys):
    members = [Member(f"member-{i}", 9, tmp_path / f"{i}.jsonl") for i in range(3)]
    _log(members[0].log_file, [4.0, 2.0])
    _log(members[1].log_file, [1.0] * 9)
    with watch([(m, "40%") for m in members]) as watcher:
        watcher.tick()
        watcher.tick()
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["  member-0 2/9 loss 3 5 texts/s left 0:14"]


def test_a_terminal_gets_a_table_of_all(tmp_path, monkeypatch):
    import io
    import sys

    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    member = Member("member-0", 9, tmp_path / "log.jsonl")
    with watch([(member, "40%")]) as watcher:
        _log(member.log_file, [4.0, 2.0])
        watcher.tick()
    text = screen.getvalue()
    assert all(word in text for word in ("member", "bag", "step", "loss", "texts/s", "left"))
    assert all(word in text for word in ("waiting", "member-0", "40%", "2/9", "25.0 %", "0:14"))
