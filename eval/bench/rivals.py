"""What others offer: dense attention over [B, H, N, D] in bf16, in raster order, and diffusers' own transformer."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from fps_flex.compile import compiled
from fps_flex.engines import missing_flash
from fps_flex.wan import WanConfig
from fps_flex.wan.stock import diffusers_arguments

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

Dense = Callable[[Tensor, Tensor, Tensor], Tensor]


def dense_rivals(device: torch.device, backward: bool) -> dict[str, Dense]:
    """Those that are installed and run on the device."""
    if device.type == "cpu":
        return {"SDPA": F.scaled_dot_product_attention}
    rivals = {
        "SDPA, cuDNN": _sdpa(SDPBackend.CUDNN_ATTENTION),
        "SDPA, FlashAttention-2": _sdpa(SDPBackend.FLASH_ATTENTION),
    }
    if missing_flash() is None:
        rivals["FlashAttention-4"] = _flash_attention_4
    rivals["FlexAttention, Triton"] = compiled(flex_attention)
    if find_spec("sageattention") and not backward:
        rivals["SageAttention (int8)"] = _sage
    return rivals


def _sdpa(backend: SDPBackend) -> Dense:
    return sdpa_kernel(backend)(F.scaled_dot_product_attention)


def _flash_attention_4(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from flash_attn.cute.interface import flash_attn_func

    out = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)))
    return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)


def _sage(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from sageattention import sageattn

    return sageattn(q, k, v, tensor_layout="HND", is_causal=False)


def random_stock(config: WanConfig, device: torch.device) -> WanTransformer3DModel:
    """On a GPU in bf16, with what diffusers keeps in fp32; on a CPU all in fp32."""
    stock = build_stock(config, device)
    return to_bf16(stock) if device.type == "cuda" else stock


def build_stock(config: WanConfig, device: torch.device) -> WanTransformer3DModel:
    """In fp32."""
    from diffusers import WanTransformer3DModel

    with device:
        return WanTransformer3DModel(**diffusers_arguments(config)).eval()


def to_bf16(stock: WanTransformer3DModel) -> WanTransformer3DModel:
    """In place, but for what diffusers keeps in fp32."""
    for name, parameter in stock.named_parameters():
        if not any(kept in name for kept in stock._keep_in_fp32_modules):
            parameter.data = parameter.data.to(torch.bfloat16)
    return stock
