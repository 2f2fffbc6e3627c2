"""The method once more, in plain loops over tiles and in float64, with no code from fps_flex.

Everything is in raster order of tokens. A tile is its position (t, h, w); tiles are listed in raster order.
"""

from itertools import product
from math import ceil

import numpy as np
import torch


def tile_counts(grid, tile):
    return tuple(ceil(g / t) for g, t in zip(grid, tile, strict=True))


def all_tiles(grid, tile):
    return list(product(*(range(n) for n in tile_counts(grid, tile))))


def tokens_of(position, grid, tile):
    """Raster indices of the tokens in one tile."""
    ranges = [range(p * t, min((p + 1) * t, g)) for p, t, g in zip(position, tile, grid, strict=True)]
    _, height, width = grid
    return [(t * height + h) * width + w for t, h, w in product(*ranges)]


def slot_table(grid, tile, block):
    """The token in each slot; None in a pad."""
    table = []
    for position in all_tiles(grid, tile):
        tokens = tokens_of(position, grid, tile)
        table += tokens + [None] * (-len(tokens) % block)
    return table


def window_range(center, window, n):
    """First and last + 1 tile that a query tile sees on an axis of n tiles."""
    window = min(window, n)
    start = center - window // 2
    start = max(0, min(start, n - window))
    return start, start + window


def sees(query, key, window, counts):
    ranges = [window_range(q, w, n) for q, w, n in zip(query, window, counts, strict=True)]
    return all(low <= k < high for (low, high), k in zip(ranges, key, strict=True))


def token_mask(grid, tile, window):
    """[tokens, tokens]: which key tokens each query token sees."""
    tiles, counts = all_tiles(grid, tile), tile_counts(grid, tile)
    size = int(np.prod(grid))
    mask = torch.zeros(size, size, dtype=torch.bool)
    for query, key in product(tiles, tiles):
        if sees(query, key, window, counts):
            mask[torch.tensor(tokens_of(query, grid, tile))[:, None], torch.tensor(tokens_of(key, grid, tile))] = True
    return mask


def attention(q, k, v, q_scale, k_scale, grid, tile, windows):
    """float64 attention, one query tile at a time. q, k, v: [B, H, tokens, D]; scales: [B, H, tiles]."""
    tiles, counts = all_tiles(grid, tile), tile_counts(grid, tile)
    q, k, v, q_scale, k_scale = (x.double() for x in (q, k, v, q_scale, k_scale))
    samples = []
    for b, window in enumerate(windows):
        parts, order = [], []
        for i, query in enumerate(tiles):
            keys = [j for j, key in enumerate(tiles) if sees(query, key, window, counts)]
            key_tokens = [token for j in keys for token in tokens_of(tiles[j], grid, tile)]
            scale_of_key = torch.cat(
                [k_scale[b, :, j : j + 1].expand(-1, len(tokens_of(tiles[j], grid, tile))) for j in keys], dim=-1
            )
            tokens = tokens_of(query, grid, tile)
            scores = q[b][:, tokens] @ k[b][:, key_tokens].mT / q.shape[-1] ** 0.5
            scores = scores * q_scale[b, :, i, None, None] * scale_of_key[:, None]
            parts.append(torch.softmax(scores, dim=-1) @ v[b][:, key_tokens])
            order += tokens
        samples.append(torch.cat(parts, dim=1)[:, torch.tensor(order).argsort()])
    return torch.stack(samples)


def e4m3_values():
    """The magnitudes of e4m3 in ascending order: 4 bits of exponent with bias 7, 3 bits of mantissa, no infinity."""
    values = []
    for code in range(0x7F):
        exponent, mantissa = code >> 3, code & 7
        values.append(mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    return np.array(values)


def round_e4m3(x):
    """Nearest e4m3 value of fp32 x; a tie goes to the even code; beyond 448 it stays 448."""
    values = e4m3_values()
    magnitude = np.minimum(np.abs(x.astype(np.float64)), values[-1])
    above = np.searchsorted(values, magnitude)
    below = np.maximum(above - 1, 0)
    gap_below, gap_above = magnitude - values[below], values[above] - magnitude
    code = np.where(gap_below < gap_above, below, np.where(gap_above < gap_below, above, below + below % 2))
    return np.copysign(values[code], x).astype(np.float32)


def scale(amax, scale_format):
    """fp32 amax / 448, or the power of two that is not below it; 1 for 0."""
    result = np.float32(amax) / np.float32(448)
    if result == 0:
        return np.float32(1)
    if scale_format == "pow2":
        mantissa, exponent = np.frexp(result)
        result = np.float32(2.0 ** (exponent - 1 if mantissa == 0.5 else exponent))
    return result


def quantize_tiles(x, grid, tile, granularity, scale_format):
    """Codes [B, H, tokens, D] and scales [B, H, tiles] of fp32 x in numpy; granularity: one a sample."""
    tiles = all_tiles(grid, tile)
    codes, scales = np.empty_like(x), np.empty((*x.shape[:2], len(tiles)), np.float32)
    for b, h in product(*map(range, x.shape[:2])):
        g = granularity[b]
        groups = [0 if g == "head" else tuple(p // g for p in position) for position in tiles]
        for group in set(groups):
            members = [i for i, other in enumerate(groups) if other == group]
            tokens = [token for i in members for token in tokens_of(tiles[i], grid, tile)]
            s = scale(np.abs(x[b, h, tokens]).max(), scale_format)
            scales[b, h, members] = s
            codes[b, h, tokens] = round_e4m3(x[b, h, tokens] / s)
    return codes, scales


def quantize_channels(x, scale_format):
    """Codes [B, H, tokens, D] and scales [B, H, 1, D] of fp32 x in numpy."""
    scales = np.empty((*x.shape[:2], 1, x.shape[3]), np.float32)
    for b, h, d in product(range(x.shape[0]), range(x.shape[1]), range(x.shape[3])):
        scales[b, h, 0, d] = scale(np.abs(x[b, h, :, d]).max(), scale_format)
    return round_e4m3(x / scales), scales
