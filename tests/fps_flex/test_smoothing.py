"""K less its mean, and Q and K rotated: no score changes, no gradient is lost, and codes are those of the oracle."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from docs.golden import method
from fps_flex import FPSAttention, Regime, StepSchedule, TileLayout
from fps_flex.quant import tile_amax
from fps_flex.reference import reference_attention
from fps_flex.smoothing import centred_tile_amax, hadamard_signs, key_stats, mean_of_tokens, rotate_channels
from tests.fps_flex.test_attention import attention_of, run, sigma_of
from tests.helpers import oracle
from tests.helpers.cases import CASES, plain_errors, relative_error
from tests.helpers.compare import TOLERATED, loop_over_tiles, with_gradients

OPTIONS = [
    {"smooth_k": True},
    {"codes": "int8"},
    {"rotate": "hadamard"},
    {"smooth_k": True, "codes": "int8", "rotate": "hadamard"},
]
BY_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case.seed}")
BY_OPTIONS = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))


def summable(case, tokens, offset=16):
    """q, k and v whose sums over tokens and channels are exact in fp32, in any order. offset: of a channel of K."""
    q, k, v = ((x * 64).round() / 64 for x in case.qkv(tokens))
    k[:, :, :, 3] += offset
    return q, k, v


def mean_of(k, layout):
    return mean_of_tokens(key_stats(k, layout).total, layout.tokens)


@BY_CASE
def test_softmax_and_its_gradients_see_neither_the_mean_nor_the_rotation(case):
    """In float64 and unrounded, under each case's windows, with ragged tiles; also if the mean had a gradient."""
    plan = attention_of(case).plan(case.grid, sigma_of(case))
    leaves = [x.double().requires_grad_() for x in case.qkv(plan.layout.tokens)]

    def attend(change):
        q, k, v = (plan.layout.order(x, dim=2).masked_fill(~plan.layout.valid[:, None], 7.0) for x in leaves)
        out = reference_attention(*change(q, k), v, plan.oracle_block_mask.mask_mod)
        return with_gradients(plan.layout.unorder(out, dim=2), leaves, torch.float64)

    def smooth(q, k):
        return q, k - mean_of(k, plan.layout).double()

    def smooth_with_gradient(q, k):
        return q, k - k[:, :, plan.layout.valid].mean(2, keepdim=True)

    expected = attend(lambda q, k: (q, k))
    for change in (smooth, smooth_with_gradient, rotate_channels):
        for got, one in zip(attend(change), expected, strict=True):
            torch.testing.assert_close(got, one, rtol=1e-10, atol=1e-12)


@BY_CASE
def test_gradients_of_k_sum_to_0_over_the_tokens(case):
    """Which is what the mean would get, were it no constant: after rounding, too."""
    layout = TileLayout(case.grid, case.tile, case.block)
    leaves = [x.double().requires_grad_() for x in summable(case, layout.tokens)]
    out = run(attention_of(case, smooth_k=True), case, sigma_of(case), leaves, layout)
    _, _, dk, _ = with_gradients(out, leaves, torch.float64)
    assert dk.abs().max() > 0 and dk.sum(2).abs().max() < 1e-6 * dk.abs().sum(2).max()


@BY_CASE
def test_statistics_of_k_are_those_of_loops(case):
    layout = TileLayout(case.grid, case.tile, case.block)
    _, k, _ = summable(case, layout.tokens)
    slots = layout.order(k, dim=2).masked_fill(~layout.valid[:, None], 1e4)
    mean = mean_of(slots, layout)
    numpy_slots, of_oracle = slots.numpy(), oracle.layout_of(case)
    expected = method.mean_of_tokens(numpy_slots, of_oracle)
    assert np.array_equal(mean.numpy(), expected)
    amax = centred_tile_amax(key_stats(slots, layout), mean, layout)
    assert np.array_equal(amax.numpy(), method.amax_of_tiles(method.centre(numpy_slots, expected), of_oracle))
    assert torch.equal(amax, tile_amax(slots - mean, layout)) and (amax < tile_amax(slots, layout)).all()


@BY_OPTIONS
@pytest.mark.parametrize("scale_format", ["fp32", "pow2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@BY_CASE
def test_from_raw_inputs_equals_the_loop_over_tiles(case, dtype, scale_format, options):
    if dtype == torch.bfloat16 and "rotate" in options:
        return  # which rounds between the rotation and the codes: see below
    layout = TileLayout(case.grid, case.tile, case.block)
    raw = [x.to(dtype) for x in summable(case, layout.tokens, offset=16 if "smooth_k" in options else 0)]
    said = {"smooth_k": options.get("smooth_k"), "int8": "codes" in options, "rotate": "rotate" in options}
    coded = oracle.quantized(case, *(x.float().numpy() for x in raw), scale_format, **said)
    expected = loop_over_tiles(case, *coded, dtype, said["rotate"])
    leaves = [x.clone().requires_grad_() for x in raw]
    attention = attention_of(case, scale_format=scale_format, **options)
    got = with_gradients(run(attention, case, sigma_of(case), leaves, layout), leaves, dtype)
    ours = [relative_error(x, y) for x, y in zip(got, expected, strict=True)]
    plain = plain_errors(*raw, dtype)
    assert all(a <= TOLERATED * b for a, b in zip(ours, plain, strict=True)), (ours, plain)


@BY_OPTIONS
@BY_CASE
def test_pads_change_nothing(case, options):
    layout = TileLayout(case.grid, case.tile, case.block)
    attention, sigma = attention_of(case, **options), sigma_of(case)
    plan, results = attention.plan(case.grid, sigma), []
    for fill in (0.0, 1e4):
        leaves = [x.requires_grad_() for x in case.qkv(layout.tokens)]
        slots = [layout.order(x, dim=2).masked_fill(~layout.valid[:, None], fill) for x in leaves]
        results.append(with_gradients(layout.unorder(attention(*slots, plan), dim=2), leaves, torch.float32))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_constant_added_to_k_changes_nothing():
    """128 tokens, so that the mean is exact, too: the same codes, and so the same bits."""
    attention = FPSAttention("uniform", tile=(2, 2, 4), block=16, smooth_k=True)
    plan = attention.plan((4, 4, 8), torch.tensor([0.5]))
    q, k, v = ((torch.randn(1, 2, 128, 16) * 256).round() / 256 for _ in range(3))
    offset = torch.randn(16).mul(256).round() / 64
    assert torch.equal(attention.over_tokens(q, k + offset, v, plan), attention.over_tokens(q, k, v, plan))
    plain = replace(attention, smooth_k=False)
    plan = plain.plan((4, 4, 8), torch.tensor([0.5]))
    assert not torch.equal(plain.over_tokens(q, k + offset, v, plan), plain.over_tokens(q, k, v, plan))


@BY_OPTIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_unquantised_sample_of_a_mixed_batch_is_left_as_it_is(options, dtype):
    schedule = StepSchedule((0.5,), (Regime((1, None, 2)), Regime((None, 2, 1), 1)), shift=1.0)
    sizes = {"tile": (2, 2, 2), "block": 8, **options}
    attention, grid = FPSAttention(schedule, **sizes), (3, 5, 6)
    plain, rounded = FPSAttention(schedule, quantize=False, **sizes), FPSAttention(schedule, **sizes)
    sigma = torch.tensor([0.9, 0.1, 0.8])
    x = torch.randn(3, 3, 2, 90, 16).to(dtype)
    out = attention.over_tokens(*x, attention.plan(grid, sigma))
    for samples, one in (([0, 2], plain), ([1], rounded)):
        alone = one.over_tokens(*x[:, samples], one.plan(grid, sigma[samples]))
        torch.testing.assert_close(out[samples], alone, rtol=0, atol=0 if one is plain else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [8, 16, 64, 128])
def test_rotated_scores_are_the_scores(dim, dtype):
    q, k = torch.randn(2, 1, 2, 30, dim).to(dtype)
    expected = q.double() @ k.double().mT
    scores = torch.matmul(*(x if i == 0 else x.mT for i, x in enumerate(y.double() for y in rotate_channels(q, k))))
    assert relative_error(scores, expected) < 4 * torch.finfo(dtype).eps
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(rotate_channels(q, k), rotate_channels(q, k), strict=True))
        assert rotate_channels(q, k)[0].dtype == dtype


@pytest.mark.parametrize("dim", [1, 2, 8, 128, 256])
def test_the_matrix_is_sylvesters(dim):
    signs = hadamard_signs(dim, torch.device("cpu"))
    assert np.array_equal(signs.numpy(), method.hadamard(dim))
    assert torch.equal(signs @ signs, dim * torch.eye(dim)) and signs[0].eq(1).all()


def test_a_channel_that_is_large_everywhere_takes_no_others_precision():
    """Ten per cent off without the mean taken off; and what int8 codes and a rotation leave."""
    grid, generator = (4, 8, 16), torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 512, 128, generator=generator)
    k[..., [5, 40, 77, 101]] += 20

    def error(**options):
        attention = FPSAttention("uniform", tile=(4, 4, 8), sparse=False, **options)
        exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return relative_error(attention.over_tokens(q, k, v, attention.plan(grid, torch.tensor([0.5]))), exact)

    assert error(smooth_k=False) > 0.08 and error() < 0.05
    assert error(smooth_k=False, codes="int8") > 0.05 and error(codes="int8") < 0.035
    assert error(smooth_k=False, codes="int8", rotate="hadamard") < 0.7 * error(smooth_k=False, codes="int8")
    assert error(scale_format="pow2") < 0.05


def test_heads_that_cannot_be_rotated_are_named():
    attention = FPSAttention("uniform", tile=(2, 2, 2), block=8, rotate="hadamard")
    plan, x = attention.plan((2, 2, 2), torch.tensor([0.5])), torch.randn(1, 1, 8, 24)
    message = "rotate is hadamard and heads are of 24 channels, expected a power of two"
    for call in (attention, attention.over_tokens):
        with pytest.raises(ValueError, match=message):
            call(x, x, x, plan)


def test_files_from_before_these_options_were_made_without_them():
    from dataclasses import asdict

    new = asdict(FPSAttention("sta", tile=(1, 2, 2)))
    old = {name: value for name, value in new.items() if name not in ("smooth_k", "codes", "rotate", "layers")}
    read = FPSAttention.from_dict(old)
    assert read == FPSAttention("sta", tile=(1, 2, 2), smooth_k=False)
    assert not read.smooth_k and read.codes == "e4m3" and read.rotate is None and read.layers == ()
    assert FPSAttention.from_dict(new).smooth_k
