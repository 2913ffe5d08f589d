"""The card: front matter that hubs read, code that runs, no path and no secret."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
import yaml
from report_example import example, with_intervals

from boom_ray.report.card import write_card


def parts(card: str) -> tuple[dict, str]:
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def with_base(model: str | None, **extra) -> dict:
    summary = example()
    recipe = yaml.safe_load(summary["recipe_yaml"])
    recipe["base"] = {"model": model, "build": None, "pooling": None, "max_tokens": 128}
    recipe["merge"].update(extra)
    summary["recipe_yaml"] = yaml.safe_dump(recipe)
    return summary


def test_front_matter_of_a_built_base():
    front, body = parts(write_card(example(), published_name="quickstart"))
    assert front["library_name"] == "sentence-transformers"
    assert front["pipeline_tag"] == "sentence-similarity"
    assert front["datasets"] == ["python_functions", "python_modules", "python_packages"]
    assert front["language"] == ["code"]
    assert "merge" in front["tags"]
    assert "license" not in front
    assert "base_model" not in front
    assert body.startswith("\n# quickstart\n")


def test_front_matter_of_a_hub_base():
    front, _ = parts(write_card({**with_base("org/model-v2"), "license": "mit"}, published_name="me/quick"))
    assert front["base_model"] == ["org/model-v2"]
    assert front["base_model_relation"] == "merge"
    assert front["license"] == "mit"


def test_a_local_base_and_paths_stay_private(tmp_path):
    summary = with_base(str(tmp_path / "private-base"))
    summary["published"] = str(tmp_path / "run" / "published")
    card = write_card(summary, published_name=str(tmp_path / "run" / "quick-1a2b"))
    assert "base_model" not in parts(card)[0]
    assert "`private-base`" in card
    assert str(tmp_path) not in card
    assert not re.search(r"(?<![\w.:/])/(?:home|root|tmp|work|usr|var|mnt)/", card)
    assert 'SentenceTransformer("quick-1a2b")' in card


def test_languages_are_the_hubs_tags():
    summary = example()
    for entry, code in zip(summary["sets"], ["eng-Latn", "deu-Latn", "code:python", "gsw-Latn", "en"], strict=True):
        entry["language"] = code
    assert parts(write_card(summary, published_name="x"))[0]["language"] == ["code", "de", "en", "gsw"]


def test_merge_block_is_yaml_with_members_and_weights():
    card = write_card(with_base("org/model", task_vectors=True), published_name="x")
    block = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert block["merge_method"] == "multislerp"
    assert block["base_model"] == "org/model"
    assert [m["model"] for m in block["models"]] == [f"member-{i}" for i in range(5)]
    assert sum(m["parameters"]["weight"] for m in block["models"]) == pytest.approx(1, abs=1e-5)
    assert "multiplied by 1.17" in card


def test_limits_are_honest():
    assert "Nothing out-of-domain was measured" in write_card(example(ood=False), published_name="x")
    single = write_card(example(ratios=(1.0,)), published_name="x")
    assert "One model, trained from" in single
    assert "It is 1.17 of the way from there to where it ended." in single
    assert "2 out-of-domain sets and on one run" in single


def test_every_difference_has_its_interval():
    card = write_card(with_intervals(example(), 0.0123), published_name="x")
    rows = [line for line in card.splitlines() if line.startswith(("| member-", "| python_", "| mean |"))]
    scores = [line for line in rows if "±" in line]
    assert len(scores) == 5 + 5 + 2, "members, sets, and the mean of each domain"
    assert "±: 95 % interval" in card


def test_cells_cannot_break_tables():
    summary = example()
    summary["corpus"][0]["name"] = "a|b\nc"
    assert "a\\|b c" in write_card(summary, published_name="x")


def test_secrets_do_not_reach_the_card():
    summary = with_base("https://user:hunter2secret@example.org/model")
    assert "hunter2secret" not in write_card(summary, published_name="x")


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_the_code_of_the_card_runs_and_both_ways_agree(tmp_path, pooling, monkeypatch):
    _tiny_model(tmp_path / "tiny", pooling)
    monkeypatch.chdir(tmp_path)
    summary = {**with_base("org/model"), "pooling": pooling}
    card = write_card(summary, published_name="tiny")
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    first: dict = {}
    second: dict = {}
    exec(blocks[0].replace("print(", "_ = ("), first)
    exec(blocks[1], second)
    np.testing.assert_allclose(first["vectors"], second["vectors"].numpy(), atol=1e-5)


def _tiny_model(directory, pooling: str) -> None:
    """A two-layer BERT of 32 with the portable module files."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocab = {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "first", "second", "text"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(directory)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=7, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    BertModel(config).save_pretrained(directory)
    names = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]
    wanted = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken"}[pooling]
    pool = {"word_embedding_dimension": 32, **{f"pooling_mode_{n}": n == wanted for n in names}}
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    os.mkdir(directory / "1_Pooling")
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pool))
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 128, "do_lower_case": false}')
