"""Releases with two transformers: opened by one of them, sampled with both, fine-tuned one at a time."""

import json
import shutil

import pytest
import torch
from diffusers.configuration_utils import FrozenDict

from eval.fidelity.command import command as compare
from eval.generate.command import command, resolve_settings
from eval.generate.jobs import Options
from eval.generate.models import open_model
from eval.generate.sampling import LowNoise, build_scheduler, sample_latents
from fps_flex import FPSAttention
from fps_flex.wan.convert import main
from fps_flex.wan.encoders import UMT5Text
from fps_flex.wan.experts import ALL, find_experts, levels_of
from fps_flex.wan.flow import noise_level, spread_noise_levels
from fps_flex.wan.weights import load_wan, open_weights
from tests.helpers.commands import refused
from tests.helpers.tiny_wan import tiny_pipeline, tiny_transformer
from tests.train.test_finetune import QUICK, small_wan
from train.fit import main as fit

CPU = torch.device("cpu")
ONE_STEP = [*QUICK, "--trainer.max_steps=1", "--trainer.val_check_interval=1", "--checkpoint.every_n_train_steps=1"]
SMALL = ["--prompt=a red circle", "--frames=5", "--height=32", "--width=48", "--steps=4"]


@pytest.fixture(scope="module")
def stock():
    """A pipeline of two transformers of different weights."""
    pipe = tiny_pipeline()
    second = tiny_transformer()
    torch.manual_seed(7)
    for parameter in second.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pipe.register_modules(transformer_2=second)
    pipe.register_to_config(boundary_ratio=0.875)
    return pipe


@pytest.fixture(scope="module")
def release(stock, tmp_path_factory):
    folder = tmp_path_factory.mktemp("a14b")
    stock.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def low_run(release, tmp_path_factory):
    """A checkpoint of one step from the low-noise expert."""
    run = tmp_path_factory.mktemp("run") / "low"
    fit([*ONE_STEP, *small_wan(release), f"--model.checkpoint={release / 'transformer_2'}", f"--run={run}"])
    return run / "checkpoints/last.ckpt"


def record(out):
    return json.loads(next(out.glob("*.json")).read_text())


@pytest.mark.parametrize("guidances", [(4.0, 3.0), (5.0, None)])
@pytest.mark.parametrize("boundary", [0.875, 0.5])
def test_the_same_latents_as_the_stock_pipeline_of_two(stock, release, monkeypatch, guidances, boundary):
    guidance, low_guidance = guidances
    monkeypatch.setattr(stock, "_internal_dict", FrozenDict({**stock.config, "boundary_ratio": boundary}))
    expected = stock(
        "a red circle", negative_prompt="a circle", height=32, width=48, num_frames=9, num_inference_steps=10,
        guidance_scale=guidance, guidance_scale_2=low_guidance, generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).frames  # fmt: skip
    text = UMT5Text(str(release), dtype="float32")
    model, settings = resolve_settings(
        Options(
            str(release), guidance=guidance, low_noise_guidance=low_guidance, boundary=boundary, shift=3.0, frames=9
        )
    )
    noise = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    second = LowNoise(model.load(CPU, low=True), settings.boundary, settings.low_noise_guidance)
    scheduler = build_scheduler("unipc", 10, 3.0)
    below = (scheduler.timesteps < 1000 * boundary).sum()
    assert 0 < below < 10
    states, no_states = text(["a red circle"], CPU), text(["a circle"], CPU)
    got = sample_latents(model.load(CPU), scheduler, noise, states, no_states, settings.guidance, low=second)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    alone = sample_latents(
        model.load(CPU), build_scheduler("unipc", 10, 3.0), noise, states, no_states, settings.guidance
    )
    assert (alone - expected).abs().max() > 0.1


def test_the_folder_of_both_is_refused_and_each_alone_is_read(release, tmp_path, capsys):
    both = f"{release} is a release of two transformers, {release / 'transformer'} for high noise and "
    with pytest.raises(ValueError) as raised:
        open_weights(release)
    assert str(raised.value) == f"{both}{release / 'transformer_2'} for low noise: name one of them"
    assert both in refused(capsys, main, ["convert", str(release), str(tmp_path / "out"), "--format", "official"])
    assert both in refused(capsys, fit, [*ONE_STEP, *small_wan(release), f"--run={tmp_path / 'run'}"])
    tensors = [dict(open_weights(release / name).stream()) for name in ("transformer", "transformer_2")]
    assert not torch.equal(tensors[0]["head.head.weight"], tensors[1]["head.head.weight"])

    shutil.copytree(release, tmp_path / "partial")
    shutil.rmtree(tmp_path / "partial/transformer_2")
    lacks = f"and lacks {tmp_path / 'partial/transformer_2'}"
    with pytest.raises(ValueError, match=f"{lacks}: name one of them"):
        open_weights(tmp_path / "partial")
    assert lacks in refused(capsys, command, [*SMALL, f"--checkpoint={tmp_path / 'partial'}", f"--out={tmp_path}/x"])
    assert levels_of(tmp_path / "partial/transformer") == (0.875, 1.0)


def test_the_official_layout_of_two(release, tmp_path, capsys):
    for name, ours in (("high_noise_model", "transformer"), ("low_noise_model", "transformer_2")):
        main(["convert", str(release / ours), str(tmp_path / "official" / name), "--format", "official"])
    official = tmp_path / "official"
    with pytest.raises(ValueError, match="high_noise_model for high noise and .*low_noise_model for low noise: name"):
        open_weights(official)
    assert levels_of(official / "low_noise_model") == (0.0, 0.875)
    assert levels_of(next((official / "high_noise_model").glob("*.safetensors"))) == (0.875, 1.0)
    outs = [tmp_path / name for name in ("one", "two")]
    command([*SMALL, f"--checkpoint={release}", f"--out={outs[0]}"])
    command([*SMALL, f"--checkpoint={official}", f"--encoders={release}", f"--out={outs[1]}"])
    videos = [next(out.glob("*.mp4")).read_bytes() for out in outs]
    assert videos[0] == videos[1]


def test_one_transformer_is_no_release_of_two(wan_folder, tmp_path, monkeypatch):
    assert find_experts(wan_folder) is None and levels_of(wan_folder / "transformer") == ALL
    assert find_experts(tmp_path) is None and find_experts(tmp_path / "nowhere") is None
    assert open_model(Options(str(wan_folder))).low is None
    for text, message in (("[", "no index of a release"), ('{"boundary_ratio": 2}', "boundary_ratio = 2, expected")):
        (tmp_path / "model_index.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            open_weights(tmp_path)
    monkeypatch.chdir(wan_folder)
    assert levels_of(wan_folder / "transformer") == ALL


def test_a_video_says_both_experts_and_is_not_kept_for_others(release, tmp_path, capsys):
    shared = [*SMALL, f"--checkpoint={release}", f"--out={tmp_path / 'out'}"]
    command(shared)
    said = record(tmp_path / "out")
    assert (said["checkpoint"], said["low_noise"]) == (str(release), str(release / "transformer_2"))
    assert (said["boundary"], said["guidance"], said["low_noise_guidance"], said["shift"]) == (0.875, 5.0, 5.0, 12.0)
    command(shared)
    assert "1 of 1 videos are there already" in capsys.readouterr().out
    for extra, message in (
        (f"--low_noise={release / 'transformer_2'}/", "low_noise"),
        ("--boundary=0.9", "boundary 0.875 (now 0.9)"),
        ("--low_noise_guidance=3", "low_noise_guidance 5.0 (now 3.0)"),
    ):
        if message != "low_noise":
            assert f"was made with {message}: choose another --out" in refused(capsys, command, [*shared, extra])
    shutil.copytree(release / "transformer", tmp_path / "other" / "transformer_2")
    other = tmp_path / "other" / "transformer_2"
    assert "was made with low_noise" in refused(capsys, command, [*shared, f"--low_noise={other}"])
    command([*shared[:-1], f"--out={tmp_path / 'other-out'}", f"--low_noise={other}"])
    assert (
        next((tmp_path / "other-out").glob("*.mp4")).read_bytes() != next((tmp_path / "out").glob("*.mp4")).read_bytes()
    )


def test_one_of_two_alone_and_the_wrong_way_round_are_refused(release, wan_folder, low_run, tmp_path, capsys):
    high, low = release / "transformer", release / "transformer_2"
    out = [*SMALL, f"--out={tmp_path / 'out'}"]
    for options, message in (
        ([f"--checkpoint={high}"], "is one of two experts, for noise levels from 0.875 up: name the high-noise one"),
        ([f"--checkpoint={low}"], "is the low-noise one of two experts: name the high-noise one with --checkpoint"),
        ([f"--checkpoint={low_run}"], "is the low-noise one of two experts"),
        ([f"--checkpoint={release}", f"--low_noise={high}"], "is the high-noise one of two experts"),
        ([f"--checkpoint={wan_folder}", "--boundary=0.5"], "a boundary of 0.5 is between two experts"),
        ([f"--checkpoint={release}", "--boundary=1"], "boundary is 1.0, expected more than 0 and less than 1"),
        ([f"--checkpoint={release}", "--low_noise=nowhere"], "no nowhere: expected a safetensors file"),
        ([f"--checkpoint={'x' * 300}"], "expected a path that can be read (File name too long)"),
        ([f"--checkpoint={release}", "--low_noise=configs"], "expected a transformer's safetensors in configs"),
    ):
        assert message in refused(capsys, command, [*out, *options])
    assert not (tmp_path / "out").exists()


def test_an_experts_folder_and_another_make_a_pair(release, tmp_path):
    pair = resolve_settings(Options(str(release / "transformer"), low_noise=str(release), frames=5))[0]
    assert pair.low.path == str(release / "transformer_2") and pair.low.boundary == 0.875


def test_experts_of_different_sizes_are_refused(release, tmp_path):
    from diffusers import WanTransformer3DModel

    other = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=16, out_channels=16, text_dim=32, freq_dim=64,
        ffn_dim=48, num_layers=2,
    )  # fmt: skip
    other.save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match="no two experts of one model: they have ffn_dim 96 and 48"):
        open_model(Options(str(release), low_noise=str(tmp_path / "small")))


def test_a_fine_tuned_expert_is_trained_on_its_side_and_pairs_with_the_other(release, low_run, tmp_path, capsys):
    said = torch.load(low_run, weights_only=True)["fps_flex"]
    assert said["noise_levels"] == [0.0, 0.875]
    out = [*SMALL, f"--out={tmp_path / 'out'}", f"--checkpoint={release}", f"--low_noise={low_run}"]
    line = refused(capsys, command, out)
    assert f"{release} and {low_run} were trained with different attention: name that of both" in line
    command([*out, "--attention.schedule=dense", "--attention.tile=null"])
    made = record(tmp_path / "out")
    assert (made["low_noise"], made["low_noise_trained_steps"], made["trained_steps"]) == (str(low_run), 1, None)
    assert made["boundary"] == 0.875 and made["shift"] == said["shift"] and made["residual"] == said["residual"]

    run = tmp_path / "further"
    fit([*ONE_STEP, *small_wan(release), f"--model.checkpoint={low_run}", f"--run={run}"])
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["fps_flex"]["noise_levels"] == [0.0, 0.875]
    fit(
        [*ONE_STEP, *small_wan(release), f"--model.checkpoint={low_run}", f"--run={run}2", "--model.noise_levels=[0,1]"]
    )
    assert torch.load(f"{run}2/checkpoints/last.ckpt", weights_only=True)["fps_flex"]["noise_levels"] == [0.0, 1.0]


def test_fidelity_of_two_experts_but_not_with_a_trained_one(release, low_run, tmp_path, capsys):
    shared = ["models", f"--checkpoint={release}", *SMALL, f"--out={tmp_path / 'out'}", "--guidance=1",
              "--attention.schedule=sta", "--attention.tile=[1,2,2]", "--attention.block=16"]  # fmt: skip
    line = refused(capsys, compare, [*shared, f"--trained={low_run}", f"--low_noise={release / 'transformer_2'}"])
    assert "is the low-noise one of two experts" in line
    line = refused(capsys, compare, [*shared, f"--trained={release}"])
    assert "a trained model of two experts can't be compared here" in line
    compare(shared)
    assert record(tmp_path / "out/dense")["low_noise"] == str(release / "transformer_2")
    assert "boundary 0.875" in (tmp_path / "out/fidelity.md").read_text()


@pytest.mark.parametrize("within", [(0.0, 0.875), (0.875, 1.0), (0.3, 0.6)])
@pytest.mark.parametrize(("shift", "mean", "std"), [(5.0, 0.0, 1.0), (12.0, -0.5, 1.5), (1.0, 0.3, 0.7)])
def test_levels_within_bounds_are_those_of_all_without_the_others(within, shift, mean, std):
    chance = torch.Generator().manual_seed(0)
    every = noise_level(torch.randn(400_000, generator=chance), shift, mean, std)
    kept = every[(every >= within[0]) & (every <= within[1])].sort().values
    drawn = noise_level(torch.randn(100_000, generator=chance), shift, mean, std, within).sort().values
    assert within[0] <= drawn[0] and drawn[-1] <= within[1] and drawn.dtype == torch.float32
    shares = torch.linspace(0.02, 0.98, 25)
    expected, got = (x[(shares * len(x)).long()] for x in (kept, drawn))
    torch.testing.assert_close(got, expected, atol=0.012, rtol=0)
    spread = spread_noise_levels(4, shift, mean, std, within)
    torch.testing.assert_close(spread, kept[(torch.tensor([1, 3, 5, 7]) / 8 * len(kept)).long()], atol=0.012, rtol=0)


def test_all_levels_are_drawn_as_ever():
    for shift in (1.0, 3.3, 5.0):
        drawn = noise_level(torch.randn(9, generator=torch.Generator().manual_seed(1)), shift, 0.2, 1.3)
        u = (0.2 + 1.3 * torch.randn(9, generator=torch.Generator().manual_seed(1))).sigmoid()
        assert torch.equal(drawn, shift * u / (1 + (shift - 1) * u))
        quantiles = (torch.arange(5, dtype=torch.float64) + 0.5) / 5
        u = (0.2 + 1.3 * torch.special.ndtri(quantiles)).sigmoid()
        assert torch.equal(spread_noise_levels(5, shift, 0.2, 1.3), (shift * u / (1 + (shift - 1) * u)).float())


def test_training_draws_and_validates_on_an_experts_own_levels(release, tmp_path, monkeypatch):
    met = []

    def note(latents, noise, sigma):
        met.extend(sigma.tolist())
        return latents + 0 * noise

    monkeypatch.setattr("train.module.add_noise", note)
    for name, (lowest, highest) in (("transformer", (0.875, 1.0)), ("transformer_2", (0.0, 0.875))):
        met.clear()
        fit([*ONE_STEP, *small_wan(release), f"--model.checkpoint={release / name}", f"--run={tmp_path / name}",
             "--trainer.max_steps=2", "--model.val_levels=4"])  # fmt: skip
        assert len(met) >= 8 and lowest <= min(met) and max(met) <= highest


def test_dense_attention_of_both(release):
    model = open_model(Options(str(release)))
    for wan, name in ((model.load(CPU), "transformer"), (model.load(CPU, low=True), "transformer_2")):
        expected = load_wan(release / name, FPSAttention("dense", tile=None))
        assert torch.equal(wan.head.head.weight, expected.head.head.weight) and wan.residual == "fp32"


def test_two_fine_tuned_experts(low_run, tmp_path, capsys):
    def save(name, **said):
        held = torch.load(low_run, weights_only=True)
        held["fps_flex"] |= said
        torch.save(held, tmp_path / name)
        return str(tmp_path / name)

    high = save("high.ckpt", noise_levels=[0.875, 1.0], step=5, shift=7.0)
    model, settings = resolve_settings(Options(high, low_noise=str(low_run), frames=9))
    assert (model.step, model.low.boundary, settings.shift, settings.low_noise) == (5, 0.875, 7.0, str(low_run))
    assert model.attention == FPSAttention.from_dict(model.weights.trained["attention"])
    apart = save("apart.ckpt", noise_levels=[0.9, 1.0])
    with pytest.raises(ValueError, match="made for boundaries of 0.875 and 0.9: name one with --boundary"):
        open_model(Options(apart, low_noise=str(low_run)))
    assert open_model(Options(apart, low_noise=str(low_run), boundary=0.88)).low.boundary == 0.88
    text = model.weights.trained["text"]
    longer = save("longer.ckpt", noise_levels=[0.875, 1.0], text={**text, "options": {**text["options"], "length": 9}})
    with pytest.raises(ValueError, match='they have .*umt5.*"length": 9.* and .*umt5'):
        open_model(Options(longer, low_noise=str(low_run)))
    moved = save("moved.ckpt", noise_levels=[0.875, 1.0],
                 text={**text, "options": {**text["options"], "path": "elsewhere"}})  # fmt: skip
    with pytest.raises(ValueError, match="no folder elsewhere.*--encoders names another folder"):
        open_model(Options(moved, low_noise=str(low_run)))
    other = {"kind": "pixels", "options": {"stride": [2, 2, 2]}}
    with pytest.raises(ValueError, match="no two experts of one model"):
        open_model(Options(save("odd.ckpt", noise_levels=[0.875, 1.0], codec=other), low_noise=str(low_run)))
    for lacks in ("step", "shift"):
        held = torch.load(low_run, weights_only=True)
        del held["fps_flex"][lacks]
        torch.save(held, tmp_path / "lacks.ckpt")
        with pytest.raises(ValueError, match=f"lacks.ckpt doesn't say its {lacks}"):
            open_model(Options(high, low_noise=str(tmp_path / "lacks.ckpt")))
    with pytest.raises(
        ValueError, match="odd.ckpt is no checkpoint .*noise_levels is 'all', expected the lowest and the highest"
    ):
        open_model(Options(save("odd.ckpt", noise_levels="all"), low_noise=str(low_run)))


def test_an_expert_from_random_weights_says_its_levels(release, tmp_path):
    options = [x for x in small_wan(release) if not x.startswith("--model.checkpoint")]
    options = [*ONE_STEP, *options, "--model.noise_levels=[0.5,1]", f"--run={tmp_path / 'run'}"]
    fit(options)
    checkpoint = tmp_path / "run/checkpoints/last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["fps_flex"]["noise_levels"] == [0.5, 1.0]
    with pytest.raises(ValueError, match="is one of two experts, for noise levels from 0.5 up: name"):
        open_model(Options(str(checkpoint)))
    fit([*options, "--ckpt_path=last", "--trainer.max_steps=2"])
    held = torch.load(checkpoint, weights_only=True)
    assert held["fps_flex"]["noise_levels"] == [0.5, 1.0] and held["global_step"] == 2
