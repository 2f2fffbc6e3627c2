"""A video's tokens shared among processes: the same attention, the same gradients, and the bytes that were promised."""

from math import prod

import pytest
import torch

from fps_flex import FPSAttention, TileLayout
from fps_flex.masks import pad_mask_mod, sliding_tile_mask_mod, window_mask_mod
from fps_flex.wan.auto import Auto
from fps_flex.wan.collectives import Group
from fps_flex.wan.halo import Halo
from fps_flex.wan.halo_exchange import from_bytes, to_bytes
from fps_flex.wan.halo_tiles import deal_tiles, halo_tiles
from fps_flex.wan.traffic import Traffic, halo_traffic, ulysses_traffic
from fps_flex.wan.ulysses import Ulysses
from tests.helpers import sequence_cases as cases
from tests.helpers.cases import CASES, relative_error
from tests.helpers.once import once
from tests.helpers.together import run_together

ID = {"ids": lambda case: "-".join(map(str, case))}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = once(tmp_path_factory, "sequence", lambda folder: run_together(cases.run_all, 4, folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(4)]


@pytest.mark.slow
@pytest.mark.parametrize("case", cases.CASES, **ID)
def test_attention_is_that_of_one_process(found, case):
    """Of the halo but for rounding: a row's keys are added in another order, and what each process has of a gradient
    is rounded, half an ulp at most, before it is added to the others'."""
    kind, size, *_ = case
    for rank in range(size):
        got, expected, *_ = found[rank]["attention"][case]
        for name, x, one in zip(("out", "q", "k", "v"), got, expected, strict=True):
            assert one.abs().max() > 0
            if kind == "ulysses":
                assert torch.equal(x, one)
                continue
            ulps = 8 if x.dtype == torch.float32 else 1 if name in ("out", "q") else 1 + size / 2
            error = (x.float() - one.float()).abs().max() / one.float().abs().max()
            assert error <= ulps * torch.finfo(x.dtype).eps, name


@pytest.mark.slow
@pytest.mark.parametrize("case", cases.CASES, **ID)
def test_as_many_bytes_come_as_were_promised(found, case):
    for rank in range(case[1]):
        *_, counted, promised = found[rank]["attention"][case]
        assert counted == promised and (case[0] == "halo" or min(counted) > 0)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases.WANS, **ID)
def test_a_whole_step_is_that_of_one_process(found, case):
    """All processes have the whole velocity, and averaged over them the gradients are those of one; no parameter is
    left out. Codes that lie between two values may fall either way where what comes before is rounded otherwise."""
    _, size, name = case
    bound = 1e-5 if name == "unquantized" else 1e-2
    for rank in range(size):
        (velocity, grads), (one_velocity, one_grads) = found[rank]["wan"][case]
        assert torch.equal(velocity, found[0]["wan"][case][0][0])
        assert relative_error(velocity, one_velocity) < bound
        assert grads.keys() == one_grads.keys()
        for parameter, grad in one_grads.items():
            if not parameter.endswith(".k.bias"):  # which softmax makes all but 0
                assert relative_error(grads[parameter], grad) < bound, parameter


@pytest.mark.parametrize("processes", [2, 3, 5])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case.seed}")
def test_a_deal_leaves_nobody_out_and_sends_what_windows_reach(case, processes):
    """Against loops over tiles and pairs of processes."""
    layout = TileLayout(case.grid, case.tile, case.block)
    tiles = [tuple(x) for x in layout.coords_of_tile.T.tolist()]
    if len(tiles) < processes:
        with pytest.raises(ValueError, match=f"deals {len(tiles)} tiles out to {processes} processes"):
            deal_tiles(layout, case.windows, processes)
        return
    deal = deal_tiles(layout, case.windows, processes)
    assert set(deal.owner) == set(range(processes))
    slots = [int((layout.tile_of_slot == tile).sum()) for tile in range(len(tiles))]
    shares = [sum(n for n, owner in zip(slots, deal.owner, strict=True) if owner == p) for p in range(processes)]
    if prod(layout.tiles) >= 4 * processes:
        assert max(shares) - min(shares) <= 2 * max(slots)

    def reaches(query, key, window):
        starts = [max(0, min(q - w // 2, n - w)) for q, w, n in zip(query, window, layout.tiles, strict=True)]
        return all(start <= k < start + w for start, k, w in zip(starts, key, window, strict=True))

    windows = [[min(w, n) for w, n in zip(window, layout.tiles, strict=True)] for window in case.windows]
    for p in range(processes):
        for other in range(processes):
            got = {
                key for key, owner in enumerate(deal.owner) if owner == other != p
                if any(reaches(tiles[query], tiles[key], window) for window in windows
                       for query, own in enumerate(deal.owner) if own == p)
            }  # fmt: skip
            assert deal.rows[p][other] == sum(slots[key] for key in got)


@pytest.mark.parametrize(
    ("processes", "level", "ulysses", "halo"),
    [(2, 0.99, 786.4, (39.3, 78.6)), (2, 0.8, 786.4, (157.3, 314.6)), (8, 0.2, 344.1, (98.3 * 2, 314.6))],
)
def test_the_bytes_of_14b_at_720p(processes, level, ulysses, halo):
    """In MB of the busiest process, worked out by hand from 76,800 slots of 40 heads of 128 in bf16."""
    call = cases.call_of(FPSAttention(tile=(7, 9, 6)), [level], torch.bfloat16, 40, 128, (21, 45, 80))
    traffic = ulysses_traffic(call, processes), halo_traffic(call, processes)
    megabytes = [[max(x) / 1e6 for x in (one.forward, one.backward)] for one in traffic]
    assert megabytes[0] == pytest.approx([ulysses, ulysses], abs=0.1)
    assert megabytes[1] == pytest.approx(halo, abs=0.1)


def test_the_busiest_gets_most_in_all_that_is_counted():
    traffic = Traffic(forward=(5, 1), backward=(1, 4))
    assert traffic.busiest(trains=False) == 5 and traffic.busiest(trains=True) == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_codes_travel_as_bytes_and_nan_stays_nan(dtype):
    """int8 has none: it would arrive as a number."""
    whole = torch.tensor([*range(-127, 128), torch.nan], dtype=dtype)
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(dtype)
    for codes, kind in ((whole, "int8"), (values, "e4m3")):
        sent = to_bytes(codes, kind)
        assert sent.dtype == torch.uint8 and sent.shape == codes.shape
        torch.testing.assert_close(from_bytes(sent, kind, dtype), codes, rtol=0, atol=0, equal_nan=True)


def kind_of(call, processes, caplog, monkeypatch, rank=0):
    monkeypatch.setattr("torch.distributed.get_rank", lambda: rank)
    caplog.set_level("INFO", "fps_flex")
    caplog.clear()
    return type(Auto(Group("", 0, processes)).share(call)).__name__, [x.message for x in caplog.records]


def test_auto_takes_what_sends_less_and_says_once_why(caplog, monkeypatch):
    narrow = cases.call_of(FPSAttention("uniform", tile=(2, 2, 2), block=8, engine="eager"), [0.5], torch.bfloat16)
    whole = cases.call_of(FPSAttention("dense", tile=(2, 2, 2), block=8, engine="eager"), [0.5], torch.bfloat16)
    taken, (line,) = kind_of(narrow, 4, caplog, monkeypatch)
    assert taken == "HaloShare"
    sizes = [count(narrow, 4).busiest(trains=True) / 1e6 for count in (ulysses_traffic, halo_traffic)]
    expected = (
        "a video on 4 processes in regime 0: halo (MB that a process gets in a layer: ulysses {:.1f}, halo {:.1f})"
    )
    assert line == expected.format(*sizes)
    assert kind_of(narrow, 4, caplog, monkeypatch) == ("HaloShare", [])
    taken, (line,) = kind_of(whole, 4, caplog, monkeypatch)
    assert taken == "UlyssesShare" and "in regime 0: ulysses" in line
    assert kind_of(narrow, 3, caplog, monkeypatch, rank=1) == ("HaloShare", [])
    taken, (line,) = kind_of(whole, 5, caplog, monkeypatch)
    assert taken == "HaloShare" and "not ulysses: Ulysses deals 12 heads out to 5 processes" in line


def test_auto_counts_the_backward_where_there_is_one(caplog, monkeypatch):
    """With a third of the keys from elsewhere, codes are few bytes, and gradients in fp32 are not."""
    call = cases.call_of(FPSAttention("fps", tile=(7, 9, 6)), [0.8], torch.float32, 40, 128, (21, 45, 80))
    assert kind_of(call, 8, caplog, monkeypatch)[0] == "UlyssesShare"
    with torch.no_grad():
        assert kind_of(call, 8, caplog, monkeypatch)[0] == "HaloShare"


@pytest.mark.parametrize(
    ("kind", "processes", "options", "told"),
    [
        (Ulysses, 5, {}, "deals 12 heads out to 5 processes, expected a number that divides them: take 2, 3, 4, 6, 12, "
                         "or halo"),
        (Ulysses, 12, {"tile": (5, 5, 8), "block": 128}, "12 processes share 2 blocks of 128 slots"),
        (Halo, 2, {"tile": (5, 5, 8), "block": 128}, "deals 1 tiles out to 2 processes"),
        (Auto, 5, {"tile": (5, 5, 8)}, "3, 4, 6, 12, or halo, which takes any number of heads; the halo deals 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_refused_in_a_line(kind, processes, options, told):
    call = cases.call_of(cases.attention_of("fps", **options), [0.5], torch.bfloat16)
    with pytest.raises(ValueError, match=told) as refused:
        kind(Group("", 0, processes)).share(call)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.compiles
def test_compiled_and_checkpointed_blocks_take_the_same_step(tmp_path):
    for done in run_together(cases.run_compiled, 2, tmp_path):
        for kind, ((velocity, grads), (one_velocity, one_grads)) in done.items():
            assert relative_error(velocity, one_velocity) < 1e-2, kind
            for name, grad in one_grads.items():
                if not name.endswith(".k.bias"):
                    assert relative_error(grads[name], grad) < 1e-2, (kind, name)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case.seed}")
def test_block_lists_of_a_halo_are_the_whole_mask_to_its_queries(case, processes):
    """Of each process: lists and pads, and the complete mask_mod, keep what the whole one does; no key is lacking."""
    layout = TileLayout(case.grid, case.tile, case.block)
    if prod(layout.tiles) < processes:
        return
    index = torch.arange(layout.slots)
    rows, windows = torch.arange(len(case.windows)), torch.tensor(case.windows)
    b, h = rows[:, None, None], torch.tensor(0)
    whole = sliding_tile_mask_mod(layout, case.windows)(b, h, index[:, None], index).expand(len(rows), -1, -1)
    every = []
    for rank in range(processes):
        tiles = halo_tiles(layout, case.windows, frozenset(rows.tolist()), Group("", rank, processes))
        own, held = tiles.own.chosen, tiles.held.chosen
        expected = whole[:, own][:, :, held]
        assert expected.sum() == whole[:, own].sum() and len(set(held.tolist())) == len(held)
        mask_mod = window_mask_mod(tiles.own, windows, tiles.held)
        i, j = torch.arange(len(own))[:, None], torch.arange(len(held))
        assert torch.equal(mask_mod(b, h, i, j).expand(len(rows), -1, -1), expected)
        block_mask = tiles.lists.block_mask(tiles.own, pad_mask_mod(tiles.held), tiles.held)
        kept = block_mask.to_dense()[:, 0].repeat_interleave(case.block, 1).repeat_interleave(case.block, 2) > 0
        assert torch.equal(kept & (tiles.held.holds_token > 0), expected)
        every.append(own)
    assert torch.equal(torch.cat(every)[tiles.place], index)
