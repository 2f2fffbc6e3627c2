"""What a training log says beside the loss, by hand, and over batches, processes and stops."""

from types import SimpleNamespace

import pytest
import torch

from fps_flex import Regime, StepSchedule, density, preset
from fps_flex.attention import FPSAttention
from fps_flex.wan import WAN_TINY, WanConfig
from fps_flex.wan.flops import forward_flops, training_flops
from tests.helpers.tiny_run import read_log, tiny_words, train_tiny
from tests.helpers.together import run_in_turn
from train.callbacks import Progress, read_losses
from train.checkpoints import trained_steps
from train.fit import main
from train.training_log import TrainingLog, Work, batch_flops, means, peak_flops, speed, tally

EVERY = ["--trainer.log_every_n_steps=2", "--trainer.val_check_interval=8", "--checkpoint.every_n_train_steps=100"]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12), ("NVIDIA H20", 148e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", 2500e12), ("NVIDIA L4", 121e12), ("NVIDIA L40S", 362e12), ("NVIDIA L40", 181e12),
        ("NVIDIA GeForce RTX 4090", 165e12), ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("Tesla V100-SXM2", None),
        ("NVIDIA A10G", None), ("an imaginary GPU", None), ("a CPU", None),
    ],
)  # fmt: skip
def test_the_peak_of_a_gpu(name, peak):
    assert peak_flops(name) == peak


def batch(losses, sigma, seconds=0.5):
    return Work(torch.tensor(losses), torch.tensor(sigma), (3, 9, 12), 7, seconds)


def module(teachers=(), lora=None):
    attention = FPSAttention("fps", tile=(3, 3, 1), block=16)
    model = SimpleNamespace(attention=attention, config=WanConfig(24, 72, 2, 3, text_dim=16, freq_dim=8))
    return SimpleNamespace(model=model, teachers=teachers, making=SimpleNamespace(lora=lora))


def test_the_tally_of_batches_by_hand():
    """With shift 5 the regimes of fps meet at sigma 0.921 (progress 0.3) and 0.682 (0.7)."""
    sums = list(
        tally([batch([1.0, 2.0], [0.99, 0.8]), batch([4.0], [0.75], seconds=0.25), batch([7.0], [1.0])], module())
    )
    assert sums[0] == 4 * 324 and sums[2] == 1.25
    assert sums[3:9] == [2, 8, 2, 6, 0, 0]  # clips and loss of early (0.99 and 1), middle (0.8 and 0.75), late
    assert sums[9:] == [0, 0, 0, 0, 0, 0, 4, 14]  # all noise levels are from 0.75 to 1, which belongs to the last bin


def test_operations_follow_each_clips_regime():
    one = module()
    layout = one.model.attention.plan((3, 9, 12), torch.zeros(1)).layout
    shares = density(layout, preset("fps").windows(layout.tiles)).tolist()
    steps = [training_flops(forward_flops(one.model.config, 324, 7, share)) for share in shares]
    assert steps[0] < steps[2] < steps[1]
    found = list(tally([batch([1.0, 1.0, 1.0], [0.99, 0.8, 0.1])], one))[1]
    assert found == pytest.approx(sum(steps))
    forward = forward_flops(one.model.config, 324, 7, shares[0])
    assert list(tally([batch([1.0], [0.99])], module(lora="one")))[1] == pytest.approx(training_flops(forward, True))
    taught = list(tally([batch([1.0], [0.99])], module(teachers=("one",))))[1]
    assert taught - steps[0] == pytest.approx(forward_flops(one.model.config, 324, 7).total)


def test_speed_of_one_and_of_several_processes_by_hand():
    assert speed([1000, 6e12, 2.0], 1, 1, None) == {"train/tokens_per_second": 500}
    assert speed([1000, 6e12, 2.0], 1, 1, 1e13) == {"train/tokens_per_second": 500, "train/mfu": pytest.approx(0.3)}
    # four processes, of 2 s each; each two count the same clip, of which each has done half
    four = speed([4000, 24e12, 8.0], 4, 2, 1e13)
    assert four == {"train/tokens_per_second": 1000, "train/mfu": pytest.approx(0.15)}


def test_means_by_hand_and_a_loss_of_no_clips_is_left_out():
    assert means([3, 6.0, 1, 5.0, 0, 0.0, *(0, 0.0, 0, 0.0, 1, 5.0, 3, 6.0)]) == {
        "regime/0/share": 0.75, "regime/0/loss": 2, "regime/1/share": 0.25, "regime/1/loss": 5, "regime/2/share": 0,
        "noise/0.5-0.75/loss": 5, "noise/0.75-1/loss": 2,
    }  # fmt: skip


def mean_loss(row, kind):
    """Of all clips of a line, from their parts; by noise level without their counts there is no such mean."""
    shares = {name.split("/")[1]: value for name, value in row.items() if name.startswith("regime") and "share" in name}
    return sum(share * row.get(f"{kind}/{name}/loss", 0) for name, share in shares.items())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Of 8 steps of two batches of two clips, a line every second step."""
    return train_tiny(
        tmp_path_factory.mktemp("log") / "run", "--trainer.max_steps=8", "--trainer.accumulate_grad_batches=2",
        "--model.lr=0.003", "--model.warmup_steps=3", *EVERY,
    )  # fmt: skip


def test_every_line_is_of_all_batches_since_the_last_one(run, tmp_path):
    """The loss of steps 1 to 8 is in a run that logs each; every second line has the mean of two of them."""
    each = train_tiny(
        tmp_path / "each", "--trainer.max_steps=8", "--trainer.accumulate_grad_batches=2", "--model.lr=0.003",
        "--model.warmup_steps=3", *EVERY, "--trainer.log_every_n_steps=1",
    )  # fmt: skip
    rows, losses = read_log(run), read_losses(each)["train/loss"]
    assert sorted(rows) == [1, 3, 5, 7] and sorted(losses) == list(range(8))
    for step, row in rows.items():
        assert mean_loss(row, "regime") == pytest.approx((losses[step - 1] + losses[step]) / 2, rel=1e-5)
        assert sum(value for name, value in row.items() if name.endswith("/share")) == pytest.approx(1)
        assert row["train/tokens_per_second"] > 0 and row["train/grad_norm"] > 0
        assert "train/mfu" not in row and "train/peak_gb" not in row  # on a CPU
    for step, row in read_log(each).items():
        assert mean_loss(row, "regime") == pytest.approx(losses[step], rel=1e-5)


def test_the_learning_rate_is_that_of_the_step_and_the_gradient_that_before_clipping(run, tmp_path):
    rows = read_log(run)
    assert rows[1]["train/lr"] == pytest.approx(0.003 * 2 / 4) and rows[7]["train/lr"] == pytest.approx(0.003)
    clipped = train_tiny(tmp_path / "run", "--trainer.max_steps=2", "--trainer.gradient_clip_val=1e-3", *EVERY,
                         "--trainer.accumulate_grad_batches=2", "--model.lr=0")  # fmt: skip
    assert read_log(clipped)[1]["train/grad_norm"] > 0.1


def test_a_cpu_has_no_peak_which_is_said_once(tmp_path, capsys):
    train_tiny(tmp_path / "run")
    assert capsys.readouterr().out.count("train/mfu is left out: how fast a CPU could be is not known here") == 1


def test_on_a_gpu_that_is_known_the_log_has_its_mfu(tmp_path, monkeypatch):
    monkeypatch.setattr("train.training_log.peak_flops", lambda _: 1e9)
    rows = read_log(train_tiny(tmp_path / "run", "--trainer.max_steps=4", *EVERY))
    config = WanConfig(dim=128, ffn_dim=384, heads=2, layers=3, channels=24, text_dim=32, freq_dim=64)
    least = training_flops(forward_flops(config, 320, 40, 0.2)) / 320  # a token
    for row in rows.values():
        assert 1 <= row["train/mfu"] * 1e9 / (least * row["train/tokens_per_second"]) < 1.2


def test_a_resumed_run_goes_on_with_its_log(run, tmp_path):
    words = ["--trainer.accumulate_grad_batches=2", "--model.lr=0.003", "--model.warmup_steps=3", *EVERY]
    train_tiny(tmp_path / "run", "--trainer.max_steps=4", *words)
    train_tiny(tmp_path / "run", "--trainer.max_steps=8", *words, "--ckpt_path=last")
    whole, parts = ({step: without_time(row) for step, row in read_log(x).items()} for x in (run, tmp_path / "run"))
    assert whole == parts


def without_time(row):
    return {name: value for name, value in row.items() if name != "train/tokens_per_second"}


@pytest.mark.slow
def test_two_processes_log_what_one_does(tmp_path):
    """Sharing the model, and each with all of it: the same clips, so the same losses, shares and norms."""
    plain = ["--trainer.max_steps=4", "--model.attention.quantize=false", "--trainer.enable_progress_bar=false", *EVERY]
    kinds = {
        "shared": ["--parallel.shard=true"],
        "ddp": ["--parallel.shard=false"],
        "sequence": ["--parallel.shard=true", "--parallel.sequence=2", "--data.batch_size=2"],
    }
    lines = [tiny_words(tmp_path / x, *plain, "--data.batch_size=1", *kind) for x, kind in kinds.items()]
    _, told, codes = run_in_turn(tmp_path, 2, *(("train.fit", line) for line in lines))
    assert codes == [[0, 0]] * len(lines), told
    assert told.count("train/mfu is left out") == 3  # by the first process of each run
    one = read_log(train_tiny(tmp_path / "one", *plain, "--data.batch_size=2"))
    for name in kinds:
        other = read_log(tmp_path / name)
        assert other.keys() == one.keys() == {1, 3}
        for step, row in one.items():
            assert other[step].keys() == row.keys()
            assert without_time(other[step]) == pytest.approx(without_time(row), rel=1e-4), name


def test_operations_count_what_each_layer_computes():
    """A dense layer of three, beside two of a third of the pairs."""
    sparse = StepSchedule((), (Regime((1, None, None)),))
    work = Work(torch.zeros(1), torch.tensor([0.5]), (3, 4, 4), 8, 1.0)
    counted = {}
    for name, layers in {"none": None, "one": {"1": "dense"}, "all": {"0-2": "dense"}}.items():
        attention = FPSAttention(sparse, tile=(1, 2, 2), block=4, layers=layers)
        model = SimpleNamespace(config=WAN_TINY, attention=attention)
        module = SimpleNamespace(model=model, teachers=(), making=SimpleNamespace(lora=None))
        counted[name] = batch_flops(module, work)
    assert counted["one"] - counted["none"] == pytest.approx((counted["all"] - counted["none"]) / 3)
    assert counted["all"] > counted["none"]


def test_the_bar_reads_its_numbers_once_a_second_in_training_and_always_after_a_validation(monkeypatch):
    now, read = [100.0], []
    monkeypatch.setattr("train.callbacks.time.monotonic", lambda: now[0])

    def metrics(self, trainer, module):
        read.append(now[0])
        return {"train/loss": now[0], "v_num": 3}

    monkeypatch.setattr("lightning.pytorch.callbacks.RichProgressBar.get_metrics", metrics)
    bar = Progress()
    shown = []
    for second, training in ((100.0, True), (100.5, True), (100.6, False), (101.5, True), (101.7, True)):
        now[0] = second
        shown.append(bar.get_metrics(SimpleNamespace(training=training), None)["train/loss"])
    assert read == [100.0, 100.6, 101.7] and shown == [100.0, 100.0, 100.6, 100.6, 101.7]
    assert "v_num" not in bar.get_metrics(SimpleNamespace(training=True), None)


def test_a_step_that_is_taken_is_kept_where_its_log_fails(tmp_path, monkeypatch, capsys):
    """As where a process that it waits for is gone: weights, optimizer and average are those of step 3."""
    lines = []

    def fail(*_):
        lines.append(1)
        if len(lines) == 3:
            raise RuntimeError("no answer")
        return {}

    monkeypatch.setattr(TrainingLog, "_values", fail)
    with pytest.raises(SystemExit) as ended:
        main(tiny_words(tmp_path / "run", "--trainer.max_steps=6", "--trainer.log_every_n_steps=1"))
    assert ended.value.code == 1 and "stopped at step 3; --ckpt_path last goes on from" in capsys.readouterr().out
    assert trained_steps(tmp_path / "run/checkpoints/interrupted.ckpt") == 3
