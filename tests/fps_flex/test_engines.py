"""The compiled path on a CPU: what compiles again, what raises, and that it is never dense in silence."""

import re
from dataclasses import replace

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from fps_flex import (
    FPSAttention,
    Plan,
    Regime,
    StepSchedule,
    TileLayout,
    algorithm,
    compile,
    dequantize,
    engines,
    sliding_tile_block_mask,
)
from fps_flex.algorithm import attend_tokens
from fps_flex.engines import choose_engine, run
from fps_flex.reference import reference_attention
from fps_flex.wan import WAN_TINY, Wan
from fps_flex.wan import model as wan

OTHER = StepSchedule(regimes=(Regime((1, 2, 3), 2), Regime((2, 2, 4), 1), Regime((1, 1, 1), "head")))


@pytest.fixture(autouse=True)
def one_thread():
    """With more, the CPU kernel of PyTorch 2.11 crashes, and is refused."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


KINDS = [
    {}, {"scale_format": "pow2"}, {"schedule": "sta"}, {"schedule": "dense"}, {"smooth_k": True}, {"codes": "int8"},
    {"rotate": "hadamard", "schedule": "sta"}, {"codes": "int8", "rotate": "hadamard", "scale_format": "pow2"},
]  # fmt: skip


@pytest.fixture
def compiled(monkeypatch):
    """The same wrappers with a backend that only counts: what torch.compile traces anew, without generating code.

    Without code the block lists are not read, so the complete mask takes the kernels' place.
    """
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def count(function):
        return compile.limited(torch.compile(function, fullgraph=True, dynamic=False, backend=backend))

    torch._dynamo.reset()
    monkeypatch.setattr(engines, "_compiled_flex_attention", count(flex_attention))
    monkeypatch.setattr(algorithm, "compiled_attend_slots", count(algorithm.attend_slots))
    monkeypatch.setattr(algorithm, "compiled_attend_tokens", count(attend_tokens))
    monkeypatch.setattr(wan, "_compiled_run", count(wan._run))
    monkeypatch.setattr(Plan, "block_mask", lambda plan, engine: plan.oracle_block_mask)
    yield graphs
    torch._dynamo.reset()


def qkv(batch, layout, heads=2, dim=8):
    return [torch.randn(batch, heads, layout.slots, dim) for _ in range(3)]


@pytest.mark.compiles
def test_new_regimes_scales_and_mixes_compile_nothing(compiled):
    grid, sizes = (4, 4, 8), {"tile": (2, 2, 2), "block": 8}
    schedules = [
        StepSchedule(),
        StepSchedule(regimes=(Regime((1, 2, 3), 2), Regime((2, 2, 4), 1), Regime((1, 1, 1), "head"))),
        StepSchedule(bounds=(0.5,), regimes=(Regime((2, 1, 2), 4), Regime((1, 2, 1), 1)), shift=2.0),
    ]
    for schedule in schedules:
        attention = FPSAttention(schedule, engine="triton", **sizes)
        oracle = FPSAttention(schedule, engine="eager", **sizes)
        for sigma in ([0.99, 0.99], [0.99, 0.5], [0.1, 0.7]):
            plan = attention.plan(grid, torch.tensor(sigma))
            x = qkv(2, plan.layout)
            torch.testing.assert_close(attention(*x, plan), oracle(*x, plan))
    assert len(compiled) == 1


@pytest.mark.compiles
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_all_that_is_around_the_kernel_is_one_graph_for_every_mix_of_regimes(compiled, options):
    """As a GPU compiles it, from raster order to raster order; another schedule of the same kind compiles nothing."""
    sizes = {"tile": (2, 2, 2), "block": 8, **options}
    ours = FPSAttention(engine="triton", **sizes)
    for own in (ours.step_schedule, OTHER if "schedule" not in options else ours.step_schedule):
        ours, oracle = (FPSAttention(**{**sizes, "schedule": own}, engine=engine) for engine in ("triton", "eager"))
        for sigma in ([0.99, 0.99], [0.99, 0.5], [0.1, 0.7]):
            plan = ours.plan((4, 4, 7), torch.tensor(sigma))
            x = [torch.randn(2, 2, plan.layout.tokens, 8) for _ in range(3)]
            got = algorithm.compiled_attend_tokens(ours.graph_key, "triton", *x, plan)
            torch.testing.assert_close(got, oracle.over_tokens(*x, plan))
    assert len(compiled) == 1


@pytest.mark.compiles
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_gradients_through_the_one_graph_are_the_oracles(options, dtype):
    """Traced with its backward, as AOTAutograd does it for a GPU; the oracle takes the kernel's place."""
    ours = FPSAttention(engine="eager", tile=(2, 2, 2), block=8, **options)
    plan = ours.plan((4, 4, 7), torch.tensor([0.99, 0.5]))
    torch._dynamo.reset()  # more kinds are tried here than graphs are kept
    one_graph = torch.compile(attend_tokens, fullgraph=True, dynamic=False, backend="aot_eager")
    values = torch.randn(3, 2, 2, 112, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    results = []
    for attend in (attend_tokens, one_graph):
        leaves = [x.clone().requires_grad_() for x in values]
        out = attend(ours.graph_key, "eager", *leaves, plan)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for got, expected in zip(*results, strict=True):
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(got, expected)


@pytest.mark.compiles
@pytest.mark.parametrize("layers", [{}, {"0": "dense", "2": Regime((1, 1, 1), "head")}], ids=["alike", "unlike"])
def test_all_blocks_of_a_model_share_one_graph(compiled, layers):
    model = Wan(WAN_TINY, FPSAttention(tile=(1, 4, 4), block=16, layers=layers))
    torch.nn.init.normal_(model.head.head.weight, std=0.02)
    latents, text = torch.randn(2, 24, 5, 16, 16), torch.randn(2, 7, 32)
    for timestep in ([990.0, 300.0], [300.0, 800.0]):
        with torch.no_grad():
            expected = model(latents, torch.tensor(timestep), text)
            model.compiled = True
            torch.testing.assert_close(model(latents, torch.tensor(timestep), text), expected)
            model.compiled = False
    assert len(compiled) == 1


@pytest.mark.compiles
def test_twelve_grids_one_after_the_other(compiled):
    attention = FPSAttention("uniform", tile=(2, 2, 2), block=8, engine="triton")
    oracle = FPSAttention("uniform", tile=(2, 2, 2), block=8, engine="eager")
    for width in range(2, 14):
        plan = attention.plan((2, 3, width), torch.tensor([0.5]))
        x = qkv(1, plan.layout)
        torch.testing.assert_close(attention(*x, plan), oracle(*x, plan))
    assert 6 <= len(compiled) <= 12


@pytest.mark.compiles
def test_past_the_recompile_limit_it_raises_and_is_not_dense(compiled, monkeypatch):
    monkeypatch.setitem(compile.DYNAMO, "recompile_limit", 2)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        for width in range(2, 20, 4):
            layout = TileLayout((2, 2, width), (2, 2, 2), 8)
            run("triton", *qkv(1, layout), sliding_tile_block_mask(layout, (1, 1, 1)))


@pytest.mark.compiles
def test_the_compiled_cpu_kernel_equals_the_oracle():
    layout = TileLayout((4, 6, 7), (2, 3, 3), 32)
    q, k, v = qkv(2, layout, dim=16)
    bm = sliding_tile_block_mask(layout, [(1, 2, 1), (2, 1, 2)])
    score_mod = dequantize(*(torch.rand(2, 2, layout.slots) + 0.5 for _ in range(2)))
    got = run("triton", q, k, v, bm, score_mod)
    torch.testing.assert_close(got, reference_attention(q, k, v, bm.mask_mod, score_mod))


@pytest.mark.compiles
def test_block_lists_with_pads_masked_alone_are_the_whole_mask_to_a_kernel():
    """Real code on a CPU follows the lists; without them, the same mask is far off."""
    schedule = StepSchedule(bounds=(0.5,), regimes=(Regime((2, 1, 2), 2), Regime((1, 2, 1), 1)))
    sizes = {"schedule": schedule, "tile": (2, 3, 3), "block": 32}
    kernel, oracle = FPSAttention(engine="triton", **sizes), FPSAttention(engine="eager", **sizes)
    plan = kernel.plan((4, 6, 7), torch.tensor([0.99, 0.1]))
    x = [torch.randn(2, 2, plan.layout.tokens, 16) for _ in range(3)]
    expected = oracle.over_tokens(*x, plan)
    torch.testing.assert_close(kernel.over_tokens(*x, plan), expected)
    without_lists = oracle.over_tokens(*x, replace(plan, oracle_block_mask=plan.kernel_block_mask))
    assert (without_lists - expected).abs().max() > 0.1


def test_the_oracle_ignores_autocast():
    layout = TileLayout((2, 4, 4), (2, 2, 2), 8)
    q, k, v = qkv(1, layout)
    bm = sliding_tile_block_mask(layout, (1, 2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        inside = run("eager", q, k, v, bm)
    assert inside.dtype == torch.float32 and torch.equal(inside, run("eager", q, k, v, bm))


def test_what_an_engine_can_not_do_is_named():
    layout = TileLayout((2, 2, 2), (2, 2, 2), 8)
    q, k, v = qkv(1, layout)
    bm = sliding_tile_block_mask(layout, (1, 1, 1))
    with pytest.raises(ValueError, match="engine is 'cudnn', expected auto, eager, triton or flash"):
        choose_engine("cudnn", CPU, torch.float32, 8, 8, False)
    with pytest.raises(ValueError, match="the triton engine has no gradients on a CPU"):
        run("triton", q.requires_grad_(), k, v, bm)


BF16, FLOAT8 = torch.bfloat16, torch.float8_e4m3fn
MISSING = "flash-attn-4 isn't installed (pip install --pre 'flash-attn-4>=4.0.0b26')"
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def hopper(monkeypatch):
    """Stands in for a GPU: its compute capability, and whether flash-attn-4 is there."""

    def build(capability=(9, 0), flash=True):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(engines, "missing_flash", lambda: None if flash else MISSING)

    return build


def test_auto_takes_the_fastest_that_can_run(hopper, caplog):
    caplog.set_level("INFO", "fps_flex")
    engines._say_once.cache_clear()
    assert choose_engine("auto", CPU, torch.float32, 64, 16, True) == "eager"
    hopper()
    assert choose_engine("auto", GPU, BF16, 128, 128, False) == "flash"
    assert choose_engine("auto", GPU, BF16, 128, 128, True) == "triton"
    assert choose_engine("auto", GPU, FLOAT8, 128, 128, True) == "triton"
    assert choose_engine("auto", GPU, BF16, 80, 128, False) == "triton"
    assert choose_engine("auto", GPU, torch.float32, 80, 256, False) == "triton"
    hopper(flash=False)
    assert choose_engine("auto", GPU, BF16, 64, 128, False) == "triton"
    hopper(capability=(8, 0))
    assert choose_engine("auto", GPU, BF16, 64, 128, False) == "triton"
    logged = caplog.text
    assert "bfloat16: flash (TFLOP/s measured on an H100: flash" in logged and "flash-attn-4 isn't installed" in logged
    for _ in range(3):
        choose_engine("auto", GPU, BF16, 64, 128, False)
    assert caplog.text == logged


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("auto", CPU, FLOAT8, 64, 128, True), "the float8 carrier needs a GPU: use carrier 'input'"),
        (("eager", CPU, FLOAT8, 64, 128, True), "the oracle has no float8 carrier"),
        (("flash", CPU, BF16, 64, 128, False), "flash: needs a Hopper GPU or later.*would work: triton, eager"),
        (("flash", GPU, FLOAT8, 64, 128, True), "flash: float8_e4m3fn, expected bfloat16.*would work: triton"),
        (("flash", GPU, BF16, 96, 128, False), "heads of 96, expected 64 or 128.*would work: triton, eager"),
        (("flash", GPU, BF16, 64, 256, False), "blocks of 256 slots, expected 128.*would work: triton, eager"),
        (
            ("flash", GPU, BF16, 64, 128, True),
            "fp32 scales need a score_mod.*take scale_format 'pow2'.*: triton, eager",
        ),
        (("triton", GPU, BF16, 64, 64, True), "blocks of 64 slots, expected a multiple of 128.*would work: eager"),
        (("triton", GPU, BF16, 8, 128, True), "heads of 8, expected 16 to 256 in bfloat16.*would work: eager"),
        (("triton", GPU, FLOAT8, 16, 128, True), "heads of 16, expected 32 to 256 in float8_e4m3fn.*would work: none"),
        (("auto", GPU, torch.float64, 64, 128, True), "no float64 on a GPU.*would work: eager"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
def test_an_engine_that_can_not_run_a_call_says_why_and_which_can(hopper, call, message):
    hopper()
    with pytest.raises(ValueError, match=message):
        choose_engine(*call)


def test_a_cpu_kernel_that_would_crash_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.11.0"))
    assert choose_engine("triton", CPU, torch.float32, 64, 16, True) == "triton"
    torch.set_num_threads(2)
    with pytest.raises(ValueError, match="crashes there with several threads on a CPU.*would work: eager"):
        choose_engine("triton", CPU, torch.float32, 64, 16, True)


def test_a_gpu_without_float8_or_flash_says_so(hopper):
    hopper(capability=(8, 0), flash=False)
    with pytest.raises(ValueError, match="this GPU has no float8"):
        choose_engine("auto", GPU, FLOAT8, 128, 128, True)
    with pytest.raises(ValueError, match="flash: needs a Hopper GPU or later.*would work: triton, eager"):
        choose_engine("flash", GPU, BF16, 128, 128, False)
    hopper(flash=False)
    with pytest.raises(ValueError, match=re.escape(MISSING)):
        choose_engine("flash", GPU, BF16, 128, 128, False)


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("4.0.0b36", None),
        ("4.0.0b26", None),
        ("4.0.0", None),
        ("4.1.0rc1", None),
        (
            "4.0.0b25",
            "flash-attn-4 is 4.0.0b25, which may read inputs early (pip install --pre 'flash-attn-4>=4.0.0b26')",
        ),
        ("4.0.0b9", "flash-attn-4 is 4.0.0b9, which may"),
        (None, MISSING),
    ],
)
@pytest.mark.parametrize("module", [True, False])
def test_a_flash_that_is_too_old_is_named(monkeypatch, version, told, module):
    """Also parts of it in FlashAttention-2's package, and a record without the module."""
    monkeypatch.setattr(engines, "find_spec", lambda name: module or None)

    def find(name):
        if version is None:
            raise engines.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(engines, "version", find)
    engines.missing_flash.cache_clear()
    try:
        got = engines.missing_flash()
    finally:
        engines.missing_flash.cache_clear()
    assert got is None if told is None and module else (told if module else MISSING) in got
