"""FPSAttention (arXiv 2506.04648) in pure PyTorch: tile-wise FP8 and sliding tile sparsity on FlexAttention."""

from .attention import FPSAttention, Plan
from .masks import BlockMaskBank, block_mask, density, sliding_tile_mask
from .mods import dequantize
from .schedule import Regime, StepSchedule, preset
from .tiles import TileLayout, plan_tile
from .wan import WAN_1_3B, WAN_14B, WAN_TINY, Wan, WanConfig

__all__ = [
    "WAN_14B", "WAN_1_3B", "WAN_TINY",
    "BlockMaskBank", "FPSAttention", "Plan", "Regime", "StepSchedule", "TileLayout", "Wan", "WanConfig",
    "block_mask", "density", "dequantize", "plan_tile", "preset", "sliding_tile_mask",
]  # fmt: skip
