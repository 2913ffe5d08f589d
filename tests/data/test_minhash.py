import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.data import minhash
from boom_ray.data.schema import Example
from boom_ray.data.shingles import WordHasher, ngrams, shingles, words_of

WORDS = [f"word{n}" for n in range(5000)]


def _example(query, pos="one positive of four", dataset="d"):
    return Example(dataset, "retrieval", query, (pos,), (), None)


def _near(tmp_path, examples, threshold, batch=7, codes=None):
    """The rows found near, from files of two batches each."""
    files, hasher = [], WordHasher()
    for start in range(0, len(examples), 2 * batch):
        files.append(tmp_path / f"near-{start}.arrow")
        with pa.ipc.new_file(str(files[-1]), minhash.schema(threshold)) as writer:
            for at in range(start, min(start + 2 * batch, len(examples)), batch):
                writer.write_batch(minhash.signature_batch(examples[at : at + batch], threshold, hasher))
    codes = np.zeros(len(examples), np.int32) if codes is None else codes
    return minhash.near_rows(files, codes, np.ones(len(examples), bool), threshold)


def _changed(words, count, rng):
    words = list(words)
    for place in rng.sample(range(len(words)), count):
        words[place] = rng.choice(WORDS)
    return " ".join(words)


def test_a_small_change_is_near_and_another_text_is_not(tmp_path):
    rng = random.Random(3)
    texts = [rng.choices(WORDS, k=100) for _ in range(60)]
    examples = [_example(" ".join(text)) for text in texts]
    examples += [_example(_changed(text, 1, rng).upper()) for text in texts]  # 3 of 100 shingles: Jaccard 0.94
    examples += [_example(_changed(text, 30, rng)) for text in texts]  # Jaccard below 0.3
    near = _near(tmp_path, examples, 0.8)
    assert not near[:60].any()  # the first stays
    assert near[60:120].all()
    assert not near[120:].any()
    assert (_near(tmp_path, examples, 0.8, batch=40) == near).all()  # however the rows lie in files


def test_queries_and_positives_both_have_to_be_near_and_in_one_dataset(tmp_path):
    rng = random.Random(4)
    text, other = (" ".join(rng.choices(WORDS, k=60)) for _ in range(2))
    examples = [_example("who was it", text), _example("when was that", text), _example("who was it", other)]
    examples += [_example("who was it", f"{text} indeed", "e"), _example("Who was it?", f"{text} indeed")]
    codes = np.array([0, 0, 0, 1, 0], np.int32)
    assert _near(tmp_path, examples, 0.8, codes=codes).tolist() == [False, False, False, False, True]


@pytest.mark.parametrize("shared", [0, 100, 200, 300, 360, 400])
def test_estimates_are_those_of_jaccard(shared):
    left, right = (" ".join([*WORDS[:shared], *(f"{side}{n}" for n in range(400 - shared))]) for side in "ab")
    hasher = WordHasher()
    sets = [set(shingles(hasher([text]), 3).tolist()) for text in (left, right)]
    exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    signatures = minhash.signatures(hasher([left, right]))
    assert abs((signatures[0] == signatures[1]).mean() - exact) < 3 * 0.5 / minhash.PERMUTATIONS**0.5
    assert shared / 800 <= exact <= 1


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95])
def test_bands_find_nine_pairs_of_ten_at_the_threshold(threshold):
    rows = minhash.band_rows(threshold)
    assert minhash.PERMUTATIONS % rows == 0
    assert 1 - (1 - threshold**rows) ** (minhash.PERMUTATIONS / rows) >= 0.9


def test_texts_without_words_and_no_rows(tmp_path):
    assert _near(tmp_path, [], 0.8).tolist() == []
    examples = [_example("?!", "..."), _example("a b", "..."), _example("!", "…")]
    assert _near(tmp_path, examples, 0.8).tolist() == [False, False, True]


def test_words_are_folded_and_unspaced_scripts_are_split():
    assert words_of("Don't PANIC, caf\u00e9 \ufb01ne_x") == ["don", "t", "panic", "caf\u00e9", "fine_x"]
    assert words_of("東京 tower 2") == ["東", "京", "tower", "2"]


@given(st.lists(st.text("ab \n", max_size=12), max_size=6), st.integers(1, 5))
def test_ngrams_are_all_runs_of_words_inside_a_text(texts, length):
    words = WordHasher()(texts)
    hashes, owners = ngrams(words, length)
    expected = [
        (owner, tuple(run[n : n + length]))
        for owner, run in enumerate(map(words_of, texts))
        for n in range(len(run) - length + 1)
    ]
    assert owners.tolist() == [owner for owner, _ in expected]
    names = {}
    for value, (_, run) in zip(hashes.tolist(), expected, strict=True):
        assert names.setdefault(run, value) == value  # equal runs, equal hashes
    assert len(set(names.values())) == len(names)  # and other runs, others
    assert len(shingles(words, length)) == sum(len(words_of(text)) for text in texts)
