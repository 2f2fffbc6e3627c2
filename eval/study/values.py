"""One scale for each channel of V, as in the paper, or one for each tile: what either does to attention's output.

FPSAttention has no option for the second; here V is rounded before dense attention, in every layer, on real clips.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fps_flex.quant import channel_scales, round_e4m3, slot_scales, tile_groups
from fps_flex.wan.flow import add_noise
from train.common.work import find_device

from ..generate.models import TextToVideo
from ..sensitivity.errors import compare_heads
from ..sensitivity.replay import Planned, everywhere, plan_attention
from .clips import open_data, read
from .config import Plan
from .losses import noise_of

if TYPE_CHECKING:
    from jaxtyping import Float

CLIPS, SIGMAS = 8, (0.3, 0.6, 0.9)


@dataclass(frozen=True)
class Rounded:
    """Dense attention, and after it that of V in codes of both kinds. errors: per channel and tile, of each layer."""

    dense: Planned
    errors: list[tuple[float, float]]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        exact, layout = self.dense(q, k, v), self.dense.plan.layout
        groups = tile_groups(layout, 1)[None]
        scales = channel_scales(v, layout), slot_scales(v, layout, groups)
        outs = (self.dense(q, k, (round_e4m3(v.float() / scale) * scale).to(v.dtype)) for scale in scales)
        channel, tile = (compare_heads(out, exact, layout)[:, 0].mean().item() for out in outs)
        self.errors.append((channel, tile))
        return exact


@torch.inference_mode()
def compare_scales_of_v(plan: Plan, model: TextToVideo) -> dict[str, list[float]]:
    """Relative MSE of attention's output, mean over layers, heads and noise levels, of each clip by each kind."""
    device = find_device()
    tiled = replace(plan.study.search.attention, schedule="dense", layers=None)
    wan = replace(model, attention=tiled).load(device)
    wan.compiled = False  # attention is compiled by itself
    dense = plan_attention(tiled, model.grid(model.clip.size), device)
    found: dict[str, list[float]] = {"channel": [], "tile": []}
    for i, (video, prompt) in enumerate(read(open_data(plan), True, CLIPS)):
        rounded = Rounded(dense, [])
        wan.sequence = everywhere(rounded.attend)
        latents: Float[Tensor, "1 c f h w"] = model.codec.encode(video[None].to(device))
        noise, text = noise_of(i, latents), model.text([prompt], device)
        for sigma in SIGMAS:
            level = torch.tensor([sigma])
            wan(add_noise(latents, noise, level.to(latents)), 1000 * level, text)
        for kind, errors in zip(found, zip(*rounded.errors, strict=True), strict=True):
            found[kind].append(sum(errors) / len(errors))
    return found
