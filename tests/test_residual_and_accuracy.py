"""What the fp32 residual stream costs and gains, and what FP8 costs in accuracy: the experiments in small."""

import json

import pytest
import torch

from docs.make.accuracy import command as accuracy
from docs.make.residual import command as residual_command
from docs.make.residual import residual
from eval.bench.sizes import SIGMAS
from tests.helpers.commands import refused_unmeasured
from tests.helpers.tiny_run import tiny_checkpoint


def read(path):
    held = json.loads(path.read_text())
    assert {"command", "device", "torch"} <= set(held)
    return held["rows"]


def test_residual_measures_error_time_and_memory_of_each_stream(tmp_path, capsys):
    residual(size="tiny", layers=2, rounds=2, repeats=1, steps=2, warmup=1, out=tmp_path / "out/residual.json")
    rows = read(tmp_path / "out/residual.json")
    measured = {(row["residual"], row["measured"]): row for row in rows}
    streams = ("compute", "fp32")
    ways = ("error, autocast", "error, bf16 weights")
    assert list(measured) == [
        *((stream, way) for stream in (*streams, "stock diffusers") for way in ways),
        *((stream, what) for what in ("forward", "training step") for stream in streams),
    ]
    for way in ways:
        coarse, fine, stock = (measured[stream, way]["error"] for stream in (*streams, "stock diffusers"))
        assert 0.001 < fine < 0.8 * coarse and coarse == pytest.approx(stock, rel=0.3)
    for what in ("forward", "training step"):
        coarse, fine = (measured[stream, what] for stream in streams)
        assert all(row["step_seconds"] > 0 for row in (coarse, fine))
        assert what != "forward" or all(len(row["all_step_seconds"]) == 2 for row in (coarse, fine))
        assert fine["kept_gb"] == 2 * coarse["kept_gb"] == 2 * 320 * 128 * 4 / 1e9
    coarse, fine = (measured[stream, "training step"] for stream in streams)
    assert coarse["step_seconds_by_regime"].keys() == fine["step_seconds_by_regime"].keys() == SIGMAS.keys()
    assert capsys.readouterr().out.count("\n|") == len(rows) + 1


def test_accuracy_of_random_inputs(tmp_path):
    accuracy(["--grid=[4,8,8]", "--tile=[2,4,4]", f"--out={tmp_path / 'accuracy.json'}"])
    rows = read(tmp_path / "accuracy.json")
    errors = {tuple(x for name, x in row.items() if name != "error"): row["error"] for row in rows}
    assert len(errors) == len(rows) == 4 * (1 + 16 + 17) and all(0.001 < error < 0.5 for error in errors.values())
    whole = ("q k v", "e4m3", True, None, 1, "fp32")
    assert errors["gaussian", *whole, "fp32"] < errors["gaussian", *whole, "e4m3"]
    outliers = {(row["rounded"], row["codes"], row["smooth_k"], row["rotate"]): row["error"]
                for row in rows[68:85]}  # fmt: skip
    assert all(row["inputs"] == "outliers" for row in rows[68:102])
    for codes, bound in (("e4m3", 0.05), ("int8", 0.035)):
        assert outliers["q k v", codes, True, None] < bound < 0.04 + bound < 0.1 + outliers["q k v", codes, False, None]
    assert outliers["q k", "int8", True, None] < 0.02 < outliers["v", "e4m3", True, None] < 0.03


def test_accuracy_measures_what_the_layers_of_a_model_compute(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "run")
    accuracy([f"--checkpoint={checkpoint}", f"--out={tmp_path / 'accuracy.json'}"])
    rows = read(tmp_path / "accuracy.json")
    assert [*dict.fromkeys(row["inputs"] for row in rows)] == ["layer 0", "layer 1", "layer 2"]
    assert len(rows) == 3 * 34 and all(0 < row["error"] < 0.2 for row in rows)
    assert len({row["error"] for row in rows}) > 80


@pytest.mark.parametrize(
    ("command", "args", "message"),
    [
        (
            residual_command,
            ["--size=tiny", "--rounds=0"],
            "rounds is 0, expected a whole number of at least 1",
        ),
        (residual_command, ["--size=tiny", "--base=fp8", "--lora=2"], "base fp8 needs a GPU with float8"),
        (residual_command, ["--size=tiny", "--parts=[]"], "parts is empty"),
        (residual_command, ["--size=tiny", "--schedule=stock"], "schedule is 'stock', expected one of fps"),
        (residual_command, ["--size=tiny", "--out=/proc/none/k.json"], "/proc/none can't be written"),
        (accuracy, ["--out=/proc/none/k.json"], "/proc/none can't be written"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line_before_anything_is_measured(command, args, message, capsys):
    if "GPU" in message and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    refused_unmeasured(capsys, command, args, message)
