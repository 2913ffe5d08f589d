"""Mining as a whole against a brute-force reading of its rules; one local Ray for the module."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest

from boom_ray.config import BoomError
from boom_ray.config.corpus import Mine
from boom_ray.data.actors import Pool
from boom_ray.data.mining import Counts, MineTask, mine
from boom_ray.data.schema import fold
from boom_ray.encoder import Encoder
from boom_ray.resources import Bundle

pytestmark = pytest.mark.slow
SETTINGS = {"count": 3, "ranks": (10, 150), "share": 0.98}


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)  # never somebody else's cluster
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def models(small_base: Callable[..., Path]) -> tuple[str, str]:
    return str(small_base(1)), str(small_base(2))


@pytest.fixture(scope="module")
def corpus(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small corpus with instructions for "ask", labels and the files that a corpus has beside its rows."""
    out = tmp_path_factory.mktemp("mining") / "corpus"
    (out / "eval" / "a set").mkdir(parents=True)
    datasets = json.loads((small_corpus / "datasets.json").read_text())
    datasets[0]["instruction"] = {"query": "find ", "passage": "text "}
    (out / "datasets.json").write_text(json.dumps(datasets))
    for name in ("counts.json", "quarantine.jsonl", "eval/a set/meta.json", "manifest.json"):
        (out / name).write_text(f"what {name} holds")
    for shard in small_corpus.glob("rows-*"):
        table = pa.ipc.open_file(str(shard)).read_all()
        labels = [f"class {i % 3}" if i % 2 else None for i in range(len(table))]
        with pa.ipc.new_file(str(out / shard.name), table.schema) as writer:
            writer.write_table(table.set_column(table.schema.get_field_index("label"), "label", [labels]), 16)
    return out


@dataclass(frozen=True)
class Mined:
    task: MineTask
    out: Path
    counts: Counts


def carry_out(corpus: Path, models: tuple[str, ...], folder: Path, actors: int = 2, **settings: Any) -> Mined:
    mining = Mine(models=models, **{**SETTINGS, **settings})
    digests = tuple(Path(m).name for m in models)
    task = MineTask(corpus, folder / "scratch", mining, digests, 512, Pool(actors, Bundle(1, 0.0)))
    (folder / "out").mkdir()
    return Mined(task, folder / "out", mine(task, folder / "out"))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("rows-*.arrow"))
    return [row for file in files for row in pa.ipc.open_file(str(file)).read_all().to_pylist()]


def shards_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("rows-*.arrow"))}


def brute_force(corpus: Path, name: str, mining: Mine) -> tuple[list[list[str]], dict[str, int]]:
    """Negatives (none: the row keeps its own) of every row of a dataset, and the counts, by sorting everything."""
    entry = next(d for d in json.loads((corpus / "datasets.json").read_text()) if d["name"] == name)
    rows = [row for row in rows_of(corpus) if row["dataset"] == name]
    passages = list(dict.fromkeys(text for row in rows for text in (*row["pos"], *row["neg"])))
    queries = list(dict.fromkeys(row["query"] for row in rows))
    counts = {"rows": len(rows), "mined": 0, "unchanged": 0, "negatives": 0, "equal": 0, "label": 0, "margin": 0}
    lists: list[list[list[str]]] = []
    for model in mining.models:
        encoder = Encoder.load(model, device="cpu")
        q, p = (
            encoder.encode(texts, prompt=entry["instruction"][role], chunk_tokens=512).astype(np.float64)
            for texts, role in ((queries, "query"), (passages, "passage"))
        )
        lists.append([_candidates(row, rows, dict(zip(queries, q @ p.T, strict=True)), passages, mining, counts)
                      for row in rows])  # fmt: skip
    chosen = [_in_turn([found[i] for found in lists], mining.count) for i in range(len(rows))]
    for negatives in chosen:
        counts["mined" if negatives else "unchanged"] += 1
        counts["negatives"] += len(negatives)
    return chosen, counts


def _candidates(
    row: dict[str, Any],
    rows: list[dict[str, Any]],
    scores: dict[str, np.ndarray],
    passages: list[str],
    mining: Mine,
    counts: dict[str, int],
) -> list[str]:
    mine = dict(zip(passages, scores[row["query"]].astype(np.float32), strict=True))
    ranked = sorted(passages, key=lambda text: -mine[text])  # stable: ties in the order of the corpus
    limit = np.float32(mining.share) * min(mine[text] for text in row["pos"])
    assert limit > 0
    same_query = [r for r in rows if fold(r["query"]) == fold(row["query"])]
    equal = {fold(row["query"]), *(fold(text) for r in same_query for text in r["pos"])}
    alike = [r for r in rows if row["label"] is not None and r["label"] == row["label"]]
    of_label = {fold(text) for r in alike for text in (r["query"], *r["pos"])}
    kept = []
    for text in ranked[mining.ranks[0] : mining.ranks[1]]:
        if fold(text) in equal:
            counts["equal"] += 1
        elif fold(text) in of_label:
            counts["label"] += 1
        elif mine[text] >= limit:
            counts["margin"] += 1
        else:
            kept.append(text)
    return kept


def _in_turn(lists: list[list[str]], count: int) -> list[str]:
    chosen: list[str] = []
    for place in range(max(map(len, lists))):
        for texts in lists:
            fresh = [t for t in texts if fold(t) not in {fold(c) for c in chosen}]
            # a model's turn gives its best text that nobody has given yet
            if fresh and len(chosen) < count and place < len(texts):
                chosen.append(fresh[0])
    return chosen


@pytest.fixture(scope="module")
def mined(corpus: Path, models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Mined:
    """Both models, two actors."""
    return carry_out(corpus, models, tmp_path_factory.mktemp("mined"))


def test_negatives_are_those_of_a_brute_force_search(corpus: Path, mined: Mined) -> None:
    expected, expected_counts = brute_force(corpus, "ask", mined.task.settings)
    assert mined.counts == {"ask": expected_counts}
    assert expected_counts["mined"] > 30
    assert min(expected_counts.values()) > 0
    asked = iter(expected)
    for old, new in zip(rows_of(corpus), rows_of(mined.out), strict=True):
        negatives = next(asked) if old["dataset"] == "ask" else []
        assert new == {**old, "neg": negatives or old["neg"]}


def test_files_of_a_corpus_and_what_was_done(corpus: Path, mined: Mined) -> None:
    for name in ("datasets.json", "counts.json", "quarantine.jsonl", "eval/a set/meta.json"):
        assert (mined.out / name).read_bytes() == (corpus / name).read_bytes()
    assert not (mined.out / "manifest.json").exists()  # the ledger writes its own
    written = json.loads((mined.out / "mined.json").read_text())
    assert written["datasets"] == mined.counts
    assert written["settings"]["ranks"] == [10, 150]
    schemas = [pa.ipc.open_file(str(folder / "rows-00000.arrow")).schema for folder in (corpus, mined.out)]
    assert schemas[0] == schemas[1]


def test_number_of_actors_changes_no_byte(corpus: Path, models: tuple[str, str], mined: Mined, tmp_path: Path) -> None:
    alone = carry_out(corpus, models, tmp_path, actors=1)
    assert shards_of(alone.out) == shards_of(mined.out)


def test_one_model_under_other_settings_makes_no_vector_again(
    corpus: Path, models: tuple[str, str], mined: Mined, tmp_path: Path
) -> None:
    shutil.copytree(mined.task.scratch, tmp_path / "scratch")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "scratch").rglob("*") if p.is_file()}
    other = carry_out(corpus, models[1:], tmp_path, ranks=(0, 40), count=1)
    assert other.counts == {"ask": brute_force(corpus, "ask", other.task.settings)[1]}
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_finished_shards_of_a_killed_run_are_kept(
    corpus: Path, models: tuple[str, str], mined: Mined, tmp_path: Path
) -> None:
    """A kill leaves whole files and temporary ones: the whole ones are not made again, the rest is."""
    shutil.copytree(mined.task.scratch, tmp_path / "scratch")
    files = sorted(p for p in (tmp_path / "scratch").rglob("*") if p.is_file())
    lost = [p for p in files if "passages-" in p.name and p.suffix == ".npy"][:1]
    lost += [p for p in files if "numbers-" in p.name][1:]
    assert len(lost) == 2
    for file in lost:
        file.rename(file.with_name(f"{file.name}.tmp")).write_bytes(b"cut")
    kept = {p: p.stat().st_mtime_ns for p in files if p not in lost and "scores-" not in p.name}
    again = carry_out(corpus, models, tmp_path)
    assert shards_of(again.out) == shards_of(mined.out)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


def test_mistakes_are_one_readable_message(corpus: Path, models: tuple[str, str], tmp_path: Path) -> None:
    def fails(message: str, models: tuple[str, ...] = models, **settings: Any) -> None:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        with pytest.raises(BoomError, match=message):
            carry_out(corpus, models, folder, **settings)

    fails("no dataset 'aks'. Did you mean 'ask'", datasets=("aks",))
    fails("'alike' is trained on scores", datasets=("alike",))
    (tmp_path / "empty").mkdir()
    fails("corpus.mine.models: .*empty has no tokenizer", (str(tmp_path / "empty"),))


def test_a_lost_actor_is_replaced(corpus: Path, models: tuple[str, str], mined: Mined, tmp_path: Path) -> None:
    lost: list[int] = []

    def kill_the_first_actor() -> None:
        deadline = time.monotonic() + 120
        while not lost and time.monotonic() < deadline:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):  # some end while they are looked at
                    if any("MapWorker" in part for part in process.cmdline()):
                        process.kill()
                        lost.append(process.pid)
                        return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_the_first_actor)
    killer.start()
    again = carry_out(corpus, models, tmp_path)
    killer.join()
    assert lost
    assert shards_of(again.out) == shards_of(mined.out)
