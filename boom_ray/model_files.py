"""The small files of a model directory: its tokenizer, and the modules that make it one of sentence-transformers.

A directory is not trusted: no custom code is executed, and no name leads out of it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from boom_ray.config import BoomError, Pooling
from boom_ray.paths import inside, safe_name

_POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_SUPPORTED: tuple[Pooling, ...] = ("mean", "cls", "lasttoken")
_MODULES = ("Transformer", "Pooling", "Normalize")
_KERNEL = re.compile(r'implementation\w*": ("[^"]*/|\{)')  # owner/name in the place of sdpa or eager


def write_modules(directory: Path, pooling: Pooling, hidden: int, max_tokens: int, prompts: dict[str, str]) -> None:
    """The small files that make a Hugging Face directory a sentence-transformers one, in the portable dialect."""
    types = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (name, path, kind) in enumerate(types)
    ]
    flags = {flag: mode == pooling for mode, flag in _POOLING_FLAGS.items()}
    files: dict[str, Any] = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": max_tokens, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": hidden,
            **flags,
            "pooling_mode": pooling,
            "include_prompt": True,
        },
        "2_Normalize/config.json": {},
        "config_sentence_transformers.json": {
            "__version__": {"sentence_transformers": "5.3.0"},
            "model_type": "SentenceTransformer",
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
    for name, content in files.items():
        file = directory / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n")


def load_tokenizer(directory: str | Path) -> Any:
    """The directory's fast tokenizer. One without a padding token pads with its end-of-sequence token, as is usual for
    language models: attention never sees padding.

    Raises:
        BoomError: there is none, or it has neither token.
    """
    from transformers import AutoTokenizer

    directory = Path(directory)
    known = ("tokenizer.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json")
    if not any((directory / name).is_file() for name in known):
        raise BoomError(
            f"base {directory} has no tokenizer (no {', '.join(known[:3])}): copy the tokenizer's files into it."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, use_fast=True, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers raises many types here; each means the same to the user
        raise BoomError(f"the tokenizer of {directory} cannot be loaded: {first_line(error)}") from None
    if not tokenizer.is_fast:
        raise BoomError(f"{directory} has no fast tokenizer (tokenizer.json), which serving tools need.")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise BoomError(
                f"the tokenizer of {directory} has no padding token: set pad_token in tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def end_texts(tokenizer: Any, origin: Path) -> None:
    """Let a tokenizer end every text with its end-of-sequence token, in place and in the files that it saves.

    Raises:
        BoomError: it has none.
    """
    if tokenizer.eos_token_id is None:
        raise BoomError(
            f"base.append_eos: the tokenizer of {origin} has no end-of-sequence token: set eos_token in "
            f"tokenizer_config.json."
        )
    if tokenizer("a")["input_ids"][-1] != tokenizer.eos_token_id:
        tokenizer.add_eos_token = True


def read_modules(directory: Path) -> tuple[Pooling | None, int | None]:
    """(pooling, max_tokens) as a sentence-transformers directory states them; (None, None) for a plain one."""
    modules = directory / "modules.json"
    if not modules.is_file():
        return None, None
    try:
        entries = {str(m["type"]).rsplit(".", 1)[-1]: str(m["path"]) for m in read_json(directory, "modules.json")}
    except (TypeError, KeyError):
        raise BoomError(f"{modules} is no list of modules with a type and a path.") from None
    if unknown := [kind for kind in entries if kind not in _MODULES]:
        raise BoomError(f"{modules} lists {', '.join(unknown)}; supported modules are {', '.join(_MODULES)}.")
    pooling: Pooling | None = None
    if "Pooling" in entries:
        settings = read_json(directory, f"{entries['Pooling']}/config.json")
        modes = [mode for mode, flag in _POOLING_FLAGS.items() if settings.get(flag)]
        modes = modes or [settings.get("pooling_mode", "mean")]
        if len(modes) != 1 or modes[0] not in _SUPPORTED:
            raise BoomError(f"{directory}: pooling {modes} is not supported; supported are {', '.join(_SUPPORTED)}.")
        pooling = modes[0]
    sizes = "sentence_bert_config.json"
    limit = read_json(directory, sizes).get("max_seq_length") if (directory / sizes).is_file() else None
    return pooling, limit


def check_weights(directory: Path) -> None:
    """Refuse what would take a loader out of a model directory, before one sees it.

    transformers follows the names of an index wherever they lead, and loads adapters and kernels that files name.

    Raises:
        BoomError: a shard's name or a link leaves the directory; there is an adapter, or a kernel of a hub is named.
    """
    if (directory / "adapter_config.json").is_file():
        raise BoomError(f"{directory} holds an adapter: fold it into the weights of its model, and save that model.")
    config = read_json(directory, "config.json") if (directory / "config.json").is_file() else {}
    if _KERNEL.search(json.dumps(config)):
        raise BoomError(f"{directory / 'config.json'} names an attention kernel, which is code. Refused: remove it.")
    index = directory / "model.safetensors.index.json"
    names = ["model.safetensors"] if (directory / "model.safetensors").is_file() else []
    if index.is_file():
        listed = read_json(directory, index.name)
        shards = listed.get("weight_map") if isinstance(listed, dict) else None
        if not isinstance(shards, dict):
            raise BoomError(f"{index}: 'weight_map' must map tensor names to file names.")
        names += sorted({str(shard) for shard in shards.values()})
    for name in names:
        inside(directory, safe_name(name, index), index)


def read_json(directory: Path, name: str) -> Any:
    """A small file of a model directory. The directory is not trusted: a name that leads out of it is refused."""
    file = safe_name(name.replace("//", "/").removeprefix("./"), directory)
    try:
        if (directory / file).exists():
            inside(directory, file, directory / file)
        return json.loads((directory / file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BoomError(f"{directory / name} cannot be read: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
