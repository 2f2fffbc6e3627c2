"""What a file is that is given where a text-to-video Wan transformer belongs: by its first bytes, or by its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

Shape = tuple[int, ...]

_LFS = "a Git LFS pointer, not the file that it points to (git lfs pull fetches that)"
_PAGE = "a web page, not a file of weights"
_ZIP = "a zip archive, as pickles are, which can run code when they are read"
_FIRST_BYTES = {
    rb"GGUF": "a GGUF file",
    rb"version https://git-lfs": _LFS,
    rb"\s*<(!doctype|html|\?xml|head)": _PAGE,
    rb"PK\x03\x04": _ZIP,
    rb"\x80[\x02-\x05][.c}\]\x8a\x95]": "a pickle, which can run code when it is read",
    rb"\x00\x05\x16\x07": "what macOS keeps beside a file, not the file",
    rb"\x08[\x03-\x0c][\x12:]": "an ONNX model",
    rb"\s*\{": "a JSON file",
}
LORA = (
    r"lora_(A|B|down|up|mid|unet|te|transformer)|\.lora\.|\.(alpha|diff|diff_[bm]|dora_scale|set_weight)$|lokr_|hada_w"
    r"|lora_magnitude|\.(oft|boft)_"
)
# What a tensor's name says, in the order in which it is asked: the narrower first.
_NAMES = {
    r"\.(wscales|smooth_factor(_orig)?|wtscale)$": "quantised by SVDQuant",
    r"\.(qweight|qzeros|g_idx)$": "quantised by GPTQ or AWQ",
    r"\.(absmax|quant_map|quant_state|SCB|weight_format|nested_absmax)(\.|$)": "quantised by bitsandbytes",
    r"\.(weight_scale_2|weight_codebook|weight_s_rel)$": "quantised to 4 bits",
    LORA: "a LoRA",
    r"^vision_model\.|^visual\.|^image_encoder\.|visual_projection": "a CLIP vision encoder",
    r"(^|\.)(encoder\.(downsamples|middle|conv_in|down_blocks|down)|decoder\.(middle|upsamples|conv_in|up_blocks|up)"
    r"|(post_)?quant_conv)\.|^conv1\.weight$": "a VAE",
    r"(^|\.)encoder\.block\.\d|^shared\.weight|token_embedding\.weight|embed_tokens\.weight"
    r"|^text_model\.|^model\.layers\.\d|^layers\.\d+\.(self_attn|attention)\.": "a text encoder",
    r"(^|\.)(vace_blocks|vace_patch_embedding)\.": "a VACE model",
    r"(^|\.)(face_adapter|pose_patch_embedding|motion_encoder)\.": "a Wan-Animate model",
    r"(^|\.)(casual_audio_encoder|audio_injector|audio_proj|audio_model)\.": "a speech-to-video model",
    r"(^|\.)control_adapter\.": "a camera-control model",
    r"(^|\.)(ref_conv|control_)": "a Fun-Control model",
    r"(^|\.)(img_emb\.emb_pos|image_embedder\.pos_embed)$": "a first-and-last-frame-to-video model",
    r"(^|\.)(img_emb|image_embedder)\.|\.(k_img|v_img|norm_k_img|add_k_proj|add_v_proj|norm_added_k)(\.|$)":
        "an image-to-video model",
    r"individual_token_refiner|(^|\.)context_embedder\.token_refiner": "a HunyuanVideo transformer",
    r"(^|\.)joint_blocks\.": "a Stable Diffusion 3 transformer",
    r"(^|\.)(double_blocks|single_blocks|single_transformer_blocks)\.": "a Flux transformer",
    r"(^|\.)transformer_blocks\.\d+\.scale_shift_table$|(^|\.)patchify_proj\.": "an LTX-Video transformer",
    r"(^|\.)transformer_blocks\.\d+\.img_mod\.": "a Qwen-Image transformer",
    r"(^|\.)(input_blocks|output_blocks|down_blocks|up_blocks)\.": "a Stable Diffusion UNet",
    r"(^|\.)transformer_blocks\.\d": "a transformer of another family",
}  # fmt: skip


def what_file(file: Path) -> str | None:
    """What a file's beginning shows it to be where that is no safetensors, and None where it may be one."""
    with file.open("rb") as opened:
        beginning = opened.read(256)
    if not beginning:
        return "empty"
    # safetensors begin with the header's length in 8 bytes, and its JSON
    if beginning[8:9] == b"{" and not beginning.startswith(b"GGUF"):
        return None
    return next((what for first, what in _FIRST_BYTES.items() if re.match(first, beginning, re.IGNORECASE)), None)


def what_names(names: Iterable[str]) -> str | None:
    """What tensors of such names are, with one of them in brackets; None where they may be a transformer's of Wan."""
    names = sorted(names)
    for pattern, what in _NAMES.items():
        example = next((name for name in names if re.search(pattern, name)), None)
        if example:
            return f"{what} ({example})"
    return None


def what_channels(shapes: Mapping[str, Shape]) -> str | None:
    """What a Wan transformer is that takes more channels than it gives. shapes: by official names."""
    patch, head = shapes.get("patch_embedding.weight", ()), shapes.get("head.head.weight", ())
    if len(patch) != 5 or len(head) != 2 or not prod(patch[2:]):
        return None
    taken, given = patch[1], head[0] // prod(patch[2:])
    if taken == given:
        return None
    kinds = {36: "an image-to-video model", 48: "a Fun-Control model", 52: "a Fun-Control model", 32: "an edit model"}
    return f"{kinds.get(taken, 'a model with inputs beside the video')} ({taken} channels in, {given} out)"
