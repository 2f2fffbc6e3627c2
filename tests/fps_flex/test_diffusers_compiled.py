"""FPS attention in a stock transformer whose blocks are compiled."""

import copy

import pytest
import torch

from fps_flex import FPSAttention, Regime, StepSchedule
from fps_flex.diffusers import _attend_opaquely, attend_raster, install, uninstall
from tests.helpers.cases import relative_error
from tests.helpers.stock_wan import (
    OTHER,
    SAME,
    SIZES_OF_VIDEOS,
    SMALL,
    THREE,
    call,
    generate,
    i2v_pipeline,
    inputs,
    t2v_pipeline,
    tiny_transformer,
)

pytestmark = pytest.mark.compiles


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize(
    ("build", "first"), [(t2v_pipeline, "install"), (i2v_pipeline, "compile")], ids=["t2v-install", "i2v-compile"]
)
def test_compiled_blocks_give_the_same_at_two_resolutions(build, first, fresh_compiler):
    pipe = build()
    stock = [generate(pipe, *size) for size in SIZES_OF_VIDEOS]
    install(pipe.transformer, "fps", **SMALL)
    expected = [generate(pipe, *size) for size in SIZES_OF_VIDEOS]
    if first == "compile":
        uninstall(pipe.transformer)
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    if first == "compile":
        torch.testing.assert_close(generate(pipe), stock[0], rtol=0, atol=1e-5)
        install(pipe.transformer, "fps", **SMALL)
    for size, dense, latents in zip(SIZES_OF_VIDEOS, stock, expected, strict=True):
        assert relative_error(dense, latents) > OTHER
        assert relative_error(generate(pipe, *size), latents) < SAME
    uninstall(pipe.transformer)
    torch.testing.assert_close(generate(pipe), stock[0], rtol=0, atol=1e-5)


def test_blocks_compiled_to_machine_code_give_the_same(fresh_compiler):
    transformer = tiny_transformer()
    stock = call(transformer)
    install(transformer, "fps", **SMALL)
    expected = call(transformer)
    transformer.compile_repeated_blocks(fullgraph=True)
    assert relative_error(stock, expected) > OTHER
    assert relative_error(call(transformer), expected) < SAME


@pytest.mark.parametrize("compiled", [False, True])
def test_a_pass_is_planned_once_and_every_layer_attends_by_its_plan(monkeypatch, compiled, fresh_compiler):
    """Compiled or not: another step compiles nothing, and no layer is left to dense attention."""
    plans, used = [], []
    plan, attend = FPSAttention.plan, FPSAttention.over_tokens
    monkeypatch.setattr(FPSAttention, "plan", lambda *args: plans.append(plan(*args)) or plans[-1])
    monkeypatch.setattr(FPSAttention, "over_tokens", lambda *args: used.append(args[-1]) or attend(*args))
    transformer = tiny_transformer()
    install(transformer, "fps", **SMALL)
    if compiled:
        transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    call(transformer, sigma=(0.97,))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == (1 if compiled else 0)
    for sigma in (0.9, 0.7, 0.3):
        call(transformer, sigma=(sigma,))
    assert len(plans) == 4 and [id(x) for x in used] == [id(x) for x in plans for _ in range(2)]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_two_compiled_transformers_and_a_copy_keep_their_own_settings(fresh_compiler):
    """Wan2.2 A14B has two, for high and for low noise, with the same code."""
    narrow = StepSchedule(bounds=(), regimes=(Regime((1, 1, 1), granularity=1),))
    wide, other = tiny_transformer(), tiny_transformer()
    install(wide, "fps", **SMALL)
    install(other, narrow, **SMALL)
    transformers = [wide, other, copy.deepcopy(wide)]
    expected = [call(transformer) for transformer in transformers]
    assert relative_error(expected[1], expected[0]) > OTHER and torch.equal(expected[2], expected[0])
    for transformer in transformers:
        transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    for _ in range(2):
        for transformer, latents in zip(transformers, expected, strict=True):
            assert relative_error(call(transformer), latents) < SAME
    uninstall(wide)
    assert relative_error(call(transformers[2]), expected[2]) < SAME


def test_a_transformer_compiled_whole_gives_the_same(fresh_compiler):
    transformer = tiny_transformer()
    compiled = torch.compile(transformer, backend="eager")
    stock = call(compiled)
    install(compiled, THREE, **SMALL)
    for sigma in ((0.95, 0.4), (0.3, 0.8)):
        assert relative_error(call(compiled, sigma), call(transformer, sigma)) < SAME
    assert relative_error(call(compiled), stock) > OTHER
    uninstall(compiled)
    torch.testing.assert_close(call(compiled), stock, rtol=0, atol=1e-5)


def test_another_schedule_compiles_nothing(fresh_compiler):
    transformer = tiny_transformer()
    transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    for schedule in ("fps", THREE, "sta", "uniform"):
        install(transformer, schedule, **SMALL)
        call(transformer)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_layers_with_schedules_of_their_own_compile_nothing_and_get_them(fresh_compiler):
    layers = {1: Regime((1, 1, 1), granularity=1)}
    transformer = tiny_transformer()
    dense = call(transformer)
    install(transformer, "dense", **SMALL, layers=layers)
    expected = call(transformer)
    assert relative_error(expected, dense) > OTHER / 10
    install(transformer, "dense", **SMALL)
    transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    call(transformer)
    for layers_now, latents in ((layers, expected), ({"0-1": "dense"}, dense), (layers, expected)):
        install(transformer, "dense", **SMALL, layers=layers_now)
        assert relative_error(call(transformer), latents) < SAME
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_the_compiled_op_returns_what_it_says():
    transformer = tiny_transformer()
    install(transformer, THREE, **SMALL)
    installed, layer = transformer._fps_flex, transformer.blocks[0].attn1.processor.layer
    latents, timestep, _ = inputs((0.95, 0.4))
    q, k, v = torch.randn(3, 2, 105, 2, 24)
    installed.before_forward(transformer, (latents,), {"timestep": timestep})
    try:
        torch.library.opcheck(_attend_opaquely, (q, k, v, layer), test_utils=("test_schema", "test_faketensor"))
        out = _attend_opaquely(q, k, v, layer)
        assert out.is_contiguous() and torch.equal(out, attend_raster(q, k, v, layer))
    finally:
        installed.after_forward()
    assert torch.Tag.cudagraph_unsafe in torch.ops.fps_flex.attend_opaquely.default.tags
