from collections import defaultdict

from boom_ray.data.decontaminate import Evaluation, decontaminate, write_evaluation
from boom_ray.data.schema import Example
from boom_ray.data.shingles import WordHasher

LEAK = "It was the best of times, it was the worst of times, it was the age of wisdom"


def _run(tmp_path, examples, texts, ngram):
    write_evaluation(iter(texts), ngram, tmp_path)
    counts = defaultdict(lambda: {"decontaminated": 0, "negatives_decontaminated": 0})
    kept = decontaminate(examples, Evaluation.of(tmp_path), WordHasher(), counts)
    return kept, dict(counts)


def _example(query, pos=("p",), neg=(), task_type="retrieval", dataset="d"):
    return Example(dataset, task_type, query, tuple(pos), tuple(neg), None)


def test_thirteen_shared_words_are_a_leak_and_twelve_are_none(tmp_path):
    words = LEAK.split()
    inside = lambda count: f"Quote: “{' '.join(words[2 : 2 + count]).upper()}” (Dickens)"  # noqa: E731
    examples = [
        _example(inside(12)),
        _example(inside(13)),
        _example("q", pos=["fine", inside(14)], dataset="e"),
        _example("q", neg=["fine", inside(13), inside(12)]),
        _example("q", pos=[inside(13)], task_type="classification"),
        _example("short"),
    ]
    kept, counts = _run(tmp_path, examples, [LEAK, "short"], 13)
    assert kept == [examples[0], examples[3]._replace(neg=("fine", inside(12))), examples[4]]
    assert counts == {
        "d": {"decontaminated": 2, "negatives_decontaminated": 1},
        "e": {"decontaminated": 1, "negatives_decontaminated": 0},
    }
    kept, counts = _run(tmp_path, examples, [LEAK, "short"], None)
    assert kept == examples[:-1]


def test_ngrams_of_scripts_without_spaces_are_of_characters(tmp_path):
    text = "春はあけぼのやうやう白くなりゆく山ぎは"
    examples = [_example(f"「{text[2:16]}」とは"), _example(text[:9])]
    kept, _ = _run(tmp_path, examples, [text], 13)
    assert kept == examples[1:]


def test_many_texts_are_split_in_groups(tmp_path, monkeypatch):
    from boom_ray.data import decontaminate as module

    texts = [f"{n} one two three four five" for n in range(50)]
    write_evaluation(texts, 3, tmp_path)
    whole = [(tmp_path / name).read_bytes() for name in ("evaluation.bin", "ngrams.bin")]
    monkeypatch.setattr(module, "_GROUP", 7)
    write_evaluation(reversed(texts), 3, tmp_path)
    assert [(tmp_path / name).read_bytes() for name in ("evaluation.bin", "ngrams.bin")] == whole
    assert len(whole[0]) == 50 * 16
    assert len(whole[1]) == (50 + 3) * 8


def test_nothing_to_compare_with(tmp_path):
    examples = [_example("a"), _example("b", neg=["c"])]
    assert _run(tmp_path, examples, [], 13) == (examples, {})
    assert _run(tmp_path, [], ["a"], 13) == ([], {})
