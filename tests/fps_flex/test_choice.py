"""The line that says what an attention takes, and what would be faster."""

import inspect
import logging
from dataclasses import fields, replace

import pytest
import torch

from fps_flex import FPSAttention, Regime, StepSchedule, TileLayout, plan_tile
from fps_flex.choice import FASTEST, describe_choice, describe_cuts
from fps_flex.diffusers import install
from tests.fps_flex.test_engines import MISSING, hopper  # noqa: F401 - a fixture
from tests.helpers.stock_wan import call, tiny_transformer

AT_480P, GPU, CPU, BF16 = (21, 30, 52), torch.device("cuda"), torch.device("cpu"), torch.bfloat16
ONE_WAY = "no window on W, of 7 tiles, is wider than 2: what is to the right never reaches the left"  # of tile (6,8,8)
HEAD = "FPS attention on (21, 30, 52) tokens: "


def told(attention, grid=AT_480P, device=GPU, dtype=BF16, head_dim=128):
    return str(describe_choice(attention, grid, device, dtype, head_dim))


def test_the_defaults_of_untrained_weights_are_the_fastest(hopper):  # noqa: F811
    hopper()
    planned = plan_tile(AT_480P)
    assert told(FASTEST) == HEAD + f"schedule fps, tile {planned} planned for the grid, pow2 scales, engine flash"
    assert TileLayout(AT_480P, planned).pad_share < 0.02
    defaults = {name: x.default for name, x in inspect.signature(install).parameters.items()}
    assert {x.name: getattr(FASTEST, x.name) for x in fields(FASTEST) if x.name in ("tile", "scale_format")} == {
        name: defaults[name] for name in ("tile", "scale_format")
    }


def test_what_would_be_faster_is_said_with_what_stands_in_its_way(hopper):  # noqa: F811
    hopper(flash=False)
    assert told(FASTEST).endswith(f"pow2 scales, engine triton; faster would be engine flash ({MISSING})")
    hopper()
    assert told(FPSAttention()) == (
        HEAD + "schedule fps, tile (6, 8, 8), fp32 scales, engine triton; faster would be tile (7, 9, 6) (11% fewer "
        "slots) and engine flash (fp32 scales need a score_mod, which is used with triton only: take scale_format "
        f"'pow2'); {ONE_WAY}"
    )
    assert told(FPSAttention(tile=(7, 9, 6), scale_format="pow2", engine="triton")).endswith(
        "tile (7, 9, 6), pow2 scales, engine triton; faster would be engine flash"
    )
    assert told(FPSAttention("sta", tile=(7, 9, 6), scale_format="pow2")).endswith(", engine flash")
    one_head = StepSchedule((), (Regime((3, 3, 3), "head"),))
    float8 = FPSAttention(one_head, tile=(7, 9, 6), carrier="float8")
    assert told(float8).endswith("schedule of its own, tile (7, 9, 6), fp32 scales, engine triton")
    assert told(FPSAttention("dense", tile=None)) == HEAD + (
        "schedule dense, tile (21, 30, 52), nothing quantised, engine flash"
    )


def test_nothing_is_promised_where_it_can_not_be_had(hopper):  # noqa: F811
    hopper(capability=(8, 9), flash=False)
    assert told(FASTEST).endswith("engine triton")
    assert told(FPSAttention(), device=CPU, dtype=torch.float32).endswith(f"engine eager; {ONE_WAY}")


def test_install_says_it_once_a_grid(caplog):
    caplog.set_level(logging.INFO, "fps_flex.diffusers")
    transformer = tiny_transformer()
    install(transformer, block=16)
    for _ in range(2):
        call(transformer)
    lines = [record.getMessage() for record in caplog.records if record.name == "fps_flex.diffusers"]
    assert len(lines) == 1 and lines[0].endswith("pow2 scales, engine eager")
    assert caplog.records[-1].levelno == logging.INFO


def test_what_would_be_faster_is_a_warning(caplog, monkeypatch):
    from fps_flex import diffusers
    from fps_flex.choice import Choice

    monkeypatch.setattr(diffusers, "describe_choice", lambda *args: Choice("taken", ("engine flash",)))
    transformer = tiny_transformer()
    install(transformer, block=16)
    call(transformer)
    assert ("fps_flex.diffusers", logging.WARNING, "taken; faster would be engine flash") in caplog.record_tuples


@pytest.mark.parametrize("grid", [(1, 30, 52), (1, 16, 16), (2, 45, 80), (21, 30, 52), (21, 45, 80)])
def test_a_tile_is_planned_for_images_and_short_videos_too(grid):
    tile = plan_tile(grid)
    long = [side for side, axis in zip(tile, grid, strict=True) if side < axis]
    assert 256 <= tile[0] * tile[1] * tile[2] <= 512 and max(tile) <= 2 * min(long, default=max(tile))


W_CUT = "no window on W, of 2 tiles, is wider than 1: tiles never attend to those beside them"


@pytest.mark.parametrize(
    ("schedule", "tiles", "said"),
    [
        ("fps", (3, 4, 9), None),
        ("fps", (3, 2, 2), W_CUT),
        (
            "fps",
            (3, 4, 7),
            ONE_WAY,
        ),
        ("sta", (3, 2, 2), None),  # its first steps are dense
        ("uniform", (3, 2, 2), W_CUT),
        ("uniform", (3, 2, 1), None),
        ("dense", (3, 2, 2), None),
        (StepSchedule((), (Regime((2, 3, 2)),)), (2, 4, 2), None),
        (
            StepSchedule((0.5,), (Regime((1, 1, None)), Regime((1, 2, 1)))),
            (4, 4, 4),
            "no window on T, of 4 tiles, is wider than 1: tiles never attend to those before or after; no window on H, "
            "of 4 tiles, is wider than 2: what is below never reaches what is above",
        ),
    ],
)
def test_windows_that_cut_a_video_are_told(schedule, tiles, said):
    assert describe_cuts(FPSAttention(schedule), tiles) == said


def test_a_layer_that_sees_more_joins_what_others_cut():
    attention = FPSAttention("uniform", tile=(1, 2, 2), block=16, layers={"0-1": "dense"})
    assert describe_cuts(attention, (3, 2, 2)) is None
    assert describe_cuts(replace(attention, layers={}), (3, 2, 2)) == W_CUT


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("tiles", [2, 3, 5])
@pytest.mark.parametrize("extents", [(1,), (2,), (3,), (1, 2), (1, 3), (4, 1)])
def test_what_is_told_is_what_attention_does(axis, tiles, extents):
    """Pass after pass, each through all regimes: which tiles of an axis a change in one comes to."""
    windows = [tuple(min(x, tiles) if i == axis else None for i in range(3)) for x in extents]
    grid = tuple(tiles if i == axis else 1 for i in range(3))
    bounds = tuple((i + 1) / len(windows) for i in range(len(windows) - 1))
    schedule = StepSchedule(bounds, tuple(Regime(window) for window in windows), shift=1.0)
    attention = FPSAttention(schedule, tile=(1, 1, 1), block=1)
    plans = [attention.plan(grid, torch.tensor([1 - (i + 0.5) / len(windows)])) for i in range(len(windows))]
    q, k = torch.randn(2, 1, 1, tiles, tiles, generator=torch.Generator().manual_seed(0))
    reached = torch.eye(tiles)[None, None]  # channel i: what comes from tile i
    for plan in plans * tiles:
        reached = attention.over_tokens(q, k, reached, plan) + reached
    connected = bool((reached > 0).all())
    assert (describe_cuts(attention, plans[0].layout.tiles) is None) == connected


def test_install_warns_of_cuts(caplog):
    transformer = tiny_transformer()
    install(transformer, block=16, schedule=StepSchedule((), (Regime((None, None, 1)),)), tile=(1, 2, 2))
    call(transformer)
    (line,) = [record for record in caplog.records if record.name == "fps_flex.diffusers"]
    assert line.levelno == logging.WARNING and "tiles never attend to those beside them" in line.getMessage()
