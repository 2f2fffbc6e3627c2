"""FPS attention in stock diffusers pipelines: stock when dense, our own Wan otherwise, and gone without a trace."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from diffusers import WanPipeline

from eval.generate.sampling import build_scheduler, sample_latents
from fps_flex import FPSAttention
from fps_flex.diffusers import install, uninstall
from tests.helpers.cases import relative_error
from tests.helpers.stock_wan import (
    FULL,
    OTHER,
    SAME,
    SIZES_OF_VIDEOS,
    SMALL,
    TEXT,
    THREE,
    call,
    generate,
    i2v_pipeline,
    inputs,
    own_wan,
    t2v_pipeline,
    tiny_transformer,
)


@pytest.fixture(params=[t2v_pipeline, i2v_pipeline], ids=["t2v", "i2v"])
def pipe(request):
    return request.param()


@pytest.fixture
def sigmas(monkeypatch):
    """The noise levels that passes are planned for."""
    seen, plan = [], FPSAttention.plan
    monkeypatch.setattr(FPSAttention, "plan", lambda *args: seen.append(args[2].tolist()) or plan(*args))
    return seen


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "dense"},
        {"schedule": "dense", "tile": None},
        {"schedule": FULL},
        {"schedule": THREE, "quantize": False, "sparse": False},
    ],
    ids=["dense", "dense-in-one-tile", "full-windows", "both-halves-off"],
)
def test_unquantised_with_full_windows_nothing_changes(options):
    transformer = tiny_transformer()
    expected = call(transformer)
    install(transformer, **{**SMALL, **options})
    torch.testing.assert_close(call(transformer), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("scale_format", "bound"), [("fp32", SAME), ("pow2", 5 * SAME)])
@pytest.mark.parametrize("schedule", ["fps", THREE], ids=["fps", "three"])
@pytest.mark.parametrize("sigma", [(0.97,), (0.8,), (0.3,), (0.97, 0.8, 0.3)])
def test_it_equals_our_own_wan_with_the_same_weights(sigma, schedule, scale_format, bound):
    transformer = tiny_transformer()
    stock = call(transformer, sigma)
    wan = own_wan(transformer, FPSAttention(schedule, **SMALL, scale_format=scale_format))
    install(transformer, schedule, **SMALL, scale_format=scale_format)
    with torch.no_grad():
        expected = wan(*inputs(sigma))
    assert relative_error(stock, expected) > OTHER
    assert relative_error(call(transformer, sigma), expected) < bound


@pytest.mark.parametrize(("quantize", "bound"), [(False, 1e-4), (True, 0.03)])
def test_a_whole_run_of_text_to_video_is_that_of_our_own_wan_at_two_resolutions(quantize, bound):
    """One code that rounds otherwise grows from step to step; without codes nothing does."""
    pipe = t2v_pipeline()
    wan = own_wan(pipe.transformer, FPSAttention(THREE, **SMALL, quantize=quantize))
    stock = [generate(pipe, *size, steps=5) for size in SIZES_OF_VIDEOS]
    install(pipe.transformer, THREE, **SMALL, quantize=quantize)
    for (height, width, frames), dense in zip(SIZES_OF_VIDEOS, stock, strict=True):
        noise = torch.randn(dense.shape, generator=torch.Generator().manual_seed(3))
        expected = sample_latents(wan, build_scheduler("unipc", 5, 3.0), noise, TEXT, -TEXT, guidance=4.0)
        assert relative_error(dense, expected) > 2 * OTHER
        assert relative_error(generate(pipe, height, width, frames, steps=5), expected) < bound


def test_dense_changes_nothing_in_a_whole_run_at_two_resolutions(pipe):
    expected = [generate(pipe, *size) for size in SIZES_OF_VIDEOS]
    install(pipe.transformer, "dense", **SMALL)
    for size, latents in zip(SIZES_OF_VIDEOS, expected, strict=True):
        torch.testing.assert_close(generate(pipe, *size), latents, rtol=0, atol=1e-5)


def test_uninstalled_all_is_as_before_bit_by_bit(pipe):
    transformer = pipe.transformer
    before, expected = transformer.attn_processors, generate(pipe)
    install(transformer, "fps", **SMALL)
    during = transformer.attn_processors
    changed = {name for name, processor in before.items() if during[name] is not processor}
    assert changed == {"blocks.0.attn1.processor", "blocks.1.attn1.processor"}  # no cross-attention
    assert relative_error(generate(pipe), expected) > OTHER
    uninstall(transformer)
    assert transformer.attn_processors == before
    assert not transformer._forward_pre_hooks and not transformer._forward_hooks
    assert torch.equal(generate(pipe), expected)
    with pytest.raises(ValueError, match="FPS attention is not installed in this transformer: nothing to uninstall"):
        uninstall(transformer)


def test_installed_again_the_new_settings_take_the_place_of_the_old():
    transformer = tiny_transformer()
    before, stock = transformer.attn_processors, call(transformer)
    install(transformer, THREE, **SMALL)
    install(transformer, "dense", **SMALL)
    torch.testing.assert_close(call(transformer), stock, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="schedule is 'nope', expected one of fps, sta, uniform, dense"):
        install(transformer, "nope")
    torch.testing.assert_close(call(transformer), stock, rtol=0, atol=1e-5)
    uninstall(transformer)
    assert transformer.attn_processors == before and not transformer._forward_pre_hooks


def test_a_batch_is_its_samples_one_by_one():
    """Guidance in one call on a batch of two, and noise levels of different regimes together."""
    transformer = tiny_transformer()
    install(transformer, THREE, **SMALL)
    for sigma in ((0.3, 0.3), (0.98, 0.3)):
        latents, timestep, text = inputs(sigma)
        with torch.no_grad():
            both = transformer(latents, timestep, text).sample
            alone = [transformer(*(x[i : i + 1] for x in (latents, timestep, text))).sample for i in range(2)]
        assert relative_error(both, torch.cat(alone)) < SAME


def test_the_noise_level_is_read_from_every_form_of_timestep(sigmas):
    transformer = tiny_transformer()
    install(transformer, THREE, **SMALL)
    latents, _, text = inputs((0.3, 0.3))
    one_for_each_token = torch.full((2, 3, 5, 7), 300.0)
    one_for_each_token[:, 0] = 0  # an image's, as Wan2.2 5B is called
    with torch.no_grad():
        for timestep in (torch.tensor([900, 300]), torch.tensor([300.0]), one_for_each_token.flatten(1)):
            transformer(latents, timestep, encoder_hidden_states=text)
            transformer(hidden_states=latents, timestep=timestep, encoder_hidden_states=text)
    expected = [[0.9, 0.3], [0.3, 0.3], [0.3, 0.3]]
    torch.testing.assert_close(torch.tensor(sigmas), torch.tensor(expected).repeat_interleave(2, 0))


def test_a_pipeline_with_a_timestep_for_each_token_runs(sigmas):
    pipe = WanPipeline(**t2v_pipeline().components, expand_timesteps=True)
    pipe.set_progress_bar_config(disable=True)
    expected = generate(pipe)
    install(pipe.transformer, "dense", **SMALL)
    torch.testing.assert_close(generate(pipe), expected, rtol=0, atol=1e-5)
    assert len(sigmas) == 6 and sigmas[0] > sigmas[-1]


def test_a_tile_is_cut_to_a_short_video():
    transformer = tiny_transformer()
    expected = call(transformer, grid=(1, 5, 7))
    install(transformer, "dense", tile=(6, 8, 8), block=16)
    torch.testing.assert_close(call(transformer, grid=(1, 5, 7)), expected, rtol=0, atol=1e-5)


def test_each_thread_has_its_own_forward_pass():
    """Two threads share a transformer at different noise levels, and each waits in its first layer for the other."""
    transformer = tiny_transformer()
    install(transformer, THREE, **SMALL)
    sigmas = ((0.98,), (0.2,))
    expected = [call(transformer, sigma) for sigma in sigmas]
    both = Barrier(2)

    def meet(module, args):
        both.wait(timeout=30)

    transformer.blocks[0].attn1.norm_k.register_forward_pre_hook(meet)
    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(lambda sigma: call(transformer, sigma), sigmas))
    for latents, alone in zip(got, expected, strict=True):
        assert relative_error(latents, alone) < SAME


def test_offloading_and_fused_projections_change_nothing(pipe):
    install(pipe.transformer, "fps", **SMALL)
    expected = generate(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    assert hasattr(pipe.transformer, "_hf_hook") and torch.equal(generate(pipe), expected)
    pipe.remove_all_hooks()
    assert torch.equal(generate(pipe), expected)
    pipe.transformer.fuse_qkv_projections()
    assert pipe.transformer.blocks[0].attn1.fused_projections
    assert relative_error(generate(pipe), expected) < SAME


class LowRank(torch.nn.Module):
    """What PEFT puts in the place of a linear layer."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down, self.up = torch.nn.Linear(base.in_features, 2), torch.nn.Linear(2, base.out_features)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def test_layers_in_the_place_of_projections_are_used():
    transformer = tiny_transformer()
    plain = call(transformer)
    for name in ("to_q", "to_k", "to_v"):
        setattr(transformer.blocks[1].attn1, name, LowRank(getattr(transformer.blocks[1].attn1, name)))
    expected = call(transformer)
    assert relative_error(plain, expected) > SAME
    install(transformer, "dense", **SMALL)
    torch.testing.assert_close(call(transformer), expected, rtol=0, atol=1e-5)


def test_lora_weights_are_loaded_scaled_and_unloaded(tmp_path):
    peft = pytest.importorskip("peft")
    pipe = t2v_pipeline()
    plain = generate(pipe)
    config = peft.LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    pipe.transformer.add_adapter(config, adapter_name="saved")
    state = peft.get_peft_model_state_dict(pipe.transformer, adapter_name="saved")
    WanPipeline.save_lora_weights(tmp_path, transformer_lora_layers=state)
    pipe.transformer.delete_adapters("saved")

    pipe.load_lora_weights(tmp_path)
    half = {"attention_kwargs": {"scale": 0.5}}
    expected, scaled = generate(pipe), generate(pipe, **half)
    assert relative_error(plain, expected) > OTHER and relative_error(scaled, expected) > OTHER
    install(pipe.transformer, "dense", **SMALL)
    for _ in range(2):
        torch.testing.assert_close(generate(pipe), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(generate(pipe, **half), scaled, rtol=0, atol=1e-4)
        pipe.unload_lora_weights()
        torch.testing.assert_close(generate(pipe), plain, rtol=0, atol=1e-4)
        pipe.load_lora_weights(tmp_path)


def test_bfloat16_and_autocast_come_near_float32():
    expected = own_wan(tiny_transformer(), FPSAttention(THREE, **SMALL))
    with torch.no_grad():
        expected = expected(*inputs((0.95, 0.4)))
    transformer = tiny_transformer()
    install(transformer, THREE, **SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(call(transformer).float(), expected) < 0.03
    transformer.to(torch.bfloat16)
    for block in transformer.blocks:  # as autocast's norms do on a GPU
        block.attn1.norm_q.register_forward_hook(lambda module, args, out: out.float())
    got = call(transformer)
    assert got.dtype == torch.bfloat16 and relative_error(got.float(), expected) < 0.03


def test_gradients_are_those_of_stock_attention():
    transformer = tiny_transformer()
    gradients = []
    for _ in range(2):
        transformer.zero_grad()
        transformer(*inputs((0.95, 0.4))).sample.square().mean().backward()
        gradients.append([p.grad.clone() for p in transformer.blocks[0].attn1.parameters()])
        install(transformer, "dense", **SMALL)
    for got, expected in zip(*gradients, strict=True):
        assert expected.any()
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
