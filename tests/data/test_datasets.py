import pytest

from boom_ray.config import BoomError
from boom_ray.config.corpus import FilesSource
from boom_ray.data.datasets import agree, resolve_rules


def _rules(task_type, with_negatives=1, **settings):
    return resolve_rules("d", task_type, FilesSource(path="x.jsonl", **settings), with_negatives)


def test_what_auto_becomes_follows_from_the_task_type():
    found = {t: _rules(t) for t in ("retrieval", "reranking", "classification", "clustering", "sts")}
    assert {t: r["loss"] for t, r in found.items()} == dict.fromkeys(found, "infonce") | {"sts": "cosent"}
    assert [t for t, r in found.items() if not r["in_batch"]] == ["classification", "clustering"]
    assert [t for t, r in found.items() if r["symmetric"]] == ["clustering", "sts"]
    assert _rules("classification", with_negatives=0)["in_batch"]  # there is nothing else to compare with
    assert not _rules("clustering", with_negatives=0, negatives="own")["in_batch"]


def test_what_the_recipe_says_stays():
    settings = {"loss": "infonce", "negatives": "own", "hard_negatives": 3, "symmetric": False, "weight": 2.5}
    found = _rules("sts", language="de", licence="CC-BY-4.0", instruction={"query": "q: "}, **settings)
    assert found == {
        "name": "d",
        "task_type": "sts",
        "instruction": {"query": "q: ", "passage": ""},
        "loss": "infonce",
        "in_batch": False,
        "hard_negatives": 3,
        "symmetric": False,
        "weight": 2.5,
        "language": "de",
        "licence": "CC-BY-4.0",
    }


def test_sources_of_one_dataset_agree():
    first = FilesSource(path="a.jsonl", cap=5)
    agree("d", first, FilesSource(path="b.parquet", cap=5, layout="tevatron", name="d"))
    for change in ({"cap": 6}, {"weight": 2}, {"loss": "infonce"}, {"instruction": {"query": "x"}}):
        with pytest.raises(BoomError, match=f"two sources with different '{next(iter(change))}'"):
            agree("d", first, FilesSource(path="b.jsonl", **{"cap": 5, **change}))
