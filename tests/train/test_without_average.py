"""Training without averaged weights: what it leaves out, what takes their place, and how runs begin and end one."""

import logging
import shutil

import pytest
import torch

from eval.generate.command import command as generate
from fps_flex.wan.adapters import read_adapter
from fps_flex.wan.convert import main as convert
from fps_flex.wan.trained import read_training_checkpoint
from fps_flex.wan.weights import open_weights
from tests.helpers.commands import refused
from tests.helpers.lora_run import lora_words, train_lora, train_words, write_base
from tests.helpers.tiny_run import all_tensors, read_checkpoint, same_tensors, tiny_words, train_tiny
from tests.helpers.together import run_in_turn
from tests.train.stops import differences, end_of
from train import callbacks
from train.callbacks import read_losses
from train.fit import main

WITHOUT, OFFLOAD = "--ema.decay=null", "--model.offload_optimizer=true"
HALF, WHOLE, RESUME = "--trainer.max_steps=2", "--trainer.max_steps=4", "--ckpt_path=last"
DROPPED = "changed    ema.decay 0.99 -> null: the average is dropped"
BEGUN = "changed    ema.decay null -> 0.5: the average begins as the weights of that step"
NO_AVERAGE = "has no averaged weights, which its run did not keep: the live ones are taken"


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """Four steps with an average; not to be changed."""
    return train_tiny(tmp_path_factory.mktemp("averaged") / "run", WHOLE)


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """The same four steps without one; not to be changed."""
    return train_tiny(tmp_path_factory.mktemp("without") / "run", WHOLE, WITHOUT)


def last(run):
    return all_tensors(run / "checkpoints/last.ckpt")


def live(run):
    """The weights in training and their momenta, which an average must not change."""
    loaded = read_training_checkpoint(run / "checkpoints/last.ckpt")
    momenta = {name: x for name, x in last(run).items() if name.partition(" ")[0].isdigit()}
    return momenta | dict(loaded.get("current_model_state", loaded["state_dict"]))


def weight_bytes(state):
    return sum(x.numel() * x.itemsize for x in state.values())


def test_it_trains_the_same_weights_and_saves_them_once(averaged, without):
    checkpoint, other = read_checkpoint(without), read_checkpoint(averaged)
    assert "current_model_state" not in checkpoint
    assert same_tensors(checkpoint["state_dict"], other["current_model_state"])
    assert same_tensors(live(without), live(averaged))
    sizes = [(run / "checkpoints/last.ckpt").stat().st_size for run in (averaged, without)]
    assert sizes[0] - sizes[1] == pytest.approx(weight_bytes(checkpoint["state_dict"]), rel=0.1)


def test_validation_best_and_sample_take_the_live_weights(averaged, without, tmp_path):
    """As an average of decay 0 does, which is the weights themselves."""
    same = train_tiny(tmp_path / "run", WHOLE, "--ema.decay=0")
    assert read_losses(without) == read_losses(same)
    assert read_losses(without)["val/loss"][3] != read_losses(averaged)["val/loss"][3]
    assert (without / "sample.mp4").read_bytes() == (same / "sample.mp4").read_bytes()
    best, other = (read_checkpoint(run, "best") for run in (without, same))
    assert "current_model_state" not in best and same_tensors(best["state_dict"], other["state_dict"])


def test_no_copy_of_the_weights_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "copy_trained", lambda _: pytest.fail("a copy was made"))
    module = train_words(tiny_words(tmp_path / "run", WITHOUT))
    assert module.average is None
    assert {x for x in module.state_dict() if x.endswith("head.head.weight")} == {"model.head.head.weight"}


def test_resumed_without_it_ends_in_the_same_bits(without, tmp_path):
    run = train_tiny(tmp_path / "run", HALF, WITHOUT)
    train_tiny(run, WHOLE, WITHOUT, RESUME)
    assert differences(end_of(without), end_of(run)) == []


def test_a_run_goes_on_without_its_average(averaged, tmp_path, capfd):
    run = train_tiny(tmp_path / "run", HALF)
    train_tiny(run, WHOLE, WITHOUT, RESUME)
    assert DROPPED in capfd.readouterr().out.splitlines()
    assert "current_model_state" not in read_checkpoint(run) and same_tensors(live(run), live(averaged))


def test_an_average_begins_as_the_weights_that_a_run_without_one_had(averaged, tmp_path, capfd):
    run = train_tiny(tmp_path / "run", HALF, WITHOUT)
    first = read_checkpoint(run)["state_dict"]
    train_tiny(run, "--trainer.max_steps=3", "--ema.decay=0.5", RESUME)
    assert BEGUN in capfd.readouterr().out.splitlines()
    checkpoint = read_checkpoint(run)
    for name, average in checkpoint["state_dict"].items():
        torch.testing.assert_close(average, torch.lerp(first[name], checkpoint["current_model_state"][name], 0.5))
    assert not same_tensors(checkpoint["state_dict"], checkpoint["current_model_state"])
    train_tiny(run, WHOLE, "--ema.decay=0.5", RESUME)
    assert "the average begins" not in capfd.readouterr().out and same_tensors(live(run), live(averaged))


def test_momenta_may_wait_on_the_host(without, tmp_path):
    assert same_tensors(last(train_tiny(tmp_path / "run", WHOLE, WITHOUT, OFFLOAD)), last(without))


def test_its_readers_take_the_weights_there_are_and_say_so(without, tmp_path, caplog):
    path = without / "checkpoints/last.ckpt"
    caplog.set_level(logging.INFO)
    taken = {which: dict(open_weights(path, which).stream()) for which in ("live", "average")}
    assert same_tensors(taken["live"], taken["average"]) and len(taken["live"]) > 50
    assert [x.getMessage() for x in caplog.records] == [f"{path} {NO_AVERAGE}"]
    for which in taken:
        convert(["convert", str(path), str(tmp_path / which), "--format", "official", "--weights", which])
        assert same_tensors(dict(open_weights(tmp_path / which).stream()), taken["live"])
        caplog.clear()
        words = [f"--checkpoint={path}", f"--out={tmp_path / f'{which}-videos'}", "--prompt=a circle", "--steps=1"]
        generate([*words, f"--weights={which}"])
        assert caplog.text.count(NO_AVERAGE) == (which == "average")
    videos = [next((tmp_path / f"{which}-videos").glob("*.mp4")).read_bytes() for which in taken]
    assert videos[0] == videos[1]
    train_tiny(tmp_path / "run", f"--model.checkpoint={path}")
    losses = [read_losses(run)["val/loss"] for run in (tmp_path / "run", without)]
    assert losses[0][0] == pytest.approx(losses[1][3], rel=1e-6)


def test_of_a_lora_the_adapter_is_saved_once(tmp_path, caplog):
    base = write_base(tmp_path / "base")
    for name, options in {"with": [], "without": [WITHOUT], "half": [WITHOUT, "--trainer.max_steps=1"]}.items():
        train_lora(tmp_path / name, base, *options)
    train_lora(tmp_path / "half", base, WITHOUT, RESUME)
    for name in ("without", "half"):
        assert "current_model_state" not in read_checkpoint(tmp_path / name)
        assert same_tensors(live(tmp_path / name), live(tmp_path / "with"))
    path = tmp_path / "without/checkpoints/last.ckpt"
    caplog.set_level(logging.INFO)
    adapters = [read_adapter(path, which).layers for which in ("average", "live")]
    assert all(torch.equal(x.up, adapters[1][name].up) for name, x in adapters[0].items())
    assert caplog.text.count(NO_AVERAGE) == 1
    train_lora(tmp_path / "half", base, "--ema.decay=0.5", RESUME, "--trainer.max_steps=3")
    assert read_checkpoint(tmp_path / "half").keys() >= {"state_dict", "current_model_state"}


@pytest.mark.parametrize(
    ("name", "lacking", "line"),
    [
        ("averaged", "current_model_state", "it lacks current_model_state"),
        ("without", "state_dict", "it lacks state_dict or fps_flex"),
    ],
)
def test_weights_that_a_checkpoint_lacks_are_missed_all_the_same(request, tmp_path, capfd, name, lacking, line):
    checkpoint = read_checkpoint(request.getfixturevalue(name))
    del checkpoint[lacking]
    path = tmp_path / "lacking.ckpt"
    torch.save(checkpoint, path)
    assert line in refused(capfd, main, tiny_words(tmp_path / "run", WITHOUT, f"--ckpt_path={path}"))


@pytest.mark.slow
def test_processes_that_share_the_model_do_the_same(without, tmp_path):
    base = write_base(tmp_path / "base")
    one, lora = "--data.batch_size=1", ["--model.base=bf16", "--data.batch_size=1"]
    sizes = ["--model.wan.dim=72", "--model.wan.heads=4", "--model.wan.ffn_dim=99", one]

    def words(name, *options):
        return tiny_words(tmp_path / name, *sizes, *options)

    main(words("one", HALF, WITHOUT, "--data.batch_size=2"))
    shutil.copytree(tmp_path / "one", tmp_path / "one-to-two")
    lines = [
        words("with", WHOLE),
        words("without", WHOLE, WITHOUT),
        words("offloaded", WHOLE, WITHOUT, OFFLOAD),
        words("resumed", HALF, WITHOUT),
        words("resumed", WHOLE, WITHOUT, RESUME),
        words("dropped", HALF),
        words("dropped", WHOLE, WITHOUT, RESUME),
        words("begun", HALF, WITHOUT),
        words("to-one", HALF, WITHOUT),
        words("begun", WHOLE, "--ema.decay=0.5", RESUME),
        words("one-to-two", WHOLE, WITHOUT, RESUME),
        words("sequence-with", WHOLE, "--parallel.sequence=2"),
        words("sequence", WHOLE, "--parallel.sequence=2", WITHOUT),
        lora_words(tmp_path / "lora-with", base, *lora, "--parallel.shard=true"),
        lora_words(tmp_path / "lora", base, *lora, "--parallel.shard=true", WITHOUT),
        lora_words(tmp_path / "lora-ddp-with", base, *lora),
        lora_words(tmp_path / "lora-ddp", base, *lora, WITHOUT),
    ]
    _, told, codes = run_in_turn(tmp_path, 2, *(("train.fit", line) for line in lines))
    assert codes == [[0, 0]] * len(lines), told
    assert DROPPED in told and BEGUN in told
    main(words("to-one", WHOLE, WITHOUT, RESUME, "--data.batch_size=2"))

    assert same_tensors(live(tmp_path / "without"), live(tmp_path / "with"))
    for name in ("offloaded", "resumed", "dropped"):
        assert same_tensors(last(tmp_path / name), last(tmp_path / "without")), name
    assert same_tensors(live(tmp_path / "begun"), live(tmp_path / "with"))
    for name in ("sequence", "lora", "lora-ddp"):
        assert same_tensors(live(tmp_path / name), live(tmp_path / f"{name}-with")), name
    for name in ("one-to-two", "to-one"):
        assert read_losses(tmp_path / name)["train/loss"] == pytest.approx(
            read_losses(tmp_path / "without")["train/loss"], rel=1e-4
        )
    folders = [tmp_path / name / "checkpoints/last.ckpt" for name in ("with", "without")]
    sizes = [sum(x.stat().st_size for x in folder.glob("*.safetensors")) for folder in folders]
    state = read_training_checkpoint(folders[1])["state_dict"]
    assert sizes[0] - sizes[1] == pytest.approx(weight_bytes(state), rel=0.1)
    assert "current_model_state" not in read_training_checkpoint(folders[1])
