"""FPSAttention (arXiv 2506.04648) in pure PyTorch: tile-wise FP8 and sliding tile sparsity on FlexAttention."""

from .attention import FPSAttention, Plan
from .masks import density, sliding_tile_block_mask, sliding_tile_mask_mod
from .schedule import Regime, StepSchedule, preset
from .score_mods import dequantize
from .tiles import TileLayout, plan_tile
from .version import __version__

__all__ = [
    "FPSAttention", "Plan", "Regime", "StepSchedule", "TileLayout",
    "__version__",
    "density", "dequantize", "plan_tile", "preset", "sliding_tile_block_mask", "sliding_tile_mask_mod",
]  # fmt: skip
