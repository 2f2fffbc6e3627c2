"""A transformer's sizes by the names that stock tools have for them: in a config.json, and as diffusers' arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .config import WanConfig


def official_config(config: WanConfig) -> dict[str, Any]:
    """config.json of the official release."""
    return {
        "_class_name": "WanModel",
        "model_type": "t2v",
        "patch_size": config.patch,
        "dim": config.dim,
        "ffn_dim": config.ffn_dim,
        "freq_dim": config.freq_dim,
        "text_dim": config.text_dim,
        "in_dim": config.channels,
        "out_dim": config.channels,
        "num_heads": config.heads,
        "num_layers": config.layers,
        "eps": config.eps,
    }


def diffusers_arguments(config: WanConfig) -> dict[str, Any]:
    """What diffusers' WanTransformer3DModel is built with."""
    return {
        "patch_size": config.patch,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.head_dim,
        "in_channels": config.channels,
        "out_channels": config.channels,
        "text_dim": config.text_dim,
        "freq_dim": config.freq_dim,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": config.eps,
    }


def diffusers_config(config: WanConfig) -> dict[str, Any]:
    """config.json of the diffusers release."""
    return {"_class_name": "WanTransformer3DModel", **diffusers_arguments(config)}


def from_diffusers(arguments: Mapping[str, Any]) -> WanConfig:
    """The inverse of `diffusers_arguments`."""
    heads = arguments["num_attention_heads"]
    return WanConfig(
        dim=heads * arguments["attention_head_dim"],
        ffn_dim=arguments["ffn_dim"],
        heads=heads,
        layers=arguments["num_layers"],
        channels=arguments["in_channels"],
        text_dim=arguments["text_dim"],
        freq_dim=arguments["freq_dim"],
        patch=tuple(arguments["patch_size"]),
        eps=arguments["eps"],
    )
