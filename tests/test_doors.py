"""Doors that stay shut: no secret goes out, no code comes in, no name leads out of its directory."""

from __future__ import annotations

import ast
import json
import os
import posixpath
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import boom_ray
from boom_ray.cli import app
from boom_ray.config import BoomError, parse_recipe
from boom_ray.ledger import Key, Ledger
from boom_ray.merge.remote import _is_wanted
from boom_ray.paths import inside, is_safe
from boom_ray.plan import World, derive_keys
from boom_ray.recipe import load_recipe
from boom_ray.redact import redact, scrub, without_secrets

ROOT = Path(boom_ray.__file__).parent
SECRETS = {
    "HF_TOKEN": "c4nary-of-the-hub",
    "AWS_SECRET_ACCESS_KEY": "c4nary/of+amazon",
    "AWS_SESSION_TOKEN": "c4nary.session==",
    "WANDB_API_KEY": "c4naryofwandb",
    "MLFLOW_TRACKING_PASSWORD": "c4nary of mlflow",
    "STORE_KEY": "c4naryofthestore",
}
RECIPE = """
name: doors
base: {build: {layers: 1, hidden: 32, heads: 2, vocab: 400, warm_steps: 4}}
corpus: {datasets: [{path: "PATH"}]}
"""


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return SECRETS


# Secrets


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIAIOSFODNN7EXAMPLE:c4nary@bucket/key",
        "s3://user:c4nary/with/slashes@bucket/key is no address",
        "https://me:c4nary@example.org/x",
        "https://b.s3.amazonaws.com/x?X-Amz-Signature=c4nary&X-Amz-Date=1",
        "hub_token: c4nary123",
        '{"password": "c4nary"}',
        "api_key=c4nary",
        "AWS_SECRET_ACCESS_KEY=c4nary",
        "Authorization token: c4nary-with-digits-1",
        "hf_c4naryc4naryc4naryc4nary",
        "ghp_c4naryc4naryc4naryc4nary",
    ],
)
def test_forms_of_credentials_are_struck_out(text: str) -> None:
    assert "c4nary" not in redact(text)
    assert "c4nary" not in json.dumps(scrub({"a": [text, {"b": text}]}))
    assert "c4nary" not in str(BoomError(text))


@pytest.mark.parametrize(
    "text",
    [
        "no padding token: set pad_token in tokenizer_config.json.",
        "the tokenizer has no end-of-sequence token: set eos_token",
        "s3://bucket/a@b/c.jsonl and hf://datasets/owner/name@main/x",
        "http://127.0.0.1:8265 answers; write to me@example.org",
        "chunk_tokens: 16384, max_tokens=128, RAY_AUTH_MODE is token",
        "'cap': 3 of 12 texts; path C:/x",
    ],
)
def test_what_is_no_credential_stays(text: str) -> None:
    assert redact(text) == without_secrets(text) == text


def test_values_of_secret_variables_are_known_wherever_they_stand(secrets: dict[str, str]) -> None:
    from urllib.parse import quote

    for value in secrets.values():
        for form in (value, quote(value, safe="")):
            assert "c4nary" not in str(BoomError(f"cannot open a/{form}/b")), form


def test_where_a_secret_is_kept_may_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "auth_token").write_text("x")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "auth_token"))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "auth_token"))
    text = f"the token file {tmp_path / 'auth_token'} cannot be read"
    assert redact(text) == text


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text())))
def test_what_is_scrubbed_is_still_json_of_the_same_shape(value: dict[str, Any]) -> None:
    found = json.loads(json.dumps(without_secrets(value)))
    assert found.keys() == value.keys()
    assert [type(v) for v in found.values()] == [type(v) for v in value.values()]


def _load(tmp_path: Path, path: str, *overrides: str) -> Any:
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("PATH", path))
    return load_recipe(tmp_path / "recipe.yaml", overrides)


def test_the_written_recipe_has_no_credential_and_is_the_same_run(tmp_path: Path, secrets: dict[str, str]) -> None:
    given = _load(tmp_path, "s3://key:${STORE_KEY}@bucket/x.jsonl?endpoint_override=127.0.0.1:9", f"seed={17}")
    assert given.corpus.datasets[0].path.startswith("s3://key:c4naryofthestore@")
    written = given.to_yaml()
    assert "c4nary" not in written
    assert "s3://bucket/x.jsonl?endpoint_override=127.0.0.1:9" in written
    (tmp_path / "again.yaml").write_text(written)
    world = World(sources=("s",), base=None, sets=())
    assert derive_keys(load_recipe(tmp_path / "again.yaml"), world) == derive_keys(given, world)


@pytest.mark.parametrize(
    ("path", "overrides"),
    [
        ("s3://key:c4nary@nowhere.invalid/x.jsonl", ["train.batch_size=none"]),
        ("s3://key:c4nary/x@bucket/x.jsonl", ["trian.epochs=1"]),
        ("s3://key:c4nary/x@bucket/x.jsonl", []),
        ("x.jsonl", ["corpus.datasets.0.path.more=s3://key:c4nary@b/x"]),
        ("x.jsonl", ["base={model: 'https://key:c4nary@example.org/model'}"]),
        ("x.jsonl", ["corpus.datasets=s3://key:c4nary@b/x"]),
        ("x.jsonl", ["name=s3://key:c4nary@b/x"]),
    ],
)
def test_no_error_shows_what_the_recipe_held(path: str, overrides: list[str], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    (tmp_path / "x.jsonl").write_text('{"query": "a", "pos": ["b"], "neg": []}\n')
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("PATH", path.replace("x.jsonl", f"{tmp_path}/x.jsonl")))
    told = [part for override in overrides for part in ("--set", override)]
    ended = CliRunner().invoke(app, ["plan", str(tmp_path / "recipe.yaml"), *told, "--run-dir", str(tmp_path / "run")])
    assert isinstance(ended.exception, BoomError), ended.output
    assert "c4nary" not in f"{ended.exception}{ended.exception!r}{ended.output}"


def test_the_ledger_writes_no_secret(tmp_path: Path, secrets: dict[str, str]) -> None:
    ledger = Ledger.open(tmp_path / "run", "r")
    told = {"from": "s3://key:c4nary@bucket/x", "deep": [{"error": f"401 for {secrets['HF_TOKEN']}"}]}
    key = Key("members", "member-0", "0" * 16)
    with ledger.stage(key, inputs={"source": told["from"]}) as stage:
        (stage.path / "file").write_text("x")
        stage.meta.update(told)
    ledger.write_text("failures/a.json", json.dumps(told))
    for file in (f for f in (tmp_path / "run").rglob("*") if f.is_file()):
        assert "c4nary" not in file.read_text(), file
    assert ledger.manifest(key)["meta"]["from"] == "s3://bucket/x"
    assert json.loads((tmp_path / "run/failures/a.json").read_text())["deep"] == [{"error": "401 for ***"}]


# Code


def _calls() -> list[tuple[str, ast.Call]]:
    trees = {file: ast.parse(file.read_text()) for file in [*ROOT.rglob("*.py"), *(ROOT.parent / "jobs").glob("*.py")]}
    return [
        (file.relative_to(ROOT.parent).as_posix(), node)
        for file, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]


def _flag(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


def test_nothing_that_is_read_can_run() -> None:
    # a file from one process of its own to another; bytes that the same line has just made
    own = {"boom_ray/bench/search_jobs.py", "boom_ray/evaluate/apart.py"}
    for file, call in _calls():
        name = ast.unparse(call.func)
        where = f"{file}:{call.lineno}: {name}"
        assert name not in ("eval", "exec", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"), where
        assert name not in ("torch.load", "joblib.load", "marshal.loads", "shelve.open", "os.system"), where
        assert name not in ("pickle.load", "pickle.loads", "cloudpickle.loads") or file in own, where
        assert _flag(call, "allow_pickle") in (None, "False"), where
        assert _flag(call, "shell") in (None, "False"), where
        assert _flag(call, "trust_remote_code") in (None, "False"), where
        if name.startswith("Auto") and name.endswith(".from_pretrained"):
            asked = _flag(call, "trust_remote_code") == "False" or any(k.arg is None for k in call.keywords)
            assert asked, f"{where}: without trust_remote_code=False a terminal is asked whether to run code"


def test_servers_listen_where_only_this_machine_reaches_them() -> None:
    for file in [*ROOT.rglob("*.py"), *(ROOT.parent / "jobs").glob("*.py")]:
        assert "0.0.0.0" not in file.read_text(), file
    starts = [call for _, call in _calls() if ast.unparse(call.func) == "ray.init"]
    assert starts
    assert "'include_dashboard': False" in ast.unparse(ast.parse((ROOT / "cluster" / "session.py").read_text()))


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/name:os.mkdir", "!!python/module:os"])
def test_tags_of_yaml_make_nothing(tag: str, tmp_path: Path) -> None:
    from boom_ray.recipe import apply_overrides, read_yaml

    canary = tmp_path / "canary"
    file = tmp_path / "recipe.yaml"
    file.write_text(f"name: {tag} [{canary}]\n")
    with pytest.raises(BoomError, match="not valid YAML"):
        read_yaml(file)
    with pytest.raises(BoomError, match="not valid YAML"):
        apply_overrides({}, [f"name={tag} [{canary}]"])
    assert not canary.exists()


# Names


NAMES = {
    "model.safetensors": True, "1_Pooling/config.json": True, "a b/ü.json": True, "..a/b": True, "a..b": True,
    "../x": False, "a/../x": False, "/etc/passwd": False, "": False, ".": False, "a//b": False, "./a": False,
    "a/": False, "a\0b": False, "C:\\x": False, "C:x": False, "..\\x": False, "a" * 256: False,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_plain_names(name: str) -> None:
    assert is_safe(name) == NAMES[name]


@given(st.text(st.sampled_from("./\\\0:aü~ "), max_size=12))
def test_a_name_that_is_taken_stays_below(name: str) -> None:
    if is_safe(name):
        assert posixpath.normpath(f"/root/{name}").startswith("/root/")
        assert "\0" not in name


def test_links_stay_below(tmp_path: Path) -> None:
    root = tmp_path / "model"
    root.mkdir()
    (tmp_path / "secret").write_text("s")
    (root / "real").write_text("r")
    (root / "own").symlink_to("real")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "folder").symlink_to(tmp_path)
    (root / "round").symlink_to("round")
    assert inside(root, "own", root) == "own"
    for name in ("out", "folder/secret", "round", "none", "."):
        with pytest.raises(BoomError):
            inside(root, name, root)
    (tmp_path / "linked").symlink_to(root)
    assert inside(tmp_path / "linked", "real", root) == "real", "the directory itself may be a link"


@pytest.mark.parametrize(
    ("kind", "label"),
    [("..", "x"), ("/tmp", "x"), ("a/b", "x"), ("members", "../../x"), ("members", "/x"), ("a\0", "x"), ("", "x")],
)
def test_no_key_leads_out_of_the_run_directory(kind: str, label: str) -> None:
    with pytest.raises(BoomError, match="Refused"):
        Key(kind, label, "0" * 16)


def test_a_manifest_cannot_vouch_for_files_outside(tmp_path: Path) -> None:
    ledger, key = Ledger.open(tmp_path / "run", "r"), Key("members", "member-0", "0" * 16)
    with ledger.stage(key) as stage:
        (stage.path / "file").write_text("x")
    (tmp_path / "outside").write_text("x")
    file = ledger.path(key) / "manifest.json"
    manifest = json.loads(file.read_text())
    entry = manifest["files"].pop("file")
    for name in ("../../../outside", str(tmp_path / "outside"), "link"):
        (ledger.path(key) / "link").unlink(missing_ok=True)
        (ledger.path(key) / "link").symlink_to(tmp_path / "outside")
        file.write_text(json.dumps({**manifest, "files": {name: entry}}))
        with pytest.raises(BoomError, match="damaged or missing"):
            ledger.verify(key)


@pytest.mark.parametrize("name", ["../x", "a/b", "/tmp/x", "..", ".hidden", "a\0b", "~x", "${HOME}", "", "x" * 65])
def test_a_recipe_s_name_is_a_folder_s_name(name: str) -> None:
    raw = {"name": name, "base": {"build": {}}, "corpus": {"datasets": [{"path": "x.jsonl"}]}}
    with pytest.raises(BoomError, match="name"):
        parse_recipe(raw)


@pytest.mark.parametrize("name", ["../x.json", "/etc/x.json", "a/../../x.json", "a//x.json", "x\0.json", "C:\\x.json"])
def test_names_of_a_bucket_that_lead_elsewhere_are_not_fetched(name: str) -> None:
    assert not _is_wanted(name)


# Model directories


def _index(leading: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        shard = leading if leading.startswith("..") else str(model.parent / leading)
        tensors = load_file(model / "model.safetensors")
        target = Path(os.path.normpath(model / shard))
        target.parent.mkdir(exist_ok=True)
        save_file(tensors, target, metadata={"format": "pt"})
        (model / "model.safetensors").unlink()
        listing = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}
        (model / "model.safetensors.index.json").write_text(json.dumps(listing))

    return change


def _link(name: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        outside = model.parent / f"outside-{Path(name).name}"
        shutil.move(model / name, outside)
        (model / name).symlink_to(outside)

    return change


def _config(**values: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        file = model / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return change


def _adapter(model: Path) -> None:
    shutil.copytree(model, model.parent / "other")
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model.parent / "other")}))
    (model / "config.json").unlink()


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "an index that leads out": (_index("../secret/s.safetensors"), "leaves the directory"),
    "an absolute index": (_index("secret/s.safetensors"), "leaves the directory"),
    "weights that are a link": (_link("model.safetensors"), "link that leaves"),
    "a pooling that is a link": (_link("1_Pooling/config.json"), "link that leaves"),
    "an adapter of another model": (_adapter, "adapter|tokenizer"),
    "a kernel of a hub": (_config(_attn_implementation="someone/evil-kernel"), "attention kernel"),
    "a kernel among others": (_config(attn_implementation={"": "someone/evil-kernel@main"}), "attention kernel"),
    "a zero byte in modules.json": (
        lambda model: (model / "modules.json").write_text(
            json.dumps([{"idx": 0, "name": "0", "path": "a\0/../../x", "type": "x.Pooling"}])
        ),
        "leaves the directory",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_model_directory_cannot_lead_its_reader_away(case: str, small_base: Any, tmp_path: Path) -> None:
    from boom_ray.encoder import Encoder

    model = tmp_path / "model"
    shutil.copytree(small_base(), model)
    change, told = HOSTILE[case]
    change(model)
    with pytest.raises(BoomError, match=told):
        Encoder.load(model, device="cpu")


def test_a_model_of_the_hub_s_cache_is_read(small_base: Any, tmp_path: Path) -> None:
    """The cache's own links, from ``snapshots`` into ``blobs``, are no way out."""
    from boom_ray.encoder import Encoder

    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0ffee", tmp_path / "models--a--b" / "blobs"
    shutil.copytree(small_base(), snapshot)
    blobs.mkdir()
    for number, file in enumerate(sorted(p for p in snapshot.rglob("*") if p.is_file())):
        shutil.move(file, blobs / str(number))
        file.symlink_to(blobs / str(number))
    assert Encoder.load(snapshot, device="cpu").encode(["a text"]).shape == (1, 32)


def test_ray_tune_copies_no_credentials_into_what_ray_shows(secrets: dict[str, str]) -> None:
    from ray.tune.execution import class_cache

    from boom_ray.search.trials import _credentials_kept

    def copied() -> dict[str, str]:
        actor = class_cache._ActorClassCache().get(type("Nothing", (), {}))
        found: dict[str, str] = actor._default_options["runtime_env"]["env_vars"]
        return found

    assert "c4nary" in str(copied()), "what Tune does by itself; once it does not, the guard can go"
    with _credentials_kept():
        assert "c4nary" not in str(copied())
        assert "PL_DISABLE_FORK" in copied()
