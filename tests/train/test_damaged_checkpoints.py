"""Checkpoints of train.fit in which any one field is missing, of another type or absurd: one clear line."""

import copy

import pytest
import torch

from fps_flex.wan.codecs import ByteText, PixelCodec
from fps_flex.wan.trained import read_training_checkpoint
from fps_flex.wan.weights import open_weights, read_settings
from tests.helpers.commands import refused
from tests.helpers.tiny_run import read_checkpoint, tiny_words, train_tiny
from train.checkpoints import checkpoint_folder, trained_steps
from train.fit import main
from train.module import FlowModule
from train.resume import check_checkpoint, find_checkpoint

SMALL = ["--model.wan.dim=32", "--model.wan.ffn_dim=32", "--model.wan.layers=1"]
MISSING = object()
JUNK = [MISSING, None, "junk", -1, float("nan"), 10**9, [], {}, True, [10**9] * 3]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run; not to be changed."""
    return train_tiny(tmp_path_factory.mktemp("run") / "run", *SMALL)


@pytest.fixture(scope="module")
def saved(run):
    """What its last.ckpt holds."""
    return read_checkpoint(run)


@pytest.fixture(scope="module")
def module(saved):
    record = saved["fps_flex"]
    from fps_flex import FPSAttention
    from fps_flex.wan import WanConfig

    return FlowModule(
        wan=WanConfig(**record["wan"]), attention=FPSAttention.from_dict(record["attention"]),
        codec=PixelCodec(**record["codec"]["options"]), text=ByteText(**record["text"]["options"]),
    )  # fmt: skip


def fields(value, keys=()):
    """The paths to all parts of plain data, but of lists' and of the tensors' by their hundreds one each."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    items = list(items)
    for key, item in items[:2] if len(items) > 40 and keys else items:
        yield (*keys, key)
        yield from fields(item, (*keys, key))


def damaged(saved, keys, junk):
    """A copy with one part changed, which shares the tensors."""
    made = copy.copy(saved)
    inner = made
    for key in keys[:-1]:
        inner[key] = copy.copy(inner[key])
        inner = inner[key]
    if junk is not MISSING:
        inner[keys[-1]] = junk
    elif isinstance(inner, list):
        inner.pop(keys[-1])
    else:
        del inner[keys[-1]]
    return made


def all_paths(saved):
    """All but most options, which are compared one by one with this run's, and Lightning's loops, which are anew."""
    options = ((), *((name,) for name in list(saved["fps_flex"]["options"])[:2]))
    for keys in fields(saved):
        is_option, is_of_loop = keys[:2] == ("fps_flex", "options"), keys[0] == "loops" and len(keys) > 2
        if not is_of_loop and (not is_option or keys[2:] in options):
            yield keys


def outcome(read, path):
    """None where it worked, or the line that it was refused with."""
    try:
        read(path)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error), error
        return str(error)
    return None


@pytest.mark.slow
def test_every_reader_works_or_says_what_is_wrong_with_the_file(saved, module, tmp_path):
    path, tried, refusals = tmp_path / "damaged.ckpt", 0, 0
    readers = (read_training_checkpoint, open_weights, lambda x: open_weights(x, "live"), read_settings,
               lambda x: check_checkpoint(x, module))  # fmt: skip
    for i, keys in enumerate(all_paths(saved)):
        for junk in (
            MISSING,
            *(JUNK[1 + (4 * i + j) % (len(JUNK) - 1)] for j in range(2)),
        ):  # in turn: it takes a while
            torch.save(damaged(saved, keys, junk), path)
            lines = [outcome(read, path) for read in readers]
            assert trained_steps(path) is None or isinstance(trained_steps(path), int)
            tried += 1
            refusals += any(lines)
    assert tried > 200 and refusals > tried / 2
    print(f"{refusals} of {tried} damaged checkpoints are refused by one reader or more")


def test_every_size_and_the_noise_levels_are_asked_for(saved, tmp_path):
    path = tmp_path / "damaged.ckpt"
    for name in saved["fps_flex"]["wan"]:
        torch.save(damaged(saved, ("fps_flex", "wan", name), MISSING), path)
        for read in (open_weights, read_settings):
            assert f"is no checkpoint of this project (its fps_flex.wan lacks {name}: expected" in outcome(read, path)
    torch.save(damaged(saved, ("fps_flex", "noise_levels"), MISSING), path)
    assert "(it lacks fps_flex.noise_levels)" in outcome(open_weights, path)


WEIGHT = "model.head.head.weight"
STRANGE = {
    "twice": ("head.head.weight", lambda x: x, f"{WEIGHT} and head.head.weight, which are both head.head.weight"),
    "sparse": (WEIGHT, lambda x: x.to_sparse(), f"{WEIGHT} without its values, or sparse: expected plain tensors"),
    "csr": (WEIGHT, lambda x: x.to_sparse_csr(), f"{WEIGHT} without its values, or sparse"),
    "meta": (WEIGHT, lambda x: x.to("meta"), f"{WEIGHT} without its values, or sparse"),
    "newline": ("a\nb", lambda x: x, "has a key that is no name"),
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("part", ["state_dict", "current_model_state"])
def test_weights_that_are_no_plain_tensors_of_their_own_names_are_refused(saved, module, tmp_path, part, kind):
    path = tmp_path / "damaged.ckpt"
    name, make, message = STRANGE[kind]
    torch.save(damaged(saved, (part, name), make(saved[part][WEIGHT])), path)
    for read in (open_weights, lambda x: open_weights(x, "live"), read_settings, lambda x: check_checkpoint(x, module)):
        line = outcome(read, path)
        assert f"{path} is no checkpoint of this project (its {part} " in line and message in line, line


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["state_dict", "current_model_state"])
def test_a_run_does_not_go_on_with_weights_that_are_not_finite(saved, module, tmp_path, part, value):
    path = tmp_path / "damaged.ckpt"
    weight = saved[part][WEIGHT].clone()
    weight[-1, -1] = value
    torch.save(damaged(saved, (part, WEIGHT), weight), path)
    line = outcome(lambda x: check_checkpoint(x, module), path)
    assert f"{path} is no checkpoint to go on from: its {part}'s {WEIGHT} holds a value of " in line
    torch.save(damaged(saved, (part, WEIGHT), weight.isnan()), path)
    assert f"its {part}'s {WEIGHT} is of torch.bool" in outcome(lambda x: check_checkpoint(x, module), path)


def test_a_run_does_not_go_on_with_momenta_that_are_not_plain_and_finite(saved, module, tmp_path):
    path, keys = tmp_path / "damaged.ckpt", ("optimizer_states", 0, "state", 0, "exp_avg")
    mean = saved["optimizer_states"][0]["state"][0]["exp_avg"]
    for junk, message in (
        (mean / 0, "its optimizer's exp_avg of parameter 0 holds a value of "),
        (mean.to_sparse(), "its optimizer's state of parameter 0 is not one of shape"),
        (mean.to("meta"), "its optimizer's state of parameter 0 is not one of shape"),
    ):
        torch.save(damaged(saved, keys, junk), path)
        assert message in outcome(lambda x: check_checkpoint(x, module), path)


@pytest.mark.parametrize("name", ["step", "exp_avg_sq"])
def test_nor_with_counts_or_squares_below_0(saved, module, tmp_path, name):
    """A step with them would make weights that aren't finite."""
    keys = ("optimizer_states", 0, "state", 3, name)
    path, value = tmp_path / "damaged.ckpt", saved["optimizer_states"][0]["state"][3][name]
    torch.save(damaged(saved, keys, value - value.max() - 1), path)
    line = outcome(lambda x: check_checkpoint(x, module), path)
    assert f"its optimizer's {name} of parameter 3 holds a value of -" in line and "expected none below 0" in line


REFUSED_TO_RESUME = [
    *((name,) for name in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "loops",
                           "callbacks", "global_step", "epoch", "pytorch-lightning_version", "fps_flex")),
    ("loops", "fit_loop"), ("optimizer_states", 0), ("optimizer_states", 0, "state"),
    ("optimizer_states", 0, "state", 0), ("optimizer_states", 0, "state", 0, "exp_avg"),
    ("optimizer_states", 0, "param_groups"), ("optimizer_states", 0, "param_groups", 0),
    ("optimizer_states", 0, "param_groups", 0, "params"), ("lr_schedulers", 0), ("lr_schedulers", 0, "last_epoch"),
    ("fps_flex", "position"), ("fps_flex", "position", "step"), ("fps_flex", "position", "taken"),
    ("fps_flex", "position", "validated"), ("fps_flex", "options"), ("fps_flex", "run_id"),
]  # fmt: skip


@pytest.mark.parametrize("keys", REFUSED_TO_RESUME, ids=lambda keys: ".".join(map(str, keys)))
def test_what_is_needed_to_go_on_is_named(saved, module, tmp_path, keys):
    """The part itself, or what it is a part of."""
    path = tmp_path / "damaged.ckpt"
    kept = {("fps_flex", "position", "validated"): [True], ("callbacks",): [{}], ("fps_flex", "options"): [{}],
            ("fps_flex", "position", "taken"): [[10**9] * 3],
            ("lr_schedulers", 0, "last_epoch"): [10**9]}  # fmt: skip
    for junk in JUNK:
        if any(junk is x or (x == junk and junk is not MISSING and type(x) is type(junk)) for x in kept.get(keys, [])):
            continue
        torch.save(damaged(saved, keys, junk), path)
        line = outcome(lambda x: check_checkpoint(x, module), path)
        assert line and "is no checkpoint" in line and len(line) < 600, (junk, line)
        names = [str(key) for key in keys if isinstance(key, str)]
        assert any(name in line for name in (*names, "optimizer", "step")), (junk, line)


def test_of_several_checkpoints_the_damaged_ones_are_left_aside(saved, tmp_path):
    folder = checkpoint_folder(tmp_path)
    folder.mkdir()
    torch.save(saved, folder / "best.ckpt")
    for junk in ("2", None, float("nan"), -1, True):
        torch.save(damaged(saved, ("fps_flex", "position", "step"), junk), folder / "last.ckpt")
        assert find_checkpoint(tmp_path, "last") == folder / "best.ckpt"
        with pytest.raises(ValueError, match="position.step is .*, expected a whole number of at least 0"):
            read_training_checkpoint(folder / "last.ckpt")
    assert find_checkpoint(tmp_path, str(folder / "best.ckpt")) == folder / "best.ckpt"
    with pytest.raises(ValueError, match="--ckpt_path is"):
        find_checkpoint(tmp_path, "\0")


RESUMED = [("callbacks", "x"), ("loops",), ("optimizer_states", 0, "state", 3, "exp_avg"), ("lr_schedulers", 0),
           ("fps_flex", "position", "taken"), ("fps_flex", "options"), ("current_model_state",)]  # fmt: skip


@pytest.mark.parametrize("keys", RESUMED, ids=lambda keys: ".".join(map(str, keys)))
def test_a_run_from_a_damaged_checkpoint_does_not_begin(saved, tmp_path, capfd, keys):
    path = tmp_path / "damaged.ckpt"
    for junk in ([1, 2], {}):
        torch.save(damaged(saved, keys, junk), path)
        if keys == ("callbacks", "x") and junk == {}:
            continue
        words = tiny_words(tmp_path / "run", *SMALL, f"--ckpt_path={path}", "--trainer.max_steps=3")
        assert str(path) in refused(capfd, main, words)
        assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_the_whole_one_goes_on(saved, tmp_path, capfd):
    path = tmp_path / "whole.ckpt"
    torch.save(saved, path)
    train_tiny(tmp_path / "run", *SMALL, f"--ckpt_path={path}", "--trainer.max_steps=3")
    assert trained_steps(checkpoint_folder(tmp_path / "run") / "last.ckpt") == 3
