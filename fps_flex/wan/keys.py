"""The names of Wan's tensors: as in the official release, which model.py follows, in diffusers, and within wrappers."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from typing import Literal

from ..checks import some
from .recognise import what_names

logger = logging.getLogger(__name__)

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
# what compiling, sharding and checkpointing put before a module, also in the middle of a name
_INNER = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_WRAPPERS = {*_INNER, "module", "model", "diffusion_model", "pipe", "dit", "transformer", "net", "generator",
             "generator_ema", "ema"}  # fmt: skip
_FIRST = "patch_embedding.weight"  # which every Wan transformer has, in either naming
# what an all-in-one checkpoint holds beside the transformer
_COMPANIONS = {"vae", "first_stage_model", "cond_stage_model", "conditioner", "text_encoder", "text_encoders",
               "clip_vision", "image_encoder"}  # fmt: skip
MARKER = "scaled_fp8"  # ComfyUI's, of a file and no part of its model

_OFFICIAL_BLOCK, _OFFICIAL_MODEL = ({theirs: ours for ours, theirs in table.items()} for table in (_BLOCK, _MODEL))
_FLAT_BLOCK, _FLAT_MODEL = (
    {name.replace(".", "_"): ours for ours, theirs in table.items() for name in (ours, theirs)}
    for table in (_BLOCK, _MODEL)
)


def to_diffusers(name: str) -> str:
    """The diffusers name of an official one; a name that is none is returned as it is."""
    return _rename(name, _MODEL, _BLOCK)


def to_official(name: str) -> str:
    """The official name of a diffusers one; a name that is none is returned as it is."""
    return _rename(name, _OFFICIAL_MODEL, _OFFICIAL_BLOCK)


def is_official(name: str) -> bool:
    """Whether a module, or a tensor that is a module's own, is called so in the official naming."""
    match = re.fullmatch(r"blocks\.\d+\.(.+)", name)
    return match[1] in _BLOCK if match else name in _MODEL


def from_flat(name: str) -> str:
    """The official name of one in either naming with _ for each dot; a name that is none is returned as it is."""
    match = re.fullmatch(r"blocks_(\d+)_(.+)", name)
    if match:
        return f"blocks.{match[1]}.{_FLAT_BLOCK[match[2]]}" if match[2] in _FLAT_BLOCK else name
    return _FLAT_MODEL.get(name, name)


def naming_of(names: set[str]) -> Naming:
    return "diffusers" if any(name.startswith("condition_embedder.") for name in names) else "official"


def _rename(name: str, model: dict[str, str], block: dict[str, str]) -> str:
    prefix = match[0] if (match := re.match(r"blocks\.\d+\.", name)) else ""
    rest = name.removeprefix(prefix)
    table = block if prefix else model
    owner, dot, leaf = rest.rpartition(".")
    if rest in table:
        return prefix + table[rest]
    return prefix + table[owner] + dot + leaf if owner in table else name


def is_scaled(names: Iterable[str]) -> bool:
    """Whether ComfyUI's marker is among a file's names, and not that of an encoder beside the transformer."""
    return any(name.rpartition(".")[2] == MARKER and _COMPANIONS.isdisjoint(name.split(".")) for name in names)


def unwrap(path: Path, names: Iterable[str]) -> dict[str, str]:
    """A file's names of one model by what they are without wrappers' prefixes.

    Of a checkpoint with encoders beside the transformer, the transformer's, and a warning that names the others.
    Raises ValueError where there are several models or none, where only some names have a prefix, and where two become
    one.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if name.rpartition(".")[2] != MARKER:
            groups[_outer(name)].append(name)
    prefix = _transformer_of(path, groups)
    beside = sorted(group for group in groups if group != prefix)
    for group in beside:
        if group.rstrip(".").rpartition(".")[2] not in _COMPANIONS:
            first, other = (next(iter(groups[x])) for x in sorted((prefix, group), reverse=True))
            raise ValueError(
                f"{path} holds {first} and {other}: expected all names to begin with {max(prefix, group)}, or none to"
            )
    if beside:
        logger.warning("of %s the transformer (%s) is read, not its %s", path, prefix or "no prefix", ", ".join(beside))
    return _without_clashes(path, ((_strip(name, prefix), name) for name in groups[prefix]))


def _transformer_of(path: Path, groups: dict[str, list[str]]) -> str:
    """The prefix of the one transformer among the groups of names."""
    prefixes = [prefix for prefix, names in groups.items() if any(_strip(name, prefix) == _FIRST for name in names)]
    if len(prefixes) > 1:
        several = ", ".join(prefix or "no prefix" for prefix in prefixes)
        raise ValueError(f"{path} holds {len(prefixes)} models, {several}: save the one to load in a file of its own")
    if not prefixes:
        every = [name for names in groups.values() for name in names]
        if what := what_names(every):
            raise ValueError(f"{path} is {what}, expected a text-to-video Wan transformer's weights")
        raise ValueError(f"{path} holds no Wan transformer (no {_FIRST}): its tensors are {some(sorted(every))}")
    return prefixes[0]


def official_names(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Names in either naming by the official ones. Raises ValueError where two become one."""
    names = set(names)
    official = to_official if naming_of(names) == "diffusers" else str
    return _without_clashes(path, ((official(name), name) for name in sorted(names)))


def _without_clashes(path: Path, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    made: dict[str, str] = {}
    for new, name in pairs:
        if new in made:
            raise ValueError(f"{path} holds {made[new]} and {name}, which are both {new}: save one model in a file")
        made[new] = name
    return made


def _outer(name: str) -> str:
    """The words with which wrappers and an all-in-one checkpoint begin a name, each with its dot."""
    words = name.split(".")[:-1]
    outer = list(takewhile(_WRAPPERS.__contains__, words))
    outer += takewhile(_COMPANIONS.__contains__, words[len(outer) : len(outer) + 1])
    return "".join(f"{word}." for word in outer)


def _strip(name: str, prefix: str) -> str:
    return ".".join(word for word in name.removeprefix(prefix).split(".") if word not in _INNER)
