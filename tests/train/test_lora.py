"""Runs that train a LoRA: what they save, go on from and start with, what they distil from, and what they refuse."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import yaml

from eval.generate.command import command as generate
from fps_flex import FPSAttention
from fps_flex.wan.adapter_files import write_adapter
from fps_flex.wan.adapters import Adapter, LowRank, read_adapter
from fps_flex.wan.convert import main as weights
from fps_flex.wan.flow import add_noise, spread_noise_levels
from fps_flex.wan.lora import LAYERS, trained
from fps_flex.wan.weights import load_wan
from tests.helpers.commands import ROOT, refused, run_apart
from tests.helpers.lora_run import ALPHA, RANK, lora_words, train_lora, train_words, write_base
from tests.helpers.loras import make_adapter, save
from tests.helpers.tiny_run import read_checkpoint, same_tensors, tiny_words, train_tiny
from tests.train.stops import differences, end_of
from train.callbacks import read_losses
from train.fit import main
from train.order import generator_of

FOUR = ["--trainer.max_steps=4", "--trainer.val_check_interval=2"]
OBJECTIVES = [["--model.objective=flow"], ["--model.flow_weight=0.5"], []]
FP32 = 1e-6


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Not to be changed."""
    return write_base(tmp_path_factory.mktemp("base") / "release")


@pytest.fixture(scope="module", params=OBJECTIVES, ids=["flow", "both", "distill"])
def four(request, base, tmp_path_factory):
    """A run of four steps, its module and its options; not to be changed."""
    run = tmp_path_factory.mktemp("four") / "run"
    return run, train_lora(run, base, *FOUR, *request.param), request.param


@pytest.fixture(scope="module")
def distilled(base, tmp_path_factory):
    """A run of two steps and its module; not to be changed."""
    run = tmp_path_factory.mktemp("distilled") / "run"
    return run, train_lora(run, base)


def velocity(model, seed=5):
    torch.manual_seed(seed)
    latents, text = torch.randn(2, 24, 5, 16, 16), torch.randn(2, 40, 32)
    own, model.attention = model.attention, replace(model.attention, quantize=False)  # whose steps widen what rounds
    with torch.no_grad():
        result = model(latents, torch.tensor([150.0, 850.0]), text)
    model.attention = own
    return result


def last_of(losses, name):
    return [*losses[name].values()][-1]


def assert_same_velocity(one, other):
    expected = velocity(other)
    assert (velocity(one) - expected).abs().max() < FP32 * expected.abs().max()


def test_a_checkpoint_holds_the_adapter_alone(four, base):
    run, module, options = four
    for name in ("last", "best"):
        saved = read_checkpoint(run, name)
        names = {
            f"model.blocks.{i}.{layer}.lora_{x}.default.weight" for i in range(3) for layer in LAYERS for x in "AB"
        }
        assert saved["state_dict"].keys() == saved["current_model_state"].keys() == names
        record = saved["fps_flex"]
        assert record["lora"] == {"rank": RANK, "alpha": ALPHA, "targets": ["q", "k", "v", "o", "ffn.0", "ffn.2"]}
        assert record["base"]["path"] == str(base) and record["base"]["dtype"] == "fp32"
        assert record["options"]["model.objective"] == ("flow" if "--model.objective=flow" in options else "distill")
    last = read_checkpoint(run)
    assert not same_tensors(last["state_dict"], last["current_model_state"])
    live = {f"model.{name}": x for name, x in trained(module.model).items()}
    assert same_tensors(last["current_model_state"], {name: x.detach() for name, x in live.items()})
    assert len(last["optimizer_states"][0]["state"]) == len(live)
    bytes_saved = sum(x.nbytes for x in last["state_dict"].values())
    assert bytes_saved < (base / "model.safetensors").stat().st_size / 20
    assert (run / "checkpoints/last.ckpt").stat().st_size < 6 * bytes_saved  # two of weights, two of momenta
    metrics = read_losses(run)
    assert bool(metrics["val/error"]) == (record["options"]["model.objective"] == "distill")


def test_a_run_that_was_stopped_ends_in_the_same_bits_on_a_base_that_has_moved(four, base, tmp_path):
    run, _, options = four
    train_lora(tmp_path / "run", base, "--trainer.max_steps=2", "--trainer.val_check_interval=2", *options)
    moved = shutil.copytree(base, tmp_path / "elsewhere")
    train_lora(tmp_path / "run", moved, *FOUR, "--ckpt_path=last", *options)
    whole, resumed = end_of(run), end_of(tmp_path / "run")
    assert any("optimizer" in name for name in whole) and not differences(whole, resumed)
    assert read_checkpoint(tmp_path / "run")["fps_flex"]["base"]["path"] == str(moved)


def test_the_base_stays_as_it_is(distilled, base):
    _, module = distilled
    dense = load_wan(base, FPSAttention("dense", tile=None, block=16, engine="eager"))
    frozen = {
        name.replace(".base_layer", ""): x for name, x in module.model.state_dict().items() if "lora_" not in name
    }
    assert same_tensors(frozen, dense.state_dict())
    (teacher,) = module.teachers
    assert same_tensors(teacher.state_dict(), dense.state_dict())
    assert_same_velocity(teacher, dense)


def test_validation_and_sample_use_the_averaged_adapter(base, tmp_path):
    """Live adapters are the same bits whatever the decay."""
    results = {}
    for decay in ("0", "0.99"):
        run = tmp_path / decay
        module = train_lora(
            run, base, "--trainer.max_steps=3", "--trainer.val_check_interval=3", f"--ema.decay={decay}"
        )
        results[decay] = read_checkpoint(run), read_losses(run), (run / "sample.mp4").read_bytes(), module
    (live, losses, sample, _), (other, other_losses, other_sample, module) = results.values()
    assert same_tensors(live["current_model_state"], other["current_model_state"])
    assert same_tensors(live["state_dict"], live["current_model_state"])
    assert losses["train/loss"] == other_losses["train/loss"]
    assert last_of(losses, "val/loss") != last_of(other_losses, "val/loss") and sample != other_sample
    assert last_of(losses, "val/error") != last_of(other_losses, "val/error")
    average = {f"model.{name}": module.average.get_parameter(name) for name in trained(module.model)}
    assert same_tensors(average, other["state_dict"])


@pytest.mark.parametrize("lora", [True, False])
def test_val_error_is_how_far_the_velocity_is_from_the_teachers(base, distilled, tmp_path, lora):
    """By hand: mean over clips and levels of |v - t| / |t|, t of the dense model, in bf16 where all is trained."""
    if lora:
        run, module = distilled
        dtype = torch.float32
    else:
        run, dtype = tmp_path / "run", torch.bfloat16
        module = train_words(tiny_words(run, f"--model.checkpoint={base}", "--model.objective=distill"))
        assert not [name for name in read_checkpoint(run)["state_dict"] if "teacher" in name]
    teacher = load_wan(base, FPSAttention("dense", tile=None, block=16, engine="eager"), dtype=dtype)
    assert same_tensors(module.teachers[0].state_dict(), teacher.state_dict())
    assert not same_tensors(
        module.model.state_dict(), teacher.state_dict() if not lora else module.average.state_dict()
    )
    (batch,) = module.trainer.datamodule.val_dataloader()
    latents, text = module.codec.encode(batch["video"]), module.text(batch["prompt"], "cpu")
    noise = torch.randn(latents.shape[1:], generator=generator_of(module.seed, int(batch["index"][0])))[None]
    (sigma,) = spread_noise_levels(1, module.shift).unsqueeze(1)
    inputs = add_noise(latents, noise, sigma), 1000 * sigma, text
    with torch.no_grad():
        got, target = module.average(*inputs).double(), teacher(*inputs).double()
    losses = read_losses(run)
    assert last_of(losses, "val/error") == pytest.approx(((got - target).norm() / target.norm()).item(), rel=1e-4)
    assert last_of(losses, "val/loss") == pytest.approx((got - target).square().mean().item(), rel=1e-4)


def test_distillation_brings_the_model_nearer_to_the_teacher(base, tmp_path):
    options = ("--trainer.max_steps=30", "--trainer.val_check_interval=30", "--ema.decay=0.5", "--model.lora.alpha=4")
    train_lora(tmp_path / "run", base, *options, "--model.val_levels=4", "--checkpoint.every_n_train_steps=30")
    first, last = read_losses(tmp_path / "run")["val/error"].values()
    assert last < 0.98 * first


def test_the_commands_read_its_checkpoint(distilled, base, tmp_path, capsys):
    run, module = distilled
    last = run / "checkpoints/last.ckpt"
    generate([f"--checkpoint={last}", "--prompt=a red circle", "--steps=2", f"--out={tmp_path / 'videos'}"])
    assert len([*(tmp_path / "videos").glob("*.mp4")]) == 1
    attention = module.model.attention
    for which, model in (("average", module.average), ("live", module.model)):
        weights(["convert", str(last), str(tmp_path / which), "--format=merged", f"--weights={which}"])
        assert_same_velocity(load_wan(tmp_path / which, attention), model)
    assert_same_velocity(load_wan(last, attention), module.average)
    for form in ("diffusers-lora", "comfyui-lora"):
        weights(["convert", str(last), str(tmp_path / form), f"--format={form}"])
        one, other = read_adapter(tmp_path / form), read_adapter(last)
        assert one.fingerprint() == other.fingerprint() and len(one.layers) == 3 * len(LAYERS)


@pytest.mark.parametrize("alpha", [ALPHA, 3.0])
@pytest.mark.parametrize("form", ["ckpt", "diffusers-lora", "comfyui-lora"])
def test_a_run_starts_from_an_adapter_with_the_velocity_that_it_had(distilled, base, tmp_path, form, alpha):
    run, module = distilled
    start = run / "checkpoints/last.ckpt"
    if form != "ckpt":
        weights(["convert", str(start), str(tmp_path / form), f"--format={form}"])
        start = tmp_path / form
    still = ("--model.lr=0", "--trainer.max_steps=1", f"--model.adapter={start}", f"--model.lora.alpha={alpha}")
    begun = train_lora(tmp_path / "run", base, *still)
    assert velocity(begun.model).ne(velocity(begun.teachers[0])).any()
    assert_same_velocity(begun.model, module.average)
    assert_same_velocity(load_wan(tmp_path / "run/checkpoints/last.ckpt", module.model.attention), module.average)


def test_a_start_in_bf16_is_scaled_in_fp32(distilled, base, tmp_path):
    """Rounded to bf16 again, up times 8 / 3 would be off by 2^-9."""
    adapter = read_adapter(distilled[0] / "checkpoints/last.ckpt")
    half = {name: LowRank(x.down.bfloat16(), x.up.bfloat16(), x.alpha) for name, x in adapter.layers.items()}
    write_adapter(Adapter(half, {}), tmp_path / "half.safetensors", "comfyui-lora")
    still = ("--model.lr=0", "--trainer.max_steps=1", "--model.lora.alpha=3")
    begun = train_lora(tmp_path / "run", base, *still, f"--model.adapter={tmp_path / 'half.safetensors'}")
    for name, layer in half.items():
        up = trained(begun.model)[f"{name}.lora_B.default.weight"]
        assert torch.allclose(up, layer.up.float() * (ALPHA / 3), rtol=1e-6, atol=0)


def test_a_lora_goes_beside_a_checkpoint_of_a_run_and_of_a_lora(base, distilled, tmp_path):
    """The sum is the base of the second LoRA."""
    last = distilled[0] / "checkpoints/last.ckpt"
    module = train_lora(tmp_path / "run", last, "--model.lr=0", "--trainer.max_steps=1")
    assert_same_velocity(module.model, distilled[1].average)
    assert_same_velocity(load_wan(tmp_path / "run/checkpoints/last.ckpt", module.model.attention), module.average)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--model.lora.rank=2"], ["model.lora.rank was 4, is 2. Set them back"]),
        (["--model.lora.alpha=2"], ["model.lora.alpha was 8.0, is 2.0. Set them back"]),
        (["--model.lora.targets=[q,ffn]"], ['model.lora.targets was ["q", "k", "v", "o", "ffn.0", "ffn.2"], is ["q"']),
        (["--model.objective=flow"], ['model.objective was "distill", is "flow"', "--model.adapter "]),
        (["--model.flow_weight=0.25"], ["model.flow_weight was 0.0, is 0.25", "--model.adapter "]),
        (
            ["--model.checkpoint={other}"],
            ["to go on from: it was trained on {base} (weights ", "--model.checkpoint is {other}"],
        ),
        (["--model.adapter={last}"], ["model.adapter was null, is "]),
        (["--model.lora=null"], ["it holds a LoRA, and this configuration trains all weights: set model.lora.rank 4"]),
    ],
)
def test_a_run_that_would_be_another_is_refused_by_name(distilled, base, tmp_path, capsys, options, parts):
    run, other = distilled[0], write_base(tmp_path / "other", seed=1)
    names = {"base": base, "other": other, "last": run / "checkpoints/last.ckpt"}
    words = [option.format(**names) for option in options]
    line = refused(capsys, main, lora_words(run, base, "--ckpt_path=last", *words))
    assert all(part.format(**names) in line for part in parts), line


def test_all_of_a_models_weights_are_no_lora_to_go_on_from(base, tmp_path, capsys):
    train_tiny(tmp_path / "run", f"--model.checkpoint={base}", "--trainer.max_steps=1")
    line = refused(capsys, main, lora_words(tmp_path / "run", base, "--ckpt_path=last"))
    assert "it holds all of a model's weights, and this configuration trains a LoRA: leave out model.lora, or" in line


def test_a_teacher_that_has_changed_is_refused(base, tmp_path, capsys):
    """Under its old path, of a run that trains all weights; and a LoRA whose checkpoint lost its base."""
    start = shutil.copytree(base, tmp_path / "start")
    words = tiny_words(tmp_path / "run", f"--model.checkpoint={start}", "--model.objective=distill")
    train_words(words)
    write_base(start, seed=1)
    line = refused(capsys, main, [*words, "--ckpt_path=last", "--trainer.max_steps=3"])
    assert f"it was trained on {start} (weights " in line and f"--model.checkpoint is {start} (weights " in line
    train_lora(tmp_path / "lora", base)
    last = read_checkpoint(tmp_path / "lora")
    del last["fps_flex"]["base"]
    torch.save(last, tmp_path / "lora/checkpoints/last.ckpt")
    line = refused(capsys, main, lora_words(tmp_path / "lora", base, "--ckpt_path=last"))
    assert line.endswith("is no checkpoint to go on from: it lacks fps_flex.base")


def test_a_start_that_does_not_fit_is_one_line(distilled, base, tmp_path, capsys):
    last = distilled[0] / "checkpoints/last.ckpt"
    whole = train_tiny(tmp_path / "whole", f"--model.checkpoint={base}", "--trainer.max_steps=1")
    smaller = tmp_path / "smaller.safetensors"
    write_adapter(make_adapter(), smaller, "diffusers-lora")
    adapter = read_adapter(last)
    odd = save({"lora_unet_down_blocks_0.lora_down.weight": torch.ones(4, 8)}, tmp_path / "odd.safetensors")
    changes = tmp_path / "changes.safetensors"
    write_adapter(Adapter(adapter.layers, {"blocks.0.ffn.0.bias": torch.ones(384)}), changes, "comfyui-lora")
    broken = {name: LowRank(x.down * float("nan"), x.up, x.alpha) for name, x in adapter.layers.items()}
    write_adapter(Adapter(broken, {}), tmp_path / "nan.safetensors", "comfyui-lora")
    cases = {
        (last, "--model.lora.rank=2"): f"{last} is of rank 4 in blocks.0.self_attn.q, model.lora.rank is 2: set it to",
        (last, "--model.lora.targets=[q]"): f"{last} adapts blocks.0.cross_attn.k, blocks.0.cross_attn.o, ",
        (
            last,
            f"--model.checkpoint={write_base(tmp_path / 'other', seed=1)}",
        ): f"{last} was trained on {base} (weights",
        (whole / "checkpoints/last.ckpt", ""): "is a whole model that train.fit trained, expected a LoRA",
        (smaller, ""): f"{smaller} is a LoRA of another model: it changes blocks.0.self_attn.k.weight of (48, 48), the",
        (odd, ""): f"{odd} is a LoRA of another family of models (lora_unet_down_blocks_0.lora_down.weight), expected",
        (
            changes,
            "",
        ): f"{changes} also changes blocks.0.ffn.0.bias, which no LoRA here does: merge it into the weights",
        (tmp_path / "nan.safetensors", ""): "holds a value of nan, expected finite weights",
        (base, ""): f"{base} is a whole model (",
        (tmp_path / "nowhere", ""): f"no {tmp_path / 'nowhere'}: expected a safetensors file",
    }
    for (start, option), part in cases.items():
        words = lora_words(tmp_path / "run", base, f"--model.adapter={start}", *filter(None, [option]))
        line = refused(capsys, main, words)
        assert part in line, line
    some = {name: x for name, x in adapter.layers.items() if "ffn" in name}
    write_adapter(Adapter(some, {}), tmp_path / "ffn.safetensors", "diffusers-lora")
    line = refused(capsys, main, lora_words(tmp_path / "run", base, f"--model.adapter={tmp_path / 'ffn.safetensors'}"))
    assert "doesn't adapt blocks.0.cross_attn.k, " in line and "unlike model.lora.targets (q, k, v, o, ffn.0" in line
    assert not (tmp_path / "run/checkpoints").exists()


REFUSED = {
    "--model.lora.rank=0": "lora.rank is 0, expected a whole number of at least 1",
    "--model.lora.rank=-4": "lora.rank is -4, expected a whole number of at least 1",
    "--model.lora.rank=many": 'Parser key "model.lora.rank"',
    "--model.lora.rank=1.5": 'Parser key "model.lora.rank"',
    "--model.lora.rank=129": "lora.rank is 129, expected at most 128, the width of the layers",
    "--model.lora.alpha=0": "lora.alpha is 0, expected a number above 0",
    "--model.lora.targets=[]": "lora.targets is empty, expected layers of a block: self_attn.q, ",
    "--model.lora.targets=[self_atn]": "matches no layer of a block: did you mean self_attn or self_attn.",
    "--model.lora.targets=q": 'Parser key "model.lora.targets"',
    "--model.lora.width=4": "Option 'width' is not accepted",
    "--model.base=fp8": "base fp8 needs a GPU with float8 (compute capability 8.9 or later): use bf16",
    "--model.linears=fp8": "linears fp8 need a GPU with float8 (compute capability 8.9 or later): use bf16",
    "--model.linears=fp8-ffn": "linears fp8-ffn need a GPU with float8 (compute capability 8.9 or later): use bf16",
    "--model.base=fp8 --model.lora=null": "base fp8 is of frozen weights, and these are trained: use fp32 or bf16, or",
    "--model.attention.schedule=dense": "model.objective distill has nothing to distil: the attention is dense and un",
    "--model.checkpoint=null": "a LoRA is trained beside weights: name them with --model.checkpoint",
    "--model.checkpoint=null --model.lora=null": "model.objective distill learns from the weights it starts from: name",
    "--model.adapter=x --model.lora=null": "model.adapter is what a LoRA starts from, and none is trained: name",
    "--model.adapter=": "--model.adapter is empty: give it a value, or leave it out",
    "--model.adapter= --model.lora=null": "--model.adapter is empty",
    "--model.offload_activations=true": "is of recomputed blocks: set model.checkpointing true too",
    "--model.flow_weight=-1": "model.flow_weight is -1.0, expected at least 0",
    "--model.flow_weight=0.5 --model.objective=flow": "model.flow_weight is 0.5, of the flow loss beside distillation",
    "--model.objective=sft": 'Parser key "model.objective"',
    "--model.optimizer=sgd": 'Parser key "model.optimizer"',
}


@pytest.fixture
def unread(monkeypatch):
    """Fails where weights are opened."""

    def fail(*arguments, **options):
        raise AssertionError("weights were opened")

    monkeypatch.setattr("train.building.open_weights", fail)
    monkeypatch.setattr("train.building.read_adapter", fail)


@pytest.mark.parametrize("options", REFUSED)
def test_what_cannot_be_trained_is_one_line_before_anything_is_read(base, tmp_path, capsys, unread, options):
    line = refused(capsys, main, lora_words(tmp_path / "run", base, *options.split()))
    assert REFUSED[options] in line and not (tmp_path / "run").exists(), line


def test_an_empty_adapter_in_a_configuration_is_refused(base, tmp_path, capsys, unread):
    """It was taken for none."""
    file = tmp_path / "config.yaml"
    file.write_text("model: {adapter: ''}")
    line = refused(capsys, main, [*lora_words(tmp_path / "run", base), f"--config={file}"])
    assert "model.adapter is empty, expected a LoRA to start from, or null for none" in line


@pytest.mark.parametrize(
    ("module", "missing", "options", "line"),
    [
        ("fps_flex.wan.lora", "peft", (), "a LoRA needs peft: pip install peft"),
        (
            "train.optimizers",
            "torchao",
            ("--model.optimizer=adamw8bit",),
            "adamw8bit needs torchao: pip install torchao",
        ),
    ],
)
def test_what_is_not_installed_is_named(base, tmp_path, capsys, unread, monkeypatch, module, missing, options, line):
    monkeypatch.setattr(f"{module}.find_spec", lambda name: None if name == missing else name)
    assert line in refused(capsys, main, lora_words(tmp_path / "run", base, *options))


@pytest.mark.parametrize(
    ("before", "options", "lora"),
    [
        ("{lora: null}", ["--model.lora.rank=8"], {"rank": 8, "alpha": 32.0}),
        ("{lora: null}", ["--model.lora.alpha=8"], {"rank": 32, "alpha": 8.0}),
        ("{lora: {rank: 4}}", ["--model.lora.alpha=8"], {"rank": 4, "alpha": 8.0}),
        ("{lora: {rank: 4, alpha: 2}}", ["--model.lora.rank=8"], {"rank": 8, "alpha": 2.0}),
        ("{lora: {rank: 4}}", ["--model.lora=null"], None),
        ("{}", ["--model.lora={rank: 8, targets: [ffn]}"], {"rank": 8, "alpha": 32.0, "targets": ["ffn"]}),
        ("{}", [], None),
    ],
)
def test_options_of_a_lora_mix_with_a_configurations(tmp_path, capsys, before, options, lora):
    file = tmp_path / "config.yaml"
    file.write_text(f"model: {before}")
    with pytest.raises(SystemExit):
        main(["--config=configs/tiny.yaml", f"--config={file}", *options, "--print_config"])
    held = yaml.safe_load(capsys.readouterr().out)["model"]
    assert {"lora", "adapter", "base", "linears", "objective", "flow_weight", "optimizer"} < held.keys()
    targets = {"targets": ["q", "k", "v", "o", "ffn.0", "ffn.2"]}
    assert held["lora"] == (lora and targets | lora)


def test_the_configuration_of_the_tiny_lora_runs(base, tmp_path):
    short = ("--trainer.max_steps=1", "--trainer.val_check_interval=1", "--sample.steps=1", "--data.val_clips=1")
    module = train_words(
        ["--config=configs/tiny-lora.yaml", f"--model.checkpoint={base}", f"--run={tmp_path / 'run'}", *short]
    )
    assert module.making.lora.rank == 64 and module.objective == "distill" and module.flow_weight == 0


@pytest.mark.parametrize("base_dtype", ["fp32", "bf16"])
def test_it_trains_in_mixed_precision_from_any_base(base, tmp_path, base_dtype):
    mixed = ("--trainer.precision=bf16-mixed", f"--model.base={base_dtype}", "--model.checkpointing=true")
    module = train_lora(tmp_path / "run", base, *mixed, "--model.offload_activations=true")
    assert all(x.dtype == torch.float32 for x in trained(module.model).values())
    assert read_checkpoint(tmp_path / "run")["fps_flex"]["base"]["dtype"] == base_dtype
    assert all(x == x and x < 1 for x in read_losses(tmp_path / "run")["val/error"].values())


def test_an_adapter_that_is_not_finite_ends_the_run(base, tmp_path, capsys, caplog):
    with caplog.at_level(logging.WARNING):
        line = refused(capsys, main, lora_words(tmp_path / "run", base, "--model.lr=1e38"), code=1)
    assert "not finite" in line or "train/loss is" in line, line


@pytest.mark.slow
def test_a_run_that_was_killed_ends_in_the_same_bits(base, tmp_path):
    """SIGKILL right after a checkpoint of step 2 or later; what was trained since is trained again."""
    options = ("--trainer.max_steps=12", "--trainer.val_check_interval=6", "--trainer.accumulate_grad_batches=2")
    train_lora(tmp_path / "whole", base, *options)
    run, environment = tmp_path / "run", {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "train.fit", *lora_words(run, base, *options)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (run / "checkpoints/last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not (run / "sample.mp4").exists()
    train_lora(run, base, *options, "--ckpt_path=last")
    assert not differences(end_of(tmp_path / "whole"), end_of(run))


@pytest.mark.slow
def test_two_processes_train_it_as_one(base, tmp_path):
    options = ("--trainer.max_steps=4", "--model.flow_weight=0.5")
    module = train_lora(tmp_path / "alone", base, *options)
    two = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu", "--data.batch_size=1")
    done = run_apart("-m", "train.fit", *lora_words(tmp_path / "two", base, *options, *two), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    alone, both = (read_losses(tmp_path / name) for name in ("alone", "two"))
    for name, values in alone.items():
        assert [*both[name].values()] == pytest.approx([*values.values()], rel=1e-4), name
    state = read_checkpoint(tmp_path / "two")["current_model_state"]
    assert state.keys() == {f"model.{name}" for name in trained(module.model)}
