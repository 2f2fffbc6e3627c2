"""FPSAttention against the loop over tiles: given codes and scales, and from raw q, k, v."""

from dataclasses import replace

import pytest
import torch

from fps_flex import FPSAttention, Regime, StepSchedule, TileLayout, dequantize
from fps_flex.algorithm import prepare
from fps_flex.engines import run as run_engine
from fps_flex.quant import channel_scales, quantize, slot_scales
from tests.helpers import oracle
from tests.helpers.cases import CASES, plain_errors, relative_error
from tests.helpers.compare import TOLERATED, compare_with_loop, loop_over_tiles, with_gradients

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case.seed}")
def test_given_codes_and_scales_equals_the_loop_over_tiles(case, dtype):
    ours, plain = compare_with_loop(case, dtype)
    assert all(a <= TOLERATED * b for a, b in zip(ours, plain, strict=True)), (ours, plain)


@pytest.mark.parametrize("case", CASES[:16], ids=lambda case: f"case{case.seed}")
def test_pads_change_nothing(case):
    layout = TileLayout(case.grid, case.tile, case.block)
    attention, sigma = attention_of(case), sigma_of(case)
    plan = attention.plan(case.grid, sigma)
    results = []
    for fill in (0.0, 1e4):
        leaves = [x.requires_grad_() for x in case.qkv(layout.tokens)]
        slots = [layout.order(x, dim=2).masked_fill(~layout.valid[:, None], fill) for x in leaves]
        results.append(with_gradients(layout.unorder(attention(*slots, plan), dim=2), leaves, torch.float32))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def attention_of(case, **options):
    """A schedule with one regime per sample: its window in tiles and its granularity."""
    count = len(case.windows)
    regimes = [Regime(*pair) for pair in zip(case.windows, case.granularities, strict=True)]
    schedule = StepSchedule(tuple((i + 1) / count for i in range(count - 1)), tuple(regimes), shift=1.0)
    return FPSAttention(schedule, case.tile, case.block, **{"smooth_k": False, **options})


def sigma_of(case):
    """The noise level that puts each sample in its own regime."""
    count = len(case.windows)
    return 1 - (torch.arange(count) + 0.5) / count


def run(attention, case, sigma, tensors, layout):
    plan = attention.plan(case.grid, sigma)
    out = attention(*(layout.order(x, dim=2) for x in tensors), plan)
    return layout.unorder(out, dim=2)


@pytest.mark.parametrize("scale_format", ["fp32", "pow2"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES[:24], ids=lambda case: f"case{case.seed}")
def test_from_raw_inputs_equals_the_loop_over_tiles(case, dtype, scale_format):
    layout = TileLayout(case.grid, case.tile, case.block)
    raw = [x.to(dtype) for x in case.qkv(layout.tokens)]
    arrays = [x.float().numpy() for x in raw]
    expected = loop_over_tiles(case, *oracle.quantized(case, *arrays, scale_format), dtype)

    leaves = [x.clone().requires_grad_() for x in raw]
    got = with_gradients(
        run(attention_of(case, scale_format=scale_format), case, sigma_of(case), leaves, layout), leaves, dtype
    )
    ours = [relative_error(x, y) for x, y in zip(got, expected, strict=True)]
    plain = plain_errors(*raw, dtype)
    assert all(a <= TOLERATED * b for a, b in zip(ours, plain, strict=True)), (ours, plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if len(c.windows) > 1][:16], ids=lambda case: f"case{case.seed}")
def test_a_batch_of_mixed_regimes_equals_each_sample_alone(case, dtype):
    layout = TileLayout(case.grid, case.tile, case.block)
    raw = [x.to(dtype) for x in case.qkv(layout.tokens)]
    sigma = sigma_of(case)
    leaves = [x.clone().requires_grad_() for x in raw]
    together = with_gradients(run(attention_of(case), case, sigma, leaves, layout), leaves, dtype)
    weights = torch.randn(together[0].shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    plain = plain_errors(*raw, dtype)
    alone = []
    for b in range(len(sigma)):
        leaves = [x[b : b + 1].clone().requires_grad_() for x in raw]
        out = run(attention_of(case), case, sigma[b : b + 1], leaves, layout)
        alone.append([out.detach(), *torch.autograd.grad(out, leaves, weights[b : b + 1])])
    for got, parts, bound in zip(together, zip(*alone, strict=True), plain, strict=True):
        assert relative_error(got, torch.cat(parts)) <= TOLERATED * bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_power_of_two_scales_in_the_carrier_equal_the_score_mod(dtype):
    case = replace(CASES[0], grid=(4, 6, 5), tile=(2, 2, 2), block=8, granularities=(1,) * len(CASES[0].windows))
    layout = TileLayout(case.grid, case.tile, case.block)
    folded = attention_of(case, scale_format="pow2")
    plan = folded.plan(case.grid, sigma_of(case))
    raw = [layout.order(x.to(dtype), dim=2) for x in case.qkv(layout.tokens)]

    codes, scales = [], []
    for x, of in zip(raw, (slot_scales, slot_scales, channel_scales), strict=True):
        scale = of(x, layout, *([plan.groups] if of is slot_scales else []), "pow2")
        codes.append(quantize(x, scale))
        scales.append(scale)
        # exact: no product of a code and its scale is rounded
        assert torch.equal((codes[-1] * scale.to(dtype)).double(), codes[-1].double() * scale.double())
    by_score_mod = run_engine("eager", *codes, plan.oracle_block_mask, dequantize(*(x.squeeze(-1) for x in scales[:2])))
    by_score_mod = (by_score_mod * scales[2]).to(dtype)
    assert relative_error(folded(*raw, plan), by_score_mod) <= TOLERATED * plain_errors(*raw, dtype)[0]


def test_the_float8_carrier_holds_the_same_codes_with_vs_slots_side_by_side():
    plain, float8 = FPSAttention(tile=(2, 2, 2), block=8), FPSAttention(tile=(2, 2, 2), block=8, carrier="float8")
    plan = plain.plan((3, 4, 5), torch.tensor([0.9, 0.3]))
    q, k, v = (plan.layout.order(torch.randn(2, 3, 60, 4), dim=2) for _ in range(3))
    expected, got = (prepare(attention.graph_key, q, k, v, plan) for attention in (plain, float8))
    for name in "qkv":
        codes = getattr(got, name)
        assert codes.dtype == torch.float8_e4m3fn and torch.equal(codes.float(), getattr(expected, name))
    assert got.q.stride(-1) == got.k.stride(-1) == got.v.stride(-2) == 1


def test_each_half_can_be_switched_off():
    grid, sigma = (4, 4, 20), torch.tensor([0.99, 0.7, 0.1])
    options = {"tile": (2, 2, 2), "block": 8}
    layout = FPSAttention("dense", **options).plan(grid, sigma).layout
    x = [layout.order(torch.randn(3, 2, layout.tokens, 8), dim=2) for _ in range(3)]

    def out(**switches):
        attention = FPSAttention(**options, **switches)
        return layout.unorder(attention(*x, attention.plan(grid, sigma)), dim=2)

    tokens = [layout.unorder(y, dim=2) for y in x]
    dense = torch.nn.functional.scaled_dot_product_attention(*tokens)
    torch.testing.assert_close(out(schedule="dense"), dense)
    torch.testing.assert_close(out(quantize=False, sparse=False), dense)
    sparse, quantized, joint = out(quantize=False), out(sparse=False), out()
    errors = [relative_error(y, dense) for y in (quantized, sparse, joint)]
    assert 0.01 < errors[0] < 0.1 < errors[1] and errors[2] > 0.1
    assert 0.01 < relative_error(joint, sparse) < 0.1
    windows = tuple((2, 2, w) for w in (1, 3, 2))
    mask = oracle.token_mask(replace(CASES[0], grid=grid, tile=(2, 2, 2), windows=windows))
    mask = torch.from_numpy(mask)[:, None]
    torch.testing.assert_close(sparse, torch.nn.functional.scaled_dot_product_attention(*tokens, attn_mask=mask))


def test_the_sta_preset_mixes_dense_and_quantised_samples():
    grid, sigma = (2, 4, 20), torch.tensor([0.99, 0.1])
    attention = FPSAttention("sta", tile=(2, 2, 2), block=8)
    plan = attention.plan(grid, sigma)
    x = [plan.layout.order(torch.randn(2, 1, plan.layout.tokens, 8), dim=2) for _ in range(3)]
    out = plan.layout.unorder(attention(*x, plan), dim=2)
    tokens = [plan.layout.unorder(y, dim=2) for y in x]
    torch.testing.assert_close(out[:1], torch.nn.functional.scaled_dot_product_attention(*(y[:1] for y in tokens)))
    late = FPSAttention(StepSchedule((), attention.step_schedule.regimes[1:]), tile=(2, 2, 2), block=8)
    torch.testing.assert_close(out[1:], run(late, case_of(grid), sigma[1:], [y[1:] for y in tokens], plan.layout))


def case_of(grid):
    return replace(CASES[0], grid=grid)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("scale_format", ["fp32", "pow2"])
def test_nan_and_infinity_are_not_turned_into_numbers(which, value, scale_format):
    grid, sigma = (2, 4, 4), torch.tensor([0.5])
    attention = FPSAttention("uniform", tile=(2, 2, 2), block=8, sparse=False, scale_format=scale_format)
    plan = attention.plan(grid, sigma)
    x = [torch.randn(1, 1, 32, 8) for _ in range(3)]
    x[which][0, 0, 3, 2] = value
    out = plan.layout.unorder(attention(*(plan.layout.order(y, dim=2) for y in x), plan), dim=2)
    assert out[0, 0, 3].isnan().any()


def test_bad_options_are_named():
    for options, message in (
        ({"schedule": "paper"}, "schedule is 'paper', expected one of fps, sta, uniform, dense"),
        ({"scale_format": "bf16"}, "scale_format is 'bf16', expected one of fp32, pow2"),
        ({"carrier": "int8"}, "carrier is 'int8', expected one of input, float8"),
        (
            {"carrier": "float8", "schedule": "sta"},
            "float8 carrier needs every regime of the schedule, and of layers, q",
        ),
        (
            {"carrier": "float8", "layers": {3: "dense"}},
            "float8 carrier needs every regime of the schedule, and of layers",
        ),
        ({"carrier": "float8", "codes": "int8"}, "codes is 'int8', of which the float8 carrier can't hold all: use"),
        ({"codes": "int4"}, "codes is 'int4', expected one of e4m3, int8"),
        ({"rotate": "fourier"}, "rotate is 'fourier', expected one of hadamard"),
        ({"rotate": True}, "rotate is True, expected one of hadamard"),
        ({"smooth_k": "yes"}, "smooth_k is 'yes', expected True or False"),
        ({"tile": (2, 2)}, r"tile is \(2, 2\), expected three sizes"),
    ):
        with pytest.raises(ValueError, match=message):
            FPSAttention(**options).plan((2, 2, 2), torch.tensor([0.5]))


def test_bad_inputs_are_named():
    attention = FPSAttention(tile=(2, 2, 2), block=8)
    plan = attention.plan((4, 4, 4), torch.tensor([0.5, 0.5]))
    x = torch.randn(2, 1, 64, 8)
    for tensors, message in (
        ((x, x, x[..., :4]), r"q, k, v have shapes .*\(2, 1, 64, 4\), expected the same"),
        (
            (x[:, :, :-1],) * 3,
            r"shape \(2, 1, 63, 8\), expected B = 2 and S = 64 slots for the plan's grid \(4, 4, 4\)",
        ),
        ((x[:1],) * 3, "expected B = 2"),
        ((x, x, x.bfloat16()), "q, k, v have dtypes torch.float32, torch.float32, torch.bfloat16"),
        ((x.half(),) * 3, "expected the same one of bfloat16, float32, float64"),
        ((x[0],) * 3, r"expected the same \[B, H, S, D\]"),
    ):
        with pytest.raises(ValueError, match=message):
            attention(*tensors, plan)
    with pytest.raises(ValueError, match=r"tile \(2, 2, 2\) is larger than the grid \(1, 4, 4\)"):
        attention.plan((1, 4, 4), torch.tensor([0.5]))
