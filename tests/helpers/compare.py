"""Attention given codes and scales, ours against the loop over tiles, on any device and engine."""

import torch

from fps_flex import TileLayout, dequantize, sliding_tile_block_mask
from fps_flex.engines import run
from tests.helpers import oracle
from tests.helpers.cases import plain_errors, relative_error

TOLERATED = 2  # times the error of plain dense attention in the same dtype


def with_gradients(out, leaves, dtype):
    """The output and the gradients of its sum, weighted with numbers that `dtype` holds exactly."""
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(dtype).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, weights)]


def codes_and_scales(case):
    """Codes [B, H, tokens, D] and Q's and K's scales [B, H, tiles], shared in each sample's groups."""
    tokens = case.grid[0] * case.grid[1] * case.grid[2]
    quantized = [
        oracle.quantize_tiles(x.numpy(), case.grid, case.tile, case.granularities, "fp32") for x in case.qkv(tokens)
    ]
    codes = [torch.from_numpy(code) for code, _ in quantized]
    return codes, [torch.from_numpy(scale) for _, scale in quantized[:2]]


def compare_with_loop(case, dtype, device="cpu", engine="eager", pads=0.0):
    """Errors of the output and of each gradient, ours and plain attention's, for the same codes and scales."""
    layout = TileLayout(case.grid, case.tile, case.block, torch.device(device))
    (q, k, v), (q_scale, k_scale) = codes_and_scales(case)
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    expected = with_gradients(
        oracle.attention(*leaves, q_scale, k_scale, case.grid, case.tile, case.windows), leaves, dtype
    )

    leaves = [x.to(device, dtype).requires_grad_() for x in (q, k, v)]
    slots = [layout.order(x, dim=2).masked_fill(~layout.valid[:, None], pads) for x in leaves]
    score_mod = dequantize(*(s.to(device)[..., layout.tile_of_slot] for s in (q_scale, k_scale)))
    out = run(engine, *slots, sliding_tile_block_mask(layout, case.windows), score_mod)
    got = with_gradients(layout.unorder(out, dim=2), leaves, dtype)

    values = [q * q_scale[..., tile_of_token(case)][..., None], k * k_scale[..., tile_of_token(case)][..., None], v]
    ours = [relative_error(x.cpu(), y) for x, y in zip(got, expected, strict=True)]
    return ours, plain_errors(*values, dtype, device)


def tile_of_token(case):
    owner = {
        token: i
        for i, position in enumerate(oracle.all_tiles(case.grid, case.tile))
        for token in oracle.tokens_of(position, case.grid, case.tile)
    }
    return [owner[token] for token in range(len(owner))]
