"""A checkpoint into which a weak spot is planted: K of one head has outlier channels at some noise levels alone."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fps_flex.wan.model import sinusoids

LEVELS = 400


@dataclass(frozen=True)
class Spot:
    """layer, head: whose K. below: the noise level under which it has outliers. channels: how many of the head's.

    size: of the outliers, before K's norm. gain: of the norm in these channels, whose values are as much less before.
    """

    layer: int
    head: int
    below: float
    channels: int = 8
    size: float = 4.0
    gain: float = 32.0


def plant(checkpoint, spot, path):
    """A copy of a checkpoint of train.fit, at `path`, with this spot; the model's sizes are the checkpoint's own."""
    loaded = torch.load(checkpoint, weights_only=True)
    wan = loaded["fps_flex"]["wan"]
    for state in ("state_dict", "current_model_state"):
        _plant(loaded[state], spot, wan)
    torch.save(loaded, path)
    return path


def _plant(state, spot, wan):
    """Channel 0 of attention's input becomes a switch, which the noise level turns and that head's K alone reads."""
    _add_switch(state, spot.below, wan["freq_dim"])
    for layer in range(wan["layers"]):
        state[f"model.blocks.{layer}.modulation"][:, :2, 0] = 0
        for name in "qkv":
            state[f"model.blocks.{layer}.self_attn.{name}.weight"][:, 0] = 0
    width = wan["dim"] // wan["heads"]
    first = spot.head * width + width - 4 * (width // 6) - spot.channels  # the pairs over time that RoPE turns least
    rows = slice(first, first + spot.channels)
    of_layer = f"model.blocks.{spot.layer}.self_attn"
    state[f"{of_layer}.k.weight"][rows] /= spot.gain
    state[f"{of_layer}.k.bias"][rows] /= spot.gain
    state[f"{of_layer}.k.weight"][rows, 0] = spot.size
    state[f"{of_layer}.norm_k.weight"][rows] *= spot.gain


def _add_switch(state, below, freq_dim):
    """The shift of channel 0 as a function of the noise level: near 1 below a level, near 0 from there up."""
    sigma = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    first, second = (
        [state[f"model.time_embedding.{i}.{name}"].double() for name in ("weight", "bias")] for i in (0, 2)
    )
    time = F.linear(F.silu(F.linear(sinusoids(1000 * sigma, freq_dim), *first)), *second)
    features = torch.cat([F.silu(time), torch.ones(LEVELS, 1)], 1)
    wanted = (sigma < below).double()[:, None]
    fitted = torch.linalg.lstsq(features, wanted, rcond=1e-9, driver="gelsd").solution[:, 0]
    dim = len(state["model.time_projection.1.bias"]) // 6
    off = torch.zeros_like(fitted)
    off[-1] = -1  # of the scale: what the channel held before is gone
    for row, weights in ((0, fitted), (dim, off)):
        state["model.time_projection.1.weight"][row] = weights[:-1]
        state["model.time_projection.1.bias"][row] = weights[-1]
