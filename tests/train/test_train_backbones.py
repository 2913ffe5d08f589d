"""BERT, XLM-R, ModernBERT and Qwen3 on the whole way: imported, trained for a few steps, written as members, and read
by sentence-transformers; and the bases that cannot be trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from backbones import FAMILIES
from small_corpus import MAX_TOKENS, WORDS
from small_qwen import write_qwen

from boom_ray.base import import_base
from boom_ray.config import BoomError, Pooling, Train
from boom_ray.data.schedule import Batch
from boom_ray.data.tokens import TokenStore, save_effective_tokenizer
from boom_ray.encoder import Encoder
from boom_ray.ledger import Key, Ledger
from boom_ray.model_files import load_tokenizer
from boom_ray.train.member import MemberTask, train_plain

TEXTS = [" ".join(WORDS[i : i + n]) for i, n in enumerate([1, 5, 2, 30, 9, 1, 17, 3])] + ["x", "not blueship 3"]
TRAIN = Train(batch_size=16, learning_rate=1e-2, temperature=0.05, hard_negatives=2, gradient_checkpointing=True)
STEPS = 3


@pytest.fixture(scope="module")
def bases(
    small_base: Callable[..., Path], small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Plain Hugging Face directories, by family."""
    from transformers import ModernBertConfig, ModernBertModel, XLMRobertaConfig, XLMRobertaModel

    root = tmp_path_factory.mktemp("bases")
    tokenizer = load_tokenizer(small_tokenizer)
    size = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": tokenizer.pad_token_id}
    special = {f"{kind}_token_id": tokenizer.cls_token_id for kind in ("bos", "eos", "cls", "sep")}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        models = {
            "xlm-roberta": XLMRobertaModel(XLMRobertaConfig(**size)),
            "modernbert": ModernBertModel(ModernBertConfig(**size, **special, local_attention=8)),
        }
    for family, model in models.items():
        shutil.copytree(small_tokenizer, root / family)
        model.save_pretrained(root / family)
    qwen = write_qwen(root / "qwen3", WORDS, ends_texts=False, pads=False)
    return {"bert": small_base(), "qwen3": qwen, **{family: root / family for family in models}}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_member_gives_the_same_vectors_in_sentence_transformers(family, bases, small_tokens, tmp_path):
    from sentence_transformers import SentenceTransformer

    pooling: Pooling = {"qwen3": "lasttoken", "modernbert": "cls"}.get(family, "mean")  # type: ignore[assignment]
    import_base(bases[family], tmp_path / "base", pooling, MAX_TOKENS, append_eos=family == "qwen3")
    store, key = TokenStore(small_tokens), Key("members", "member-0", "0" * 16)
    rows = np.flatnonzero(store.dataset == 0)
    plan = [Batch("ask", rows[step * 16 : (step + 1) * 16], 0) for step in range(STEPS)]
    paths = (str(tmp_path / "run"), key, str(tmp_path / "base"), str(small_tokens))
    train_plain(MemberTask("member-0", *paths, TRAIN, STEPS, 11, 1), plan)
    member = Ledger(tmp_path / "run").path(key)
    ours = Encoder.load(member, device="cpu").encode(TEXTS, chunk_tokens=64)
    assert np.abs(ours - Encoder.load(tmp_path / "base", device="cpu").encode(TEXTS)).max() > 0.01
    theirs = SentenceTransformer(str(member), device="cpu").encode(TEXTS)
    assert np.abs(ours - theirs).max() <= 1e-5


def test_texts_end_as_the_recipe_says_wherever_they_are_tokenised(bases, tmp_path):
    """In scoring, in the corpus' shards and in the saved files, which sentence-transformers and servers read."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    for append in (False, True):
        out = tmp_path / str(append)
        import_base(bases["qwen3"], out, "lasttoken", MAX_TOKENS, append)
        encoder = Encoder.load(out, device="cpu")
        end = encoder.tokenizer.eos_token_id
        save_effective_tokenizer(out, MAX_TOKENS, tmp_path / f"{append}.json")
        shards = Tokenizer.from_file(str(tmp_path / f"{append}.json"))
        saved = AutoTokenizer.from_pretrained(out)
        for text in TEXTS:
            ids = encoder.tokenize([text])[0].tolist()
            assert (ids[-1] == end) == append
            assert ids.count(end) == append
            assert len(ids) <= MAX_TOKENS  # a text that is cut ends, too
            assert shards.encode(text).ids == ids
            assert saved(text, truncation=True, max_length=MAX_TOKENS)["input_ids"] == ids
        import_base(out, tmp_path / f"again-{append}", "lasttoken", MAX_TOKENS, append)
        again = Encoder.load(tmp_path / f"again-{append}", device="cpu")
        assert all(np.array_equal(a, b) for a, b in zip(again.tokenize(TEXTS), encoder.tokenize(TEXTS), strict=True))


def test_a_language_model_pads_with_its_end_of_sequence_token(bases):
    tokenizer = load_tokenizer(bases["qwen3"])
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    encoder = Encoder.load(bases["qwen3"], device="cpu")
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    assert np.abs(encoder.encode(TEXTS) - alone).max() <= 1e-6  # what pads is not seen


def test_a_tokenizer_that_ends_no_texts_cannot_be_told_to(small_tokenizer, small_base, tmp_path):
    with pytest.raises(BoomError, match=r"base.append_eos: .* has no end-of-sequence token"):
        import_base(small_base(), tmp_path / "out", None, MAX_TOKENS, append_eos=True)


def test_more_tokens_than_embeddings_are_refused_with_both_numbers(bases, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(bases["qwen3"], base)
    raw = json.loads((base / "tokenizer.json").read_text())
    raw["added_tokens"].append({**raw["added_tokens"][0], "id": 700, "content": "<more>"})
    (base / "tokenizer.json").write_text(json.dumps(raw))
    rows = Encoder.load(bases["qwen3"], device="cpu").backbone.config.vocab_size
    with pytest.raises(BoomError, match=rf"ids up to \d+, but the model has embeddings for {rows} tokens"):
        Encoder.load(base, device="cpu")
