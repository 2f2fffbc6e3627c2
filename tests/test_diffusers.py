"""FPS attention in stock diffusers pipelines: stock when dense, our own Wan otherwise, and gone without a trace."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from threading import Barrier

import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from PIL import Image
from tiny_wan import SIZES, tiny_pipeline
from tiny_wan import tiny_transformer as flat_transformer
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from eval.bench.__main__ import command as bench
from eval.bench.pipeline import pipeline
from eval.sampling import build_scheduler, sample_latents
from fps_flex import FPSAttention, Regime, StepSchedule, Wan, WanConfig
from fps_flex.diffusers import _attend_opaquely, attend_raster, install, install_trained, uninstall
from fps_flex.names import to_official
from fps_flex.weights import SETTINGS, export, load_wan, open_weights
from fps_flex.weights import main as weights
from train.fit import main as fit

SMALL = {"tile": (2, 2, 3), "block": 16}  # ragged on every grid here
FULL = StepSchedule(bounds=(), regimes=(Regime((9, 9, 9)),))
THREE = StepSchedule(regimes=(Regime((2, 3, 1), granularity=4), Regime((1, 2, 2)), Regime((2, 1, 1), granularity=2)))
SIZES_OF_VIDEOS = ((48, 80, 9), (64, 96, 5))  # rows, columns, frames
SAME, OTHER = 2e-3, 0.05  # relative errors: the same but for a code that rounds otherwise; another attention
TEXT = torch.randn(1, 512, 32, generator=torch.Generator().manual_seed(1))


def sharpen(transformer):
    """Attention that a window or a rounding changes: with norms as small as the tests' it is almost uniform."""
    for block in transformer.blocks:
        for norm in (block.attn1.norm_q, block.attn1.norm_k):
            torch.nn.init.constant_(norm.weight, 1.5)
        torch.nn.init.normal_(block.attn1.to_out[0].weight, std=0.5)
    return transformer.eval()


def tiny_transformer():
    return sharpen(flat_transformer())


def tiny_i2v_transformer():
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=36, out_channels=16, text_dim=32, freq_dim=64,
        ffn_dim=96, num_layers=2, image_dim=16, added_kv_proj_dim=48,
    )  # fmt: skip
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return sharpen(transformer)


def t2v_pipeline():
    pipe = tiny_pipeline()
    sharpen(pipe.transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def i2v_pipeline():
    """As Wan2.1's: the image goes in as channels, and through CLIP into cross-attention."""
    stock = tiny_pipeline()
    clip = CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, intermediate_size=16, patch_size=16
    )
    pipe = WanImageToVideoPipeline(
        tokenizer=stock.tokenizer, text_encoder=stock.text_encoder, vae=stock.vae, scheduler=stock.scheduler,
        image_processor=CLIPImageProcessorPil(crop_size=32, size=32), image_encoder=CLIPVisionModel(clip).eval(),
        transformer=tiny_i2v_transformer(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(params=[t2v_pipeline, i2v_pipeline], ids=["t2v", "i2v"])
def pipe(request):
    return request.param()


def generate(pipe, height=48, width=80, frames=9, steps=3, **options):
    """Latents of a whole run of the pipeline, with guidance."""
    if isinstance(pipe, WanImageToVideoPipeline):
        options["image"] = Image.new("RGB", (width, height), (200, 30, 30))
    return pipe(
        prompt_embeds=TEXT, negative_prompt_embeds=-TEXT, height=height, width=width, num_frames=frames,
        num_inference_steps=steps, guidance_scale=4.0, generator=torch.Generator().manual_seed(3),
        output_type="latent", **options,
    ).frames  # fmt: skip


def inputs(sigma, grid=(3, 5, 7), channels=16):
    generator = torch.Generator().manual_seed(5)
    t, h, w = grid
    latents = torch.randn(len(sigma), channels, t, 2 * h, 2 * w, generator=generator)
    return latents, 1000 * torch.tensor(sigma), torch.randn(len(sigma), 6, 32, generator=generator)


@torch.no_grad()
def call(transformer, sigma=(0.95, 0.4), **options):
    """One forward pass of a batch at these noise levels."""
    latents, timestep, text = inputs(sigma, **options)
    return transformer(latents.to(transformer.dtype), timestep, text.to(transformer.dtype)).sample


def own_wan(transformer, attention):
    """Our own model with the same weights."""
    wan = Wan(WanConfig(**SIZES), attention)
    wan.load_state_dict({to_official(name): x for name, x in transformer.state_dict().items()})
    return wan.eval()


def relative_error(x, reference):
    return ((x - reference).norm() / reference.norm()).item()


@pytest.fixture
def sigmas(monkeypatch):
    """The noise levels that passes are planned for."""
    seen, plan = [], FPSAttention.plan
    monkeypatch.setattr(FPSAttention, "plan", lambda *args: seen.append(args[2].tolist()) or plan(*args))
    return seen


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


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
    whole = torch.compile(transformer, backend="eager")
    stock = call(whole)
    install(whole, THREE, **SMALL)
    for sigma in ((0.95, 0.4), (0.3, 0.8)):
        assert relative_error(call(whole, sigma), call(transformer, sigma)) < SAME
    assert relative_error(call(whole), stock) > OTHER
    uninstall(whole)
    torch.testing.assert_close(call(whole), stock, rtol=0, atol=1e-5)


def test_another_schedule_compiles_nothing(fresh_compiler):
    transformer = tiny_transformer()
    transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    for schedule in ("fps", THREE, "sta", "uniform"):
        install(transformer, schedule, **SMALL)
        call(transformer)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


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


def test_the_compiled_op_returns_what_it_says():
    transformer = tiny_transformer()
    install(transformer, THREE, **SMALL)
    processor = transformer.blocks[0].attn1.processor
    latents, timestep, _ = inputs((0.95, 0.4))
    q, k, v = torch.randn(3, 2, 105, 2, 24)
    processor.before_forward(transformer, (latents,), {"timestep": timestep})
    try:
        torch.library.opcheck(_attend_opaquely, (q, k, v), test_utils=("test_schema", "test_faketensor"))
        out = _attend_opaquely(q, k, v)
        assert out.is_contiguous() and torch.equal(out, attend_raster(q, k, v))
    finally:
        processor.after_forward()
    assert torch.Tag.cudagraph_unsafe in torch.ops.fps_flex.attend_opaquely.default.tags


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


def test_what_can_not_run_says_so():
    transformer = tiny_transformer()
    install(transformer, "fps", **SMALL)
    transformer.enable_gradient_checkpointing()
    with pytest.raises(ValueError, match="no gradient checkpointing in diffusers: disable it, or use train.fit"):
        transformer(*inputs((0.5,)))
    call(transformer)  # without gradients there is nothing to recompute
    with pytest.raises(ValueError, match="outside a forward pass of its transformer: call the transformer itself"):
        transformer.forward(*inputs((0.5,)))
    rope = torch.ones(1, 4, 1, 24)
    with pytest.raises(ValueError, match="a video's own tokens and no mask: got other tokens or a mask"):
        transformer.blocks[0].attn1(torch.randn(1, 4, 48), torch.randn(1, 4, 48), None, (rope, rope))


def context_parallel(transformer):
    for block in transformer.blocks:
        block.attn1.processor._parallel_config = object()
    return transformer


class Sage:
    """Another project's processor."""


def sage(transformer):
    transformer.blocks[1].attn1.set_processor(Sage())
    return transformer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.nn.Linear(2, 2), "got a Linear, expected diffusers' WanTransformer3DModel"),
        (
            t2v_pipeline,
            "got a WanPipeline, expected diffusers' WanTransformer3DModel: pass its transformer",
        ),
        (lambda: own_wan(tiny_transformer(), FPSAttention()), "got a Wan, expected diffusers' WanTransformer3DModel"),
        (lambda: tiny_transformer().to(torch.float16), "the transformer is in float16, expected bfloat16 or float32"),
        (
            lambda: sage(tiny_transformer()),
            "blocks.1.attn1 has another attention processor already, Sage: set diffusers' own again",
        ),
        (lambda: context_parallel(tiny_transformer()), "splits its tokens over GPUs (context parallelism)"),
    ],
    ids=["linear", "pipeline", "own-wan", "float16", "another-processor", "context-parallel"],
)
def test_what_does_not_fit_is_one_clear_line_and_changes_nothing(make, message):
    model = make()
    before = dict(getattr(model, "attn_processors", {}))
    with pytest.raises(ValueError) as refused:
        install(model)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert getattr(model, "attn_processors", {}) == before and not getattr(model, "_forward_pre_hooks", None)


def test_another_processor_put_over_ours_is_left_where_it_is():
    transformer = tiny_transformer()
    install(transformer, "fps", **SMALL)
    sage(transformer)
    uninstall(transformer)
    kinds = [type(block.attn1.processor) for block in transformer.blocks]
    assert kinds == [WanAttnProcessor, Sage] and not transformer._forward_pre_hooks


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of two steps on moving shapes, whose schedule is its own, and what was exported from it."""
    folder = tmp_path_factory.mktemp("trained")
    fit(["--config=configs/tiny.yaml", f"--run={folder / 'run'}", "--trainer.max_steps=2", "--data.val_clips=1",
         "--trainer.val_check_interval=2", "--checkpoint.every_n_train_steps=2", "--sample.steps=1",
         "--sample.count=1", "--model.val_levels=1", "--data.batch_size=1", "--model.lr=0.1"])  # fmt: skip
    checkpoint = folder / "run/checkpoints/last.ckpt"
    weights(["convert", str(checkpoint), str(folder / "exported"), "--format", "diffusers"])
    return checkpoint, folder / "exported"


@pytest.mark.parametrize("which", [0, 1], ids=["checkpoint", "export"])
def test_a_model_fine_tuned_here_goes_on_with_the_attention_it_was_trained_with(trained, which):
    checkpoint, exported = trained
    transformer, report = WanTransformer3DModel.from_pretrained(exported, output_loading_info=True)
    assert not any(report.values())
    held = torch.load(checkpoint, weights_only=True)["fps_flex"]["attention"]
    wan = load_wan(exported, FPSAttention.from_dict(held))
    install_trained(transformer, trained[which])
    assert transformer.blocks[0].attn1.processor.attention == FPSAttention.from_dict(held)
    latents, text = torch.randn(2, 24, 5, 8, 8), torch.randn(2, 8, 32)
    with torch.no_grad():
        for timestep in (torch.tensor([950.0, 300.0]), torch.tensor([700.0, 50.0])):
            expected, got = wan(latents, timestep, text), transformer(latents, timestep, text).sample
            assert expected.std() > 0.01 and relative_error(got, expected) < SAME
    install_trained(transformer, trained[which], scale_format="pow2")
    changed = asdict(transformer.blocks[0].attn1.processor.attention)
    assert changed == {**asdict(FPSAttention.from_dict(held)), "scale_format": "pow2"}


def test_settings_of_another_model_and_broken_ones_are_one_clear_line(trained, tmp_path):
    checkpoint, exported = trained
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / SETTINGS).write_text("{")
    older = tmp_path / "older"
    older.mkdir()
    (older / SETTINGS).write_text(json.dumps({"wan": {**SIZES, "depth": 3}}))
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    for path, message in (
        (checkpoint, "was trained as another model: dim 128, ffn_dim 384, layers 3, channels 24; this transformer has "
                     "dim 48, ffn_dim 96, layers 2, channels 16"),
        (exported, "was trained as another model: dim 128"),
        (tmp_path, f"no {SETTINGS} in {tmp_path}: expected a .ckpt of train.fit, or the folder that"),
        (broken, "doesn't say its attention (JSONDecodeError"),
        (older, "doesn't say its attention (TypeError"),
        (tmp_path / "other.ckpt", "is no checkpoint of this project (it lacks state_dict or fps_flex)"),
        (tmp_path / "none.ckpt", "no checkpoint"),
    ):  # fmt: skip
        transformer = tiny_transformer()
        with pytest.raises(ValueError) as refused:
            install_trained(transformer, path)
        assert message in str(refused.value) and "\n" not in str(refused.value)
        assert type(transformer.blocks[0].attn1.processor) is WanAttnProcessor


def test_released_weights_are_exported_without_settings(wan_folder, tmp_path):
    export(open_weights(wan_folder), tmp_path / "out", "diffusers")
    assert not (tmp_path / "out" / SETTINGS).exists()


def test_the_bench_runs_in_small_and_writes_what_it_measured(tmp_path, capsys):
    pipeline("tiny", steps=5, compiled=False, layers=1, out=tmp_path / "out/bench.json")
    stock, fps = json.loads((tmp_path / "out/bench.json").read_text())["rows"]
    assert (stock["attention"], stock["density"], stock["layers"]) == ("stock", 1, 1)
    assert fps["attention"] == "fps" and 0 < fps["density"] < 1 and set(fps["regimes"]) == {0, 1, 2}
    assert all(len(row["all_step_seconds"]) == 5 and row["step_seconds"] > 0 for row in (stock, fps))
    assert fps["over_stock"] == stock["step_seconds"] / fps["step_seconds"]
    for option, message in (("--attention.tile=null", "name a tile"), ("--steps=0", "expected at least 1")):
        with pytest.raises(SystemExit) as stopped:
            bench(["pipeline", "--size=tiny", option])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
