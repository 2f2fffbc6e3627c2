"""FPSAttention in plain numpy, a function a rule: a second implementation, which shares no code with fps_flex.

docs/porting.md says the rules in words. Loops over tiles and float64 make this slow and easy to follow; what decides a
code (amax, scale, division, rounding) is float32, as it must be. Arrays are [B, H, slots, D] inside; `compute` takes
and gives tokens in raster order.
"""

from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

E4M3_MAX, INT8_MAX = np.float32(448), np.float32(127)
PAD = 1e4  # what pad slots of q, k and v hold here: no result may depend on it
FORMS = ("fp32", "pow2")


class Layout(NamedTuple):
    counts: tuple  # tiles on (T, H, W)
    coords_of_tile: np.ndarray  # [tiles, 3]
    slot_of_token: np.ndarray  # [tokens], tokens in raster order
    tile_of_slot: np.ndarray  # [slots], pads included
    valid: np.ndarray  # [slots], True where a slot holds a token
    block: int


# order


def order(grid, tile, block):
    """Tiles in raster order, tokens in raster order inside each; pads fill a tile up to a multiple of `block` slots."""
    counts = tuple(-(-g // t) for g, t in zip(grid, tile, strict=True))
    coords = list(product(*map(range, counts)))
    slot_of_token, tile_of_slot, valid = np.empty(prod(grid), np.int32), [], []
    for index, corner in enumerate(coords):
        tokens = tokens_of_tile(corner, grid, tile)
        pads = -len(tokens) % block
        slot_of_token[tokens] = len(valid) + np.arange(len(tokens))
        valid += [True] * len(tokens) + [False] * pads
        tile_of_slot += [index] * (len(tokens) + pads)
    return Layout(counts, np.array(coords, np.int32), slot_of_token, np.array(tile_of_slot), np.array(valid), block)


def tokens_of_tile(corner, grid, tile):
    """Raster indices t * H * W + h * W + w of a tile's tokens; edge tiles are shorter."""
    t, h, w = (np.arange(c * n, min((c + 1) * n, g)) for c, n, g in zip(corner, tile, grid, strict=True))
    return ((t[:, None, None] * grid[1] + h[:, None]) * grid[2] + w).ravel()


def to_slots(x, layout, fill):
    slots = np.full((*x.shape[:2], len(layout.valid), x.shape[3]), fill, x.dtype)
    slots[:, :, layout.slot_of_token] = x
    return slots


def to_tokens(x, layout):
    return x[:, :, layout.slot_of_token]


# windows and blocks


def window_start(center, window, n):
    """First tile of a window of min(window, n) tiles around tile `center` of n, pushed back inside at the borders."""
    return min(max(center - window // 2, 0), n - min(window, n))


def sees(query, key, windows, counts):
    """Whether a query tile sees a key tile; both by their (T, H, W) coordinates."""
    return all(
        window_start(q, w, n) <= k < window_start(q, w, n) + min(w, n)
        for q, k, w, n in zip(query, key, windows, counts, strict=True)
    )


def tile_mask(layout, windows):
    coords = layout.coords_of_tile.tolist()
    return np.array([[sees(q, k, windows, layout.counts) for k in coords] for q in coords])


def mask(layout, kept_tiles):
    """[slots, slots]: tiles decide; pads are masked as keys only."""
    return kept_tiles[layout.tile_of_slot][:, layout.tile_of_slot] & layout.valid


def block_kinds(seen, block):
    """0 where no pair of two blocks is kept, 2 where all are, 1 between: only there must a kernel look at the mask."""
    n = len(seen) // block
    pairs = seen.reshape(n, block, n, block).swapaxes(1, 2).reshape(n, n, -1)
    return (pairs.any(-1).astype(np.uint8) + pairs.all(-1)).astype(np.uint8)


def block_lists(kinds, kind):
    """How many key blocks of a kind each query block has, and which, in ascending order; -1 behind them."""
    columns = np.full(kinds.shape, -1, np.int32)
    for row, line in zip(columns, kinds, strict=True):
        found = np.flatnonzero(line == kind)
        row[: len(found)] = found
    return (kinds == kind).sum(-1, dtype=np.int32), columns


# what makes Q and K easier to round and changes no score; only where a case says so


def has(case, option):
    """Whether a case has an option: smooth_k, int8 or rotate. What it doesn't hold it hasn't."""
    return bool(case.get(option, 0))


def hadamard(dim):
    """Sylvester's: -1 to the number of bits that row and column have in common. dim: a power of two."""
    return np.array([[(-1) ** (i & j).bit_count() for j in range(dim)] for i in range(dim)], np.float32)


def times_hadamard(x, name):
    """q or k, or a gradient of it, in [..., D], D = 2^n: also times 2^-floor(n / 2) or 2^-ceil(n / 2)."""
    n = x.shape[-1].bit_length() - 1
    power = n // 2 if name == "q" else n - n // 2
    return x @ (hadamard(x.shape[-1]) * np.float32(2.0**-power))


def rotated(case):
    """q and k as they go on, rotated or not."""
    return {name: times_hadamard(case[name], name) if has(case, "rotate") else case[name] for name in "qk"}


def mean_of_tokens(x, layout):
    """fp32 sum over the tokens / their number by true division; pads don't count. [B, H, 1, D]"""
    return (x[:, :, layout.valid].sum(2, keepdims=True, dtype=np.float64) / layout.valid.sum()).astype(np.float32)


def centre(x, mean):
    return np.float32(x) - mean


# scales and codes


def amax_of_tiles(x, layout):
    members = [layout.valid & (layout.tile_of_slot == i) for i in range(len(layout.coords_of_tile))]
    return np.stack([np.abs(x[:, :, m]).max((-2, -1)) for m in members], -1).astype(np.float32)


def amax_of_channels(x, layout):
    return np.abs(x[:, :, layout.valid]).max(-2).astype(np.float32)


def groups_of_tiles(layout, granularity):
    """Tiles of one group share a scale. granularity: tiles per axis in a group, 0 for all tiles of a head."""
    if granularity == 0:
        return np.zeros(len(layout.coords_of_tile), np.int32)
    t, h, w = layout.coords_of_tile.T // granularity
    _, groups_h, groups_w = (-(-n // granularity) for n in layout.counts)
    return ((t * groups_h + h) * groups_w + w).astype(np.int32)


def pool(amax, groups):
    """Each tile's amax -> the largest of its group. amax: [B, H, tiles], groups: [B, tiles]."""
    pooled = np.empty_like(amax)
    for b, of_tile in enumerate(groups):
        for group in np.unique(of_tile):
            members = of_tile == group
            pooled[b][:, members] = amax[b][:, members].max(-1, keepdims=True)
    return pooled


def scale_of(amax, form, largest=E4M3_MAX):
    """fp32 amax / the largest code by true division, 1 where that is 0; pow2 rounds it up to a power of two."""
    scale = np.float32(amax) / largest
    scale = np.where(scale == 0, np.float32(1), scale)
    if form == "pow2":
        mantissa, exponent = np.frexp(scale)  # scale = mantissa * 2^exponent, mantissa in [0.5, 1)
        scale = np.maximum(np.ldexp(np.float32(1), exponent - (mantissa == 0.5)), np.float32(2.0**-126))
    return scale.astype(np.float32)


def divide(x, scale):
    return np.float32(x) / scale


def round_e4m3(x):
    """Nearest e4m3 value of fp32 x, ties to even; beyond 448 it is 448. 8 steps an octave, and of 2^-9 below 2^-6."""
    x = np.clip(x, -E4M3_MAX, E4M3_MAX)
    _, exponent = np.frexp(x)
    step = np.ldexp(np.float32(1), np.maximum(exponent - 1, -6) - 3)
    return (round_half_even(x / step) * step).astype(np.float32)


def round_half_even(x):
    return np.rint(x)


def round_int8(x):
    """Nearest whole number, ties to even; beyond 127 it is 127."""
    return np.clip(round_half_even(x), -INT8_MAX, INT8_MAX).astype(np.float32)


def quantize(x, scale, largest=E4M3_MAX):
    return (round_e4m3 if largest == E4M3_MAX else round_int8)(divide(x, scale))


def decode(bits):
    """e4m3 bit patterns -> float32: sign, 4 bits of exponent with bias 7, 3 of mantissa; 0x7F and 0xFF are NaN."""
    bits = np.asarray(bits, np.int32)
    exponent, mantissa = (bits >> 3) & 15, bits & 7
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * np.ldexp(1.0, exponent - 7))
    value = np.where((bits & 0x7F) == 0x7F, np.nan, value)
    return np.where(bits & 0x80, -value, value).astype(np.float32)


def encode(values):
    """The bit pattern of each e4m3 value."""
    magnitudes = decode(np.arange(0x7F))
    return (np.searchsorted(magnitudes, np.abs(values)) + 0x80 * np.signbit(values)).astype(np.uint8)


# attention, for codes [B, H, slots, D], scales [B, H, slots] (V's: [B, H, 1, D]) and a mask [B, 1, slots, slots]


def softmax_weights(q, k, q_scale, k_scale, seen):
    """P. The scales multiply the score of the codes before the softmax; 1 / sqrt(D) does, too."""
    scores = dequantize(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]), q_scale, k_scale)
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def dequantize(scores, q_scale, k_scale):
    return scores * q_scale[..., :, None] * k_scale[..., None, :]


def attend(q, k, v, q_scale, k_scale, v_scale, seen):
    return softmax_weights(q, k, q_scale, k_scale, seen) @ v * v_scale


def gradients(q, k, v, q_scale, k_scale, v_scale, seen, grad_out):
    """Of the inputs before quantisation: the rounding counts as the identity, the scales as constants."""
    weights = softmax_weights(q, k, q_scale, k_scale, seen)
    grad_weights = (grad_out * v_scale) @ v.swapaxes(-1, -2)
    grad_scores = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdims=True))
    grad_scores = dequantize(grad_scores / np.sqrt(q.shape[-1]), q_scale, k_scale)
    grad_q, grad_k = grad_scores @ k, grad_scores.swapaxes(-1, -2) @ q
    grad_v = weights.swapaxes(-1, -2) @ (grad_out * v_scale)
    return straight_through(grad_q, q_scale), straight_through(grad_k, k_scale), straight_through(grad_v, v_scale)


def straight_through(grad_code, scale):
    """code = round(x / scale), so a code's gradient becomes x's by one division."""
    return grad_code / (scale if scale.ndim == 4 else scale[..., None])


# everything that a file of golden vectors holds, from its inputs


def compute(case):
    """The arrays of one case, by their names in its file."""
    layout = order(tuple(case["grid"]), tuple(case["tile"]), int(case["block"]))
    kept_tiles = np.stack([tile_mask(layout, windows) for windows in case["windows"].tolist()])
    seen = np.stack([mask(layout, kept) for kept in kept_tiles])
    got = {
        **{name: getattr(layout, name) for name in ("slot_of_token", "tile_of_slot", "valid", "coords_of_tile")},
        "tile_mask": kept_tiles,
        "mask": seen,
        "density": seen[:, layout.valid][:, :, layout.valid].mean((-2, -1)),
        **_blocks(np.stack([block_kinds(one, layout.block) for one in seen])),
        "groups": np.stack([groups_of_tiles(layout, g) for g in case["granularity"].tolist()]),
    }
    if has(case, "rotate"):
        got |= {f"{name}_rotated": x for name, x in rotated(case).items()}
    if has(case, "smooth_k"):
        got["k_mean"] = mean_of_tokens(to_slots(rotated(case)["k"], layout, PAD), layout)
    for form in FORMS:
        got |= _attention(case, layout, got["groups"], seen[:, None], form)
    return got


def _blocks(kinds):
    partial, full = ([block_lists(one, kind) for one in kinds] for kind in (1, 2))
    lists = {"partial": partial, "full": full}
    return {"block_kinds": kinds} | {
        f"{name}_{part}": np.stack([pair[i] for pair in pairs])
        for name, pairs in lists.items()
        for i, part in enumerate(("counts", "blocks"))
    }


def quantized(case, layout, groups, form):
    """{q, k, v: (amax, scale, scale at every slot, codes)}; V's scale is one per channel, its codes are e4m3."""
    parts, slots = {}, slots_of(case, layout)
    for name, x in slots.items():
        largest = INT8_MAX if has(case, "int8") and name != "v" else E4M3_MAX
        if name == "v":
            amax = amax_of_channels(x, layout)
            scale = scale_of(amax, form)
            spread = at_slots = scale[:, :, None]
        else:
            amax = amax_of_tiles(x, layout)
            scale = scale_of(pool(amax, groups), form, largest)
            at_slots = scale[..., layout.tile_of_slot]
            spread = at_slots[..., None]
        parts[name] = amax, scale, at_slots, quantize(x, spread, largest)
    return parts


def slots_of(case, layout):
    """q, k and v in slots, as they are divided: q and k rotated, k less its mean, where the case says so."""
    q, k, v = (to_slots(x, layout, PAD) for x in (*rotated(case).values(), case["v"]))
    return {"q": q, "k": centre(k, mean_of_tokens(k, layout)) if has(case, "smooth_k") else k, "v": v}


def _attention(case, layout, groups, seen, form):
    parts = quantized(case, layout, groups, form)
    got = {}
    for name, (amax, scale, _, codes) in parts.items():
        got |= {f"{name}_amax": amax, f"{name}_scale_{form}": scale, f"{name}_codes_{form}": to_tokens(codes, layout)}
        if name == "v" or not has(case, "int8"):
            got[f"{name}_bits_{form}"] = encode(got[f"{name}_codes_{form}"])
    codes = [codes.astype(np.float64) for *_, codes in parts.values()]
    scales = [at_slots.astype(np.float64) for _, _, at_slots, _ in parts.values()]
    out = attend(*codes, *scales, seen)
    grads = gradients(*codes, *scales, seen, grad_of_slots(case, layout))
    if has(case, "rotate"):
        grads = rotate_back(*grads)
    for name, x in zip(("out", "dq", "dk", "dv"), (out, *grads), strict=True):
        got[f"{name}_{form}"] = to_tokens(x, layout)
    return got


def rotate_back(dq, dk, dv):
    """The matrices are symmetric."""
    return times_hadamard(dq, "q"), times_hadamard(dk, "k"), dv


def grad_of_slots(case, layout):
    """What reaches the slots from grad_out: pad rows are dropped from the output, so their gradient is 0."""
    return to_slots(case["grad_out"], layout, 0).astype(np.float64)


def compute_numbers(case):
    """Rounding and scales of single numbers."""
    codes = round_e4m3(case["x"])
    scales = {f"scale_{form}": scale_of(case["amax"], form) for form in FORMS}
    return {"codes": codes, "bits": encode(codes), **scales}


ON_BOUND = 1e-5  # a progress so little below a bound counts as on it: sigma is rounded


def progress_of(sigma, shift):
    """Denoising done: 1 - u, where sigma = shift * u / (1 + (shift - 1) * u). In float64, from the fp32 sigma."""
    sigma = np.float64(sigma)
    return 1 - sigma / (shift - (shift - 1) * sigma)


def window_in_tiles(extent, n):
    """A fraction of an axis of n tiles, rounded to whole tiles (ties to even), at least 1."""
    return max(1, round(extent * n))


def compute_schedule(case):
    """Progress, and of each preset the regime of every sigma and the windows on every count of tiles."""
    got = {"progress": progress_of(case["sigma"], float(case["shift"]))}
    for name in ("fps", "sta", "uniform"):
        bounds, extents = case[f"{name}_bounds"], case[f"{name}_extents"].tolist()
        reached = (got["progress"] >= bound - ON_BOUND for bound in bounds)
        got[f"{name}_regime"] = sum(reached, np.zeros(len(case["sigma"]), int))
        got[f"{name}_windows"] = np.array(
            [[[window_in_tiles(e, n) for e, n in zip(regime, axes, strict=True)] for regime in extents]
             for axes in case["tiles"].tolist()]
        )  # fmt: skip
    return got
