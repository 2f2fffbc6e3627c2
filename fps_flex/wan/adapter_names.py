"""The names of a LoRA's tensors, as each tool writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..checks import some
from .keys import from_flat, is_official, to_official

# what the end of a name says that a tensor is, whichever tool wrote it
_PARTS = {
    "down": r"lora_A(\.\w+)?\.weight|lora_down\.weight|lora\.down\.weight",  # .default, or peft's adapter's name
    "up": r"lora_B(\.\w+)?\.weight|lora_up\.weight|lora\.up\.weight",
    "up_bias": r"lora_B(\.\w+)?\.bias",  # peft's lora_bias: of the layer's own bias, and scaled as the matrices are
    "alpha": r"alpha",
    "diff": r"diff",
    "diff_b": r"diff_b",
    "diff_m": r"diff_m",  # of a block's or the head's modulation
}
_ENDING = re.compile(r"\.(?:" + "|".join(f"(?P<{part}>{ending})" for part, ending in _PARTS.items()) + ")$")
# diffusers transformer., ComfyUI diffusion_model., peft base_model.model., and what wraps a model that is trained
_WRAPPERS = re.compile(r"^((base_model|model|module|diffusion_model|transformer|pipe|dit|net|generator|_orig_mod)\.)+")
_FLAT = re.compile(r"^lora_(unet|transformer)__?")  # musubi, kohya, OneTrainer: _ for each dot

# What a name shows a file to be that can't be merged, in the order in which it is asked.
_OTHERS = {
    r"dora_scale$|lora_magnitude_vector": "a DoRA, which also scales whole columns",
    r"\.lokr_": "a LoKr of LyCORIS",
    r"\.hada_": "a LoHa of LyCORIS",
    r"\.lora_mid\.": "a LoCon of LyCORIS with a third factor",
    r"\.(oft|boft)_": "an OFT",
    r"\.(set_weight|reshape_weight)$": "whole tensors in place of differences, as ComfyUI knows them",
    r"^lora_te|text_(encoder|model)[._]": "a LoRA of a text encoder",
    r"^transformer_2\.": "the LoRA of a second transformer: save each in a file of its own",
    r"k_img|v_img|add_[kv]_proj|norm_added_k|img_emb|image_embedder": "a LoRA of an image-to-video model",
    r"vace_": "a LoRA of a VACE model",
    r"(audio|motion|face|pose|control|ref)_\w*": "a LoRA of a Wan with inputs beside the text",
    r"double_blocks|single_(transformer_)?blocks": "a LoRA of Flux or HunyuanVideo",
    r"transformer_blocks|down_blocks|up_blocks|input_blocks|joint_blocks": "a LoRA of another family of models",
    r"\.base_layer\.": "a model with its LoRA inside: save the LoRA alone",
}


@dataclass(frozen=True)
class Key:
    """What a tensor's name says. part: one of _PARTS. module: its official name. own: as the file has it."""

    part: str
    module: str
    own: str

    @property
    def tensor(self) -> str:
        """The official name of the tensor that a difference is of."""
        if self.part == "diff_m":
            return f"{self.module}.modulation"
        bias = self.part in ("diff_b", "up_bias")
        is_tensor = self.module.rpartition(".")[2] == "modulation"
        return self.module if is_tensor else f"{self.module}.{'bias' if bias else 'weight'}"


def parse(name: str) -> Key | None:
    """None for a name that is none of a LoRA of Wan."""
    match = _ENDING.search(name)
    if not (match and match.lastgroup):
        return None
    part = next(part for part in _PARTS if match[part])
    outer = name[: match.start()]
    own = _WRAPPERS.sub("", outer)
    module = from_flat(_FLAT.sub("", outer)) if _FLAT.match(outer) else to_official(own)
    known = is_official(f"{module}.modulation" if part == "diff_m" else module)
    return Key(part, module, own) if known else None


def describe_others(names: Iterable[str]) -> str:
    """What names are that no LoRA of Wan has, with one of them in brackets."""
    names = sorted(names)
    for pattern, what in _OTHERS.items():
        example = next((name for name in names if re.search(pattern, name)), None)
        if example:
            return f"{what} ({example})"
    return f"no LoRA of a text-to-video Wan ({some(names, 1)})"
