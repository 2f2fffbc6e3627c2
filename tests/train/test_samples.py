"""Sample videos while a run trains: by steps, whole or not at all, to logs that hold videos, and at no other cost."""

import logging
import signal
import time
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from tests.helpers.commands import refused
from tests.helpers.tiny_run import read_log, signal_at, tiny_words, train_apart, train_tiny
from tests.helpers.together import run_in_turn
from tests.train.stops import differences, end_of
from train import samples
from train.callbacks import read_losses
from train.common.videos import read_clip
from train.fit import main
from train.module import FlowModule
from train.samples import SampleVideo

RUN = [
    *("--trainer.max_steps=6", "--trainer.val_check_interval=6", "--checkpoint.every_n_train_steps=3"),
    *("--trainer.accumulate_grad_batches=2", "--sample.steps=2", "--sample.count=2", "--model.warmup_steps=0"),
]
EVERY_2 = "--sample.every_n_steps=2"
FILES = [f"step00000{step}.{kind}" for step in (2, 4, 6) for kind in ("mp4", "png")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("samples") / "run", *RUN, EVERY_2)


def names(run):
    return sorted(path.name for path in (run / "samples").glob("*"))


def test_there_is_a_video_and_a_sheet_of_each_step_and_the_last_is_the_ends(run):
    assert names(run) == FILES
    assert all(read_clip(run / f"samples/step00000{i}.mp4", 10, 8, 32, 64).float().std() > 0 for i in (2, 4))
    for step in (2, 4, 6):
        Image.open(run / f"samples/step00000{step}.png").verify()
    videos = [(run / f"samples/step00000{step}.mp4").read_bytes() for step in (2, 4, 6)]
    assert len(set(videos)) == 3 and videos[2] == (run / "sample.mp4").read_bytes()


def test_the_same_prompts_and_noise_each_time(tmp_path):
    """With a learning rate of 0 nothing else changes."""
    run = train_tiny(tmp_path / "run", *RUN, EVERY_2, "--model.lr=0")
    assert len({(run / f"samples/step00000{step}.mp4").read_bytes() for step in (2, 4, 6)}) == 1


def test_training_is_the_same_to_the_bit_without_them(run, tmp_path):
    without = train_tiny(tmp_path / "run", *RUN)
    assert not (without / "samples").exists()
    assert read_losses(without) == read_losses(run) and len(read_losses(run)["train/loss"]) == 6
    assert differences(end_of(without), end_of(run)) == []


def test_its_time_is_not_the_trainings(tmp_path, monkeypatch):
    """Of a run whose samples take ten times as long as its steps."""
    original = FlowModule.sample

    def slow(*args, **kwargs):
        time.sleep(1.0)
        return original(*args, **kwargs)

    monkeypatch.setattr(FlowModule, "sample", slow)
    rows = read_log(train_tiny(tmp_path / "run", *RUN, EVERY_2))
    assert min(row["train/tokens_per_second"] for row in rows.values()) > 4 * 320 / 1.0


@pytest.mark.parametrize(("call", "times"), [(1, 1), (1, 2), (2, 1)])
def test_stopped_in_one_it_is_drawn_when_the_run_goes_on(run, tmp_path, monkeypatch, call, times):
    """Stopped twice: the second time in the one that the first left undone."""
    for earlier in range(times):
        with monkeypatch.context() as patch:
            signal_at(patch, "sample", call, signal.SIGTERM)
            with pytest.raises(SystemExit) as stopped:
                train_tiny(tmp_path / "run", *RUN, EVERY_2, *(["--ckpt_path=last"] if earlier else []))
        assert stopped.value.code == 143 and names(tmp_path / "run") == FILES[: 2 * call - 2]
    train_tiny(tmp_path / "run", *RUN, EVERY_2, "--ckpt_path=last")
    assert names(tmp_path / "run") == FILES
    for name in FILES:
        if name.endswith("mp4"):
            assert (tmp_path / "run/samples" / name).read_bytes() == (run / "samples" / name).read_bytes()
    assert differences(end_of(run), end_of(tmp_path / "run")) == []


def test_one_that_is_there_is_not_drawn_again(tmp_path, monkeypatch):
    drawn, original = [], FlowModule.sample

    def noted(self, *args, **kwargs):
        drawn.append(self.global_step)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(FlowModule, "sample", noted)
    train_tiny(tmp_path / "run", *RUN, EVERY_2, "--trainer.max_steps=4")
    train_tiny(tmp_path / "run", *RUN, EVERY_2, "--ckpt_path=last")
    assert drawn == [2, 4, 6]


def test_what_goes_wrong_costs_the_sample_not_the_run_and_leaves_no_part_of_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(samples, "write_video", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with caplog.at_level(logging.WARNING):
        train_tiny(tmp_path / "run", *RUN, EVERY_2)
    lines = [record.getMessage() for record in caplog.records if "no sample" in record.getMessage()]
    assert lines == ["no sample was drawn (no space left); training goes on"] * 2 + [
        "no sample was drawn (no space left); the weights are saved"
    ]
    assert not list((tmp_path / "run").rglob("*.mp4")) and not list((tmp_path / "run/samples").glob(".*"))
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()


def test_a_log_that_holds_videos_gets_them_and_others_do_not(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(WandbLogger, "log_video", lambda self, *a, **k: shown.append((a, k)))
    log = WandbLogger(project="fps-flex", offline=True, save_dir=tmp_path)
    trainer = SimpleNamespace(loggers=[SimpleNamespace(), log], global_step=7)
    samples._show(trainer, tmp_path / "a.mp4", ["a circle", "a square"])
    assert shown == [(("sample", [str(tmp_path / "a.mp4")]), {"step": 7, "caption": ["a circle; a square"]})]


@pytest.mark.slow
def test_weights_and_biases_holds_the_videos(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_SERVICE", raising=False)
    done = train_apart(
        tmp_path / "run", *RUN, EVERY_2, "--config=configs/wandb.yaml", "--trainer.logger.init_args.offline=true",
        f"--trainer.logger.init_args.save_dir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    held = sorted(tmp_path.glob("wandb/offline-run-*/files/media/videos/sample_*.mp4"))
    files = [tmp_path / "run/samples" / f"step00000{i}.mp4" for i in (2, 4)] + [tmp_path / "run/sample.mp4"]
    assert len(held) == 3 and {x.read_bytes() for x in held} == {x.read_bytes() for x in files}


@pytest.mark.parametrize("value", [0, -3])
def test_what_can_not_be_meant_is_refused(tmp_path, capsys, value):
    assert f"sample.every_n_steps is {value}" in refused(
        capsys, main, tiny_words(tmp_path / "run", f"--sample.every_n_steps={value}")
    )
    with pytest.raises(ValueError, match=r"sample.every_n_steps"):
        SampleVideo(every_n_steps=value)


@pytest.mark.slow
def test_processes_that_share_the_model_draw_together(tmp_path):
    """Two stop and go on, and end with the videos, and the losses, of two that never did."""
    words = [*RUN, "--data.batch_size=1", "--trainer.enable_progress_bar=false"]
    lines = [
        tiny_words(tmp_path / "without", *words),
        tiny_words(tmp_path / "with", *words, EVERY_2),
        tiny_words(tmp_path / "resumed", *words, EVERY_2, "--trainer.max_steps=3"),
        tiny_words(tmp_path / "resumed", *words, EVERY_2, "--ckpt_path=last"),
    ]
    _, told, codes = run_in_turn(tmp_path, 2, *(("train.fit", line) for line in lines))
    assert codes == [[0, 0]] * len(lines), told
    assert read_losses(tmp_path / "with") == read_losses(tmp_path / "without")
    assert names(tmp_path / "with") == names(tmp_path / "resumed") == FILES
    for name in FILES:
        if name.endswith("mp4"):
            a, b = ((tmp_path / run / "samples" / name).read_bytes() for run in ("with", "resumed"))
            assert a == b
