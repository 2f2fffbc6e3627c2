"""FP8 linear layers through torchao, in training and for inference: the paper runs the feed-forward network in FP8."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Literal

import torch
from torch import nn

from .model import Wan

Linears = Literal["bf16", "fp8-ffn", "fp8"]
PARTS: dict[str, tuple[str, ...]] = {"bf16": (), "fp8-ffn": ("ffn.",), "fp8": ("ffn.", "self_attn.", "cross_attn.")}


@torch.no_grad()
def quantize_linears(model: Wan, linears: Linears) -> None:
    """Put the blocks' linear layers on e4m3, in place: a scale per row of the weights and, as they come, per token.

    linears: "bf16" changes nothing, "fp8-ffn" the feed-forward networks, "fp8" the attentions' projections too.
    For inference with compiled blocks, which fuse the rounding of activations with what makes them.
    Raises ValueError as `check_linears`, and where weights aren't bf16.
    """
    weight = model.get_parameter("blocks.0.ffn.0.weight")
    check_linears(linears, weight.device)
    if linears == "bf16":
        return
    if weight.dtype != torch.bfloat16:
        raise ValueError(f"linears {linears} need weights in bfloat16, got {weight.dtype}: use bf16")

    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    # torchao would switch a search on for all of Inductor, which takes minutes per block
    config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
    for block in model.blocks:
        quantize_(block, config, filter_fn=lambda module, name: _is_chosen(module, name, linears))


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
    """Raises ValueError for an unknown kind, and for fp8 without torchao or without a GPU that has float8."""
    if linears not in PARTS:
        raise ValueError(f"linears are {linears!r}, expected bf16, fp8-ffn or fp8")
    if linears == "bf16":
        return
    if not has_float8(device):
        raise ValueError(f"linears {linears} need a GPU with float8 (compute capability 8.9 or later): use bf16")
    if find_spec("torchao") is None:
        raise ValueError(f"linears {linears} need torchao: pip install torchao, or use bf16")
