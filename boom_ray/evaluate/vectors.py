"""Our encoder as mteb sees it: mteb's prompt rules, cosine, and no text through the model twice."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boom_ray.config import BoomError

if TYPE_CHECKING:
    from boom_ray.encoder import Encoder

_VECTOR_BYTES = 1 << 30  # vectors kept for texts that occur again in the same call


class MtebEncoder:
    """A boom_ray encoder as mteb's ``EncoderProtocol``: mteb's own prompt rules and cosine, and a cache of vectors."""

    def __init__(self, encoder: Encoder, meta: Any, chunk_tokens: int, default_prompt: str = "") -> None:
        from mteb.models.abs_encoder import AbsEncoder

        from boom_ray.encoder import chunk_budget

        self.encoder = encoder
        self.mteb_model_meta = meta
        self.chunk_tokens = chunk_budget(chunk_tokens, next(encoder.backbone.parameters()).device)
        self.default_prompt = default_prompt
        self.asked_prompts: Mapping[str, str] = {}  # of the set that is being scored: over the model's own
        with warnings.catch_warnings():  # mteb warns of prompts it does not know and leaves them out; so do we
            warnings.simplefilter("ignore")
            valid, _ = AbsEncoder.validate_task_to_prompt_name(encoder.prompts, raise_for_invalid_keys=False)
        self.prompts: dict[str, str] = valid or {}
        self._vectors: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **_: Any) -> np.ndarray:
        """Unit vectors, float32 [N, D], of the texts of mteb's loader, in its order."""
        prompt = self._prompt(task_metadata, prompt_type)
        texts = list(inputs.dataset["text"])
        keys = [hashlib.blake2b((prompt + text).encode(), digest_size=16).digest() for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._vectors}
        fresh = dict(zip(new, self._encode(list(new.values()), prompt), strict=True))
        rows = [fresh[key] if key in fresh else self._vectors[key] for key in keys]
        self._remember(fresh)
        return np.stack(rows)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)

    def _prompt(self, task_metadata: Any, prompt_type: Any) -> str:
        """The prompt that mteb and sentence-transformers together would put before a text of this task."""
        from mteb.models.abs_encoder import get_prompt

        prompt = get_prompt({**self.prompts, **self.asked_prompts}, task_metadata, prompt_type)
        if prompt is None and prompt_type is not None and prompt_type.value == "document":
            names = ("document", "passage", "corpus")
            prompt = next((self.encoder.prompts[n] for n in names if n in self.encoder.prompts), None)
        return self.default_prompt if prompt is None else prompt

    def _encode(self, texts: list[str], prompt: str) -> np.ndarray:
        vectors = self.encoder.encode(texts, prompt=prompt, chunk_tokens=self.chunk_tokens)
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise BoomError(
                f"model {self.mteb_model_meta.name} gives a vector with NaN or infinite numbers for the text "
                f"{texts[row][:80]!r}: its weights are damaged or its training diverged."
            )
        return vectors

    def _remember(self, fresh: Mapping[bytes, np.ndarray]) -> None:
        for key, vector in fresh.items():
            self._vectors[key] = vector.copy()  # a view would keep its whole batch alive
        size = next(iter(fresh.values())).nbytes if fresh else 0
        while len(self._vectors) * size > _VECTOR_BYTES:
            self._vectors.popitem(last=False)


def default_prompt(directory: Path) -> str:
    """The prompt that sentence-transformers uses where nothing more exact is known."""
    file = directory / "config_sentence_transformers.json"
    settings = json.loads(file.read_text()) if file.is_file() else {}
    return (settings.get("prompts") or {}).get(settings.get("default_prompt_name"), "")
