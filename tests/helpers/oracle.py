"""docs/golden/method.py on a random case: the method in plain loops over tiles, with no code from fps_flex.

Tokens are in raster order, in and out; in numpy.
"""

import numpy as np

from docs.golden import method


def layout_of(case):
    return method.order(case.grid, case.tile, case.block)


def mask(case):
    """[B, slots, slots]: which keys each query sees, pads included."""
    layout = layout_of(case)
    return np.stack([method.mask(layout, method.tile_mask(layout, windows)) for windows in case.windows])


def token_mask(case):
    """[B, tokens, tokens]."""
    slots = layout_of(case).slot_of_token
    return mask(case)[:, slots][:, :, slots]


def quantized(case, q, k, v, scale_format, **options):
    """Codes of each [B, H, tokens, D], and scales: of q and k [B, H, tiles], of v [B, H, 1, D].

    options: smooth_k, int8 and rotate, off if left out.
    """
    layout = layout_of(case)
    groups = [method.groups_of_tiles(layout, 0 if g == "head" else g) for g in case.granularities]
    parts = method.quantized({"q": q, "k": k, "v": v, **options}, layout, np.stack(groups), scale_format)
    scales = parts["q"][1], parts["k"][1], parts["v"][1][:, :, None]
    return [method.to_tokens(codes, layout) for *_, codes in parts.values()], scales


def attention(case, codes, scales, grad_out, rotate=False):
    """float64: the output, and the gradients of q, k and v before quantisation, and before they were rotated.

    codes, scales: as of `quantized`.
    """
    layout, seen = layout_of(case), mask(case)[:, None]
    slots = [method.to_slots(x, layout, method.PAD).astype(np.float64) for x in codes]
    q_scale, k_scale, v_scale = (x.astype(np.float64) for x in scales)
    at_slots = q_scale[..., layout.tile_of_slot], k_scale[..., layout.tile_of_slot], v_scale
    grads = method.gradients(*slots, *at_slots, seen, method.to_slots(grad_out, layout, 0))
    if rotate:
        grads = method.rotate_back(*grads)
    return [method.to_tokens(x, layout) for x in (method.attend(*slots, *at_slots, seen), *grads)]
