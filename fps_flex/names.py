"""The names of Wan's tensors: as in the official release, which wan.py follows, and as in diffusers."""

from __future__ import annotations

import re
from typing import Literal

Naming = Literal["official", "diffusers"]

_ATTENTION = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
}
_BLOCK = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",  # norm2 and norm3 change places; the other one has no weights
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in _ATTENTION.items()},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in _ATTENTION.items()},
}
_MODEL = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.modulation": "scale_shift_table",
    "head.head": "proj_out",
}
_OFFICIAL_BLOCK, _OFFICIAL_MODEL = ({theirs: ours for ours, theirs in table.items()} for table in (_BLOCK, _MODEL))


def to_diffusers(name: str) -> str:
    """The diffusers name of an official one; a name that is none is returned as it is."""
    return _rename(name, _MODEL, _BLOCK)


def to_official(name: str) -> str:
    """The official name of a diffusers one; a name that is none is returned as it is."""
    return _rename(name, _OFFICIAL_MODEL, _OFFICIAL_BLOCK)


def naming_of(names: set[str]) -> Naming:
    return "diffusers" if any(name.startswith("condition_embedder.") for name in names) else "official"


def _rename(name: str, model: dict[str, str], block: dict[str, str]) -> str:
    prefix, rest = re.fullmatch(r"(blocks\.\d+\.)?(.*)", name).groups(default="")
    table = block if prefix else model
    owner, dot, leaf = rest.rpartition(".")
    if rest in table:
        return prefix + table[rest]
    return prefix + table[owner] + dot + leaf if owner in table else name
