"""What of a VAE's config.json decides its sizes and scales, checked before anything is coded with it."""

from __future__ import annotations

from typing import Any

from fps_flex.checks import is_real, is_whole

from .release import require_entry

FRAMES = 4  # a latent, which diffusers' VAE goes by whatever its config.json says
DEFAULTS = {  # what config.json leaves out, as diffusers takes it
    "dim_mult": [1, 2, 4, 4],
    "temperal_downsample": [False, True, True],
    "attn_scales": [],
    "is_residual": False,
    "patch_size": None,
    "scale_factor_temporal": FRAMES,
    "scale_factor_spatial": 8,
}


def check_vae(file: str, config: dict[str, Any]) -> None:
    """Raises ValueError for what can't be meant, or would code other sizes than it seems to. file: that it is from."""

    def require(name: str, fits: bool, expected: str) -> None:
        require_entry(file, config, name, fits, expected)

    said = config.get
    require("z_dim", is_size(said("z_dim")), "a whole number of at least 1")
    channels = said("z_dim")
    require("latents_mean", _is_row(said("latents_mean"), channels), f"{channels} numbers, one a channel")
    std = said("latents_std")
    require("latents_std", _is_row(std, channels) and min(std) > 0, f"{channels} numbers above 0, one a channel")

    stages, temporal, patch = said("dim_mult"), said("temperal_downsample"), said("patch_size")
    require("dim_mult", isinstance(stages, list) and len(stages) > 0 and all(map(is_size, stages)), "whole numbers")
    halving = isinstance(temporal, list) and all(isinstance(x, bool) for x in temporal) and 2 ** sum(temporal) == FRAMES
    require("temperal_downsample", halving, f"true twice, for {FRAMES} frames a latent")
    require("patch_size", patch is None or is_size(patch), "null or a whole number")
    require("scale_factor_temporal", said("scale_factor_temporal") == FRAMES, f"{FRAMES}, as its layers make it")
    pixels = 2 ** (len(stages) - 1) * (patch or 1)
    require("scale_factor_spatial", said("scale_factor_spatial") == pixels, f"{pixels}, as its layers make it")


def is_size(value: object) -> bool:
    return is_whole(value) and value >= 1


def _is_row(value: object, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(map(is_real, value))
