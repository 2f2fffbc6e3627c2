"""What of umT5's config.json decides its sizes and states, checked before a model is made of it."""

from __future__ import annotations

from typing import Any

from ..checks import is_real
from .release import require_entry
from .vae_config import MOST_LAYERS, MOST_SIZE, is_size

SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads")
BUCKETS, DISTANCE, EPSILON = 32, 128, 1e-6  # what config.json may leave out, as transformers takes it
# as transformers resolves them: what no tensor's shape shows
DECIDING = ("num_heads", "relative_attention_max_distance", "layer_norm_epsilon", "dense_act_fn")


def check_text(file: str, config: dict[str, Any]) -> None:
    """Raises ValueError for what can't be meant. file: that it is from."""

    def require(name: str, fits: bool, expected: str) -> None:
        require_entry(file, config, name, fits, expected)

    for name in SIZES:
        require(name, is_size(config.get(name)), f"a whole number from 1 to {MOST_SIZE}")
    require("num_layers", is_size(config.get("num_layers"), MOST_LAYERS), f"a whole number from 1 to {MOST_LAYERS}")
    epsilon = config.get("layer_norm_epsilon", EPSILON)
    require("layer_norm_epsilon", is_real(epsilon) and 0 < epsilon < 1, "a number above 0 and below 1")

    buckets = config.get("relative_attention_num_buckets", BUCKETS)
    fits = is_size(buckets) and buckets >= 4
    require("relative_attention_num_buckets", fits, f"a whole number from 4 to {MOST_SIZE}")
    distance, least = config.get("relative_attention_max_distance", DISTANCE), buckets // 4 + 1
    fits = is_size(distance) and distance >= least
    require("relative_attention_max_distance", fits, f"a whole number from {least} to {MOST_SIZE}")
