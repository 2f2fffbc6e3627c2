"""FP8 linear layers, for inference and, through torchao, in training: the paper runs the feed-forward network so."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Literal

import torch
from torch import nn

from .fp8_frozen import FrozenAttention, FrozenFeedForward
from .model import Block, Wan

Linears = Literal["bf16", "fp8-ffn", "fp8"]
STEP = 16  # what the units' factors are a multiple of in either size
PARTS: dict[str, tuple[str, ...]] = {"bf16": (), "fp8-ffn": ("ffn.",), "fp8": ("ffn.", "self_attn.", "cross_attn.")}


@torch.no_grad()
def quantize_linears(model: Wan, linears: Linears) -> None:
    """Put the blocks' linear layers on e4m3, in place: a scale per row of the weights and, as they come, per token.

    linears: "bf16" changes nothing, "fp8-ffn" the feed-forward networks, "fp8" the attentions' projections too.
    For inference with compiled blocks, which fuse the rounding of activations with what makes them.
    Raises ValueError as `check_linears`, and where weights aren't bf16 or of sizes that FP8 units take.
    """
    weight = model.get_parameter("blocks.0.ffn.0.weight")
    check_linears(linears, weight.device)
    if linears == "bf16":
        return
    if weight.dtype != torch.bfloat16:
        raise ValueError(f"linears {linears} need weights in bfloat16, got {weight.dtype}: use bf16")
    if any(size % STEP for size in weight.shape):
        sizes = " and ".join(map(str, reversed(weight.shape)))
        raise ValueError(f"linears {linears} need layers of multiples of {STEP} channels, got {sizes}: use bf16")
    for block in model.blocks:
        assert isinstance(block, Block)
        block.ffn = FrozenFeedForward(block.ffn)
        if linears == "fp8":
            block.self_attn, block.cross_attn = FrozenAttention(block.self_attn), FrozenAttention(block.cross_attn)


def compute_in_fp8(model: Wan, linears: Linears) -> None:
    """Let the blocks' linear layers compute in e4m3, in place: forward, and backward towards their input.

    Weights and their names stay as they are; they are rounded per row as they are used (in the backward with one scale
    for all), activations and gradients per token. Gradients of weights are products in bf16. For training with compiled
    blocks.
    """
    if linears == "bf16":
        return
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    from torchao.float8.config import Float8GemmConfig

    # weights' gradients in bf16: rounding both factors once more, along the tokens, takes as long as it saves
    config = replace(
        Float8LinearConfig.from_recipe_name("rowwise_with_gw_hp"),
        gemm_config_grad_input=Float8GemmConfig(use_fast_accum=True),  # as the output's is; a twentieth of a step
    )
    for block in model.blocks:
        convert_to_float8_training(
            block, config=config, module_filter_fn=lambda module, name: _is_chosen(module, name, linears)
        )


def _is_chosen(module: nn.Module, name: str, linears: Linears) -> bool:
    return isinstance(module, nn.Linear) and name.startswith(PARTS[linears])


def has_float8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def check_linears(linears: Linears, device: torch.device) -> None:
    """Raises ValueError for an unknown kind, and for fp8 without a GPU that has float8."""
    if linears not in PARTS:
        raise ValueError(f"linears are {linears!r}, expected bf16, fp8-ffn or fp8")
    if linears != "bf16" and not has_float8(device):
        raise ValueError(f"linears {linears} need a GPU with float8 (compute capability 8.9 or later): use bf16")


def check_torchao(linears: Linears) -> None:
    """Raises ValueError where `compute_in_fp8` needs it and it isn't installed."""
    if linears != "bf16" and find_spec("torchao") is None:
        raise ValueError(f"linears {linears} need torchao to train: pip install torchao, or use bf16")
