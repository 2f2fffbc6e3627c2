import pytest
import torch
from attn_gym.masks.sta import generate_sta_mask_mod_3d
from torch.nn.attention.flex_attention import noop_mask
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fps_flex import TileLayout, density, sliding_tile_block_mask, sliding_tile_mask_mod
from fps_flex.masks import block_lists
from tests.helpers import oracle
from tests.helpers.cases import CASES


def dense_mask(mask_mod, batch, slots):
    """[B, S, S] from any mask_mod."""
    index = torch.arange(slots)
    return mask_mod(torch.arange(batch)[:, None, None], torch.tensor(0), index[:, None], index).expand(batch, -1, -1)


def lists_to_dense(counts, indices):
    """[B, rows, cols] from block lists."""
    counts, indices = counts[:, 0], indices[:, 0].long()
    listed = torch.arange(indices.shape[-1]) < counts[..., None]
    return torch.zeros_like(listed).scatter(-1, indices, listed)


def assert_lists_fit(mask, bm, block):
    """Partial blocks are those with any pair but not all, full blocks those with all; both ways round."""
    blocks = mask.unflatten(1, (-1, block)).unflatten(3, (-1, block)).transpose(2, 3)
    some, every = blocks.any(-1).any(-1), blocks.all(-1).all(-1)
    assert torch.equal(lists_to_dense(bm.kv_num_blocks, bm.kv_indices), some & ~every)
    assert torch.equal(lists_to_dense(bm.full_kv_num_blocks, bm.full_kv_indices), every)
    assert torch.equal(lists_to_dense(bm.q_num_blocks, bm.q_indices).mT, some & ~every)
    assert torch.equal(lists_to_dense(bm.full_q_num_blocks, bm.full_q_indices).mT, every)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case.seed}")
def test_mask_mod_and_block_lists_equal_the_loop_over_tiles(case):
    layout = TileLayout(case.grid, case.tile, case.block)
    expected = torch.from_numpy(oracle.mask(case))
    mask_mod = sliding_tile_mask_mod(layout, case.windows)
    assert torch.equal(dense_mask(mask_mod, len(case.windows), layout.slots), expected)

    bm = sliding_tile_block_mask(layout, case.windows)
    assert torch.equal(dense_mask(bm.mask_mod, len(case.windows), layout.slots), expected)
    assert_lists_fit(expected, bm, case.block)

    one = sliding_tile_block_mask(layout, case.windows[0])
    assert torch.equal(dense_mask(one.mask_mod, 2, layout.slots), expected[:1].expand(2, -1, -1))
    assert_lists_fit(expected[:1], one, case.block)


@pytest.mark.parametrize("case", CASES[:16], ids=lambda case: f"case{case.seed}")
def test_a_batch_picks_the_same_lists(case):
    layout = TileLayout(case.grid, case.tile, case.block)
    windows = torch.tensor(case.windows, dtype=torch.int32)
    rows = torch.arange(5) % len(windows)
    picked = block_lists(layout, windows).pick(rows).block_mask(layout, noop_mask)
    built = sliding_tile_block_mask(layout, windows[rows])
    for name in built._TENSOR_ATTRS:
        expected, got = getattr(built, name, None), getattr(picked, name, None)
        assert (got is None and expected is None) or torch.equal(got, expected), name


@pytest.mark.parametrize("window", [(1, 1, 1), (3, 3, 3), (3, 1, 5), (2, 2, 2), (1, 4, 2), (3, 4, 5)])
def test_equals_attention_gyms_sliding_tile_mask_on_grids_that_divide(window):
    grid, tile = (6, 8, 10), (2, 2, 2)
    layout = TileLayout(grid, tile, block=8)
    kernel = tuple(w * t for w, t in zip(window, tile, strict=True))
    theirs = dense_mask(generate_sta_mask_mod_3d(grid, kernel, tile), 1, layout.slots)
    assert torch.equal(dense_mask(sliding_tile_mask_mod(layout, window), 1, layout.slots), theirs)


@pytest.mark.parametrize("case", CASES[:24], ids=lambda case: f"case{case.seed}")
def test_density_counts_token_pairs(case):
    layout = TileLayout(case.grid, case.tile, case.block)
    expected = torch.from_numpy(oracle.token_mask(case)).double().mean((1, 2))
    torch.testing.assert_close(density(layout, case.windows), expected)


def test_partial_and_full_lists_have_one_shape_and_stride_and_no_shared_tensor():
    layout = TileLayout((5, 5, 5), (2, 2, 2), 16)
    for bm in (
        block_lists(layout, torch.tensor([(1, 2, 3), (3, 1, 1)])),
        block_lists(layout, torch.tensor([(1, 2, 3)])).pick(torch.zeros(3).long()),
    ):
        for partial, full in ((bm.kv_num_blocks, bm.full_kv_num_blocks), (bm.kv_indices, bm.full_kv_indices)):
            assert partial.shape == full.shape and partial.stride() == full.stride()
            assert partial.data_ptr() != full.data_ptr() and partial.dtype == full.dtype == torch.int32


class LargestTensor(TorchDispatchMode):
    """The most elements that any operation under it makes at once."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.most = max(self.most, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)))
        return out


def test_720p_is_built_from_blocks_alone_and_takes_20_megabytes():
    """No (query, key) pair is looked at: nothing on the way is larger than a table of blocks, or the tokens."""
    with LargestTensor() as largest:
        layout = TileLayout((21, 45, 80), (6, 8, 8))
        bm = sliding_tile_block_mask(layout, (3, 3, 3))
    assert 75_600 < largest.most <= max((layout.slots // 128) ** 2, 3 * layout.slots)
    tensors = [x for x in (*vars(layout).values(), *vars(bm).values()) if isinstance(x, torch.Tensor)]
    assert len(tensors) >= 8 + 6
    assert sum(x.nbytes for x in tensors) < 20e6


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ((0, 1, 1), r"windows are \[0, 1, 1\], expected at least 1 tile"),
        ([(1, 1, 1), (2, -1, 2)], "expected at least 1 tile"),
        ((1, 1), "expected whole tiles"),
        ((0.5, 1.0, 1.0), "expected whole tiles"),
    ],
)
def test_bad_windows_are_named(windows, message):
    layout = TileLayout((4, 4, 4), (2, 2, 2), 8)
    for make in (sliding_tile_mask_mod, sliding_tile_block_mask, density):
        with pytest.raises(ValueError, match=message):
            make(layout, windows)
