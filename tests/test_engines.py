"""The compiled path on a CPU: what compiles again, what raises, and that it is never dense in silence."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from fps_flex import FPSAttention, Regime, StepSchedule, TileLayout, block_mask, dequantize, engines
from fps_flex.engines import attend, choose_engine
from fps_flex.reference import reference_attention


@pytest.fixture
def compiled(monkeypatch):
    """The same wrapper with a backend that only counts: what torch.compile traces anew, without generating code."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    wrapper = torch.compile(flex_attention, fullgraph=True, dynamic=False, backend=backend)
    monkeypatch.setattr(engines, "_compiled_flex_attention", wrapper)
    yield graphs
    torch._dynamo.reset()


def qkv(batch, layout, heads=2, dim=8):
    return [torch.randn(batch, heads, layout.slots, dim) for _ in range(3)]


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


def test_twelve_grids_one_after_the_other(compiled):
    attention = FPSAttention("uniform", tile=(2, 2, 2), block=8, engine="triton")
    oracle = FPSAttention("uniform", tile=(2, 2, 2), block=8, engine="eager")
    for width in range(2, 14):
        plan = attention.plan((2, 3, width), torch.tensor([0.5]))
        x = qkv(1, plan.layout)
        torch.testing.assert_close(attention(*x, plan), oracle(*x, plan))
    assert 6 <= len(compiled) <= 12


def test_past_the_recompile_limit_it_raises_and_is_not_dense(compiled, monkeypatch):
    monkeypatch.setattr(engines, "RECOMPILE_LIMIT", 2)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        for width in range(2, 20, 4):
            layout = TileLayout((2, 2, width), (2, 2, 2), 8)
            attend(*qkv(1, layout), block_mask(layout, (1, 1, 1)), engine="triton")


def test_the_compiled_cpu_kernel_equals_the_oracle():
    layout = TileLayout((4, 6, 7), (2, 3, 3), 32)
    q, k, v = qkv(2, layout, dim=16)
    bm = block_mask(layout, [(1, 2, 1), (2, 1, 2)])
    score_mod = dequantize(*(torch.rand(2, 2, layout.slots) + 0.5 for _ in range(2)))
    got = attend(q, k, v, bm, score_mod, engine="triton")
    torch.testing.assert_close(got, reference_attention(q, k, v, bm.mask_mod, score_mod))


def test_the_oracle_ignores_autocast():
    layout = TileLayout((2, 4, 4), (2, 2, 2), 8)
    q, k, v = qkv(1, layout)
    bm = block_mask(layout, (1, 2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        inside = attend(q, k, v, bm, engine="eager")
    assert inside.dtype == torch.float32 and torch.equal(inside, attend(q, k, v, bm, engine="eager"))


def test_what_an_engine_can_not_do_is_named():
    layout = TileLayout((2, 2, 2), (2, 2, 2), 8)
    q, k, v = qkv(1, layout)
    bm = block_mask(layout, (1, 1, 1))
    with pytest.raises(ValueError, match="engine is 'cudnn', expected auto, eager or triton"):
        attend(q, k, v, bm, engine="cudnn")
    with pytest.raises(ValueError, match="the triton engine has no gradients on a CPU"):
        attend(q.requires_grad_(), k, v, bm, engine="triton")
    with pytest.raises(ValueError, match="float8 carrier needs the triton engine and a GPU"):
        choose_engine("auto", q.detach().to(torch.float8_e4m3fn))
    with pytest.raises(ValueError, match="float8 carrier needs the triton engine and a GPU"):
        choose_engine("triton", q.detach().to(torch.float8_e4m3fn))
