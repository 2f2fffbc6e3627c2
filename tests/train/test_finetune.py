"""Fine-tuning from released weights, and the paper's settings (Table 8): each is in the configs and does something."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from diffusers import WanPipeline, WanTransformer3DModel
from torch.utils._python_dispatch import TorchDispatchMode

from eval.fidelity.command import describe_weights
from eval.generate.command import command as generate
from eval.generate.jobs import Options
from eval.generate.models import open_model
from fps_flex import FPSAttention
from fps_flex.wan.convert import main as weights
from fps_flex.wan.weights import load_wan
from tests.helpers.commands import refused
from tests.helpers.tiny_run import read_checkpoint, same_tensors, tiny_words
from train.common.videos import read_clip
from train.fit import main as fit
from train.module import FlowModule

QUICK = [
    "--config=configs/tiny.yaml", "--trainer.max_steps=3", "--trainer.val_check_interval=3", "--sample.steps=3",
    "--checkpoint.every_n_train_steps=3", "--data.val_clips=1", "--sample.count=1", "--model.val_levels=1",
    "--data.batch_size=2", "--model.warmup_steps=1",
]  # fmt: skip


def run(folder, *options):
    """Live weights, averaged weights and the sample of a run of three steps."""
    fit([*QUICK, f"--run={folder}", *options])
    last = read_checkpoint(folder)
    live, average = (
        {name: x for name, x in last[part].items() if name.startswith("model.")}
        for part in ("current_model_state", "state_dict")
    )
    return live, average, (folder / "sample.mp4").read_bytes()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return run(tmp_path_factory.mktemp("base") / "run")


def test_the_same_settings_give_the_same_weights_and_sample(base, tmp_path):
    again = run(tmp_path / "run")
    assert same_tensors(again[0], base[0]) and same_tensors(again[1], base[1]) and again[2] == base[2]
    assert not same_tensors(base[0], base[1])


@pytest.mark.parametrize(
    "option",
    [
        "model.lr=1.0e-3", "model.warmup_steps=20", "model.weight_decay=1.0", "model.eps=1.0e-2", "model.shift=5.0",
        "model.logit_mean=1.0", "model.logit_std=2.0", "model.text_dropout=1.0", "model.text.init_args.length=3",
        "model.attention.quantize=false", "model.attention.sparse=false", "trainer.gradient_clip_val=0.01",
    ],
)  # fmt: skip
def test_each_key_of_training_changes_the_weights(base, tmp_path, option):
    assert not same_tensors(run(tmp_path / "run", f"--{option}")[0], base[0])


def test_the_averages_decay_changes_the_average_alone(base, tmp_path):
    live, average, _ = run(tmp_path / "run", "--ema.decay=0.5")
    assert same_tensors(live, base[0]) and not same_tensors(average, base[1])


@pytest.mark.parametrize("option", ["sample.steps=4", "sample.guidance=3.0"])
def test_each_key_of_sampling_changes_the_sample_alone(base, tmp_path, option):
    live, average, sample = run(tmp_path / "run", f"--{option}")
    assert same_tensors(live, base[0]) and same_tensors(average, base[1]) and sample != base[2]


def test_checkpointing_changes_nothing(base, tmp_path):
    live, _, _ = run(tmp_path / "run", "--model.checkpointing=true")
    assert same_tensors(live, base[0])


TABLE_8 = {
    "model.lr": 5e-6, "model.warmup_steps": 200, "model.weight_decay": 1e-4, "model.eps": 1e-15, "model.shift": 5.0,
    "model.logit_mean": 0.0, "model.logit_std": 1.0, "model.text_dropout": 0.1, "model.text.init_args.length": 512,
    "model.checkpointing": True, "model.attention.quantize": True, "model.attention.sparse": True,
    "model.attention.schedule": "fps", "trainer.gradient_clip_val": 1.0, "ema.decay": 0.99, "sample.steps": 50,
    "sample.guidance": 5.0, "data.frames": 81, "data.fps": 16.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "size", "tokens"), [("1.3b-480p", (480, 832), 32_760), ("14b-720p", (720, 1280), 75_600)]
)
def test_the_configs_hold_the_papers_settings(name, size, tokens, capsys):
    with pytest.raises(SystemExit):
        fit([f"--config=configs/wan2.1-{name}.yaml", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)

    def look_up(key):
        value = config
        for part in key.split("."):
            value = value[part]
        return value

    assert {key: look_up(key) for key in TABLE_8} == TABLE_8
    height, width = config["data"]["height"], config["data"]["width"]
    assert (height, width) == size and 21 * (height // 16) * (width // 16) == tokens <= 75_600
    assert config["parallel"]["sequence"] == (4 if name.startswith("14b") else 1)
    folder = f"models/Wan2.1-T2V-{name.split('-')[0].upper()}-Diffusers"
    assert {config["model"]["checkpoint"], look_up("model.codec.init_args.path")} == {folder}


def small_wan(folder):
    """Options that fit the tiny pipeline."""
    return [
        f"--model.checkpoint={folder}",
        "--model.wan={dim: 48, ffn_dim: 96, heads: 2, layers: 2, text_dim: 32, freq_dim: 64, channels: 16}",
        f"--model.codec={{class_path: fps_flex.wan.encoders.WanVAE, init_args: {{path: {folder}}}}}",
        f"--model.text={{class_path: fps_flex.wan.encoders.UMT5Text, init_args: {{path: {folder}}}}}",
        "--data.frames=9", "--data.height=32", "--data.width=48", "--model.attention.tile=[1,2,2]",
    ]  # fmt: skip


def test_from_released_weights_to_a_fine_tune_to_videos_to_stock_diffusers(wan_folder, tmp_path, pipeline):
    live, average, _ = run(
        tmp_path / "run", *small_wan(wan_folder), "--trainer.precision=bf16-mixed", "--model.checkpointing=true",
        "--model.residual=fp32", "--trainer.gradient_clip_val=1.0",
    )  # fmt: skip
    before = load_wan(wan_folder, FPSAttention()).state_dict()
    for name, tensor in before.items():
        assert live[f"model.{name}"].dtype == torch.float32
        change = (live[f"model.{name}"] - tensor).abs().max()
        assert 0 < change < 0.02, name
    assert not any(name.startswith(("codec", "text")) for name in live)

    last = tmp_path / "run/checkpoints/last.ckpt"
    generate([f"--checkpoint={last}", "--prompt=a red circle", "--steps=2", f"--out={tmp_path / 'videos'}"])
    (video,) = (tmp_path / "videos").glob("*.mp4")
    assert json.loads(video.with_suffix(".json").read_text())["residual"] == "fp32"
    assert read_clip(video, 9, 8, 32, 48).float().std() > 0

    weights(["convert", str(last), str(tmp_path / "export"), "--format", "diffusers"])
    transformer = WanTransformer3DModel.from_pretrained(tmp_path / "export")
    parts = {name: part for name, part in pipeline.components.items() if name not in ("transformer", "transformer_2")}
    stock = WanPipeline(**parts, transformer=transformer)
    assert stock("a red circle", height=32, width=48, num_frames=9, num_inference_steps=1).frames.shape[1] == 9
    assert torch.equal(transformer.patch_embedding.weight, average["model.patch_embedding.weight"])

    trained, exported = (
        open_model(Options(str(last))),
        open_model(Options(str(tmp_path / "export"), encoders=str(wan_folder))),
    )
    assert exported.attention == trained.attention and not exported.attention.step_schedule.is_dense
    for name in ("clip", "shift", "residual"):
        assert getattr(exported, name) == getattr(trained, name), name
    assert exported.text.length == trained.text.length
    assert describe_weights(exported) == "exported for FPS attention"
    assert describe_weights(open_model(Options(str(wan_folder)))) == "released, trained with dense attention"


def test_a_run_starts_from_another_runs_checkpoint(base, tmp_path):
    fit([*QUICK, f"--run={tmp_path / 'first'}"])
    last = tmp_path / "first/checkpoints/last.ckpt"
    live, _, _ = run(tmp_path / "second", f"--model.checkpoint={last}", "--model.lr=0", "--model.weight_decay=0")
    assert same_tensors(live, base[1])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.checkpoint=nowhere", "no nowhere: expected a safetensors file"),
        ("--model.wan.layers=3", "holds a transformer of layers 2, expected 3: set model.wan to what it holds"),
        ("--data.frames=8", "clips of 8 frames, expected 4n + 1: 5 and 9 are nearest"),
        ("--model.codec.init_args.path=nowhere", "no folder nowhere: expected a Wan2.1 in the diffusers layout"),
        ("--model.text.init_args.path=nowhere", "no folder nowhere: expected a Wan2.1 in the diffusers layout"),
    ],
)
def test_a_users_mistake_is_one_clear_line_and_exit_code_2(wan_folder, tmp_path, capsys, option, message):
    assert message in refused(capsys, fit, tiny_words(tmp_path / "run", *small_wan(wan_folder), option))
    assert not (tmp_path / "run").exists()


def test_encoders_that_are_broken_are_said_before_the_run_begins(wan_folder, tmp_path, capsys):
    for part, file in (("vae", "diffusion_pytorch_model.safetensors"), ("text_encoder", "model.safetensors")):
        broken = tmp_path / part
        shutil.copytree(wan_folder, broken)
        (broken / part / file).write_bytes((broken / part / file).read_bytes()[:1000])
        line = refused(capsys, fit, tiny_words(tmp_path / "run", *small_wan(broken)))
        assert f"{broken / part / file} can't be read as safetensors" in line
    assert not (tmp_path / "run").exists()


class Waits(TorchDispatchMode):
    """Counts what makes a CPU wait for its device: copies between them that may not overlap, and values asked for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, options = str(function), kwargs or {}
        moves = name.startswith("aten._to_copy") and str(options.get("device")) == "meta" != args[0].device.type
        if "_local_scalar_dense" in name or (moves and not options.get("non_blocking")):
            self.seen.append(name)
        return function(*args, **options)


def test_a_loss_waits_for_nothing_and_its_model_gets_noise_levels_on_the_cpu():
    """The meta device stands for a GPU."""
    timesteps = []
    latents, noise = torch.zeros(2, 2, 1, 1, 4, 4, device="meta")
    module = SimpleNamespace(teachers=[lambda x, t, text: timesteps.append(t) or x], flow_weight=0.5, training=True)
    with Waits() as waits:
        FlowModule._losses(module, lambda x, t, text: timesteps.append(t) or x, latents, None, torch.rand(2), noise)
    assert [x.device.type for x in timesteps] == ["cpu", "cpu"] and waits.seen == []
    with Waits() as waits:
        torch.rand(2).to("meta")
    assert len(waits.seen) == 1, "as it was before"
