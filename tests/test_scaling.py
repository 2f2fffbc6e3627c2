"""The arithmetic of docs/scale.md, by hand; and the page has the tables that it gives."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from docs.make import host, scale, scaling
from docs.make.scaling import PLANS, Machine, attention_bytes, beside_one, memory_gb, mfu, slowest, step_of

SMALL, LARGE = PLANS
PAGE = Path(__file__).parents[1] / "docs/scale.md"


def test_the_slowest_of_several_draws_of_a_regime():
    """0.2 early, 0.6 middle, 0.2 late: of two draws none is above 1 in 0.04, none above 2 in 0.16."""
    assert slowest([1, 3, 2], 1) == pytest.approx(0.2 * 1 + 0.6 * 3 + 0.2 * 2)
    assert slowest([1, 3, 2], 2) == pytest.approx(0.04 * 1 + 0.12 * 2 + 0.84 * 3)
    assert slowest([1, 3, 2], 1000) == pytest.approx(3)


def test_the_pace_is_what_was_measured_on_one_gpu():
    assert SMALL.pace(Machine()) == pytest.approx(0.421, abs=1e-3)
    assert LARGE.pace(Machine()) == pytest.approx(0.480, abs=1e-3)


def test_the_parts_of_a_step_of_14b_by_hand():
    """14.288e9 parameters, 41 groups; 40 layers whose attention gets 0.59 GB three times in a step."""
    one, eight = step_of(LARGE, 8), step_of(LARGE, 64)
    assert one.weights == pytest.approx(3 * (4 * 14.288e9 * 7 / 8 / 350e9 + 41 * 7 * 5e-6), rel=1e-3)
    assert eight.weights == pytest.approx(3 * (4 * 14.288e9 * 63 / 64 / 320e9 + 41 * 63 * 5e-6), rel=1e-3)
    assert one.optimizer == pytest.approx(36 * 14.288e9 / 8 / 2.5e12, rel=1e-3)
    assert attention_bytes(LARGE) == pytest.approx(40 * 3 * 0.590e9, rel=2e-3) and attention_bytes(SMALL) == 0
    assert one.attention == attention_bytes(LARGE) / 350e9
    assert one.best == one.compute + one.attention + one.optimizer and one.worst == one.best + one.weights
    assert one.compute < eight.compute < 1.05 * one.compute  # more clips, of which the slowest


def test_one_gpu_alone_would_take_what_was_measured():
    """Of 1.3B, 1.333 s a step; and 37.8 GB, which the rest of the memory's arithmetic starts from."""
    alone = step_of(SMALL, 1)
    assert alone.weights == alone.attention == 0
    assert alone.compute == pytest.approx(1.333, rel=5e-3)  # the mix of operations, not that of seconds
    assert mfu(SMALL, 1.3334) == pytest.approx(0.316, abs=2e-3)
    assert sum(memory_gb(SMALL, 1, 1)) == pytest.approx(37.83, abs=0.01)


def test_what_two_gpus_take_by_one_gpus_own_seconds():
    """1.419e9 parameters: the optimizer's bytes are in one GPU's seconds, and halve."""
    alone, optimizer = 1.2818, 36 * 1.419e9 / 2.5e12
    two = beside_one(SMALL, alone, 2)
    assert two.best == pytest.approx(alone - optimizer / 2, rel=1e-4) and two.worst == two.best + two.weights
    shared = beside_one(replace(SMALL, sequence=2), alone, 2)
    assert shared.compute == pytest.approx((alone - optimizer) / 2, rel=1e-4)
    whole = beside_one(replace(SMALL, sequence=2), alone, 2, shard=False)
    assert whole.optimizer == 2 * shared.optimizer and whole.weights == pytest.approx(2 / 3 * shared.weights)
    assert (whole.compute, whole.attention) == (shared.compute, shared.attention)


def test_the_memory_of_14b_by_hand():
    state, kept, gathered, work = memory_gb(LARGE, 8, 4)
    assert state == pytest.approx(20 * 14.288 / 8, rel=1e-3)
    assert kept == pytest.approx(76_800 * 5120 * 2 * 40 / 4 / 1e9, rel=1e-3)
    assert gathered == pytest.approx(4 * (3 * 0.3514 + 0.233), rel=1e-2)
    # 55.70 GB were measured at 480p, of which 28.58 are weights in bf16, 3.07 a LoRA's state, 13.68 block inputs
    assert work == pytest.approx((55.70 - 28.58 - 3.07 - 13.68) * 76_800 / 33_408 / 4, rel=2e-2)
    assert memory_gb(LARGE, 64, 4)[1:] == (kept, gathered, work)


def test_what_a_host_should_give_by_hand():
    """14B dense: 12.00 s at 480p with frozen weights, whose gradients aren't computed; a video: 1.951 s a pass on two
    GPUs, 3.369 on one."""
    (layers, attention), (large_layers, large) = (
        (2 * 14e9 * n, 4 * n**2 * 5120 * 40) for n in (21 * 30 * 52, 21 * 45 * 80)
    )
    dense = 12.0024 * 4 * (large_layers + large) / (3 * layers + 4 * attention) / 4
    found = host.training_of_14b(8)
    assert float(found.split(" to ")[0]) == pytest.approx(dense, rel=0.05)
    assert host.step_of_a_video(8).startswith(f"{2 * 3.3694 / (3.3694 / 4 + 1.9507 - 3.3694 / 2):.1f} to ")
    assert host.training_of_1_3b(4) == "3.8 to 4.0"


TABLES = [scale.memory_table, scale.step_table, scale.comparison_table, scale.traffic_table, host.expected_table]


@pytest.mark.parametrize("table", TABLES)
def test_the_page_has_the_tables(table):
    assert table() in PAGE.read_text(encoding="utf-8")


def test_measured_points_are_read_and_drawn(tmp_path, monkeypatch):
    row = {
        "schedule": "fps, pow2 scales", "parallel": "ulysses 4", "clips": 2, "regime": "mix", "model": "14B",
        "lora": None, "tokens_per_second": 20_000.0, "step_seconds": 7.5,
    }  # fmt: skip
    others = [{"regime": "early"}, {"parallel": "one"}, {"lora": 32}, {"schedule": "sdpa"}]
    rows = [row, *(row | other for other in others), row | {"parallel": "shard 8", "clips": 8}]
    (tmp_path / "train-many.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(scale, "RESULTS", tmp_path)
    four, eight = scale.measured()
    assert four == scale.Point("14B", "ulysses", 4, True, 8, 7.5, 20_000.0, one=7.5)
    assert (eight.way, eight.sequence, eight.gpus) == ("shard", 1, 8)
    axes = Figure().add_subplot()
    scale.draw(axes, LARGE)
    (points,) = axes.lines
    assert points.get_xydata().tolist() == [[8, 2500]]


def test_the_command_writes_the_plot_and_prints_the_tables(tmp_path, capsys):
    scale.main(tmp_path / "new/scale.png")
    assert (tmp_path / "new/scale.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert printed.count("|---|") >= 4 and scale.traffic_table() in printed


def test_what_is_not_possible_says_so():
    assert "| 1.3B, 480p | 8 | not possible |" in scale.traffic_table()
    assert scaling.PLANS[1].config.heads == 40
