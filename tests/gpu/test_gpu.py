"""The engines on a GPU: compiled FlexAttention against the loop over tiles and the eager oracle."""

import random
import subprocess
import sys
from dataclasses import replace
from typing import get_args

import pytest
import torch

from eval.bench.sizes import random_wan
from fps_flex import FPSAttention, Regime, StepSchedule
from fps_flex.algorithm import prepare
from fps_flex.compile import compiled
from fps_flex.engines import missing_flash, run
from fps_flex.quant import channel_scales, fake_quantize, quantize, slot_scales
from fps_flex.wan import WAN_1_3B, Wan, WanConfig
from fps_flex.wan.config import Residual
from fps_flex.wan.linears import quantize_linears
from tests.helpers.cases import Case, plain_errors, relative_error
from tests.helpers.compare import TOLERATED, compare_with_loop

pytestmark = pytest.mark.gpu


def gpu_case(seed):
    """Like the CPU's cases, in the kernel's sizes: blocks of 128, heads of 64 or 128, ragged tiles."""
    rng = random.Random(1000 + seed)
    tile = tuple(rng.randint(4, 8) for _ in range(3))
    grid = tuple(rng.randint(t, 2 * t + 3) for t in tile)
    counts = [-(-g // t) for g, t in zip(grid, tile, strict=True)]
    batch = rng.randint(1, 2)
    return Case(
        seed=seed,
        grid=grid,
        tile=tile,
        block=128,
        windows=tuple(tuple(rng.randint(1, n + 1) for n in counts) for _ in range(batch)),
        granularities=tuple(rng.choice([1, 2, "head"]) for _ in range(batch)),
        heads=rng.randint(1, 2),
        head_dim=rng.choice([64, 128]),
    )


GPU_CASES = [gpu_case(seed) for seed in range(12)]
FPS_SIGMA = [0.99, 0.85, 0.3]  # early, middle, late


@pytest.mark.parametrize("case", GPU_CASES, ids=lambda case: f"case{case.seed}")
def test_given_codes_and_scales_equals_the_loop_over_tiles(case):
    """bf16 carrier, forward and backward, pads filled with 1e4."""
    ours, plain = compare_with_loop(case, torch.bfloat16, "cuda", "triton", pads=1e4)
    print(f"case{case.seed}", " ".join(f"{a / b:.2f}" for a, b in zip(ours, plain, strict=True)))
    assert all(a <= TOLERATED * b for a, b in zip(ours, plain, strict=True)), (ours, plain)


def _skip_without(engine):
    if engine == "flash" and missing_flash():
        pytest.skip(missing_flash())


def ordered(plan, *shape, dtype=torch.bfloat16):
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (*shape[:2], plan.layout.tokens, shape[2])
    return [
        plan.layout.order(torch.randn(shape, generator=generator, device="cuda").to(dtype), dim=2) for _ in range(3)
    ]


ROUNDED = [{}, {"smooth_k": True}, {"codes": "int8"}, {"codes": "int8", "rotate": "hadamard"}]


@pytest.mark.parametrize("rounded", ROUNDED, ids=str)
@pytest.mark.parametrize(("engine", "scale_format"), [("triton", "fp32"), ("triton", "pow2"), ("flash", "pow2")])
@pytest.mark.parametrize("schedule", ["fps", "sta", "uniform", "dense"])
def test_mixed_regimes_equal_the_oracle(schedule, engine, scale_format, rounded):
    _skip_without(engine)
    if rounded and schedule != "sta":
        return  # which has samples that are rounded and samples that aren't
    sigma = torch.tensor(FPS_SIGMA, device="cuda")
    options = {"schedule": schedule, "tile": (4, 6, 6), "scale_format": scale_format, **rounded}
    kernel, eager = FPSAttention(engine=engine, **options), FPSAttention(engine="eager", **options)
    plan = kernel.plan((9, 12, 20), sigma)
    results = []
    for attention in (kernel, eager):
        leaves = [x.requires_grad_() for x in ordered(plan, 3, 2, 128)]
        out = plan.layout.unorder(attention(*leaves, plan), dim=2)
        weights = torch.randn(out.shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda").bfloat16()
        results.append([out, *torch.autograd.grad(out, leaves, weights)])
    plain = plain_errors(*(plan.layout.unorder(x, dim=2) for x in ordered(plan, 3, 2, 128)), torch.bfloat16, "cuda")
    for got, expected, bound in zip(*results, plain, strict=True):
        assert relative_error(got, expected) <= TOLERATED * bound


def test_quantising_on_the_gpu_gives_the_cpus_scales_and_codes():
    sigma = torch.tensor(FPS_SIGMA, device="cuda")
    attention = FPSAttention(tile=(4, 6, 6))
    plan, cpu_plan = attention.plan((9, 12, 20), sigma), attention.plan((9, 12, 20), sigma.cpu())
    x = ordered(plan, 3, 2, 128)[0]

    def round_all(x, plan):
        tile, channel = slot_scales(x, plan.layout, plan.groups), channel_scales(x, plan.layout)
        power = slot_scales(x, plan.layout, plan.groups, "pow2")
        return tile, channel, power, quantize(x, tile), quantize(x, channel), fake_quantize(x, power)

    expected = round_all(x.cpu(), cpu_plan)
    for rounded in (round_all, compiled(round_all)):
        assert all(torch.equal(a.cpu(), b) for a, b in zip(rounded(x, plan), expected, strict=True))


@pytest.mark.parametrize("codes", ["e4m3", "int8"])
def test_smoothing_on_the_gpu_gives_the_cpus_codes(codes):
    """Of K whose sums are exact in any order; compiled with all that makes codes."""
    sigma = torch.tensor(FPS_SIGMA, device="cuda")
    attention = FPSAttention(tile=(4, 6, 6), codes=codes)
    plan, cpu_plan = attention.plan((9, 12, 20), sigma), attention.plan((9, 12, 20), sigma.cpu())
    q, k, v = ((x * 32).round() / 32 for x in ordered(plan, 3, 2, 128))
    k[..., 5] += 16

    def make_codes(q, k, v, plan):
        call = prepare(attention.graph_key, q, k, v, plan)
        return call.q, call.k, call.v

    expected = make_codes(q.cpu(), k.cpu(), v.cpu(), cpu_plan)
    for made in (make_codes, compiled(make_codes)):
        assert all(torch.equal(a.cpu(), b) for a, b in zip(made(q, k, v, plan), expected, strict=True))


def test_int8_products_on_the_gpus_bf16_cores_are_those_of_integers():
    q, k = torch.randint(-127, 128, (2, 512, 128), device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    q[0], k[0] = 127, 127
    product = torch.mm(q.bfloat16(), k.bfloat16().mT, out_dtype=torch.float32)
    assert torch.equal(product.cpu().long(), q.cpu() @ k.cpu().mT)


def test_the_float8_carrier_stays_within_what_e4m3_rounding_allows():
    """The kernel rounds exp(score - max) and the output to e4m3: half a step is 2^-4 of a value, or 2^-10 below 2^-6.

    P is at most 1 before its division by the sum, which is at least 1, so each bound on P divides by that sum.
    """
    sigma = torch.tensor(FPS_SIGMA, device="cuda")
    attention = FPSAttention(tile=(4, 6, 6), carrier="float8", engine="triton")
    plan = attention.plan((9, 12, 20), sigma)
    coded = prepare(attention.graph_key, *ordered(plan, 3, 2, 128), plan)
    inputs = coded.q, coded.k, coded.v
    got = run("triton", *inputs, plan.kernel_block_mask, coded.score_mod, coded.softmax_scale).double()

    q, k, v = (x.double() for x in (coded.q, coded.k, coded.v))
    index = [torch.arange(n, device="cuda") for n in (*q.shape[:3], q.shape[2])]
    index = (index[0][:, None, None, None], index[1][:, None, None], index[2][:, None], index[3])
    scores = coded.score_mod(q @ k.mT * coded.softmax_scale, *index)
    scores = scores.masked_fill(~plan.oracle_block_mask.mask_mod(*index), -torch.inf)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    total = weights.sum(-1, keepdim=True)
    exact = weights @ v / total
    rounded = torch.where(scores.isfinite(), (weights * 2**-4).clamp(min=2**-10), 0.0)
    # the running maximum of an early block is below the final one by at most what rescaling gives back
    bound = rounded @ v.abs() / total
    bound = bound + (exact.abs() + bound) * 2**-4 + 2**-10
    assert ((got - exact).abs() <= 1.01 * bound)[:, :, plan.layout.valid].all()
    assert relative_error(got, exact) < 0.1

    # V's scale is multiplied in afterwards; fused with the kernel, the output skips its rounding to e4m3
    full = attention(*ordered(plan, 3, 2, 128), plan).double()
    bound = (1.01 * bound + 2**-7 * exact.abs()) * coded.v_scale
    assert ((full - exact * coded.v_scale).abs() <= bound)[:, :, plan.layout.valid].all()
    assert relative_error(full, exact * coded.v_scale) < 0.1


def test_nan_and_infinity_are_not_turned_into_numbers():
    attention = FPSAttention("uniform", tile=(4, 6, 6), sparse=False)
    plan = attention.plan((8, 6, 6), torch.tensor([0.5], device="cuda"))
    for which in range(3):
        for value in (torch.nan, torch.inf):
            x = ordered(plan, 1, 1, 64)
            x[which][0, 0, 3, 2] = value
            assert attention(*x, plan)[0, 0, 3].isnan().any()


def test_new_regimes_compile_nothing_and_twelve_grids_work():
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    sigma = torch.tensor([0.99, 0.3], device="cuda")
    for schedule in (
        "fps",
        StepSchedule(regimes=(Regime((1, 2, 3), 2), Regime((2, 2, 4), 1), Regime((1, 1, 1), "head"))),
    ):
        attention = FPSAttention(schedule, tile=(4, 6, 6))
        for levels in (sigma, sigma.flip(0), sigma * 0.9):
            plan = attention.plan((8, 12, 20), levels)
            attention(*ordered(plan, 2, 1, 64), plan)
    assert counters["stats"]["unique_graphs"] == 1

    attention = FPSAttention("uniform", tile=(2, 4, 4), quantize=False)
    for width in range(8, 56, 4):
        plan = attention.plan((4, 4, width), sigma)
        x = ordered(plan, 2, 1, 64)
        got, expected = (
            attention(*x, plan),
            FPSAttention("uniform", tile=(2, 4, 4), quantize=False, engine="eager")(*x, plan),
        )
        assert relative_error(got, expected) < 2**-8
    assert counters["stats"]["unique_graphs"] <= 13


def test_picking_regimes_takes_under_a_millisecond_and_waits_for_nothing():
    attention = FPSAttention(tile=(6, 8, 8))
    sigma = torch.tensor([0.99, 0.3], device="cuda")
    attention.plan((21, 45, 80), sigma)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(20):
            attention.plan((21, 45, 80), sigma)
        end.record()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    milliseconds = start.elapsed_time(end) / 20
    print(f"plan for a batch of 2 at 720p: {milliseconds:.3f} ms")
    assert milliseconds < 1


SMALL_WAN = WanConfig(dim=256, ffn_dim=512, heads=2, layers=2)


@pytest.mark.parametrize("residual", ["compute", "fp32"])
@pytest.mark.parametrize("scale_format", ["fp32", "pow2"])
def test_compiled_blocks_are_the_same_blocks(scale_format, residual):
    """But for rounding: fused steps skip some of it, and a value at a code's edge may fall on its other side."""
    wan = random_wan(SMALL_WAN, FPSAttention(tile=(4, 6, 6), scale_format=scale_format), torch.device("cuda"))
    wan.residual = residual
    latents, text = torch.randn(2, 16, 9, 24, 40, device="cuda"), torch.randn(2, 512, 4096, device="cuda")
    outs = []
    for wan.compiled in (False, True):
        with torch.inference_mode():
            outs.append([wan(latents, 1000 * torch.tensor(sigma, device="cuda"), text)
                         for sigma in ([0.99, 0.3], [0.85, 0.99])])  # fmt: skip
    for plain, fused in zip(*outs, strict=True):
        assert 0 < relative_error(fused, plain) < 0.05


@pytest.mark.parametrize("residual", ["compute", "fp32"])
@pytest.mark.parametrize("scale_format", ["fp32", "pow2"])
def test_compiled_blocks_train_the_same(scale_format, residual):
    """Recomputed in the backward, under autocast, as train.fit runs them."""
    attention = FPSAttention(tile=(4, 6, 6), scale_format=scale_format)
    wan = Wan(SMALL_WAN, attention, checkpointing=True, residual=residual).cuda()
    torch.nn.init.normal_(wan.head.head.weight, std=0.02)
    latents, text = torch.randn(2, 16, 9, 24, 40, device="cuda"), torch.randn(2, 512, 4096, device="cuda")
    gradients = []
    for wan.compiled in (False, True):
        with torch.autocast("cuda", torch.bfloat16):
            loss = wan(latents, torch.tensor([990.0, 300.0], device="cuda"), text).float().square().mean()
        gradients.append(torch.cat([x.flatten() for x in torch.autograd.grad(loss, list(wan.parameters()))]))
    plain, fused = gradients
    assert 0 < relative_error(fused, plain) < 0.05


@pytest.mark.parametrize("residual", ["compute", "fp32"])
@pytest.mark.parametrize("compiled", [False, True])
def test_fp8_linear_layers_stay_near_bf16(compiled, residual):
    wan = random_wan(SMALL_WAN, FPSAttention(tile=(4, 6, 6)), torch.device("cuda"))
    wan.residual, wan.compiled = residual, compiled
    inputs = torch.randn(1, 16, 9, 24, 40, device="cuda"), torch.tensor([800.0], device="cuda")
    text = torch.randn(1, 512, 4096, device="cuda")
    with torch.inference_mode():
        plain = wan(*inputs, text)
        quantize_linears(wan, "fp8")
        assert 0 < relative_error(wan(*inputs, text), plain) < 0.1


@pytest.mark.parametrize("compiled", [False, True])
def test_a_training_step_at_480p_fits_because_nothing_is_dense(compiled):
    """Two layers of the 1.3B model over 32,760 tokens: an fp32 [S, S] per head would be 4 GB, 12 heads 52 GB."""
    config = replace(WAN_1_3B, layers=2)
    model = Wan(config, FPSAttention(tile=(7, 9, 6)), checkpointing=True, compiled=compiled).cuda()
    torch.nn.init.normal_(model.head.head.weight, std=0.02)
    latents = torch.randn(1, 16, 21, 60, 104, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    for sigma in FPS_SIGMA:
        with torch.autocast("cuda", torch.bfloat16):
            out = model(latents, torch.tensor([1000 * sigma], device="cuda"), torch.randn(1, 512, 4096, device="cuda"))
        out.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    gigabytes = torch.cuda.max_memory_allocated() / 1e9
    print(f"peak memory of two layers: {gigabytes:.1f} GB")
    assert gigabytes < 16


@pytest.mark.parametrize("residual", get_args(Residual))
@pytest.mark.parametrize(
    ("engine", "options"),
    [
        ("triton", {"scale_format": "fp32"}),
        ("triton", {"scale_format": "pow2"}),
        ("triton", {"quantize": False}),
        ("flash", {"scale_format": "pow2"}),
    ],
)
def test_compiled_blocks_at_480p_have_the_gradients_of_eager_ones(engine, options, residual):
    """Of every parameter, twice: what a kernel leaves unwritten differs from one time to the next."""
    _skip_without(engine)
    attention = FPSAttention(tile=(7, 9, 6), engine=engine, **options)
    gradients = []
    for blocks in ("eager", "compiled", "compiled"):
        torch.manual_seed(0)
        model = Wan(replace(WAN_1_3B, layers=1), attention, checkpointing=True, residual=residual)
        model.compiled = blocks == "compiled"
        torch.nn.init.normal_(model.head.head.weight, std=0.02)
        model = model.cuda()
        latents, text = torch.randn(1, 16, 21, 60, 104).cuda(), torch.randn(1, 512, 4096).cuda()
        for _ in range(2):
            model.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                out = model(latents, torch.tensor([700.0], device="cuda"), text)
            (out.float() * latents).mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    eager, *others = gradients
    for other in others:
        errors = {name: relative_error(other[name], eager[name]) for name in eager}
        print(f"largest error {max(errors.values()):.4f} of {max(errors, key=errors.get)}")
        assert max(errors.values()) < 0.05, errors


OUT_OF_RANGE = """
import sys, torch
from fps_flex import FPSAttention
attention = FPSAttention(tile=(4, 6, 6))
sigma = torch.tensor([0.5, float(sys.argv[1])], device="cuda").split(1)
attention.plan((8, 12, 20), sigma[0])  # builds the grid's lists, which may wait
torch.cuda.set_sync_debug_mode("error")
attention.plan((8, 12, 20), sigma[0])
attention.plan((8, 12, 20), sigma[1])
print("planned", flush=True)
torch.cuda.set_sync_debug_mode("default")
torch.cuda.synchronize()
"""


@pytest.mark.parametrize("sigma", ["1.5", "-0.5", "nan"])
def test_a_noise_level_out_of_range_fails_on_the_gpu_without_being_waited_for(sigma):
    """In a process of its own: an assertion on a GPU ends it."""
    done = subprocess.run([sys.executable, "-c", OUT_OF_RANGE, sigma], capture_output=True, text=True)
    assert done.stdout == "planned\n" and done.returncode != 0 and "assert" in done.stderr.lower()
