"""Wan2.1 and Wan2.2: the transformer that FPS attention is trained in, its weights and its encoders."""

from .config import WAN_1_3B, WAN_14B, WAN_TINY, WanConfig
from .model import Wan

__all__ = ["WAN_14B", "WAN_1_3B", "WAN_TINY", "Wan", "WanConfig"]
