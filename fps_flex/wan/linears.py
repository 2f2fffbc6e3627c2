"""FP8 linear layers for inference, through torchao: the paper runs the feed-forward network in FP8 too."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch
from torch import nn

from .model import Wan

Linears = Literal["bf16", "fp8-ffn", "fp8"]


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
    parts = ("ffn.",) if linears == "fp8-ffn" else ("ffn.", "self_attn.", "cross_attn.")
    for block in model.blocks:
        quantize_(
            block,
            config,
            filter_fn=lambda module, name: isinstance(module, nn.Linear) and name.startswith(parts),
        )


def check_linears(linears: Linears, device: torch.device) -> None:
    """Raises ValueError for an unknown kind, and for fp8 without torchao or without a GPU that has float8."""
    if linears not in ("bf16", "fp8-ffn", "fp8"):
        raise ValueError(f"linears are {linears!r}, expected bf16, fp8-ffn or fp8")
    if linears == "bf16":
        return
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise ValueError(f"linears {linears} need a GPU with float8 (compute capability 8.9 or later): use bf16")
    if find_spec("torchao") is None:
        raise ValueError(f"linears {linears} need torchao: pip install torchao, or use bf16")
