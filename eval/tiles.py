"""Draw tile order, a window and the blocks that a kernel computes.

python -m eval.tiles --out docs/tiles.png
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fps_flex import TileLayout, density, sliding_tile_block_mask
from fps_flex.checks import Triple
from fps_flex.masks import as_windows, tile_mask
from train.common.atomic import check_ours
from train.common.console import check_writable, cli_errors, run_command
from train.common.pictures import save_figure

KINDS = ListedColormap(["white", "#f4a261", "#2a6f97"])


def draw_order(axes: Axes, layout: TileLayout) -> None:
    """The slots of the first frame's tokens, tile by tile."""
    _, height, width = layout.grid
    slots = layout.slot_of_token[: height * width].view(height, width)
    axes.imshow(slots, cmap="viridis")
    draw_tiles(axes, layout)
    for row in range(height):
        for col in range(width):
            dark = slots[row, col] < slots.max() / 2
            axes.text(col, row, int(slots[row, col]), ha="center", va="center", fontsize=5, color="w" if dark else "k")
    pads = f"{layout.slots - layout.tokens} of {layout.slots} slots are pads"
    axes.set_title(f"Slots of the first frame's tokens\n{pads}", fontsize=9)


def draw_window(axes: Axes, layout: TileLayout, window: Triple, queries: tuple[Triple, Triple]) -> None:
    """The keys that two query tiles see in the first frame; where windows overlap, the second one shows."""
    _, height, width = layout.grid
    seen = tile_mask(layout, as_windows(window, layout))[0]
    tile_of_token = layout.tile_of_slot[layout.slot_of_token][: height * width].view(height, width)
    picture = torch.ones(height, width, 3)
    for query, color in zip(queries, ((0.18, 0.44, 0.59), (0.91, 0.44, 0.32)), strict=True):
        tile = (query[0] * layout.tiles[1] + query[1]) * layout.tiles[2] + query[2]
        keys = seen[tile][tile_of_token]
        picture[keys] = 1 - 0.35 * (1 - torch.tensor(color))
        picture[tile_of_token == tile] = torch.tensor(color)
    axes.imshow(picture)
    draw_tiles(axes, layout)
    axes.set_title(f"Windows of {window} tiles: a query tile (dark)\nand the key tiles that it sees", fontsize=9)


def draw_blocks(axes: Axes, layout: TileLayout, window: Triple) -> None:
    """Which blocks of the score matrix a kernel skips, masks or computes in full."""
    bm = sliding_tile_block_mask(layout, window)
    kinds = torch.zeros(bm.kv_indices.shape[-2:], dtype=torch.int64)
    for kind, counts, indices in (
        (1, bm.kv_num_blocks, bm.kv_indices),
        (2, bm.full_kv_num_blocks, bm.full_kv_indices),
    ):
        for row, (count, columns) in enumerate(zip(counts[0, 0].tolist(), indices[0, 0].tolist(), strict=True)):
            kinds[row, columns[:count]] = kind
    axes.imshow(kinds, cmap=KINDS, vmin=0, vmax=2)
    axes.set(xlabel="block of keys", ylabel="block of queries")
    share = density(layout, window).item()
    title = f"Blocks of {layout.block} slots: full (blue), with pads\n(orange), skipped (white); density {share:.2f}"
    axes.set_title(title, fontsize=9)


def draw_tiles(axes: Axes, layout: TileLayout) -> None:
    _, tile_height, tile_width = layout.tile
    _, height, width = layout.grid
    for top in range(0, height, tile_height):
        for left in range(0, width, tile_width):
            rows, cols = min(tile_height, height - top), min(tile_width, width - left)
            axes.add_patch(Rectangle((left - 0.5, top - 0.5), cols, rows, fill=False, edgecolor="k", linewidth=1.5))
    axes.set_xticks([])
    axes.set_yticks([])


def tiles(
    out: Path = Path("tiles.png"),
    grid: Triple = (4, 14, 23),
    tile: Triple = (2, 4, 4),
    window: Triple = (2, 3, 3),
    block: int = 16,
) -> None:
    """Draw tile order, a window and the blocks that a kernel computes.

    Args:
        out: the PNG to write.
        grid: tokens on (T, H, W).
        tile: tokens of a tile on (T, H, W).
        window: tiles that a query tile sees on (T, H, W).
        block: slots of a block.

    Raises ValueError where a tile, a window or a block doesn't fit the grid, and for a picture that isn't ours.
    """
    check_ours(out)
    check_writable(out.parent, "--out")
    layout = TileLayout(grid, tile, block)
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    order, windows, blocks = figure.subplots(1, 3, width_ratios=(3, 3, 2))
    draw_order(order, layout)
    _, tiles_h, tiles_w = layout.tiles
    draw_window(windows, layout, window, ((0, 0, 0), (0, tiles_h - 1, tiles_w - 2)))
    draw_blocks(blocks, layout, window)
    save_figure(figure, out)
    print(f"wrote {out}")


def command(args: list[str] | None = None) -> None:
    """args: the command line, without the command; by default this process's own."""
    with cli_errors("stopped; nothing was written"):
        run_command(tiles, args, prog="python -m eval.tiles")


if __name__ == "__main__":
    command()
