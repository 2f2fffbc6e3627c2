"""How far an output is from exact attention, on a few query tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fps_flex import TileLayout
from fps_flex.masks import as_windows, tile_mask

if TYPE_CHECKING:
    from jaxtyping import Float


def exact_rows(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h n d"],
    v: Float[Tensor, "b h n d"],
    layout: TileLayout,
    window: tuple[int, int, int],
    queries: list[int],
) -> tuple[Tensor, Float[Tensor, "b h rows d"]]:
    """The tokens of the given query tiles, and their attention over the tokens in their windows, in fp32."""
    seen = tile_mask(layout, as_windows(window, layout))[0]
    tile_of_token = layout.tile_of_slot[layout.slot_of_token]
    rows, outs = [], []
    for query in queries:
        mine, keys = (tile_of_token == query).nonzero()[:, 0], seen[query][tile_of_token].nonzero()[:, 0]
        mine = mine[:128]
        scores = q[:, :, mine].float() @ k[:, :, keys].float().mT * q.shape[-1] ** -0.5
        rows.append(mine)
        outs.append(scores.softmax(-1) @ v[:, :, keys].float())
    return torch.cat(rows), torch.cat(outs, dim=2)


def relative_error(got: Tensor, expected: Tensor) -> float:
    return ((got.float() - expected).norm() / expected.norm()).item()
