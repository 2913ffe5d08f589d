"""Scores of a model on evaluation sets, computed by mteb and kept in its result cache.

Only what is missing is run: a result counts when it belongs to this model revision and to these texts. A result
file that cannot be read is made again. No text is encoded twice within one call, whatever the set.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from boom_ray.config import BoomError
from boom_ray.evaluate.sets import EvalSet, find_sets
from boom_ray.evaluate.significance import Samples

if TYPE_CHECKING:
    from boom_ray.encoder import Encoder

_VECTOR_BYTES = 1 << 30  # vectors kept for texts that occur again in the same call
_NOT_THE_MODEL = {"README.md", "manifest.json", "boom_manifest.json", "mergekit_config.yml", "_SUCCESS"}


def evaluate(
    model: str | Path,
    sets: Sequence[EvalSet] | Sequence[str | Path],
    *,
    results: str | Path,
    cap: int | None = None,
    chunk_tokens: int = 16384,
    name: str | None = None,
    revision: str | None = None,
    trained: Collection[str] = (),
) -> dict[str, float]:
    """Score a model directory on evaluation sets.

    Args:
        model: a sentence-transformers or Hugging Face directory.
        sets: what :func:`boom_ray.evaluate.sets.find_sets` returned, or folders for it.
        results: root of an mteb ``ResultCache``: ``results/MODEL/REVISION/SET.json`` below it.
        cap: texts per set at most, the same for all models; default: whole sets.
        chunk_tokens: padded tokens per forward pass at most; on a CPU never more than 2048, which is faster there.
        name: model name in the cache; default: the directory's name.
        revision: model revision in the cache; default: a digest of the directory's weights, tokenizer and settings.
        trained: names of the datasets the model was trained on, where known.

    Returns:
        Main score of every set, 0..1, in the order of the sets; rounded to 6 decimals as mteb's files are. A
        correlation that is undefined because all vectors are equal counts as 0.

    Raises:
        BoomError: the model or a set cannot be read, or the model gives vectors that are not finite.
    """
    entries = _entries(sets, trained)
    directory = Path(model)
    if not directory.is_dir():
        raise BoomError(f"model {directory} is not a directory.")
    from mteb import ResultCache

    meta = _model_meta(directory, name, revision, trained)
    cache = ResultCache(results)
    found = {entry.name: _cached(cache, meta, entry, cap) for entry in entries}
    missing = [entry for entry in entries if found[entry.name] is None]
    if missing:
        from boom_ray.encoder import Encoder

        adapter = MtebEncoder(Encoder.load(directory), meta, chunk_tokens, _default_prompt(directory))
        for entry in missing:
            _run(adapter, entry, cap, cache)
            found[entry.name] = _cached(cache, meta, entry, cap)
    scores = {name: score for name, score in found.items() if score is not None}
    if len(scores) < len(entries):
        raise BoomError(f"results were written to {results} but cannot be read back: is another process clearing it?")
    return {name: 0.0 if math.isnan(score) else score for name, score in scores.items()}


def load_samples(
    model: str | Path,
    sets: Sequence[EvalSet],
    *,
    results: str | Path,
    name: str | None = None,
    revision: str | None = None,
) -> dict[str, Samples]:
    """What each score of an evaluated model was made from, for the intervals of ``significance``.

    Sets whose main score is no function of single units (F1, MRR, AMI) are left out.

    Raises:
        BoomError: a set has not been evaluated for this model.
    """
    from mteb import ResultCache

    meta, cache = _model_meta(Path(model), name, revision, ()), ResultCache(results)
    found = {}
    for entry in sets:
        try:
            found[entry.name] = Samples.load(_samples_file(cache, meta, entry))
        except (OSError, ValueError, KeyError, BadZipFile):
            raise BoomError(
                f"model {meta.name} has no scores on '{entry.name}' in {results}: evaluate it first."
            ) from None
    return {key: samples for key, samples in found.items() if samples.kind != "none"}


def model_revision(directory: Path) -> str:
    """16 hexadecimal digits over everything in a model directory that can change a vector."""
    digest = hashlib.sha256()
    for file in sorted(p for p in directory.rglob("*") if p.is_file()):
        relative = file.relative_to(directory)
        if file.name in _NOT_THE_MODEL or any(part.startswith(".") for part in relative.parts):
            continue
        with open(file, "rb") as stream:
            digest.update(relative.as_posix().encode() + b"\0" + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


class MtebEncoder:
    """A boom_ray encoder as mteb's ``EncoderProtocol``: mteb's own prompt rules and cosine, and a cache of vectors."""

    def __init__(self, encoder: Encoder, meta: Any, chunk_tokens: int, default_prompt: str = "") -> None:
        from mteb.models.abs_encoder import AbsEncoder

        from boom_ray.encoder import chunk_budget

        self.encoder = encoder
        self.mteb_model_meta = meta
        self.chunk_tokens = chunk_budget(chunk_tokens, next(encoder.backbone.parameters()).device)
        self.default_prompt = default_prompt
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

        prompt = get_prompt(self.prompts, task_metadata, prompt_type)
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


def _entries(sets: Sequence[EvalSet] | Sequence[str | Path], trained: Collection[str]) -> list[EvalSet]:
    ready = [entry for entry in sets if isinstance(entry, EvalSet)]
    folders = [entry for entry in sets if not isinstance(entry, EvalSet)]
    return ready + (find_sets(folders, trained or None) if folders else [])


def _run(adapter: MtebEncoder, entry: EvalSet, cap: int | None, cache: Any) -> None:
    import mteb

    from boom_ray.evaluate.tasks import build_task, data_revision

    settings = {"batch_size": 32, "show_progress_bar": False, "chunk_tokens": adapter.chunk_tokens, "dtype": "float32"}
    task = build_task(entry, cap)
    with _quiet():
        mteb.evaluate(
            adapter,
            task,
            cache=cache,
            overwrite_strategy="always",
            encode_kwargs=settings,
            show_progress_bar=False,
            co2_tracker=False,
        )
    samples = task.samples or Samples("none", data_revision(entry, cap), np.zeros(0))
    samples.save(_samples_file(cache, adapter.mteb_model_meta, entry))


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars of ``datasets`` (switched for the whole process only), no warnings about mteb's few-shot classifier."""
    import datasets
    from sklearn.exceptions import ConvergenceWarning, UndefinedMetricWarning

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.simplefilter("ignore", UndefinedMetricWarning)
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _cached(cache: Any, meta: Any, entry: EvalSet, cap: int | None) -> float | None:
    """The main score kept for this model revision and these texts; None: not there, of other texts, or damaged."""
    from boom_ray.evaluate.tasks import data_revision

    try:
        result = cache.load_task_result(entry.name, meta)
        texts = Samples.load(_samples_file(cache, meta, entry)).texts
        if result is None or not result.dataset_revision == texts == data_revision(entry, cap):
            return None
        return float(result.scores["test"][0][entry.metric])
    except (OSError, ValueError, KeyError, IndexError, TypeError, BadZipFile):  # a kill leaves half a file
        return None


def _samples_file(cache: Any, meta: Any, entry: EvalSet) -> Path:
    """Beside mteb's own ``results`` folder, so that mteb does not take it for one of its files."""
    return Path(cache.cache_path) / "samples" / meta.model_name_as_path() / meta.revision / f"{entry.name}.npz"


def _model_meta(directory: Path, name: str | None, revision: str | None, trained: Collection[str]) -> Any:
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    name = re.sub(r"[^A-Za-z0-9._/-]+", "-", name or directory.resolve().name)
    known = {
        "name": name if "/" in name else f"boom_ray/{name}",
        "revision": revision or model_revision(directory),
        "framework": ["Sentence Transformers"],
        "similarity_fn_name": ScoringFunction.COSINE,
        "training_datasets": set(trained) or None,
        "open_weights": True,
    }
    return ModelMeta.create_empty(known)


def _default_prompt(directory: Path) -> str:
    """The prompt that sentence-transformers uses where nothing more exact is known."""
    file = directory / "config_sentence_transformers.json"
    settings = json.loads(file.read_text()) if file.is_file() else {}
    return (settings.get("prompts") or {}).get(settings.get("default_prompt_name"), "")
