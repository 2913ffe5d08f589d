"""Pushing: only what was published and is whole, in one commit, to a real hub on 127.0.0.1."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_to_push import TOKEN, PushHub, push_hub  # noqa: F401
from typer.testing import CliRunner

from boom_ray.cli import app
from boom_ray.config import BoomError
from boom_ray.exit_codes import Infrastructure
from boom_ray.ledger import Key, Ledger
from boom_ray.push import Target, inspect, push
from boom_ray.stores import files

CARD = "---\nlibrary_name: sentence-transformers\n---\n\n# a model\n"
KEY = Key("published", "r", "0123456789abcdef")


def _publish(root: Path, files: dict[str, str] | None = None) -> Path:
    ledger = Ledger.open(root / "run", "r")
    with ledger.stage(KEY) as stage:
        (stage.path / "1_Pooling").mkdir()
        for name, text in {
            "README.md": CARD, "config.json": "{}", "1_Pooling/config.json": "{}", "model.safetensors": "weights" * 99,
            **(files or {}),
        }.items():  # fmt: skip
            (stage.path / name).write_text(text)
        stage.meta["seed"] = 17
    return ledger.path(KEY)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return _publish(tmp_path)


def test_all_files_arrive_byte_by_byte_in_one_commit(published: Path, push_hub: PushHub) -> None:  # noqa: F811
    (published / ".DS_Store").write_text("not ours")
    offer = inspect(published)
    assert offer.left_out == (".DS_Store",)
    done = push(offer, Target("me/model"), lambda line: None)
    files = push_hub.repositories["me/model"]["main"]
    assert {name: content for name, content in files.items() if name != ".gitattributes"} == {
        name: (published / name).read_bytes() for name in offer.files
    }
    assert {"_SUCCESS", "boom_manifest.json", "README.md", "1_Pooling/config.json"} <= files.keys()
    assert len(push_hub.commits) == 1
    assert "me/model" not in push_hub.public, "private unless asked"
    assert done.url == f"{push_hub.address}/me/model/tree/main"
    assert list(push_hub.large.values()) == [b"weights" * 99], "only weights go as large files"


def test_weights_of_an_earlier_model_go_with_the_same_commit(published: Path, push_hub: PushHub) -> None:  # noqa: F811
    old = {"model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}", "picture.png": b"p"}
    push_hub.repositories["me/model"] = {"main": dict(old)}
    done = push(inspect(published), Target("me/model"), lambda line: None)
    assert set(done.removed) == {"model-00001-of-00002.safetensors", "model.safetensors.index.json"}
    files = push_hub.repositories["me/model"]["main"]
    assert files["picture.png"] == b"p"
    assert not set(done.removed) & files.keys()
    assert len(push_hub.commits) == 1


def test_a_branch_and_a_public_repository_when_asked(published: Path, push_hub: PushHub) -> None:  # noqa: F811
    result = CliRunner().invoke(
        app, ["push", str(published), "me/model", "--public", "--revision", "v2"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert "me/model" in push_hub.public
    branches = push_hub.repositories["me/model"]
    assert branches["main"].keys() == {".gitattributes"}
    assert "model.safetensors" in branches["v2"]
    assert f"pushed: {push_hub.address}/me/model/tree/v2 (commit " in result.output


def test_a_busy_hub_is_asked_again_and_a_dead_one_is_the_infrastructure(
    published: Path,
    push_hub: PushHub,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    push_hub.failing = 2
    push(inspect(published), Target("me/model"), lambda line: None)
    assert len(push_hub.commits) == 1
    push_hub.failing = 10**6
    with pytest.raises(Infrastructure, match="me/other"):
        push(inspect(published), Target("me/other"), lambda line: None)
    assert len(push_hub.commits) == 1


def test_who_may_not_push_is_told_so_and_no_token_is_shown(
    published: Path,
    push_hub: PushHub,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(BoomError, match=r"somebody/model .*credentials") as refused:
        push(inspect(published), Target("somebody/model"), lambda line: None)
    assert not isinstance(refused.value, Infrastructure)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "wrong" * 7)
    with pytest.raises(BoomError, match="me/model") as wrong:
        push(inspect(published), Target("me/model"), lambda line: None)
    assert "wrong" not in str(wrong.value)
    assert TOKEN not in str(refused.value)
    assert not push_hub.commits


def test_without_a_token_nobody_is_asked(
    published: Path,
    push_hub: PushHub,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(BoomError, match="hf auth login"):
        push(inspect(published), Target("me/model"), lambda line: None)
    assert not push_hub.asked


def test_nothing_private_lands_in_a_public_repository(published: Path, push_hub: PushHub) -> None:  # noqa: F811
    push_hub.repositories["me/model"] = {"main": {}}
    push_hub.public.add("me/model")
    with pytest.raises(BoomError, match="public"):
        push(inspect(published), Target("me/model"), lambda line: None)
    assert not push_hub.commits
    push(inspect(published), Target("me/model", private=False), lambda line: None)
    assert len(push_hub.commits) == 1


def test_a_dry_run_shows_all_and_contacts_nobody(published: Path, push_hub: PushHub) -> None:  # noqa: F811
    (published / "notes.txt").write_text("mine")
    result = CliRunner().invoke(app, ["push", str(published), "me/model", "--dry-run"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "would push 6 files" in result.output
    assert "me/model (private), branch main" in result.output
    lines = {line.split()[-1]: line for line in result.output.splitlines() if line.startswith("  ")}
    assert "693" in lines["model.safetensors"]
    assert "stays here" in lines["notes.txt"]
    assert CARD in result.output
    assert not push_hub.asked


def _edit_manifest(change: Callable[[dict], None], marked: bool = True) -> Callable[[Path], None]:
    import hashlib

    def edit(folder: Path) -> None:
        manifest = json.loads((folder / "boom_manifest.json").read_text())
        change(manifest)
        text = json.dumps(manifest)
        (folder / "boom_manifest.json").write_text(text)
        if marked:
            (folder / "_SUCCESS").write_text(hashlib.sha256(text.encode()).hexdigest() + "\n")

    return edit


def _linked(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent.parent / "elsewhere")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder.parent.parent / "elsewhere")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "unfinished": (lambda d: (d / "_SUCCESS").unlink(), "not finished"),
    "without manifest": (lambda d: (d / "boom_manifest.json").unlink(), "not finished"),
    "a changed weight": (lambda d: (d / "model.safetensors").write_text("Weights" * 99), "model.safetensors"),
    "a changed card": (lambda d: (d / "README.md").write_text(CARD + "better than all others"), "README.md"),
    "a file is gone": (lambda d: (d / "1_Pooling" / "config.json").unlink(), "1_Pooling/config.json"),
    "another manifest": (_edit_manifest(lambda m: m.update(seed=1), marked=False), "boom_manifest.json"),
    "no JSON": (lambda d: (d / "boom_manifest.json").write_text("{"), "boom_manifest.json"),
    "a name that leaves": (
        _edit_manifest(lambda m: m["files"].update({"../../run.json": {"sha256": "0" * 64}})), "leaves the directory",
    ),
    "an absolute name": (
        _edit_manifest(lambda m: m["files"].update({"/etc/hostname": {"sha256": "0" * 64}})), "leaves the directory",
    ),
    "a link that leaves": (_linked, "link that leaves"),
    "a member's manifest": (_edit_manifest(lambda m: m.update(kind="members")), "no published model"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_not_as_it_was_published_is_refused(case: str, published: Path) -> None:
    damage, told = DAMAGE[case]
    damage(published)
    with pytest.raises(BoomError, match=told):
        inspect(published)


def test_parts_of_a_run_are_refused_and_the_right_place_is_named(published: Path, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run")
    member = Key("members", "member-0", "0123456789abcdef")
    with ledger.stage(member) as stage:
        (stage.path / "model.safetensors").write_text("w")
    scratch = ledger.scratch("members", "member-0", "checkpoints")
    for place, told in {
        ledger.path(member): "part of a run",
        scratch: "part of a run",
        ledger.root: f"one of its published models: {published.name}",
        tmp_path: "not a model that boom_ray published",
        tmp_path / "none": "not a directory",
    }.items():
        with pytest.raises(BoomError, match=told):
            inspect(place)


@pytest.mark.parametrize("name", ["README.md", "mergekit_config.yml", "config.json"])
def test_a_credential_in_a_small_file_stops_the_push(name: str, tmp_path: Path) -> None:
    folder = _publish(tmp_path, {name: f"{CARD}\ntrained with hf_{'A' * 34}\n"})
    with pytest.raises(BoomError, match=f"{name} holds what looks like a credential") as caught:
        inspect(folder)
    assert "AAAA" not in str(caught.value)


@pytest.mark.parametrize("repository", ["model", "a/b/c", "../me", "me/..", "me/mo del", "https://me/model", "me/", ""])
def test_repositories_that_are_none(repository: str, published: Path) -> None:
    with pytest.raises(BoomError, match="OWNER/NAME"):
        Target(repository)
