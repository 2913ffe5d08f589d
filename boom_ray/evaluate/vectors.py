"""Our encoder as mteb sees it: mteb's prompt rules, cosine, and no text through the model twice."""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boom_ray.config import BoomError

if TYPE_CHECKING:
    from boom_ray.encoder import Encoder

_VECTOR_BYTES = 1 << 30  # vectors kept for texts that occur again in the same call
_TOKEN_BYTES = 1 << 28  # tokens kept for the next model
_ENTRY_BYTES = 250  # what an entry of a cache takes beside its numbers
Source = Callable[[Sequence[str], str], np.ndarray]
"""(texts, prompt before each) to float32 [N, D]."""


def text_key(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class TokenCache:
    """Token ids by text, for models whose tokenizers are equal; once it is full it takes no more. For several threads,
    too: it lets one at a time use a tokenizer."""

    def __init__(self, limit: int = _TOKEN_BYTES) -> None:
        self._limit = limit
        self._size = 0
        self._lock = threading.Lock()
        self._known: dict[str, dict[bytes, np.ndarray]] = {}

    def serve(self, encoder: Encoder) -> None:
        """Let an encoder find its tokens here."""
        told = json.dumps([encoder.tokenizer.backend_tokenizer.to_str(), encoder.max_tokens])
        known = self._known.setdefault(hashlib.sha256(told.encode()).hexdigest(), {})
        encoder.remember = lambda texts, make: self._tokens(known, texts, make)

    def _tokens(
        self,
        known: dict[bytes, np.ndarray],
        texts: Sequence[str],
        make: Callable[[Sequence[str]], list[np.ndarray]],
    ) -> list[np.ndarray]:
        keys = [text_key(text) for text in texts]
        with self._lock:
            new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
            fresh = dict(zip(new, make(list(new.values())), strict=True))
            size = sum(_ENTRY_BYTES + tokens.nbytes for tokens in fresh.values())
            if self._size + size <= self._limit:
                self._size += size
                known.update(fresh)
        return [fresh[key] if key in fresh else known[key] for key in keys]


class Vectors:
    """A :data:`Source` in this process, which keeps what it has encoded, the newest first."""

    def __init__(self, encoder: Encoder, chunk_tokens: int, limit: int = _VECTOR_BYTES) -> None:
        self._encoder, self._chunk_tokens, self._limit = encoder, chunk_tokens, limit
        self._known: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, texts: Sequence[str], prompt: str) -> np.ndarray:
        keys = [text_key(prompt + text) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        vectors = self._encoder.encode(list(new.values()), prompt=prompt, chunk_tokens=self._chunk_tokens)
        fresh = dict(zip(new, vectors, strict=True))
        rows = [fresh[key] if key in fresh else self._known[key] for key in keys]
        self._remember(fresh)
        return np.stack(rows)

    def _remember(self, fresh: Mapping[bytes, np.ndarray]) -> None:
        for key, vector in fresh.items():
            self._known[key] = vector.copy()  # a view would keep its whole batch alive
        size = next(iter(fresh.values())).nbytes if fresh else 0
        while len(self._known) * size > self._limit:
            self._known.popitem(last=False)


class MtebEncoder:
    """A boom_ray encoder as mteb's ``EncoderProtocol``: mteb's own prompt rules and cosine.

    ``vectors`` is where its vectors come from; default: from this process, none made twice.
    """

    def __init__(
        self, encoder: Encoder, meta: Any, chunk_tokens: int, default_prompt: str = "", vectors: Source | None = None
    ) -> None:
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
        self._vectors: Source = vectors or Vectors(encoder, self.chunk_tokens)

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **_: Any) -> np.ndarray:
        """Unit vectors, float32 [N, D], of the texts of mteb's loader, in its order.

        Raises:
            BoomError: a vector is not finite.
        """
        texts = list(inputs.dataset["text"])
        vectors = self._vectors(texts, self._prompt(task_metadata, prompt_type))
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise BoomError(
                f"model {self.mteb_model_meta.name} gives a vector with NaN or infinite numbers for the text "
                f"{texts[row][:80]!r}: its weights are damaged or its training diverged."
            )
        return vectors

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


def load_adapter(directory: Path, meta: Any, chunk_tokens: int, precision: str = "float32") -> MtebEncoder:
    """A model directory as mteb sees it; ``meta`` is its ``ModelMeta``, ``precision`` that of its linear layers.

    Raises:
        BoomError: the directory cannot be read as a model.
    """
    from boom_ray.encoder import Encoder
    from boom_ray.evaluate.packing import pack

    encoder = Encoder.load(directory)
    if precision != "float32":
        pack(encoder.backbone, precision)
    return MtebEncoder(encoder, meta, chunk_tokens, default_prompt(directory))


def default_prompt(directory: Path) -> str:
    """The prompt that sentence-transformers uses where nothing more exact is known."""
    file = directory / "config_sentence_transformers.json"
    settings = json.loads(file.read_text()) if file.is_file() else {}
    return (settings.get("prompts") or {}).get(settings.get("default_prompt_name"), "")
