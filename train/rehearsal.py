"""Whether a model can be trained on a device at all, tried on one narrow block before anything is loaded or written."""

from __future__ import annotations

from dataclasses import replace

import lightning as L
import torch

from fps_flex.tiles import Triple
from fps_flex.wan import WanConfig

from .building import Making, build_model
from .common.refusals import one_line
from .module import FlowModule


def rehearse(module: FlowModule, trainer: L.Trainer, grid: Triple) -> None:
    """One block of one head for each schedule of layers, forward and backward over a tile, in the run's precision.

    The engine and the carrier are the run's, too.
    grid: tokens of a clip. Raises ValueError where that fails.
    """
    whole, device = module.model, trainer.strategy.root_device
    head = whole.config.head_dim
    schedules = whole.attention.schedules
    config = replace(whole.config, dim=head, heads=1, ffn_dim=2 * head, layers=len(schedules))
    attention = replace(whole.attention, layers={str(i): schedules[i] for i in range(1, len(schedules))})
    t, h, w = (size * patch for size, patch in zip(whole.attention.tile or grid, config.patch, strict=True))
    try:
        with torch.random.fork_rng(devices=[]):
            model = build_model(None, config, attention, narrow(module.making, config)).to(device)
            model.residual = whole.residual
            latents = torch.randn(1, config.channels, t, h, w, device=device)
            text = torch.randn(1, 16, config.text_dim, device=device)
            with trainer.precision_plugin.forward_context():
                loss = model(latents, torch.full((1,), 500.0, device=device), text).float().square().mean()
            loss.backward()
    except Exception as error:
        raise ValueError(f"this can't be trained here: {one_line(error)}") from None


def narrow(making: Making, config: WanConfig) -> Making:
    """The same for one head: an adapter from nothing, no wider than it."""
    lora = making.lora and replace(making.lora, rank=min(making.lora.rank, config.dim))
    return replace(making, lora=lora, adapter=None, sharded=False)
