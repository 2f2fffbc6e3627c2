"""Every option of train.fit, with values that can't be meant: one line that names it, exit code 2, nothing written."""

from types import SimpleNamespace

import pytest
import yaml

from fps_flex import FPSAttention
from tests.helpers.commands import refused
from tests.helpers.tiny_run import tiny_words, train_tiny
from train import fit
from train.fit import main

TINY = ["--config", "configs/tiny.yaml"]
INTEGER = ["0", "-1", "1.5"]
SHARE = ["-0.1", "nan", "much"]
SWITCH = ["maybe", "2", "[]"]
ENCODER = ["nothing.Here", "7", "{class_path: fps_flex.wan.codecs.NoSuch}"]

BAD = {
    "config": ["nowhere.yaml", "README.md", ""],
    "seed_everything": ["-1", "1.5", "18446744073709551616"],
    "run": ["", " ", "/proc/run", "README.md"],
    "ckpt_path": ["nowhere.ckpt", "last", "README.md"],
    "trainer.accelerator": ["gpu", "abacus", ""],
    "trainer.strategy": ["fsdp", "nonsense", "ddp_spawn"],
    "trainer.devices": ["0", "-2", "many"],
    "trainer.num_nodes": INTEGER,
    "trainer.precision": ["16-mixed", "bf16-true", "64-true"],
    "trainer.logger": ["nonsense", "7", "{class_path: nothing.Here}"],
    "trainer.callbacks": ["nonsense", "7", "[{class_path: nothing.Here}]"],
    "trainer.max_steps": ["0", "-5", "-1"],
    "trainer.max_time": ["soon", "00:00:00:00", "-00:00:01:00"],
    "trainer.val_check_interval": INTEGER,
    "trainer.log_every_n_steps": INTEGER,
    "trainer.accumulate_grad_batches": INTEGER,
    "trainer.gradient_clip_val": ["-1", "0", "inf"],
    "trainer.enable_progress_bar": SWITCH,
    "trainer.deterministic": SWITCH,
    "trainer.benchmark": SWITCH,
    "trainer.profiler": ["nonsense", "7", "true"],
    "trainer.detect_anomaly": SWITCH,
    "model.wan.dim": ["0", "127", "-128"],
    "model.wan.ffn_dim": INTEGER,
    "model.wan.heads": ["0", "3", "-2"],
    "model.wan.layers": INTEGER,
    "model.wan.channels": INTEGER,
    "model.wan.text_dim": INTEGER,
    "model.wan.freq_dim": ["0", "-2", "63"],
    "model.wan.patch": ["[0,2,2]", "[1,2]", "[3,2,2]"],
    "model.wan.eps": ["0", "-1", "nan"],
    "model.attention.schedule": ["paper", "7", "{bounds: [0.7, 0.3]}"],
    "model.attention.schedule.bounds": ["[0.7,0.3,0.5]", "[.nan,0.5]", "[0,1]"],
    "model.attention.schedule.regimes": ["[{window: [0,1,1]}]", "[{window: [1.0,1,1]}]", "[{granularity: tile}]"],
    "model.attention.schedule.shift": ["0", "nan", "inf"],
    "model.attention.tile": ["[4,4]", "[9,4,1]", "[0,4,4]"],
    "model.attention.block": ["0", "-16", "1.5"],
    "model.attention.quantize": SWITCH,
    "model.attention.sparse": SWITCH,
    "model.attention.scale_format": ["bf16", "7", "null"],
    "model.attention.carrier": ["float8", "bf16", "null"],
    "model.attention.engine": ["triton", "flash", "cudnn"],
    "model.attention.smooth_k": SWITCH,
    "model.attention.codes": ["int4", "7", "null"],
    "model.attention.rotate": ["fourier", "7", "true"],
    "model.attention.layers": ["{0-3: dense}", "{1-0: dense}", "{0: paper}", "{0-1: dense, 1: sta}", "[0]", "7",
                               "{0: {window: [0,1,1]}}", "{0: {windows: [1,1,1]}}"],
    "model.codec": ENCODER,
    "model.codec.init_args.stride": ["[0,2,2]", "[-1,2,2]", "[2,2]"],
    "model.text": ENCODER,
    "model.text.init_args.dim": ["0", "-32", "31"],
    "model.text.init_args.length": INTEGER,
    "model.checkpoint": ["nowhere", "README.md", "configs"],
    "model.lr": ["-1", "inf", "fast"],
    "model.warmup_steps": ["-5", "1.5", "many"],
    "model.weight_decay": ["-1", "nan", "inf"],
    "model.betas": ["[0.9]", "[0.9,1.0]", "[-0.1,0.9]"],
    "model.eps": ["0", "-1e-8", "nan"],
    "model.shift": ["0", "-3", "inf"],
    "model.logit_mean": ["nan", "inf", "low"],
    "model.logit_std": ["0", "-1", "nan"],
    "model.noise_levels": ["[0.5]", "[0.9,0.1]", "[0,1.5]", "[.nan,1]", "half"],
    "model.text_dropout": ["1.1", *SHARE[:2]],
    "model.val_levels": INTEGER,
    "model.checkpointing": SWITCH,
    "model.compiled": SWITCH,
    "model.residual": ["bf16", "7", "fp64"],
    "model.lora": ["true", "7", "[8]"],
    "model.adapter": ["nowhere", "README.md", ""],
    "model.base": ["fp8", "fp16", "null"],
    "model.linears": ["fp8", "fp8-ffn", "int8"],
    "model.objective": ["distill", "sft", "7"],
    "model.flow_weight": ["0.5", "-1", "nan"],
    "model.optimizer": ["sgd", "7", "null"],
    "model.offload_activations": ["true", *SWITCH],
    "model.offload_optimizer": SWITCH,
    "data.folder": ["nowhere", "", "README.md"],
    "data.frames": ["0", "9", "1.5"],
    "data.fps": ["0", "-8", "inf"],
    "data.height": ["0", "33", "-32"],
    "data.width": ["0", "33", "-32"],
    "data.batch_size": INTEGER,
    "data.workers": ["-1", "1.5", "few"],
    "data.train_clips": INTEGER,
    "data.val_clips": INTEGER,
    "data.seed": ["-1", "1.5", "4294967296"],
    "parallel.shard": SWITCH,
    "parallel.sequence": [*INTEGER, "2"],
    "parallel.exchange": ["ring", "7", "null", "halo"],
    "parallel.timeout": ["0", "-1", "nan", "long"],
    "checkpoint.every_n_train_steps": INTEGER,
    "ema.decay": ["1", "nul", *SHARE[:2]],
    "sample.prompts": ["[]", "[7]", "['']"],
    "sample.count": INTEGER,
    "sample.steps": INTEGER,
    "sample.guidance": ["-1", "nan", "inf"],
    "sample.every_n_steps": INTEGER,
}  # fmt: skip

# of options with parts, what a line may name in their place
PARTS = {
    "model.attention.schedule": ("bounds",), "model.attention.schedule.regimes": ("window", "granularity"),
    "model.attention.layers": ("layers", "window"),
}  # fmt: skip

# what Lightning's Trainer takes, and a run here would not do, or not as it says
NOT_MEANT = ["max_epochs=3", "gradient_clip_algorithm=value", "fast_dev_run=true", "overfit_batches=1",
             "limit_train_batches=2", "reload_dataloaders_every_n_epochs=1", "barebones=true"]  # fmt: skip


@pytest.fixture
def refuse(tmp_path, capfd):
    """The one line in which a command line refuses to start."""

    def run(*options):
        line = refused(capfd, main, tiny_words(tmp_path / "run", *options))
        assert not (tmp_path / "run").exists()
        return line

    return run


@pytest.mark.parametrize("option", BAD)
def test_a_value_that_cannot_be_meant_is_one_line(refuse, option):
    for value in BAD[option]:
        line = refuse(f"--{option}={value}")
        assert len(line) < 600, line
        named = (option, option.rpartition(".")[2], value.strip("'"), *PARTS.get(option, ()))
        assert any(name in line for name in named), line


@pytest.mark.parametrize("option", NOT_MEANT)
def test_what_is_not_meant_is_no_option(refuse, option):
    line = refuse(f"--trainer.{option}")
    assert option.partition("=")[0] in line
    if "max_epochs" in option:
        assert line.endswith("; runs end by --trainer.max_steps or --trainer.max_time, resumed parts included")


def test_the_table_has_every_option(capsys):
    with pytest.raises(SystemExit):
        main([*TINY, "--print_config"])
    options = set(_names(yaml.safe_load(capsys.readouterr().out)))
    assert options - set(BAD) == {"model.codec.class_path", "model.text.class_path"}


def _names(config, prefix=""):
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_a_broken_configuration_file_is_one_line(refuse, tmp_path):
    for number, text in enumerate(("model: [", "trainer: {max_epochs: 3}", "nonsense: 1", "- 1", "\x00")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        refuse(f"--config={path}")


def test_parts_of_a_preset_do_not_make_another_one_in_silence(refuse):
    """The parser took `sta` and a shift for the `fps` preset with that shift."""
    line = refuse("--model.attention.schedule=sta", "--model.attention.schedule.shift=2")
    assert "which is the preset 'sta': write out its bounds, regimes and shift" in line
    assert "the preset 'fps'" in refuse(
        "--config=configs/wan2.1-1.3b-480p.yaml", "--model.attention.schedule.shift", "2"
    )


def test_a_run_ends_by_time_alone(tmp_path, capfd):
    train_tiny(tmp_path / "run", "--trainer.max_steps=-1", "--trainer.max_time=00:00:00:01")
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()


def test_what_windows_leave_apart_is_told_of_every_size_of_clip(monkeypatch):
    monkeypatch.setattr(fit, "_count", lambda module: "one layer")
    attention = FPSAttention("uniform", tile=(1, 4, 4), block=16)
    module = SimpleNamespace(plan=attention.plan, model=SimpleNamespace(attention=attention))
    data = SimpleNamespace(
        sizes=lambda: [(2, 8, 64), (2, 8, 8), (2, 4, 8)], size=(2, 8, 64), frames=2, height=8, width=64, fps=8
    )
    lines = [line for line in fit.describe(module, data).splitlines() if line.startswith("warning")]
    cut = "warning    no window on W, of 2 tiles, is wider than 1: tiles never attend to those beside them"
    assert lines == [cut]
