"""The line that says what an attention takes, and what would be faster."""

import inspect
import logging
from dataclasses import fields, replace

import pytest
import torch

from fps_flex import FPSAttention, Regime, StepSchedule, TileLayout, plan_tile
from fps_flex.choice import FASTEST, describe_choice, describe_strips
from fps_flex.diffusers import install
from tests.fps_flex.test_engines import MISSING, hopper  # noqa: F401 - a fixture
from tests.helpers.stock_wan import call, tiny_transformer

AT_480P, GPU, CPU, BF16 = (21, 30, 52), torch.device("cuda"), torch.device("cpu"), torch.bfloat16
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
        "'pow2')"
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
    assert told(FPSAttention(), device=CPU, dtype=torch.float32).endswith("engine eager")


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


W_STRIPS = "on W, of 2 tiles, no window reaches past its own: strips that never see each other"


@pytest.mark.parametrize(
    ("schedule", "tiles", "said"),
    [
        ("fps", (3, 4, 9), None),
        ("fps", (3, 2, 2), W_STRIPS),
        ("sta", (3, 2, 2), None),  # its first steps are dense
        ("uniform", (3, 2, 2), W_STRIPS),
        ("uniform", (3, 2, 1), None),
        ("dense", (3, 2, 2), None),
        (
            StepSchedule((), (Regime((1, 2, 1)),)),
            (4, 4, 4),
            "on T, of 4 tiles and W, of 4 tiles, no window reaches past its own: strips that never see each other",
        ),
    ],
)
def test_windows_that_cut_a_video_to_strips_are_told(schedule, tiles, said):
    assert describe_strips(FPSAttention(schedule), tiles) == said


def test_a_layer_that_sees_more_joins_the_strips():
    attention = FPSAttention("uniform", tile=(1, 2, 2), block=16, layers={"0-1": "dense"})
    assert describe_strips(attention, (3, 2, 2)) is None
    assert describe_strips(replace(attention, layers={}), (3, 2, 2)) == W_STRIPS


def test_strips_are_what_is_told():
    """One half of a video changes nothing of the other, where it is told; else it does."""
    q, k, v = torch.randn(3, 1, 1, 2 * 4 * 8, 8, generator=torch.Generator().manual_seed(0))
    moved = torch.where(torch.arange(8).repeat(8)[:, None] < 4, v, v + 1)
    for windows, apart in (((None, None, 1), True), ((None, None, 2), False)):
        attention = FPSAttention(StepSchedule((), (Regime(windows),)), tile=(2, 4, 4), block=16)
        plan = attention.plan((2, 4, 8), torch.zeros(1))
        left = [attention.over_tokens(q, k, x, plan).unflatten(2, (2, 4, 8))[..., :4, :] for x in (v, moved)]
        assert (describe_strips(attention, plan.layout.tiles) is not None) == torch.equal(*left) == apart


def test_install_warns_of_strips(caplog):
    transformer = tiny_transformer()
    install(transformer, block=16, schedule=StepSchedule((), (Regime((None, None, 1)),)), tile=(1, 2, 2))
    call(transformer)
    (line,) = [record for record in caplog.records if record.name == "fps_flex.diffusers"]
    assert line.levelno == logging.WARNING and "strips that never see each other" in line.getMessage()
