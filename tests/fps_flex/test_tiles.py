import logging
from itertools import product

import pytest
import torch

from docs.golden import method
from fps_flex import TileLayout, plan_tile
from fps_flex.tiles import count_slots
from tests.helpers import oracle
from tests.helpers.cases import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case.seed}")
def test_slots_equal_the_loop_over_tiles(case):
    layout = TileLayout(case.grid, case.tile, case.block)
    expected = oracle.layout_of(case)
    assert layout.slots == len(expected.valid)
    assert layout.tiles == expected.counts
    for name in ("valid", "slot_of_token", "tile_of_slot"):
        assert getattr(layout, name).tolist() == getattr(expected, name).tolist(), name
    assert layout.tile_coords_of_slot.T.tolist() == expected.coords_of_tile[expected.tile_of_slot].tolist()


@pytest.mark.parametrize("case", CASES[:12], ids=lambda case: f"case{case.seed}")
def test_order_and_unorder_are_inverse_and_pads_are_zero(case):
    layout = TileLayout(case.grid, case.tile, case.block)
    tokens = case.randn(2, 3, layout.tokens, 5).requires_grad_()
    slots = layout.order(tokens, dim=2)
    assert torch.equal(layout.unorder(slots, dim=2), tokens)
    assert (slots[:, :, ~layout.valid] == 0).all()
    layout.unorder(slots, dim=2).sum().backward()
    assert (tokens.grad == 1).all()


def test_720p_with_the_papers_tile():
    layout = TileLayout((21, 45, 80), (6, 8, 8))
    assert layout.slots == 79_360
    assert layout.tiles == (4, 6, 10)
    assert layout.tokens == 75_600


@pytest.mark.parametrize("grid", [(21, 30, 52), (21, 45, 80)])
def test_planner_finds_at_most_two_percent_pads(grid):
    tile = plan_tile(grid)
    assert TileLayout(grid, tile).pad_share <= 0.02
    assert 256 <= tile[0] * tile[1] * tile[2] <= 512 and max(tile) <= 2 * min(tile)


def test_planner_prefers_few_slots_then_the_volume_then_the_cube():
    grid, block = (8, 9, 10), 16
    best = plan_tile(grid, volume=40, volumes=(20, 80), aspect=3, block=block)
    allowed = [
        tile
        for tile in product(range(1, 9), range(1, 10), range(1, 11))
        if 20 <= tile[0] * tile[1] * tile[2] <= 80 and max(tile) <= 3 * min(tile)
    ]
    slots = {tile: len(method.order(grid, tile, block).valid) for tile in allowed}
    ties = [tile for tile in allowed if slots[tile] == min(slots.values())]
    distance = min(abs(t * h * w - 40) for t, h, w in ties)
    ties = [tile for tile in ties if abs(tile[0] * tile[1] * tile[2] - 40) == distance]
    assert len(ties) > 1
    assert max(best) / min(best) == min(max(tile) / min(tile) for tile in ties)
    assert best in ties


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case.seed}")
def test_slots_are_counted_without_building_the_layout(case):
    assert count_slots(case.grid, case.tile, case.block) == len(oracle.layout_of(case).valid)


def test_a_wasteful_tile_warns_once(caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            TileLayout((5, 5, 5), (5, 5, 3), block=64)
    assert len(caplog.records) == 1
    assert "35% of the slots empty" in caplog.text


@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 5, 7), (3, 5, 11)])
def test_a_tile_that_no_other_betters_does_not_warn(grid, caplog):
    """Slots are empty, and there are as few as a block allows."""
    with caplog.at_level(logging.WARNING):
        assert TileLayout(grid, grid, block=128).pad_share > 0.25
    assert not caplog.records


@pytest.mark.parametrize(
    ("grid", "tile", "block", "message"),
    [
        ((4, 4, 4), (5, 2, 2), 8, r"tile \(5, 2, 2\) is larger than the grid \(4, 4, 4\)"),
        ((4, 4, 4), (0, 2, 2), 8, r"tile is \(0, 2, 2\)"),
        ((4, 4), (2, 2, 2), 8, r"grid is \(4, 4\)"),
        ((4, 4, 4), (2, 2, 2), 0, "block is 0"),
    ],
)
def test_bad_sizes_are_named(grid, tile, block, message):
    with pytest.raises(ValueError, match=message):
        TileLayout(grid, tile, block)


def test_tokens_that_do_not_match_the_grid_are_named():
    layout = TileLayout((4, 4, 4), (2, 2, 2), 8)
    with pytest.raises(ValueError, match=r"got 63 tokens on dim 1, expected 64: a grid of \(4, 4, 4\)"):
        layout.order(torch.zeros(1, 63, 8))
    with pytest.raises(ValueError, match="got 63 slots on dim 1, expected 64"):
        layout.unorder(torch.zeros(1, 63, 8))


def test_no_tile_fits_a_grid_too_small():
    with pytest.raises(ValueError, match=r"no tile of 256 to 512 tokens .* fits the grid \(2, 4, 4\)"):
        plan_tile((2, 4, 4))
