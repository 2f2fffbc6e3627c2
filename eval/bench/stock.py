"""diffusers' own transformer, of random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fps_flex.wan import WanConfig

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel


def random_stock(config: WanConfig, device: torch.device) -> WanTransformer3DModel:
    """On a GPU in bf16, with what diffusers keeps in fp32; on a CPU all in fp32."""
    stock = build_stock(config, device)
    return to_bf16(stock) if device.type == "cuda" else stock


def build_stock(config: WanConfig, device: torch.device) -> WanTransformer3DModel:
    """In fp32."""
    from diffusers import WanTransformer3DModel

    with device:
        return WanTransformer3DModel(
            patch_size=config.patch,
            num_attention_heads=config.heads,
            attention_head_dim=config.head_dim,
            in_channels=config.channels,
            out_channels=config.channels,
            text_dim=config.text_dim,
            freq_dim=config.freq_dim,
            ffn_dim=config.ffn_dim,
            num_layers=config.layers,
        ).eval()


def to_bf16(stock: WanTransformer3DModel) -> WanTransformer3DModel:
    """In place, but for what diffusers keeps in fp32."""
    for name, parameter in stock.named_parameters():
        if not any(kept in name for kept in stock._keep_in_fp32_modules):
            parameter.data = parameter.data.to(torch.bfloat16)
    return stock
