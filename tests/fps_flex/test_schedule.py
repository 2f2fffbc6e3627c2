from dataclasses import replace

import pytest
import torch

from fps_flex import Regime, StepSchedule, preset
from fps_flex.schedule import preset_of
from fps_flex.wan.flow import sampling_levels, shift_noise


def test_the_default_is_the_fps_preset():
    assert StepSchedule() == preset("fps")


@pytest.mark.parametrize(
    ("name", "windows", "granularities"),
    [
        ("fps", [(4, 6, 1), (4, 6, 3), (4, 6, 2)], [4, 1, 2]),
        ("sta", [(4, 6, 10), (4, 6, 1)], [None, 1]),
        ("uniform", [(4, 6, 2)], [1]),
        ("dense", [(4, 6, 10)], [None]),
    ],
)
def test_presets_on_720p(name, windows, granularities):
    schedule = preset(name)
    assert schedule.windows((4, 6, 10)) == windows
    assert [regime.granularity for regime in schedule.regimes] == granularities


def test_regimes_follow_progress_and_a_bound_belongs_to_what_it_begins():
    schedule = StepSchedule(bounds=(0.25, 0.75), shift=1.0)
    progress = torch.tensor([0.0, 0.125, 0.25, 0.5, 0.75, 1.0])
    assert schedule.regime_index(1 - progress).tolist() == [0, 0, 1, 1, 2, 2]


def test_a_sampler_that_meets_the_bounds_exactly_starts_their_regimes_there():
    for shift in (1.0, 3.0, 5.0, 8.0):
        schedule = replace(preset("fps"), shift=shift)
        assert schedule.regime_index(sampling_levels(50, shift)[:-1]).tolist() == [0] * 15 + [1] * 20 + [2] * 15


def test_the_same_noise_level_meets_the_same_regime_whatever_the_samplers_shift():
    schedule = preset("fps")
    u = torch.linspace(0.01, 0.99, 50)
    torch.testing.assert_close(schedule.progress(shift_noise(u, 5.0)).float(), 1 - u)
    for shift in (1.0, 3.0, 8.0):
        sigma = shift_noise(u, shift)
        begun = (sigma <= 3.5 / 3.8).int() + (sigma <= 1.5 / 2.2).int()  # progress 0.3 and 0.7 under shift 5
        assert schedule.regime_index(sigma).tolist() == begun.tolist()
        assert not torch.equal(schedule.regime_index(sigma), schedule.regime_index(shift_noise(u, 5.0)))


def test_windows_are_tiles_or_fractions_and_at_least_one_tile():
    assert Regime((6, 6, 1)).window_in_tiles((4, 6, 10)) == (4, 6, 1)
    assert Regime((None, 0.01, 0.3)).window_in_tiles((4, 6, 10)) == (4, 1, 3)
    assert Regime((1, None, 0.5)).window_in_tiles((3, 3, 3)) == (1, 3, 2)


def test_switches_take_out_one_half_only():
    schedule = preset("fps")
    assert [r.granularity for r in schedule.without_quantization().regimes] == [None] * 3
    assert schedule.without_quantization().windows((4, 6, 10)) == schedule.windows((4, 6, 10))
    assert schedule.without_sparsity().windows((4, 6, 10)) == [(4, 6, 10)] * 3
    assert [r.granularity for r in schedule.without_sparsity().regimes] == [4, 1, 2]


@pytest.mark.parametrize(
    "window",
    [(0, 1, 1), (1, 1), (None, 0.0, None), (None, 1.5, None), (True, 1, 1), (-1, 1, 1), (1.0, 1.0, 1.0), (1, 1, 1.0),
     (float("nan"), 1, 1), (float("inf"), 1, 1), ("1", 1, 1), "111", 1, None],
)  # fmt: skip
def test_a_bad_window_is_named(window):
    with pytest.raises(ValueError, match="window is .*, expected three extents"):
        Regime(window)


def test_a_window_of_1_0_is_told_to_say_null():
    with pytest.raises(ValueError, match=r"or None for the whole axis \(not 1.0: write null in YAML and JSON\)"):
        Regime((1.0, 1.0, 0.1))


def test_dense_is_the_whole_of_every_axis_unquantised():
    for window, dense in (
        ((None,) * 3, True),
        ((1, 1, 1), False),
        ((None, None, 1), False),
        ((None, 0.99, None), False),
    ):
        schedule = StepSchedule((), (Regime(window),))
        assert schedule.is_dense == dense == (not schedule.is_sparse)
        assert not StepSchedule((), (Regime(window, 1),)).is_dense
        assert schedule.without_sparsity().is_dense


def test_a_preset_is_known_by_its_numbers():
    for name in ("fps", "sta", "uniform", "dense"):
        assert preset_of(replace(preset(name))) == name
    assert preset_of(StepSchedule(shift=3.0)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bounds": (0.5,)}, "3 regimes and 1 bounds"),
        ({"bounds": (0.7, 0.3)}, r"bounds are \(0.7, 0.3\), expected ascending"),
        ({"bounds": (0.0, 0.3)}, "expected ascending"),
        ({"shift": 0.0}, "shift is 0.0"),
        ({"shift": float("inf")}, "shift is inf, expected a number"),
        ({"shift": True}, "shift is True, expected a number"),
        ({"bounds": (0.3, float("nan"))}, r"bounds\[1\] is nan, expected a number"),
        ({"bounds": 0.3}, "bounds is 0.3, expected a tuple of numbers"),
        ({"regimes": (Regime(), {}, Regime())}, r"regimes\[1\] is {}, expected a Regime"),
    ],
)
def test_a_schedule_that_does_not_fit_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        StepSchedule(**options)
    with pytest.raises(ValueError, match="granularity is 'tile'"):
        Regime(granularity="tile")
