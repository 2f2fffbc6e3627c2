"""Attentions that compute different things are never equal, and a file says the numbers of what it was trained with."""

import json
import random
from dataclasses import asdict, replace
from itertools import product

import numpy as np
import pytest
import torch

from eval.fidelity.command import describe_attention, plan_rows
from fps_flex import FPSAttention, Regime, StepSchedule, TileLayout, preset, schedule
from fps_flex.tables import build_tables
from fps_flex.wan import Wan, WanConfig
from fps_flex.wan.export import export
from fps_flex.wan.weights import SETTINGS, open_weights, read_settings

GRID = (4, 6, 8)
SMALL = {"tile": (2, 2, 2), "block": 16}
FULL = StepSchedule((), (Regime(),))
ONE = StepSchedule((), (Regime((1, 1, 1)),))


def kept_pairs(schedule):
    """Pairs of blocks in the lists of a plan."""
    mask = FPSAttention(schedule, **SMALL).plan(GRID, torch.tensor([0.5])).oracle_block_mask
    return (mask.kv_num_blocks + mask.full_kv_num_blocks).sum().item()


@pytest.mark.parametrize("order", [(FULL, ONE), (ONE, FULL)], ids=["full-first", "one-first"])
def test_full_windows_and_windows_of_one_tile_keep_their_own_masks(order):
    build_tables.cache_clear()
    kept = {schedule: kept_pairs(schedule) for schedule in order}
    assert len(kept) == 2 and kept[FULL] == 576 and kept[ONE] == 24
    assert not ONE.is_dense and FULL.is_dense


EXTENTS = [
    1,
    2,
    3,
    7,
    1.0,
    2.0,
    True,
    None,
    0.1,
    0.3,
    0.5,
    0.999,
    np.int64(1),
    np.float64(0.5),
    np.float32(0.3),
    "1",
    0,
]
GRANULARITIES = [None, 1, 2, True, 1.0, np.int64(2), "head", 4]
GRIDS = [(1, 1, 1), (2, 3, 5), (4, 6, 10), (5, 10, 25)]


def accepted(make, *args, **options):
    try:
        return make(*args, **options)
    except ValueError:
        return None


def random_attention(rng):
    """None where the options are refused."""
    count = rng.choice([1, 1, 2])
    regimes = [
        accepted(Regime, [rng.choice(EXTENTS) for _ in range(3)], rng.choice(GRANULARITIES)) for _ in range(count)
    ]
    bounds = rng.choice([[0.5], (0.5,), (np.float64(0.5),), (0.3,)]) if count == 2 else rng.choice([(), []])
    schedule = accepted(StepSchedule, bounds, regimes, shift=rng.choice([5, 5.0, np.float32(5), 3, True]))
    return accepted(
        FPSAttention,
        rng.choice([schedule, schedule, schedule, "fps", "dense"]),
        tile=rng.choice([(1, 1, 2), [1, 1, 2], (1.0, 1, 2), (True, 1, 2), (np.int64(1), 1, 2), None]),
        block=rng.choice([1, 1.0, True, 2, np.int32(2)]),
        quantize=rng.choice([True, 1, False, 0]),
        sparse=rng.choice([True, 1, False]),
        scale_format=rng.choice(["fp32", "pow2"]),
        engine=rng.choice(["auto", "eager"]),
    )


def computed(attention):
    """All that decides what an attention computes."""
    schedule = attention.step_schedule
    return repr((
        [schedule.windows(tiles) for tiles in GRIDS], [regime.granularity for regime in schedule.regimes],
        schedule.bounds, schedule.shift, schedule.is_dense, schedule.quantizes, attention.tile, attention.block,
        attention.scale_format, attention.carrier, attention.graph_key,
    ))  # fmt: skip


def test_equal_attentions_compute_the_same_and_say_the_same():
    rng = random.Random(0)
    drawn = [x for x in (random_attention(rng) for _ in range(60_000)) if x is not None]
    assert len(drawn) > 1000
    by_value, equal = {}, 0
    for attention in drawn:
        text = json.dumps(asdict(attention))
        if attention in by_value:
            equal += 1
            assert by_value[attention] == (computed(attention), text)
        by_value[attention] = computed(attention), text
    texts = [text for _, text in by_value.values()]
    assert equal > 100 and len(set(texts)) == len(texts) > 500
    for one, other in product(list(by_value)[:150], repeat=2):
        if one == other:
            assert hash(one) == hash(other) and by_value[one] == by_value[other]
        if by_value[one][0] != by_value[other][0]:
            assert one != other and one.meaning != other.meaning


def test_lists_and_numpys_numbers_are_the_same_attention():
    plain = FPSAttention(StepSchedule((0.5,), (Regime((1, None, 0.5), 2), Regime())), (2, 2, 2), 16)
    other = FPSAttention(
        StepSchedule([np.float64(0.5)], [Regime([np.int64(1), None, np.float64(0.5)], np.int32(2)), Regime()], shift=5),
        [np.int64(2)] * 3, np.int64(16),
    )  # fmt: skip
    assert other == plain and hash(other) == hash(plain) and json.dumps(asdict(other)) == json.dumps(asdict(plain))
    assert TileLayout([np.int64(4)] * 3, [2, 2, 2], np.int64(8)) == TileLayout((4, 4, 4), (2, 2, 2), 8)


def test_a_presets_name_is_its_numbers_at_once():
    attention = FPSAttention("fps")
    assert attention == FPSAttention() == FPSAttention(StepSchedule()) and attention.schedule == preset("fps")
    assert asdict(attention)["schedule"] == asdict(StepSchedule())
    assert replace(attention, schedule="sta").schedule == preset("sta")


def test_a_preset_given_other_numbers_changes_no_old_model(monkeypatch, tmp_path):
    sizes = WanConfig(dim=48, ffn_dim=96, heads=2, layers=1, channels=4, text_dim=8, freq_dim=8)
    old = FPSAttention("uniform", **SMALL)
    model = Wan(sizes, old)
    checkpoint = {
        "state_dict": {f"model.{name}": x for name, x in model.state_dict().items()},
        "fps_flex": {"wan": asdict(sizes), "attention": asdict(old), "noise_levels": [0.0, 1.0]},
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    export(open_weights(tmp_path / "last.ckpt"), tmp_path / "exported", "diffusers")
    text = json.dumps(asdict(old))

    monkeypatch.setitem(schedule.PRESETS, "uniform", StepSchedule((), (Regime((2, 2, 2), 1),)))
    new = FPSAttention("uniform", **SMALL)
    assert new != old and new.schedule.regimes[0].window == (2, 2, 2)
    assert FPSAttention.from_dict(json.loads(text)) == old
    assert [read_settings(tmp_path / name)[1] for name in ("last.ckpt", "exported")] == [old, old]
    settings = json.loads((tmp_path / "exported" / SETTINGS).read_text())["attention"]
    assert settings["schedule"]["regimes"] == [{"window": [None, None, 0.2], "granularity": 1}]


def test_a_window_of_one_tile_is_a_row_of_its_own():
    """Unquantised windows are sparse, whatever their size; a row is left out only where another computes it."""
    for window in ((1, 1, 1), (None, None, 1), (0.1, 1, None)):
        attention = FPSAttention(StepSchedule((), (Regime(window),)), **SMALL)
        assert [name for name, *_ in plan_rows("a", None, attention)] == ["dense", "sparse"]
        assert describe_attention(attention) == "windows"
    attention = FPSAttention(StepSchedule((), (Regime((1, 1, 1), 1),)), **SMALL)
    assert [name for name, *_ in plan_rows("a", None, attention)] == ["dense", "quantised", "sparse", "joint"]
    assert [name for name, *_ in plan_rows("a", None, FPSAttention(FULL))] == ["dense"]
    assert describe_attention(FPSAttention("fps")) == "FP8 and windows of fps"


@pytest.mark.parametrize(
    ("one", "other"), [(1, 1.0), (1, True), (0, False), ([1, 2], [1.0, 2]), ({"a": 1}, {"a": 1.0})]
)
def test_records_compare_as_json_does(one, other):
    from eval.generate.records import says_the_same

    assert one == other and not says_the_same(one, other) and says_the_same(one, one)
