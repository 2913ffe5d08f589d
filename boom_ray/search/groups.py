"""Which tensors share merge weights: all, blocks of layers, or every layer by itself. Pure: names in, groups out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from boom_ray.config import BoomError
from boom_ray.search.points import ALL

GroupKind = Literal["none", "coarse", "layers"]
EMBEDDINGS, NORMS, REST = "embeddings", "norms", "rest"
_THIRDS = ("early", "middle", "late")
# encoder.layer.3. (BERT), layers.3. (Qwen, ModernBERT), h.3. (GPT-2), block.3. (T5), albert_layer_groups.0.
_STACK = re.compile(r"(?:^|\.)(?:h|\w*layers?|\w*blocks?|\w*layer_groups?)\.(\d+)(?:\.|$)")
_NORM = re.compile(r"norm|(?:^|[._])ln(?:[._]|\d|$)", re.IGNORECASE)
_EMBEDDING = re.compile(r"embed|(?:^|\.)(?:wte|wpe|shared|relative_attention_bias)(?:\.|$)", re.IGNORECASE)


def tensor_groups(names: Sequence[str], kind: GroupKind) -> dict[str, str]:
    """Tensor name -> group, in the order of ``names``.

    none: all in ``all``. coarse: ``embeddings``; the layers by thirds of the depth as ``early``, ``middle``, ``late``;
    ``norms`` (of layers, embeddings and the end alike); ``rest`` (poolers, heads). layers: ``embeddings``,
    ``layer-00``, ``layer-01`` .. with their own norms, ``rest``. Layer numbers of any Hugging Face naming are known.

    Raises:
        BoomError: unknown kind; kind layers or coarse where no name has a layer number.
    """
    if kind == "none":
        return dict.fromkeys(names, ALL)
    if kind not in ("coarse", "layers"):
        raise BoomError(f"tensor groups are none, coarse or layers, not {kind!r}.")
    numbers = {name: layer_number(name) for name in names}
    known = [number for number in numbers.values() if number is not None]
    if not known:
        raise BoomError(
            f"search.groups {kind}: no tensor name has a layer number ({', '.join(names[:3])} ..). Use none."
        )
    depth = 1 + max(known)
    return {name: _group(name, number, depth, kind) for name, number in numbers.items()}


def layer_number(name: str) -> int | None:
    """The layer that a tensor belongs to, from its name: the outermost stack's; None outside of layers."""
    found = _STACK.search(name)
    return int(found.group(1)) if found else None


def group_names(groups: Mapping[str, str]) -> list[str]:
    """The groups from the input of the model to its output; norms and the rest last."""
    order = {EMBEDDINGS: "0", "early": "1", "middle": "2", "late": "3", NORMS: "y", REST: "z"}
    return sorted(set(groups.values()), key=lambda group: (order.get(group, "5"), group))


def _group(name: str, number: int | None, depth: int, kind: GroupKind) -> str:
    if kind == "coarse" and _NORM.search(name):
        return NORMS
    if number is not None:
        third = 3 * (2 * number + 1) // (2 * depth)  # by the middle of the layer, so that 2 layers are early and late
        return f"layer-{number:02d}" if kind == "layers" else _THIRDS[third]
    return EMBEDDINGS if _EMBEDDING.search(name) else REST
