"""What of a VAE's config.json decides its sizes and scales, checked before anything is coded with it."""

from __future__ import annotations

from typing import Any

from ..checks import is_real, is_whole
from .release import require_entry

FRAMES = 4  # a latent, which diffusers' VAE goes by whatever its config.json says
MOST_SIZE, MOST_LAYERS, MOST_BLOCKS, MOST_STAGES = 10**7, 1000, 100, 16
LEAST_SCALE, MOST_SCALE = 1e-4, 1e4  # of latents; Wan's are about 1
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
    """Raises ValueError for what can't be meant, or would code other sizes than it seems to. file: that it is from.

    config: with DEFAULTS for what it leaves out.
    """

    def require(name: str, fits: bool, expected: str) -> None:
        require_entry(file, config, name, fits, expected)

    get = config.get
    require("z_dim", is_size(get("z_dim")), f"a whole number from 1 to {MOST_SIZE}")
    channels = get("z_dim")
    fits = _is_row(get("latents_mean"), channels, -MOST_SCALE)
    require("latents_mean", fits, f"{channels} numbers, one per channel, from {-MOST_SCALE:g} to {MOST_SCALE:g}")
    fits = _is_row(get("latents_std"), channels, LEAST_SCALE)
    require("latents_std", fits, f"{channels} numbers above 0, one per channel, from {LEAST_SCALE:g} to {MOST_SCALE:g}")
    blocks = get("num_res_blocks", 1)
    require("num_res_blocks", is_size(blocks, MOST_BLOCKS), f"a whole number from 1 to {MOST_BLOCKS}")

    stages, temporal, patch = config["dim_mult"], get("temperal_downsample"), get("patch_size")
    fits = isinstance(stages, list) and 0 < len(stages) <= MOST_STAGES and all(map(is_size, stages))
    require("dim_mult", fits, f"1 to {MOST_STAGES} whole numbers")
    halving = isinstance(temporal, list) and all(isinstance(x, bool) for x in temporal) and 2 ** sum(temporal) == FRAMES
    require("temperal_downsample", halving, f"true twice, for {FRAMES} frames a latent")
    require("patch_size", patch is None or is_size(patch), "null or a whole number")
    require("scale_factor_temporal", get("scale_factor_temporal") == FRAMES, f"{FRAMES}, as its layers make it")
    pixels = 2 ** (len(stages) - 1) * (patch or 1)
    require("scale_factor_spatial", get("scale_factor_spatial") == pixels, f"{pixels}, as its layers make it")


def is_size(value: object, most: int = MOST_SIZE) -> bool:
    return is_whole(value) and 1 <= value <= most


def _is_row(value: object, length: object, least: float) -> bool:
    if not isinstance(value, list) or len(value) != length:
        return False
    return all(is_real(x) and least <= x <= MOST_SCALE for x in value)
