"""Attention given codes and scales, ours against the loop over tiles, on any device and engine."""

import numpy as np
import torch

from fps_flex import TileLayout, dequantize, sliding_tile_block_mask
from fps_flex.engines import run
from tests.helpers import oracle
from tests.helpers.cases import plain_errors, relative_error

TOLERATED = 2  # times the error of plain dense attention in the same dtype


def weights_of(shape, dtype):
    """What gradients are of: the output's sum, weighted with these numbers, which `dtype` holds exactly."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def with_gradients(out, leaves, dtype):
    return [out.detach(), *torch.autograd.grad(out, leaves, weights_of(out.shape, dtype).to(out))]


def loop_over_tiles(case, codes, scales, dtype, rotate=False):
    """The output and the gradients of the oracle, as tensors. codes, scales: as of `oracle.quantized`."""
    weights = weights_of(codes[0].shape, dtype).double().numpy()
    return [torch.from_numpy(x) for x in oracle.attention(case, codes, scales, weights, rotate)]


def compare_with_loop(case, dtype, device="cpu", engine="eager", pads=0.0):
    """Errors of the output and of each code's gradient, ours and plain attention's, for the same codes and scales."""
    layout = TileLayout(case.grid, case.tile, case.block, torch.device(device))
    raw = (x.numpy() for x in case.qkv(layout.tokens))
    codes, (q_scale, k_scale, v_scale) = oracle.quantized(case, *raw, "fp32")
    expected = loop_over_tiles(case, codes, (q_scale, k_scale, np.ones_like(v_scale)), dtype)

    q, k, v = codes = [torch.from_numpy(x) for x in codes]
    of_token = [torch.from_numpy(x)[..., tile_of_token(case)] for x in (q_scale, k_scale)]
    expected[1:3] = [grad * scale[..., None] for grad, scale in zip(expected[1:3], of_token, strict=True)]

    leaves = [x.to(device, dtype).requires_grad_() for x in codes]
    slots = [layout.order(x, dim=2).masked_fill(~layout.valid[:, None], pads) for x in leaves]
    score_mod = dequantize(*(torch.from_numpy(s).to(device)[..., layout.tile_of_slot] for s in (q_scale, k_scale)))
    out = run(engine, *slots, sliding_tile_block_mask(layout, case.windows), score_mod)
    got = with_gradients(layout.unorder(out, dim=2), leaves, dtype)

    ours = [relative_error(x.cpu(), y) for x, y in zip(got, expected, strict=True)]
    return ours, plain_errors(q * of_token[0][..., None], k * of_token[1][..., None], v, dtype, device)


def tile_of_token(case):
    layout = oracle.layout_of(case)
    return layout.tile_of_slot[layout.slot_of_token]
