"""The command: help with examples, one readable message and code 2 for a mistake, nothing heavy before its need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parent.parent
COMMANDS = ("plan", "run", "merge", "evaluate", "compare", "report", "study", "submit")
HEAVY = {"torch", "ray", "transformers", "mteb", "deepspeed", "numba", "matplotlib", "sklearn", "sentence_transformers"}
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """``call("plan", "r.yaml")`` -> (exit code, stdout, stderr), as the installed command would end."""
    from boom_ray.cli import main

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["boom-ray", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    rows = [{"query": f"question {i}", "pos": [f"answer {i}"], "task_type": "retrieval"} for i in range(40)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = {
        "name": "small",
        "base": {"build": {"layers": 1}},
        "corpus": {"datasets": [{"path": str(tmp_path / "mine.jsonl")}]},
        "bags": {"ratios": [0.5, 1.0]},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path / "small.yaml"


def _one_message(result: tuple[int, str, str], *told: str) -> None:
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("boom-ray: ")
    assert err.count("boom-ray: ") == 1
    assert "Traceback" not in err
    assert all(text in err for text in told), err


def test_help_lists_all_commands(call):
    code, out, _ = call("--help")
    assert code == 0
    assert all(command in out for command in COMMANDS)
    assert "boom-ray run jobs/recipes/quickstart.yaml" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(call, command):
    code, out, _ = call(command, "--help")
    assert code == 0
    assert "Example" in out
    assert f"boom-ray {command} " in out


def test_shipped_paths_in_examples_are_there(call):
    for command in COMMANDS:
        _, out, _ = call(command, "--help")
        for word in out.split():
            assert not word.startswith("jobs/") or (PROJECT / word).is_file() or word.endswith("/."), word


def test_help_loads_nothing_heavy():
    script = (
        "import json, sys\n"
        "from boom_ray.cli import main\n"
        "sys.argv = ['boom-ray', 'run', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stderr)}
    assert not loaded & (HEAVY | {"numpy", "pyarrow", "scipy", "optuna"})


def test_mistakes_end_in_one_message(call, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    for command in ("plan", "run"):
        unknown = call(command, recipe, "--set", "train.epoch=2")
        _one_message(unknown, "unknown key 'train.epoch': did you mean 'epochs'?")
        _one_message(call(command, recipe, "--set", "bags.ratios=[2]"), "bags.ratios", "at most 1")
        _one_message(call(command, recipe, "--set", "nonsense"), "dotted.key=value")
        _one_message(call(command, tmp_path / "none.yaml"), "none.yaml does not exist")
    none = f"{tmp_path}/none"
    _one_message(call("plan", recipe, "--set", f"corpus.datasets.0.path={none}.jsonl"), "none.jsonl")
    _one_message(call("plan", recipe, "--set", f"evaluate.sets=[{none}]"), none)
    assert sorted(p.name for p in tmp_path.iterdir()) == before  # and nothing was made


def test_a_base_that_is_not_there_is_refused_by_the_plan(call, recipe):
    _one_message(call("plan", recipe, "--set", "base={model: ./none}"), "./none", "is not a directory")


def test_a_run_directory_of_another_recipe_is_refused(call, recipe, tmp_path):
    from boom_ray.ledger import Ledger

    Ledger.open(tmp_path / "run", "other")
    for command in ("plan", "run"):
        _one_message(call(command, recipe, "--run-dir", tmp_path / "run"), "belongs to recipe 'other'")


def test_a_relative_run_directory_in_a_job_is_refused(call, recipe, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    _one_message(call("plan", recipe, "--run-dir", "runs/x"), "temporary copy", "BOOM_RAY_HOME")
    monkeypatch.setenv("BOOM_RAY_HOME", "relative")
    _one_message(call("plan", recipe), "temporary copy")


def test_wrong_arguments_end_in_usage_and_code_2(call):
    for arguments in (("plan",), ("none-such",), ("plan", "a", "b"), ("merge", "x"), ("evaluate",), ("compare",)):
        code, _, err = call(*arguments)
        assert code == 2
        assert "Usage" in err
        assert "Traceback" not in err


def test_other_commands_refuse_what_is_not_there(call, tmp_path):
    _one_message(call("report", tmp_path), "is not the directory of a run")
    _one_message(call("merge", tmp_path / "none.yml", tmp_path / "out"), "none.yml")
    _one_message(call("evaluate", tmp_path / "none", "--sets", tmp_path / "no-sets"), "no")


def test_a_plan_lists_every_step_and_makes_nothing(recipe, tmp_path):
    script = (
        "import json, sys\n"
        "from boom_ray.cli import main\n"
        f"sys.argv = ['boom-ray', 'plan', {str(recipe)!r}]\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "BOOM_RAY_HOME"}
    before = sorted(p.name for p in tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    lines = done.stdout.splitlines()
    names = [line[2:26].strip() for line in lines[2:-1]]
    assert names == [
        *("corpus", "start", "tokens", "bags", "warm base", "member-0", "member-1", "gram", "search"),
        *("merge-ratio", "merge-uniform", "merge-searched", "score base", "score member-0", "score member-1"),
        *("score merge-ratio", "score merge-uniform", "score merge-searched", "publish"),
    ]
    assert lines[0] == f"small: {len(names)} of {len(names)} steps to do"
    assert all(line.startswith("- ") for line in lines[2:-1])
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    loaded = {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}
    assert not loaded & {"torch", "ray", "transformers", "mteb", "deepspeed", "matplotlib"}


def test_a_plan_for_a_cluster_shows_who_trains_when(call, recipe, tmp_path):
    wanted = ("--cluster", "2x4xH100", "--rows", "36000", "--rows-per-second", "10", "--set", "resources.price=2")
    code, out, err = call("plan", recipe, "--run-dir", tmp_path / "run", *wanted, "--json", tmp_path / "plan.json")
    assert code == 0, err
    assert "member-1  100 %" in out
    assert "no plan can beat" in out
    assert "cost at 2 a device-hour" in out
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["ensemble"]["slots"] == 8
    assert written["ensemble"]["lower_bound"] <= written["ensemble"]["makespan"] < 3600
    assert "give --parameters" in out
    code, out, err = call("plan", recipe, *wanted, "--parameters", "6e8", "--json", tmp_path / "plan.json")
    assert "network, on paper: " in out
    assert json.loads((tmp_path / "plan.json").read_text())["ensemble"]["network"]["written"] == 6 * 4 * 6e8
    assert [step["name"] for step in written["steps"]][-1] == "publish"
    assert not (tmp_path / "run").exists()
    _one_message(call("plan", recipe, "--set", "resources.min_members=3"), "min_members (3)", "2 members")
    assert call("plan", recipe, "--cluster", "4by8")[0] == 2


def test_merge_writes_a_directory_and_says_where(call, small_base, tmp_path):
    models = [{"model": str(small_base(seed)), "parameters": {"weight": 0.5}} for seed in (1, 2)]
    (tmp_path / "merge.yml").write_text(yaml.safe_dump({"merge_method": "multislerp", "models": models}))
    code, out, err = call("merge", tmp_path / "merge.yml", tmp_path / "out", "--workers", "1")
    assert (code, out.splitlines()[-1]) == (0, f"merged: {tmp_path / 'out'}"), err
    assert (tmp_path / "out" / "model.safetensors").is_file()
    _one_message(call("merge", tmp_path / "merge.yml", tmp_path / "out"), "exists", "--overwrite")


@pytest.mark.parametrize("job", ["run", "merge", "evaluate"])
def test_job_entry_points_are_the_commands(job):
    command = [sys.executable, str(PROJECT / "jobs" / f"{job}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT)
    assert "Example" in done.stdout
    assert f"boom-ray {job} " in done.stdout
