"""The bench in small, on whatever is here; and what importing the library brings along."""

import json
import subprocess
import sys

import lightning as L
import pytest
import torch

from eval.bench.command import command
from eval.bench.exact import exact_rows
from eval.bench.kernel import kernel
from eval.bench.length import exponent
from eval.bench.model import model
from eval.bench.pipeline import pipeline
from eval.bench.processes import Processes, check_exchanges
from eval.bench.sizes import GRIDS, attention_of, tell_of_a_cpu
from eval.bench.train import train
from eval.timing import clock, find_command
from fps_flex import FPSAttention, Regime, StepSchedule
from fps_flex.wan import WAN_TINY, Wan
from fps_flex.wan.flow import noise_level
from tests.helpers.cases import relative_error
from tests.helpers.commands import refused, refused_unmeasured


def read(path):
    held = json.loads(path.read_text())
    assert {"command", "device", "torch"} <= set(held)
    return held["rows"]


def test_train_measures_each_schedule(tmp_path, capsys):
    train(size="tiny", layers=1, out=tmp_path / "out/bench.json", steps=2, warmup=1)
    rows = read(tmp_path / "out/bench.json")
    regimes = ("early", "middle", "late", "mix")
    assert [(row["schedule"], row["regime"]) for row in rows] == [
        ("sdpa", "all"),
        ("dense", "all"),
        *((f"fps, {scales} scales", regime) for scales in ("fp32", "pow2") for regime in regimes),
    ]
    assert len([x for x in capsys.readouterr().out.splitlines() if x.startswith("|")]) == 12
    for row in rows:
        assert len(row.get("all_step_seconds", [0, 0])) == 2 and row["step_seconds"] > 0 and row["tokens"] == 320
    assert rows[0]["speedup"] == rows[0]["density"] == rows[1]["density"] == rows[0]["share"] == 1


@pytest.mark.parametrize(
    ("options", "recorded"),
    [
        (["--lora=2"], {"lora": 2, "base": "fp32"}),
        (["--base=bf16"], {"lora": None, "base": "bf16"}),
        (["--lora=2", "--base=bf16", "--objective=distill"], {"objective": "distill", "base": "bf16"}),
        (["--objective=distill"], {"objective": "distill", "lora": None}),
        (["--optimizer=adamw"], {"optimizer": "adamw"}),
        (["--offload=true", "--average=false"], {"offload": True, "average": False}),
        (["--offload_optimizer=true"], {"offload_optimizer": True}),
        (["--gpu_gb=3.5"], {"gpu_gb": 3.5}),
    ],
    ids=" ".join,
)
def test_train_does_as_its_options_say(tmp_path, monkeypatch, caplog, options, recorded):
    """Which of the model's tensors a step moves, and in what dtype they are, beside what the rows say."""
    fits, fit = [], L.Trainer.fit

    def note(self, module, *args, **others):
        before = {name: x.detach().clone() for name, x in module.model.named_parameters()}
        fit(self, module, *args, **others)
        fits.append((module, {name for name, x in module.model.named_parameters() if not torch.equal(x, before[name])}))

    monkeypatch.setattr(L.Trainer, "fit", note)
    command(["train", "--size=tiny", "--layers=1", "--steps=2", "--warmup=0", "--schedules=[sdpa,uniform]",
             "--scale_formats=[pow2]", f"--out={tmp_path / 't.json'}", *options])  # fmt: skip
    dense, fps = read(tmp_path / "t.json")
    assert {name: fps[name] for name in recorded} == recorded
    assert dense["objective"] == "flow", "which has no denser model to learn from"
    module, moved = fits[-1]
    assert (module.objective, module.model.offload) == (fps["objective"], fps["offload"])
    assert module.offload_optimizer == fps["offload_optimizer"]
    assert moved and all("lora" in name for name in moved) == bool(fps["lora"])
    assert (module.average is not None) == fps["average"]
    weight = module.model.blocks[0].ffn[2].weight
    assert weight.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[fps["base"]]
    assert ("there is no GPU here" in caplog.text) == (fps["gpu_gb"] is not None and not torch.cuda.is_available())


def test_train_weighs_regimes_as_training_draws_them(tmp_path, monkeypatch):
    """The noise level is held in each, however few steps: 0.20, 0.60 and 0.20 are P(u > 0.7), ... of a logit-normal."""
    held, forward = [], Wan.forward

    def note(self, x, timestep, *args, **options):
        held.append(round(timestep.item() / 1000, 4))
        return forward(self, x, timestep, *args, **options)

    monkeypatch.setattr(Wan, "forward", note)
    train(
        size="tiny", schedules=("fps",), scale_formats=("pow2",), layers=1, steps=2, warmup=1, out=tmp_path / "t.json"
    )
    assert held == [0.99] * 3 + [0.8] * 3 + [0.3] * 3
    *each, mix = read(tmp_path / "t.json")
    shares = [row["share"] for row in each]
    levels = noise_level(torch.randn(40_000, generator=torch.Generator().manual_seed(0)), 5.0)
    drawn = FPSAttention("fps").step_schedule.regime_index(levels)
    assert shares == [0.2, 0.6, 0.2] == pytest.approx((drawn.bincount() / len(drawn)).tolist(), abs=0.01)
    for name in ("step_seconds", "density"):
        assert mix[name] == pytest.approx(sum(share * row[name] for share, row in zip(shares, each, strict=True)))
    assert mix["tokens_per_second"] == 320 / mix["step_seconds"]


def test_model_measures_stock_and_ours_and_adds_up_a_video(tmp_path):
    model("tiny", ("stock", "sdpa", "fps"), layers=1, repeats=2, out=tmp_path / "model.json")
    rows = read(tmp_path / "model.json")
    assert [row["model"] for row in rows] == ["stock"] + ["sdpa, bf16"] * 2 + ["fps, bf16"] * 4
    early, middle, late, video = rows[3:]
    assert [row["regime"] for row in rows[3:]] == ["early", "middle", "late", "50 steps x 2"]
    expected = 2 * sum(n * row["step_seconds"] for n, row in zip((15, 21, 14), (early, middle, late), strict=True))
    assert video["video_seconds"] == pytest.approx(expected) and rows[0]["speedup"] == 1


def test_model_measures_a_window_throughout(tmp_path):
    model("tiny", ("sdpa",), window=(5, 1, 2), tile=(1, 4, 4), layers=1, repeats=1, out=tmp_path / "model.json")
    *_, step, video = read(tmp_path / "model.json")
    assert step["model"] == video["model"] == "window (5, 1, 2), bf16"
    assert (step["regime"], step["density"]) == ("all", 0.5)
    assert video["video_seconds"] == pytest.approx(100 * step["step_seconds"])


def test_model_measures_a_schedule_as_often_as_it_is_named(tmp_path):
    model("tiny", ("dense", "sdpa", "dense"), layers=1, repeats=1, out=tmp_path / "model.json")
    steps = [row["model"] for row in read(tmp_path / "model.json") if row["regime"] == "all"]
    assert steps == ["dense, bf16", "sdpa, bf16", "dense, bf16"]


@pytest.mark.parametrize(
    ("schedules", "tile", "message"),
    [
        (("stock", "sdpa"), (1, 4, 4), "^tile is .1, 4, 4., and stock, sdpa has none: add a preset or a window$"),
        (("stock", "fps"), (9, 9, 9), "^tile .9, 9, 9. is larger than the grid"),
    ],
)
def test_model_refuses_a_tile_that_nothing_is_cut_into_before_it_measures(capsys, schedules, tile, message):
    with pytest.raises(ValueError, match=message):
        model("tiny", schedules, tile=tile, layers=1, repeats=1)
    assert not capsys.readouterr().out


def test_kernel_measures_rivals_and_ours_with_errors(tmp_path, capsys):
    kernel("tiny", windows=((5, 2, 1), (5, 2, 2)), rounds=2, repeats=2, out=tmp_path / "kernel.json")
    rows = read(tmp_path / "kernel.json")
    rounded = ("", ", K not smoothed", ", int8", ", rotated")
    ours = ["sparse only", *(f"{scales} scales{x}" for x in rounded for scales in ("power-of-two", "fp32"))]
    ours = [x for x in ours if x not in ("fp32 scales, int8", "fp32 scales, rotated")]
    assert [row["method"] for row in rows] == ["SDPA", *ours * 2]
    for row in rows[1:]:
        assert row["module_ms"] > 0 and row["kernel_ms"] > 0 and row["module_speedup"] > 0
        assert row["density"] == (0.5 if row["window"] == [5, 2, 1] else 1)
        assert row["error"] < 1e-5 if row["method"] == "sparse only" else 0.02 < row["error"] < 0.08
        assert "int8" not in row["method"] or row["error"] < 0.035
    table = (tmp_path / "kernel.md").read_text()
    assert table.strip() in capsys.readouterr().out and table.count("\n") == 3 + 14
    assert (tmp_path / "kernel.png").read_bytes().startswith(b"\x89PNG")


def test_the_exact_rows_are_those_of_the_oracle():
    attention = FPSAttention(StepSchedule((), (Regime((1, 2, 2), None),)), (2, 3, 3), 16)
    plan = attention.plan((4, 7, 9), torch.tensor([0.5]))
    q, k, v = (torch.randn(1, 2, plan.layout.tokens, 16) for _ in range(3))
    rows, expected = exact_rows(q, k, v, plan.layout, (1, 2, 2), [0, 5, 17])
    assert relative_error(attention.over_tokens(q, k, v, plan)[:, :, rows], expected) < 1e-5
    assert relative_error(attention.over_tokens(q, k, v.flip(2), plan)[:, :, rows], expected) > 0.1


def test_the_exponent_of_a_power_law():
    rows = [{"tokens": n, "module_ms": 3 * n**1.25} for n in (100, 200, 1000)]
    assert exponent(rows) == pytest.approx(1.25)


def test_the_clock_calls_as_often_as_it_says():
    calls = []
    assert len(clock(lambda: calls.append(0), repeats=3)) == 3 and len(calls) == 4


def test_length_and_profile_run(tmp_path):
    command(["length", "--size=tiny", "--tile=[1,4,4]", "--window=[5,2,1]", "--widths=[8,16]", "--repeats=2",
             f"--out={tmp_path / 'length.json'}"])  # fmt: skip
    assert [row["density"] for row in read(tmp_path / "length.json")] == [0.5, 0.25]
    command(["profile", "--size=tiny", "--window=[5,2,1]", f"--out={tmp_path / 'profile.json'}"])
    rows = read(tmp_path / "profile.json")
    assert sum(row["share"] for row in rows) == pytest.approx(1) and rows[0]["ms"] >= rows[-1]["ms"]


def test_a_block_is_profiled_beside_what_it_can_not_do_without(tmp_path, monkeypatch, capsys):
    """Of dim d, f in the feed-forward network, n tokens, m of text: 12 ndd + 4 mdd + 4 ndf + 4 nmd operations."""
    monkeypatch.setattr("eval.bench.profile.name_device", lambda: "NVIDIA H100 80GB HBM3")
    words = ["profile", "--what=block", "--size=tiny", "--window=[5,2,1]", "--linears=bf16"]
    command([*words, f"--out={tmp_path / 'block.json'}"])
    said = json.loads((tmp_path / "block.json").read_text())
    d, f, n, m = 128, 384, 320, 512
    products = 12 * n * d * d + 4 * m * d * d + 4 * n * d * f + 4 * n * m * d
    attention = 4 * n * n * d * 0.5
    assert said["product_tflop"] == pytest.approx(products / 1e12)
    assert said["attention_tflop"] == pytest.approx(attention / 1e12)
    assert said["floor_ms"] == pytest.approx((products + attention) / 989e9)
    weights = 4 * (8 * (d * d + d) + d * f + f + f * d + d + 6 * d + 2 * d + 4 * d)
    assert said["gigabytes"] == pytest.approx((weights + 2 * n * (18 * d + 2 * f)) / 1e9)
    assert (
        said["total_ms"] == pytest.approx(sum(row["ms"] for row in said["rows"]))
        and "floor_ms" in capsys.readouterr().out
    )
    assert "linears fp8 need a GPU" in refused(capsys, command, [*words, "--linears=fp8"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["profile", "--size=tiny", "--window=[5,2,1]", "--method=magic"],
            "methods are magic, expected some of sparse",
        ),
        (["kernel", "--size=9B"], "9B"),
        *[
            ([name, "--size=tiny", f"--{option}=0"], f"{option} is 0, expected a whole number of at least 1")
            for name, option in (
                ("kernel", "rounds"),
                ("kernel", "repeats"),
                ("length", "repeats"),
                ("profile", "top"),
                ("model", "repeats"),
                ("model", "layers"),
                ("pipeline", "steps"),
                ("train", "steps"),
                ("pipeline", "layers"),
                ("train", "layers"),
                ("data", "clips"),
            )
        ],  # fmt: skip
        (["data", "--size=tiny", "--seconds=0"], "seconds is 0.0, expected more than 0"),
        *[
            (["train", "--size=tiny", *options], message)
            for options, message in (
                (["--lora=0"], "lora is 0, expected a whole number of at least 1"),
                (["--lora=x"], "lora"),
                (["--lora=9999", "--layers=1"], "lora.rank is 9999"),
                (["--gpu_gb=-1"], "gpu_gb is -1.0, expected more than 0"),
                (["--gpu_gb=0"], "gpu_gb is 0.0, expected more than 0"),
                (["--objective=distill", "--schedules=[sdpa]"], "distill learns from dense attention, no other is mea"),
                (["--objective=distill", "--schedules=[dense,sdpa]"], "add schedule fps"),
                (["--objective=guess"], "objective"),
                (["--optimizer=sgd"], "optimizer"),
                (["--base=fp8"], "base fp8 is of frozen weights"),
                (["--base=fp8", "--lora=2"], "base fp8 needs a GPU with float8"),
                (["--linears=[bf16,fp8-ffn]"], "linears fp8-ffn need a GPU with float8"),
                (["--schedules=[]"], "schedules is empty"),
                (["--scale_formats=[]"], "scale_formats is empty"),
                (["--linears=[]"], "linears is empty"),
            )
        ],
        (["model", "--size=tiny", "--schedules=[]"], "schedules is empty"),
        (["length", "--size=tiny", "--widths=[8]"], r"widths are \[8\], expected at least two"),
        (
            ["length", "--size=tiny", "--tile=[1,4,4]", "--window=[5,2,1]", "--widths=[8,16]", "--methods=[magic]"],
            "methods are magic, expected some of sparse only",
        ),
        (["model", "--size=tiny", "--schedules=[stocks]"], "stocks"),
        *[
            ([name, "--size=tiny", "--out=/proc/none/k.json"], "/proc/none can't be written")
            for name in ("kernel", "profile", "length", "model", "pipeline", "train", "data")
        ],
        (["profile", "--size=tiny", "--linears=bf16"], "linears is given, which says nothing of a layer: leave it"),
        (
            ["profile", "--size=tiny", "--what=block", "--backward=true"],
            "backward is given, which says nothing of",
        ),
        (["profile", "--size=tiny", "--what=block", "--method=fp32 scales"], "method is given, which says nothing of"),
        (["kernel", "--size=tiny", "--tile=[9,9,9]"], "tile .9, 9, 9. is larger than the grid"),
        (["model", "--size=tiny", "--linears=[fp8]"], "linears fp8 need a GPU with float8"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line_before_anything_is_measured(args, message, capsys):
    if "GPU" in message and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    refused_unmeasured(capsys, command, args, message)


def test_importing_the_library_brings_torch_and_einops_only():
    heavy = "{'lightning', 'diffusers', 'transformers', 'safetensors', 'av', 'wandb', 'matplotlib', 'jsonargparse'}"
    code = f"import sys, fps_flex, fps_flex.weights; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_pipelines_steps_are_measured_before_and_after_install(tmp_path, capsys):
    pipeline("tiny", steps=5, compiled=False, layers=1, out=tmp_path / "out/bench.json")
    stock, fps = json.loads((tmp_path / "out/bench.json").read_text())["rows"]
    assert (stock["attention"], stock["density"], stock["layers"]) == ("stock", 1, 1)
    assert fps["attention"] == "fps" and 0 < fps["density"] < 1 and set(fps["regimes"]) == {0, 1, 2}
    assert all(len(row["all_step_seconds"]) == 5 and row["step_seconds"] > 0 for row in (stock, fps))
    assert fps["over_stock"] == stock["step_seconds"] / fps["step_seconds"]
    for option, message in (("--attention.tile=[0,1,1]", "tile is (0, 1, 1)"), ("--steps=0", "expected a whole num")):
        assert message in refused(capsys, command, ["pipeline", "--size=tiny", option])


def test_a_video_is_timed_stage_by_stage(tmp_path, capsys):
    options = ["--size=tiny", "--linears=bf16", "--steps=2", "--rounds=2", f"--out={tmp_path / 'video.json'}"]
    command(["video", *options])
    report = json.loads((tmp_path / "video.json").read_text())
    *stages, total = report["rows"]
    assert [row["stage"] for row in stages] == ["text encoder", "denoising", "VAE", "mp4"] and 0 < report["density"] < 1
    assert all(len(row["all_seconds"]) == 2 and row["first_seconds"] > 0 for row in stages)
    assert total["stage"] == "all" and total["seconds"] == pytest.approx(sum(row["seconds"] for row in stages))
    options = ["video", "--size=tiny", "--linears=bf16"]
    for option, message in (("--linears=fp8", "linears fp8 need a GPU"), ("--steps=0", "expected a whole number")):
        assert message in refused(capsys, command, [*options, option])
    for more, message in (
        (["--parallel.guidance=2"], "2 processes make a video, got 1, expected 2: torchrun "),
        (["--parallel.guidance=2", "--guidance=1"], "guidance is 1, which takes one pass"),
    ):
        assert message in refused(capsys, command, [*options, *more])


@pytest.mark.parametrize(
    ("started", "several", "told"),
    [
        (["python", "-m", "eval.bench", "model"], None, "python -m eval.bench model"),
        (["python", "-u", "-m", "eval.bench", "model", "--parallel", "[one]"], "4",
         "torchrun --nproc_per_node 4 -m -- eval.bench model --parallel '[one]'"),
        (["python", "-u", "a.py", "x y", "-u"], "2", "torchrun --nproc_per_node 2 -- a.py 'x y' -u"),
        (["python", "-X", "dev", "-m", "a"], "2", "torchrun --nproc_per_node 2 --no-python -- python -X dev -m a"),
        (["python", "-c", "pass"], "2", "torchrun --nproc_per_node 2 --no-python -- python -c pass"),
        ([], "2", "torchrun --nproc_per_node 2 --no-python -- python"),
        ([], None, "python"),
    ],
)  # fmt: skip
def test_a_report_says_the_command_that_makes_it_again(monkeypatch, started, several, told):
    monkeypatch.setattr(sys, "orig_argv", started)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if several:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", several)
    assert find_command() == told
    monkeypatch.setenv("GROUP_WORLD_SIZE", "3")
    assert ("--nnodes 3 " in find_command()) == bool(several)


@pytest.mark.parametrize("schedule", ["fps", "dense", "sdpa"])
def test_an_exchange_that_cannot_be_is_refused_before_anything_is_measured(schedule):
    three, attentions = Processes(0, 3, 3), [attention_of("tiny", schedule)]
    with pytest.raises(ValueError, match="ulysses by a sequence of 3: Ulysses deals 2 heads out to 3 processes"):
        check_exchanges(("one", "ulysses"), attentions, WAN_TINY, GRIDS["tiny"], three)
    check_exchanges(("one", "shard"), attentions, WAN_TINY, GRIDS["tiny"], three)
    check_exchanges(("ulysses",), attentions, WAN_TINY, GRIDS["tiny"], Processes(0, 2, 2))


def test_real_sizes_without_a_gpu_are_warned_of(caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tell_of_a_cpu("tiny")
    tell_of_a_cpu("14B")
    (record,) = caplog.records
    assert record.getMessage() == "there is no GPU, and a CPU takes hours for 14B: --size tiny takes seconds"
